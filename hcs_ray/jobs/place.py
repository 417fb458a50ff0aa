"""The ``cluster`` section of a study on the pods of a RayJob: where they run, as whom, with which image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from hcs_ray.config import ClusterConfig
from hcs_ray.jobs.kinds import PART_OF
from hcs_ray.jobs.lint.queues import KUEUE

Object = dict[str, Any]

CA_FOLDER: Final = "/etc/hcs-ray/ca"
_CA_VOLUME: Final = "ca-bundle"
# boto3; the standard library, httpx and gRPC; requests and wandb.
_CA_VARIABLES: Final = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


def templates(job: Object) -> Iterator[Object]:
    """The pod templates of a RayJob: the submitter's, the head's, the worker groups'."""
    if "submitterPodTemplate" in job["spec"]:
        yield job["spec"]["submitterPodTemplate"]
    yield from ray_templates(job)


def ray_templates(job: Object) -> Iterator[Object]:
    """Those that Ray runs in."""
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        yield group["template"]


def containers_of(template: Object) -> list[Object]:
    """All containers of a pod template, the init containers first."""
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def image_of(job: Object) -> str:
    """The image of a job is that of its head."""
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    return str(head["spec"]["containers"][0]["image"])


def place(job: Object, cluster: ClusterConfig) -> None:
    """Write the section into a RayJob."""
    ours = image_of(job)
    for template in templates(job):
        _place_pod(template["spec"], cluster)
    for template in ray_templates(job):
        pod = template["spec"]
        containers = [item for item in containers_of(template) if item["image"] == ours]
        if cluster.service_account:
            pod["serviceAccountName"] = cluster.service_account
        if _has_gpu(pod):
            _place_gpu_pod(pod, cluster)
        for container in containers:
            _read_secrets(container, cluster.env_from)
        if cluster.ca_bundle:
            _trust(pod, containers, cluster.ca_bundle.config_map, cluster.ca_bundle.key)
    if cluster.image:
        _use_image(job, ours, cluster.image)
    if cluster.queue:
        labels_of(job)[KUEUE] = cluster.queue
        job["spec"]["suspend"] = True  # Kueue lets it begin; without Kueue it waits


def label(manifest: Object, labels: dict[str, str]) -> None:
    """Set labels on an object, and on all pods of a RayJob; ours come last."""
    everywhere = [manifest, *(templates(manifest) if manifest["kind"] == "RayJob" else ())]
    for item in everywhere:
        labels_of(item).update({PART_OF: "hcs-ray", **labels})


def labels_of(item: Object) -> dict[str, str]:
    """The labels of an object or a pod template, made where there are none."""
    metadata: Object = item.setdefault("metadata", {})
    found: dict[str, str] = metadata.setdefault("labels", {})
    return found


def mounts_of(job: Object) -> set[str]:
    """The folders that every pod of Ray mounts into its first container."""
    found = [
        {mount["mountPath"] for mount in template["spec"]["containers"][0].get("volumeMounts", ())}
        for template in ray_templates(job)
    ]
    return set.intersection(*found)


def _place_pod(pod: Object, cluster: ClusterConfig) -> None:
    if cluster.node_selector:
        pod["nodeSelector"] = {**pod.get("nodeSelector", {}), **cluster.node_selector}
    if cluster.priority_class:
        pod["priorityClassName"] = cluster.priority_class
    wanted = {
        "tolerations": [toleration.manifest() for toleration in cluster.tolerations],
        "imagePullSecrets": [{"name": name} for name in cluster.image_pull_secrets],
    }
    for key, items in wanted.items():
        for item in items:  # each once, though two places name it
            if item not in pod.setdefault(key, []):
                pod[key].append(item)


def _place_gpu_pod(pod: Object, cluster: ClusterConfig) -> None:
    if cluster.runtime_class:
        pod["runtimeClassName"] = cluster.runtime_class
    if cluster.gpu_node_selector:
        pod["nodeSelector"] = {**pod.get("nodeSelector", {}), **cluster.gpu_node_selector}


def _has_gpu(pod: Object) -> bool:
    limits = pod["containers"][0].get("resources", {}).get("limits", {})
    return any(kind.endswith("gpu") for kind in limits)


def _read_secrets(container: Object, secrets: tuple[str, ...]) -> None:
    """The last one wins where two have the same variable."""
    for name in secrets:
        container.setdefault("envFrom", []).append({"secretRef": {"name": name}})


def _trust(pod: Object, containers: list[Object], config_map: str, key: str) -> None:
    volumes = [volume for volume in pod.get("volumes", ()) if volume["name"] != _CA_VOLUME]
    pod["volumes"] = [*volumes, {"name": _CA_VOLUME, "configMap": {"name": config_map}}]
    for container in containers:
        mounts = [item for item in container.get("volumeMounts", ()) if item["name"] != _CA_VOLUME]
        container["volumeMounts"] = [
            *mounts,
            {"name": _CA_VOLUME, "mountPath": CA_FOLDER, "readOnly": True},
        ]
        variables = [item for item in container.get("env", ()) if item["name"] not in _CA_VARIABLES]
        bundle = [{"name": name, "value": f"{CA_FOLDER}/{key}"} for name in _CA_VARIABLES]
        container["env"] = [*variables, *bundle]


def _use_image(job: Object, ours: str, image: str) -> None:
    options = job["spec"]["rayClusterSpec"].get("autoscalerOptions", {})
    everywhere = [item for template in templates(job) for item in containers_of(template)]
    for container in (*everywhere, options):
        if container.get("image") == ours:
            container["image"] = image
