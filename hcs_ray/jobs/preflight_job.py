"""The preflight of a job: `hcs-ray preflight` in the image, and as the account, that the job will have."""

from __future__ import annotations

import copy
import shlex
import time
from importlib.metadata import version
from typing import Any, Final

from hcs_ray.contracts import HcsError
from hcs_ray.jobs.gather import listed
from hcs_ray.jobs.held import run_of, stage_of
from hcs_ray.jobs.kinds import (
    EVENT,
    JOB,
    JOB_NAME,
    POD,
    PREFLIGHT,
    Object,
    condition,
    name_of,
    uid_of,
)
from hcs_ray.jobs.kube import Kube, KubeError
from hcs_ray.jobs.manifests import Manifest
from hcs_ray.jobs.waiting import warnings, why_lost, why_waiting
from hcs_ray.jobs.words import Say

CONTAINER: Final = "preflight"
_DEADLINE_S: Final = 900  # a node may have to be bought, an image pulled
_KEPT_S: Final = 3600  # afterwards, and with it what it owns
_LOOK_EVERY_S: Final = 2.0
_HOPELESS_S: Final = 45.0
# What a pod waits for in vain.
_HOPELESS: Final = ("ImagePull", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError")
_SIZE: Final = {
    "requests": {"cpu": "500m", "memory": "2Gi"},
    "limits": {"cpu": "1", "memory": "2Gi"},
}
# What a container of the head keeps: who and where it is, not what Ray does in it.
_KEPT: Final = ("image", "imagePullPolicy", "workingDir", "env", "envFrom", "securityContext", "volumeMounts")
_POD_KEPT: Final = (
    "serviceAccountName", "imagePullSecrets", "nodeSelector", "tolerations", "priorityClassName",
    "securityContext", "volumes", "hostAliases", "dnsConfig", "dnsPolicy",
)  # fmt: skip


def preflight_job(ray_job: Manifest) -> Manifest:
    """The Kubernetes Job that looks at a bound RayJob's study from a pod like its head. Pure.

    It ends by itself, and Kubernetes deletes it an hour later, with all that it still owns.
    """
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]
    name = name_of(ray_job)
    labels = {**(ray_job["metadata"].get("labels") or {}), PREFLIGHT: name}
    # A queue would let it wait for what the job itself needs.
    labels = {key: value for key, value in labels.items() if not key.startswith("kueue.x-k8s.io/")}
    pod: dict[str, Any] = {key: copy.deepcopy(head["spec"][key]) for key in _POD_KEPT if key in head["spec"]}
    main = head["spec"]["containers"][0]
    container = {"name": CONTAINER, **{key: copy.deepcopy(main[key]) for key in _KEPT if key in main}}
    container |= {"command": command(ray_job), "resources": copy.deepcopy(_SIZE)}
    pod |= {"restartPolicy": "Never", "automountServiceAccountToken": False, "containers": [container]}
    metadata = {"name": f"{name}-preflight", "labels": labels}
    if "namespace" in ray_job["metadata"]:
        metadata["namespace"] = ray_job["metadata"]["namespace"]
    template = {"metadata": {"labels": labels, "annotations": _annotations(head)}, "spec": pod}
    spec = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": _DEADLINE_S,
        "ttlSecondsAfterFinished": _KEPT_S,
        "template": template,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def command(ray_job: Manifest) -> list[str]:
    """`hcs-ray preflight` with what the job's entrypoint names."""
    words = shlex.split(ray_job["spec"]["entrypoint"])
    files = [word for word in words if word.startswith("/study/")]
    found = ["hcs-ray", "preflight", files[0], "--stage", stage_of(ray_job), "--name", run_of(ray_job)]
    if "--run" in words:
        found += ["--run", words[words.index("--run") + 1]]
    if len(files) > 1:
        found += ["--sweep", files[1]]
    found += ["--expect-version", version("hcs_ray")]
    return [*found, "--expect-ray", str(ray_job["spec"]["rayClusterSpec"]["rayVersion"])]


def await_preflight(kube: Kube, job: Object, say: Say) -> None:
    """Wait for a preflight's end, and show what it says.

    Raises:
        HcsError: it found something wrong, or could not run; the reason is its last line.
    """
    name, said = name_of(job), ""
    hopeless_since: float | None = None
    while True:
        found = kube.get(JOB, name)
        if found is None:
            raise HcsError(f"preflight {name} was deleted while it ran")
        if condition(found, "Complete").get("status") == "True":
            _show(kube, name, say)
            return
        failed = condition(found, "Failed")
        if failed.get("status") == "True":
            raise HcsError(_why_failed(kube, name, failed, said, say))
        waiting = _waiting(kube, found)
        if waiting and waiting != said:
            say(f"  preflight: {waiting}")
        said = waiting or said
        if any(reason in waiting for reason in _HOPELESS):
            hopeless_since = hopeless_since or time.monotonic()
            if time.monotonic() - hopeless_since > _HOPELESS_S:
                raise HcsError(f"preflight: {waiting}")
        else:
            hopeless_since = None
        time.sleep(_LOOK_EVERY_S)


def _annotations(head: Manifest) -> dict[str, str]:
    """Those that concern the pod's network or identity; not those by which Ray's metrics are found."""
    found = head.get("metadata", {}).get("annotations") or {}
    return {key: value for key, value in found.items() if not key.startswith("prometheus.io/")}


def _pods(kube: Kube, name: str) -> list[Object]:
    return listed(kube, POD, f"{JOB_NAME}={name}")


def _waiting(kube: Kube, job: Object) -> str:
    """Why it has not begun; empty where it runs."""
    if job["spec"].get("suspend"):
        return "something holds its Job suspended, as Kueue does with jobs that name no queue; --no-preflight"
    events = listed(kube, EVENT, fields="type=Warning")
    pods = _pods(kube, name_of(job))
    for pod in pods:
        if (why := why_waiting(pod, events)) is not None:
            return why
    return "" if pods else next(iter(warnings(events, {uid_of(job)})), "")


def _show(kube: Kube, name: str, say: Say) -> list[str]:
    """Show what the preflight has printed; its lines."""
    lines: list[str] = []
    for pod in _pods(kube, name):
        try:
            lines += kube.log(name_of(pod), CONTAINER)
        except KubeError as error:
            say(f"  preflight: its log cannot be read: {error}")
    for line in lines:
        say(f"  {line}")
    return lines


def _why_failed(kube: Kube, name: str, failed: Object, waited: str, say: Say) -> str:
    lines = [line for line in _show(kube, name, say) if line.strip()]
    if lines:
        return lines[-1].removeprefix("hcs-ray: ")
    lost = next(filter(None, (why_lost(pod) for pod in _pods(kube, name))), None)
    told = lost or waited or failed.get("message") or failed.get("reason")
    return f"preflight: {told}"
