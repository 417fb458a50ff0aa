"""Our rules for pods: what they ask for, how they end, and shared memory that holds the object store."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal

from hcs_ray.jobs.findings import Finding
from hcs_ray.jobs.lint.job import Job, Pod, is_gpu
from hcs_ray.jobs.lint.names import is_label
from hcs_ray.jobs.lint.node import Node, quantity

_DRAIN = ["ray", "stop", "--grace-period"]
_DEFAULT_GRACE = 30  # seconds that Kubernetes gives a pod to end
_STORE = "object-store-memory"


def pod_findings(job: Job) -> Iterator[Finding]:
    """Every rule for pods that a job breaks."""
    for pod in job.pods:
        yield from _pod(pod)
        yield from _volumes(pod)
        for container in pod.containers:
            yield from _resources(container)
        if pod.role != "submitter":
            yield from _shared_memory(pod)
        if pod.role == "worker":
            yield from _ending(pod)
    if job.autoscales:
        yield from _resources(job.cluster["autoscalerOptions"])


def _pod(pod: Pod) -> Iterator[Finding]:
    if pod.spec["restartPolicy"].value != "Never":
        yield pod.spec["restartPolicy"].error(
            "a pod that ended is replaced by a new one: autoscaler v2 and the submitter's Job need it",
            "write Never",
        )
    if pod.role != "head" and pod.spec["automountServiceAccountToken"].value is not False:
        yield pod.spec["automountServiceAccountToken"].warning(
            f"a {pod.role} does not speak to the API server", "write false"
        )
    labels = pod.template.at("metadata.labels")
    for key in sorted(labels.keys):
        if not is_label(key, str(labels[key].value)):
            yield labels[key].error(
                "no pod is made with it: it is no label", "letters, digits, dashes, dots and _; at most 63"
            )


def _volumes(pod: Pod) -> Iterator[Finding]:
    volumes = {volume["name"].value for volume in pod.spec["volumes"]}
    names = [container["name"].value for container in pod.containers]
    for number, container in enumerate(pod.containers):
        if container["name"].value in names[:number]:
            yield container["name"].error("no pod is made with two containers of one name", "rename one")
        for mount in container["volumeMounts"]:
            if mount["name"].value not in volumes:
                yield mount["name"].error(f"the pod has no volume {mount['name'].value}", "add it to volumes")
    for volume in pod.spec["volumes"]:
        if volume.at("emptyDir.medium").value == "Memory" and not volume.at("emptyDir.sizeLimit"):
            yield volume.at("emptyDir.sizeLimit").error("in memory it may fill the node", "write a size")


def _resources(container: Node) -> Iterator[Finding]:
    requests, limits = container["resources"]["requests"], container["resources"]["limits"]
    for part in (requests, limits):
        for kind in ("cpu", "memory"):
            if part[kind].value is None:
                yield part[kind].error(
                    "every container says what it needs, or a ResourceQuota refuses its pod", "write it"
                )
    for kind in sorted((requests.keys | limits.keys) - {"cpu"}):
        pair = [part[kind].value for part in (requests, limits)]
        if None in pair:
            if kind != "memory":
                yield container["resources"]["requests"][kind].error(
                    f"{kind} has one amount, as request and as limit", "write both"
                )
        elif quantity(pair[0]) != quantity(pair[1]):
            yield requests[kind].error(
                f"{kind} has one amount, as request and as limit: with less it is killed under pressure",
                f"write {pair[1]}",
            )
    cpu = [part["cpu"].value for part in (requests, limits)]
    if None not in cpu and quantity(cpu[0]) > quantity(cpu[1]):
        yield requests["cpu"].error("it is above its limit", f"write at most {cpu[1]}")


def _shared_memory(pod: Pod) -> Iterator[Finding]:
    store = pod.group["rayStartParams"][_STORE]
    if not str(store.value or "").isdecimal():
        yield store.error("Ray would take a third of the memory", 'write bytes, as "2147483648"')
        return
    mount = next((item for item in pod.main["volumeMounts"] if item["mountPath"].value == "/dev/shm"), None)  # noqa: S108
    name = None if mount is None else mount["name"].value
    volume = next((item for item in pod.spec["volumes"] if item["name"].value == name), None)
    size = Decimal(0) if volume is None else quantity(volume.at("emptyDir.sizeLimit").value or 0)
    if volume is None or volume.at("emptyDir.medium").value != "Memory" or size < Decimal(store.value):
        place = pod.spec["volumes"] if volume is None else volume.at("emptyDir.sizeLimit")
        yield place.error(
            f"shared memory is smaller than the object store ({store.value} bytes)",
            "mount an emptyDir, medium Memory and at least as large, at /dev/shm",
        )
    memory = pod.main["resources"]["limits"]["memory"]
    if memory.value is not None and quantity(memory.value) <= size:
        yield memory.error("what lies in /dev/shm counts as memory of the container", "raise it")


def _ending(pod: Pod) -> Iterator[Finding]:
    stop = pod.main["lifecycle"].at("preStop.exec.command")
    grace = pod.spec["terminationGracePeriodSeconds"].value
    command = [str(part) for part in stop.value or ()]
    seconds = command[3] if command[:3] == _DRAIN and len(command) > 3 else ""
    if not seconds.isdecimal() or int(seconds) >= (_DEFAULT_GRACE if grace is None else grace):
        yield stop.error(
            "a worker lets Ray end within terminationGracePeriodSeconds",
            f"write {' '.join(_DRAIN)} and less than the pod's grace",
        )


def head_and_worker_findings(job: Job) -> Iterator[Finding]:
    """The head drives and takes no work; a worker offers all that its container has."""
    for pod in job.pods:
        parameters = pod.group["rayStartParams"]
        if pod.role == "head":
            yield from _head(pod)
        if pod.role == "worker":
            for key in ("num-cpus", "num-gpus"):
                if parameters[key].value is not None:
                    yield parameters[key].error("it follows from the container's limits", "leave it out")


def _head(pod: Pod) -> Iterator[Finding]:
    cpus = pod.group.at("rayStartParams.num-cpus")
    if cpus.value != "0":
        yield cpus.error("the head takes no work, or its memory goes to tasks", 'write "0"')
    limits = pod.main["resources"]["limits"]
    for kind in sorted(filter(is_gpu, limits.keys)):
        yield limits[kind].error("a GPU of the head idles", "leave it out")
    safe = pod.template.at("metadata.annotations")["cluster-autoscaler.kubernetes.io/safe-to-evict"]
    if safe.value != "false":
        yield safe.error("the cluster's autoscaler must not move the head", 'write "false"')
