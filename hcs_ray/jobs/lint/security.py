"""Pod Security ``restricted`` in every container, a read-only root, and no secret in a manifest."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final

from hcs_ray.jobs.findings import Finding
from hcs_ray.jobs.lint.job import Job, Pod
from hcs_ray.jobs.lint.node import Node

_CONTEXT: Final[dict[str, Any]] = {
    "runAsNonRoot": True,
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
}
_PROFILES = ("RuntimeDefault", "Localhost")
_VOLUMES: Final = {
    "configMap", "csi", "downwardAPI", "emptyDir",
    "ephemeral", "persistentVolumeClaim", "projected", "secret",
}  # fmt: skip
_HOST = ("hostNetwork", "hostPID", "hostIPC")
_SECRET_NAME = re.compile(r"(?i)(^|_)(secret|token|password|passwd|credentials?|(api|access|private)?key)$")
_SECRET_VALUE = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b|-----BEGIN [A-Z ]*PRIVATE KEY-----|://[^/\s:@]+:[^/\s:@]+@"
)
_BY_REFERENCE = "keep it in a Secret: cluster.env_from, or env with valueFrom"


def security_findings(job: Job) -> Iterator[Finding]:
    """Every pod and container that a namespace under ``restricted`` turns away, and what else is unsafe."""
    for pod in job.pods:
        yield from _pod(pod)
        for container in [*pod.containers, *pod.spec["ephemeralContainers"]]:
            yield from _container(container)
    if job.autoscales:
        yield from _container(job.cluster["autoscalerOptions"])


def secret_findings(manifest: Node) -> Iterator[Finding]:
    """Every text of a manifest that holds a secret, wherever it stands."""
    if manifest["kind"].value == "Secret":
        for part in ("data", "stringData"):
            if manifest[part]:
                yield manifest[part].error(
                    "a secret is in no manifest",
                    "make the Secret by itself (kubectl create secret) and name it",
                )
        return
    for node in _texts(manifest):
        if _SECRET_VALUE.search(node.value):
            yield node.error("this looks like a key or a password", _BY_REFERENCE)


def _texts(node: Node) -> Iterator[Node]:
    if isinstance(node.value, str):
        yield node
    for key in sorted(map(str, node.keys)):
        yield from _texts(node[key])
    for item in node:
        yield from _texts(item)


def _pod(pod: Pod) -> Iterator[Finding]:
    for key in _HOST:
        if pod.spec[key]:
            yield pod.spec[key].error("a pod shares no namespace of its node", "leave it out")
    for volume in pod.spec["volumes"]:
        kind = next(iter(volume.keys - {"name"}), "emptyDir")
        if kind not in _VOLUMES:
            yield volume[kind].error("Pod Security restricted forbids such volumes", "take an emptyDir")
    context = pod.spec["securityContext"]
    if context["sysctls"]:
        yield context["sysctls"].error("Pod Security restricted forbids them", "leave it out")
    yield from _kernel(context)


def _container(container: Node) -> Iterator[Finding]:
    context = container["securityContext"]
    for key, value in _CONTEXT.items():
        if context[key].value is not value:
            yield context[key].error(f"it is {str(value).lower()} in every container", "write it")
    if context["runAsUser"].value in (None, 0):
        yield context["runAsUser"].error("a container runs as a user that is not root", "write 10001")
    if context["privileged"]:
        yield context["privileged"].error("no container is privileged", "leave it out")
    if context.at("capabilities.drop").value != ["ALL"]:
        yield context.at("capabilities.drop").error("every container drops all capabilities", "write [ALL]")
    if set(context.at("capabilities.add").value or ()) - {"NET_BIND_SERVICE"}:
        yield context.at("capabilities.add").error("Pod Security restricted forbids them", "leave it out")
    if context["procMount"].value not in (None, "Default"):
        yield context["procMount"].error("Pod Security restricted forbids it", "leave it out")
    if context.at("seccompProfile.type").value is None:
        yield context.at("seccompProfile.type").error("every container has a profile", "write RuntimeDefault")
    yield from _kernel(context)
    yield from _environment(container)
    if not any(mount["mountPath"].value == "/tmp" for mount in container["volumeMounts"]):  # noqa: S108
        yield container["volumeMounts"].error(
            "the root file system is read-only, and Ray writes to /tmp", "mount the volume scratch at /tmp"
        )


def _kernel(context: Node) -> Iterator[Finding]:
    """What a pod's and a container's security context have in common."""
    profile = context.at("seccompProfile.type")
    if profile.value not in (None, *_PROFILES):
        yield profile.error("Pod Security restricted wants a profile", f"write {' or '.join(_PROFILES)}")
    for key in ("user", "role"):
        if context["seLinuxOptions"][key]:
            yield context["seLinuxOptions"][key].error("Pod Security restricted forbids it", "leave it out")
    if context.at("appArmorProfile.type").value == "Unconfined":
        yield context.at("appArmorProfile.type").error(
            "Pod Security restricted forbids it", "write RuntimeDefault"
        )
    if context.at("windowsOptions.hostProcess"):
        yield context.at("windowsOptions.hostProcess").error(
            "Pod Security restricted forbids it", "leave it out"
        )


def _environment(container: Node) -> Iterator[Finding]:
    for port in container["ports"]:
        if port["hostPort"]:
            yield port["hostPort"].error("Pod Security restricted forbids ports of the node", "leave it out")
    for variable in container["env"]:
        if variable["value"] and _SECRET_NAME.search(str(variable["name"].value)):
            yield variable.error(f"{variable['name'].value} is a secret, in plain sight", _BY_REFERENCE)
