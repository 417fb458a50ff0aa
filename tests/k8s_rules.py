"""The rules of KubeRay's controller, and our own for a safe cluster, that a RayJob's schema does not hold."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
Object = dict[str, Any]
HEAD = "spec rayClusterSpec headGroupSpec"

FACTS: Object = {
    "spec submissionMode": "K8sJobMode",  # the schema takes any text
    "spec shutdownAfterJobFinishes": True,  # the TTL and suspension need it, and idle clusters cost
    "spec rayClusterSpec authOptions mode": "token",  # without it KubeRay leaves Ray open
    f"{HEAD} rayStartParams num-cpus": "0",
    f"{HEAD} template metadata annotations cluster-autoscaler.kubernetes.io/safe-to-evict": "false",
}
POSITIVE = ("ttlSecondsAfterFinished", "activeDeadlineSeconds", "preRunningDeadlineSeconds", "backoffLimit")
SECURITY: Object = {  # Pod Security "restricted", and a read-only root file system
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


def cluster(job: Object) -> Any:
    return job["spec"]["rayClusterSpec"]


def groups(job: Object) -> Iterator[tuple[str, Object]]:
    """The head and worker groups that have a pod template, by name."""
    for group in (cluster(job)["headGroupSpec"], *cluster(job)["workerGroupSpecs"]):
        if "template" in group:
            yield group.get("groupName", "head"), group


def parent_of(job: Any, place: str) -> tuple[Any, Any]:
    """The mapping or list, and its key or index, of a place like ``spec rayClusterSpec rayVersion``."""
    *parents, last = (int(part) if part.isdigit() else part for part in place.split())
    for part in parents:
        job = job[part]
    return job, last


def pods(job: Object) -> Iterator[tuple[str, Object]]:
    """The specs of all pods, the submitter's included."""
    yield "submitter", job["spec"]["submitterPodTemplate"]["spec"]
    for name, group in groups(job):
        yield name, group["template"]["spec"]


def quantity(value: str | int) -> Decimal:
    """A Kubernetes quantity as a number: ``"500m"`` -> 0.5, ``"2Gi"`` -> 2147483648."""
    factors = {"m": Decimal("0.001"), "Mi": Decimal(2**20), "Gi": Decimal(2**30)}
    number = str(value).rstrip("mMGi")
    return Decimal(number) * factors.get(str(value).removeprefix(number), Decimal(1))


def pinned_ray() -> str:
    match = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert match
    return match[1]


def findings(job: Object) -> list[str]:
    """Every rule that a job breaks, each with the place."""
    found = [*job_rules(job)]
    if cluster(job)["enableInTreeAutoscaling"]:
        found += container_rules("autoscaler", cluster(job)["autoscalerOptions"])
    for name, pod in pods(job):
        found += pod_rules(name, pod)
    for name, group in groups(job):
        found += [*group_rules(name, group), *shared_memory_rules(name, group)]
    for group in cluster(job)["workerGroupSpecs"]:
        found += worker_rules(group["groupName"], group)
    return found


def job_rules(job: Object) -> Iterator[str]:
    for place, value in FACTS.items():
        here, last = parent_of(job, place)
        if here.get(last) != value:
            yield f"{place}: is not {value}"
    yield from (f"spec {key}: is not positive" for key in POSITIVE if job["spec"].get(key, 0) <= 0)
    if not re.fullmatch(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?", job["metadata"]["name"]):
        yield "metadata name: at most 47 characters, DNS-1035"
    version = cluster(job)["rayVersion"]
    if version != pinned_ray():
        yield f"rayVersion: constraints.txt has {pinned_ray()}"
    if [int(part) for part in version.split(".")[:2]] < [2, 52]:
        yield "rayVersion: tokens need 2.52"
    entrypoint = job["spec"].get("entrypoint", "base --name base")
    if shlex.join(shlex.split(entrypoint)) != entrypoint:
        yield "entrypoint: pasted unquoted into a shell line; it must be one plain command"
    if "--name" not in shlex.split(entrypoint):
        yield "entrypoint: without --name a retry, which is a new cluster, does not resume"


def pod_rules(name: str, pod: Object) -> Iterator[str]:
    if pod.get("restartPolicy") != "Never":
        yield f"{name}: restartPolicy is not Never, as autoscaler v2 and the submitter's Job need it"
    if any(pod.get(key) for key in ("hostNetwork", "hostPID", "hostIPC")):
        yield f"{name}: shares a namespace of the host"
    if any(set(volume) - {"name", "configMap", "emptyDir"} for volume in pod["volumes"]):
        yield f"{name}: a volume of another kind than configMap and emptyDir"
    for container in (*pod.get("initContainers", ()), *pod["containers"]):
        yield from container_rules(name, container)
        repository, _, tag = container["image"].partition(":")
        if tag in ("", "latest") or "." in repository.split("/")[0]:
            yield f"{name}: image {container['image']} has no tag, or names a registry's host"


def container_rules(name: str, container: Object) -> Iterator[str]:
    context = container.get("securityContext", {})
    wrong = [key for key, value in SECURITY.items() if context.get(key) != value]
    yield from (f"{name}: securityContext.{key} is not {SECURITY[key]}" for key in wrong)
    if not context.get("runAsUser") or context.get("privileged"):
        yield f"{name}: runs as root"
    if "/tmp" not in {mount["mountPath"] for mount in container["volumeMounts"]}:
        yield f"{name}: /tmp cannot be written"
    requests, limits = (container["resources"].get(key, {}) for key in ("requests", "limits"))
    if not {"cpu", "memory"} <= set(requests) & set(limits):
        yield f"{name}: cpu and memory need requests and limits"
    unequal = [key for key in {*requests, *limits} - {"cpu"} if requests.get(key) != limits.get(key)]
    yield from (f"{name}: the request for {key} is not its limit" for key in unequal)
    named = [variable["name"] for variable in container["env"] if "value" in variable]
    secret = [variable for variable in named if re.search("KEY|SECRET|TOKEN|PASSWORD", variable)]
    yield from (f"{name}: {variable} has its value in the manifest" for variable in secret)


def group_rules(name: str, group: Object) -> Iterator[str]:
    parameters = set(group["rayStartParams"])
    if group.get("resources") and parameters & {"num-cpus", "num-gpus", "memory", "resources"}:
        yield f"{name}: resources stand beside rayStartParams"
    if "labels" in parameters:
        yield f"{name}: rayStartParams.labels is forbidden"
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    if name == "head" and any("gpu" in key for key in limits):
        yield "head: takes a GPU"
    if name != "head" and parameters & {"num-cpus", "num-gpus"}:
        yield f"{name}: a worker's num-cpus and num-gpus follow from its container"


def shared_memory_rules(name: str, group: Object) -> Iterator[str]:
    pod = group["template"]["spec"]
    mounts = {mount["mountPath"]: mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    shared_memory = volumes.get(mounts.get("/dev/shm"), {}).get("emptyDir", {})
    store = Decimal(group["rayStartParams"]["object-store-memory"])
    if shared_memory.get("medium") != "Memory" or quantity(shared_memory["sizeLimit"]) < store:
        yield f"{name}: /dev/shm is smaller than the object store"


def worker_rules(name: str, group: Object) -> Iterator[str]:
    if not group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]:
        yield f"{name}: replicas outside minReplicas and maxReplicas"
    pod = group.get("template", {}).get("spec")
    if not pod:  # a strategic merge patch does that
        yield f"{name}: its pod template is lost"
        return
    stop = pod["containers"][0].get("lifecycle", {}).get("preStop", {}).get("exec", {}).get("command", [])
    grace = pod.get("terminationGracePeriodSeconds", 30)
    if stop[:3] != ["ray", "stop", "--grace-period"] or int(stop[3]) >= grace:
        yield f"{name}: preStop does not end Ray within terminationGracePeriodSeconds"
