"""The rules of KubeRay 1.7's controller for a job, which it checks after the API server took the job.

A job that breaks one ends as ``ValidationFailed``, for good.
"""

from __future__ import annotations

from collections.abc import Iterator

import yaml

from hcs_ray.jobs.findings import Finding
from hcs_ray.jobs.lint.job import SUBMISSION_MODES, Job
from hcs_ray.jobs.lint.names import DNS_1035

LONGEST_NAME = 47  # the cluster's name is six longer, and a service's name has at most 63
_OPERATORS = ("ray.io/kuberay-operator", "kueue.x-k8s.io/multikueue")
_NOT_NEGATIVE = ("ttlSecondsAfterFinished", "backoffLimit")
_SELECTOR = "ray.io/cluster"
_ORDER = ("DeleteWorkers", "DeleteCluster", "DeleteSelf")


def controller_findings(job: Job) -> Iterator[Finding]:
    """Every rule of a RayJob's own fields that it breaks."""
    yield from _name(job)
    yield from _numbers(job)
    yield from _mode(job)
    yield from _shutdown(job)
    yield from _deletion(job)
    yield from _selector(job)
    yield from _other(job)


def _name(job: Job) -> Iterator[Finding]:
    name = job.node.at("metadata.name")
    if name.value is None:
        why = "KubeRay names clusters after the job, and kustomize refuses generateName"
        yield name.error(why, "give it a name")
    elif len(name.value) > LONGEST_NAME or not DNS_1035.fullmatch(name.value):
        yield name.error(
            f"a RayJob's name: at most {LONGEST_NAME} lower-case letters, digits and dashes, a letter first",
            "shorten or rename it",
        )


def _numbers(job: Job) -> Iterator[Finding]:
    deadline = job.spec["activeDeadlineSeconds"]
    if deadline.value is not None and deadline.value <= 0:
        yield deadline.error("a deadline is positive", "write seconds above 0")
    for key in _NOT_NEGATIVE:
        if (job.spec[key].value or 0) < 0:
            yield job.spec[key].error("it is not negative", "write 0 or more")


def _mode(job: Job) -> Iterator[Finding]:
    spec, retries = job.spec, (job.spec["backoffLimit"].value or 0) > 0
    if job.mode not in SUBMISSION_MODES:
        yield spec["submissionMode"].error(
            f"there is no mode {job.mode}, though the schema takes any text",
            f"it is one of {', '.join(SUBMISSION_MODES)}",
        )
    if job.mode == "InteractiveMode" and retries:
        yield spec["backoffLimit"].error("InteractiveMode has no retries", "leave it out, or take K8sJobMode")
    if job.mode == "SidecarMode":
        for key in ("submitterPodTemplate", "submitterConfig"):
            if spec[key].value is not None:
                yield spec[key].error("SidecarMode has no submitter pod", "leave it out, or take K8sJobMode")
        policy = job.head.at("template.spec.restartPolicy")
        if policy.value not in (None, "", "Never"):
            yield policy.error("in SidecarMode the head is not restarted", "write Never")


def _shutdown(job: Job) -> Iterator[Finding]:
    spec, shuts = job.spec, bool(job.spec["shutdownAfterJobFinishes"])
    if spec["suspend"] and not shuts:
        yield spec["suspend"].error(
            "only a job that shuts its cluster down is suspended", "shutdownAfterJobFinishes: true"
        )
    if (spec["ttlSecondsAfterFinished"].value or 0) > 0 and not shuts:
        yield spec["ttlSecondsAfterFinished"].error(
            "it is of jobs that shut their cluster down", "shutdownAfterJobFinishes: true"
        )


def _deletion(job: Job) -> Iterator[Finding]:
    strategy, shuts = job.spec["deletionStrategy"], bool(job.spec["shutdownAfterJobFinishes"])
    if strategy.value is None:
        return
    rules, before = strategy["deletionRules"], [strategy["onSuccess"], strategy["onFailure"]]
    given = [policy for policy in before if policy.value is not None]
    if rules and shuts:
        yield rules.error("it excludes shutdownAfterJobFinishes", "keep shutdownAfterJobFinishes alone")
    if rules and given:
        yield strategy.error("onSuccess and onFailure exclude deletionRules", "keep one of the two forms")
    elif not rules and len(given) < 2:
        yield strategy.error(
            "it needs deletionRules, or onSuccess and onFailure", "write both, or leave it out"
        )
    policies = [item["policy"] for item in (*given, *rules)]
    for policy in policies:
        if policy.value is None:
            yield policy.error("it must be there", "write a policy")
        if policy.value == "DeleteWorkers" and job.autoscales:
            yield policy.error("the autoscaler would start workers again", "take DeleteCluster")
        if policy.value in ("DeleteWorkers", "DeleteCluster") and job.spec["clusterSelector"]:
            yield policy.error("the cluster is not the job's own", "take DeleteSelf or DeleteNone")
        if policy.value == "DeleteNone" and shuts and policy.path in [item["policy"].path for item in given]:
            yield policy.error("shutdownAfterJobFinishes deletes the cluster", "leave the policy out")
    yield from _deletion_rules(job)


def _deletion_rules(job: Job) -> Iterator[Finding]:
    seconds: dict[tuple[str, str], dict[str, int]] = {}
    for rule in job.spec.at("deletionStrategy.deletionRules"):
        condition = rule["condition"]
        states = [key for key in ("jobStatus", "jobDeploymentStatus") if condition[key].value is not None]
        if len(states) != 1:
            yield condition.error("it has one of jobStatus and jobDeploymentStatus", "write just one of them")
            continue
        waits, policy = condition["ttlSeconds"].value or 0, str(rule["policy"].value)
        known = seconds.setdefault((states[0], str(condition[states[0]].value)), {})
        if policy in known:
            yield rule.error("there is a rule for this policy and state before", "leave one of them out")
        known[policy] = waits
        order = [known[name] for name in _ORDER if name in known]
        if order != sorted(order):
            yield condition["ttlSeconds"].error(
                f"in one state {', '.join(_ORDER)} come in this order", "raise the later one's ttlSeconds"
            )


def _selector(job: Job) -> Iterator[Finding]:
    spec, selector = job.spec, job.spec["clusterSelector"]
    if not selector:
        if spec["rayClusterSpec"].value is None:
            yield spec["rayClusterSpec"].error(
                "a job has a cluster of its own, or selects one", "write rayClusterSpec"
            )
        return
    if not selector[_SELECTOR]:
        yield selector[_SELECTOR].error("it names the cluster", "write the RayCluster's name")
    if spec["suspend"]:
        yield spec["suspend"].error("a job on a cluster that it selects cannot be suspended", "leave it out")
    if (spec["backoffLimit"].value or 0) > 0:
        yield spec["backoffLimit"].error("a job on a cluster that it selects has no retries", "leave it out")
    if job.mode == "SidecarMode":
        yield spec["submissionMode"].error("SidecarMode needs a cluster of its own", "take K8sJobMode")


def _other(job: Job) -> Iterator[Finding]:
    managed = job.spec["managedBy"]
    if managed.value not in (None, *_OPERATORS):
        yield managed.error("nobody else manages jobs", f"it is one of {', '.join(_OPERATORS)}")
    try:
        yaml.safe_load(job.spec["runtimeEnvYAML"].value or "")
    except yaml.YAMLError as error:
        problem = getattr(error, "problem", None) or "it cannot be read"
        yield job.spec["runtimeEnvYAML"].error(f"not valid YAML: {problem}", "mend it")
