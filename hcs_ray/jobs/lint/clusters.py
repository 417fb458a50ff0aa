"""The rules of KubeRay 1.7's controller for the cluster of a job."""

from __future__ import annotations

from collections.abc import Iterator

from hcs_ray.jobs.findings import Finding
from hcs_ray.jobs.lint.job import Job, has_variable
from hcs_ray.jobs.lint.names import is_label
from hcs_ray.jobs.lint.node import Node

_RAY_RESOURCES = ("num-cpus", "num-gpus", "memory", "resources")
_V2 = "RAY_enable_autoscaler_v2"
_START = "KUBERAY_GEN_AUTOSCALER_START_CMD"
_REDIS = ("RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME")
_TOKENS_SINCE, _PRIORITY_SINCE = (2, 52), (2, 56)
# Field -> feature gate, off by default.
_GATES = {
    "networkPolicy": "RayClusterNetworkPolicy",
    "tlsOptions": "RayClusterMTLS",
    "historyServerOptions": "RayClusterHistoryServer",
}


def cluster_findings(job: Job) -> Iterator[Finding]:
    """Every rule of a job's cluster that it breaks."""
    for group in job.groups:
        yield from _group(group)
    for group in job.workers:
        yield from _worker_group(job, group)
    if job.cluster:
        yield from _autoscaler(job)
        yield from _tokens(job)
        yield from _redis(job)
        yield from _gates(job)


def _group(group: Node) -> Iterator[Finding]:
    parameters = group["rayStartParams"]
    if not group.at("template.spec.containers"):
        yield group.at("template.spec.containers").error("Ray runs in the first container", "write one")
    if group["resources"] and any(parameters[key] for key in _RAY_RESOURCES):
        yield group["resources"].error(
            f"resources exclude rayStartParams {', '.join(_RAY_RESOURCES)}", "keep one of the two"
        )
    if parameters["labels"].value is not None:
        yield parameters["labels"].error("KubeRay forbids it", "write the group's own labels")
    for key in sorted(group["labels"].keys):
        if not is_label(key, str(group["labels"][key].value)):
            yield group["labels"][key].error("it is no label", "letters, digits, dashes; at most 63")


def _worker_group(job: Job, group: Node) -> Iterator[Finding]:
    least, most = group["minReplicas"], group["maxReplicas"]
    for node in (least, most):
        if (node.value or 0) < 0:
            yield node.error("it is not negative", "write 0 or more")
    if least.value is not None and most.value is not None and least.value > most.value:
        yield least.error("it is above maxReplicas", "lower it, or raise maxReplicas")
    if group["suspend"] and job.autoscales:
        yield group["suspend"].error("a group of an autoscaling cluster cannot be suspended", "leave it out")
    idle = group["idleTimeoutSeconds"]
    if (idle.value or 0) < 0:
        yield idle.error("it is not negative", "write 0 or more")
    for node in (idle, group["priority"]):
        if node.value and not _has_v2(job):
            yield node.error("it is of autoscaler v2", "autoscalerOptions.version: v2")
    if group["priority"] and not _at_least(job, _PRIORITY_SINCE):
        yield group["priority"].error("priorities need Ray 2.56", "raise rayVersion, with the image")


def _autoscaler(job: Job) -> Iterator[Finding]:
    options, variable = job.cluster["autoscalerOptions"], has_variable(_ray(job.head), _V2)
    if variable is not None and not job.autoscales and variable["value"].value in ("1", "true"):
        yield variable.error("autoscaler v2 without autoscaling", "enableInTreeAutoscaling: true")
    if variable is not None and job.autoscales and options["version"].value is not None:
        yield variable.error("autoscalerOptions.version says it already", "leave the variable out")
    if job.autoscales and job.autoscaler_v2:
        for group in job.groups:
            policy = group.at("template.spec.restartPolicy")
            if policy.value not in (None, "", "Never"):
                yield policy.error("autoscaler v2 replaces pods and restarts none", "write Never")
    if (options["idleTimeoutSeconds"].value or 0) < 0:
        yield options["idleTimeoutSeconds"].error("it is not negative", "write 0 or more")
    start = has_variable(options, _START)
    if start is not None:
        yield start.error("KubeRay sets it", "leave it out")
    if job.cluster.at("upgradeStrategy.type").value is not None:
        yield job.cluster["upgradeStrategy"].error("it is not of a job's cluster", "leave it out")


def _tokens(job: Job) -> Iterator[Finding]:
    options, version = job.cluster["authOptions"], job.cluster["rayVersion"]
    if options["mode"].value == "token" and not _at_least(job, _TOKENS_SINCE):
        yield version.error("authOptions.mode token needs Ray 2.52 and a rayVersion that says so", "raise it")
    if options["enableK8sTokenAuth"]:
        yield options["enableK8sTokenAuth"].error("a RayJob cannot submit with it", "leave it out")


def _redis(job: Job) -> Iterator[Finding]:
    options, annotations = job.cluster["gcsFaultToleranceOptions"], job.node.at("metadata.annotations")
    if options and annotations["ray.io/ft-enabled"]:
        yield annotations["ray.io/ft-enabled"].error("gcsFaultToleranceOptions say it", "leave it out")
    if options and annotations["ray.io/external-storage-namespace"]:
        yield annotations["ray.io/external-storage-namespace"].error(
            "gcsFaultToleranceOptions say it", "write externalStorageNamespace there"
        )
    enabled = bool(options) or annotations["ray.io/ft-enabled"].value == "true"
    for name in _REDIS:
        variable = has_variable(_ray(job.head), name)
        wrong = bool(options) or name == "REDIS_USERNAME" or (name == "RAY_REDIS_ADDRESS" and not enabled)
        if variable is not None and wrong:
            yield variable.error("Redis is set up in gcsFaultToleranceOptions", "leave the variable out")
    for key in ("redis-username", "redis-password"):
        parameter = job.head["rayStartParams"][key]
        if parameter and (options or key == "redis-username"):
            yield parameter.error("Redis is set up in gcsFaultToleranceOptions", "leave it out")


def _gates(job: Job) -> Iterator[Finding]:
    for key, gate in _GATES.items():
        if job.cluster[key].value is not None:
            yield job.cluster[key].warning(
                f"KubeRay takes it only with the feature gate {gate}", "leave it out where the gate is off"
            )


def _has_v2(job: Job) -> bool:
    variable = has_variable(_ray(job.head), _V2)
    return job.autoscaler_v2 or (variable is not None and variable["value"].value in ("1", "true"))


def _ray(group: Node) -> Node:
    return group.at("template.spec.containers")[0]


def _at_least(job: Job, wanted: tuple[int, int]) -> bool:
    parts = str(job.cluster["rayVersion"].value or "").removeprefix("v").split(".")
    numbers = [int(part) for part in parts[:2] if part.isdecimal()]
    return len(numbers) == 2 and tuple(numbers) >= wanted
