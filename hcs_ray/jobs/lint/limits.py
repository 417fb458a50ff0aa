"""A job against what the cluster has and allows, and against a budget of GPU-hours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from hcs_ray.jobs.findings import Finding
from hcs_ray.jobs.lint.job import Job, Pod
from hcs_ray.jobs.lint.node import quantity
from hcs_ray.jobs.lint.queues import KUEUE

Object = Mapping[str, Any]
Amounts = Mapping[str, Any]  # resource -> quantity, as Kubernetes writes it


@dataclass(frozen=True)
class ClusterLimits:
    """Objects as the API server gives them, of the job's namespace; None where they may not be listed.

    Args:
        nodes: Nodes of the cluster.
        resource_quotas: ResourceQuotas of the namespace.
        local_queues: LocalQueues of Kueue, of the namespace.
        cluster_queues: the ClusterQueues behind them.
    """

    nodes: Sequence[Object] | None = None
    resource_quotas: Sequence[Object] | None = None
    local_queues: Sequence[Object] | None = None
    cluster_queues: Sequence[Object] | None = None


def gpu_hours(job: Object) -> float:
    """GPU-hours of a RayJob at most: all its GPUs, in each attempt until its deadline.

    Preemption by a queue is no attempt and comes on top.
    """
    from hcs_ray.jobs.lint.node import Node

    return _gpu_hours(Job(Node("", job)))


def hour_findings(job: Job, most: float) -> Iterator[Finding]:
    """A job that may take more GPU-hours than it is allowed."""
    hours, attempts = _gpu_hours(job), _attempts(job)
    if hours > most:
        yield job.spec["activeDeadlineSeconds"].error(
            f"{job.gpus} GPUs in {attempts} attempts until the deadline are up to {hours:g} GPU-hours, "
            f"and {most:g} are allowed",
            "lower activeDeadlineSeconds, backoffLimit or the number of workers, or raise --max-gpu-hours",
        )


def limit_findings(job: Job, limits: ClusterLimits) -> Iterator[Finding]:
    """What the cluster will not let the job have: quotas, its queue, and nodes that hold its pods."""
    for quota in limits.resource_quotas or ():
        yield from _quota(job, quota)
    if job.labels[KUEUE]:
        yield from _queue(job, limits)
    if limits.nodes is not None:
        for pod in job.pods:
            yield from _room(pod, limits.nodes)


def _attempts(job: Job) -> int:
    # KubeRay begins the deadline anew with every retry.
    return int(job.spec["backoffLimit"].value or 0) + 1


def _gpu_hours(job: Job) -> float:
    deadline = job.spec["activeDeadlineSeconds"].value
    if deadline is None:
        return float("inf") if job.gpus else 0.0
    return float(job.gpus * _attempts(job) * deadline / 3600)


# --- ResourceQuota ------------------------------------------------------------------------------------------


def _quota(job: Job, quota: Object) -> Iterator[Finding]:
    """A quota with scopes is of some pods only, which ones the API server knows: it is left out."""
    spec, name = quota.get("spec", {}), quota["metadata"]["name"]
    if spec.get("scopes") or spec.get("scopeSelector"):
        return
    used = quota.get("status", {}).get("used", {})
    for key, hard in spec.get("hard", {}).items():
        wanted = _counted(job, key)
        if wanted is None:
            continue
        if wanted > quantity(hard):
            yield job.node["spec"].error(
                f"ResourceQuota {name} allows {hard} {key}, and the job takes up to {_plain(wanted)}",
                "take fewer workers or less for each, or ask for a larger quota",
            )
        elif wanted + quantity(used.get(key, 0)) > quantity(hard):
            yield job.node["spec"].warning(
                f"ResourceQuota {name} allows {hard} {key}, of which {used[key]} are in use, "
                f"and the job takes up to {_plain(wanted)}",
                "it waits until others have ended; hcs-ray list shows them",
            )


def _counted(job: Job, key: str) -> Decimal | None:
    """What a job takes of what a quota counts; None for what it does not take."""
    if key in ("pods", "count/pods"):
        return Decimal(sum(pod.most for pod in job.pods))
    if key == "count/rayjobs.ray.io":
        return Decimal(1)
    part, dot, kind = key.partition(".")
    if part in ("requests", "limits") and dot:
        return job.total(kind, part)
    return job.total(key) if key in ("cpu", "memory", "ephemeral-storage") else None


# --- Kueue --------------------------------------------------------------------------------------------------


def _queue(job: Job, limits: ClusterLimits) -> Iterator[Finding]:
    label = job.labels[KUEUE]
    if limits.local_queues is None:
        return
    names = {queue["metadata"]["name"]: queue for queue in limits.local_queues}
    if label.value not in names:
        there = f"there are: {', '.join(sorted(names))}" if names else "there is none; see k8s/setup"
        yield label.error(f"the namespace has no LocalQueue {label.value}", there)
        return
    target = names[label.value].get("spec", {}).get("clusterQueue")
    found = [queue for queue in limits.cluster_queues or () if queue["metadata"]["name"] == target]
    if limits.cluster_queues is not None and not found:
        yield label.error(f"its ClusterQueue {target} does not exist", "make it; see k8s/setup")
    for queue in found:
        yield from _nominal(job, queue)


def _nominal(job: Job, queue: Object) -> Iterator[Finding]:
    """More than a queue can ever give; what is in use by others is only waited for."""
    spec, name = queue.get("spec", {}), queue["metadata"]["name"]
    borrows = bool(spec.get("cohort") or spec.get("cohortName"))
    room: dict[str, Decimal | None] = {}
    for group in spec.get("resourceGroups", ()):
        for flavor in group.get("flavors", ()):
            for resource in flavor.get("resources", ()):
                room[resource["name"]] = _sum(
                    room.get(resource["name"], Decimal(0)), _most(resource, borrows)
                )
    kinds = {kind for pod in job.pods for kind in pod.kinds}
    for kind in sorted(kinds):
        if kind not in room:
            if job.total(kind):
                yield job.labels[KUEUE].error(
                    f"ClusterQueue {name} has no quota for {kind}", "take another queue, or add it there"
                )
            continue
        most = room[kind]
        if most is not None and job.total(kind) > most:
            yield job.labels[KUEUE].error(
                f"ClusterQueue {name} gives at most {_plain(most)} {kind}, and the job takes "
                f"{_plain(job.total(kind))}: it would wait for ever",
                "take fewer workers or less for each, or another queue",
            )


def _most(resource: Object, borrows: bool) -> Decimal | None:
    """The quota of a flavor, with what it may borrow; None where a cohort sets no limit."""
    nominal = quantity(resource.get("nominalQuota", 0))
    if not borrows:
        return nominal
    limit = resource.get("borrowingLimit")
    return None if limit is None else nominal + quantity(limit)


def _sum(one: Decimal | None, other: Decimal | None) -> Decimal | None:
    return None if one is None or other is None else one + other


# --- Nodes --------------------------------------------------------------------------------------------------


def _room(pod: Pod, nodes: Sequence[Object]) -> Iterator[Finding]:
    """No node could ever hold a pod, by what nodes have in all; clusters that grow may get one."""
    if pod.most == 0:
        return
    selector = pod.spec["nodeSelector"].value or {}
    chosen = [node for node in nodes if _selected(node, selector) and _tolerated(node, pod)]
    needs = {kind: pod.amount(kind) for kind in pod.kinds}
    if any(_holds(node["status"]["allocatable"], needs) for node in chosen):
        return
    words = ", ".join(f"{_plain(amount)} {kind}" for kind, amount in sorted(needs.items()))
    where = f"none of the {len(nodes)} nodes" if chosen else "no node with its labels and tolerated taints"
    yield pod.spec.warning(
        f"{where} can hold this pod ({words})",
        "ask for less, or wait where the cluster adds nodes of another kind by itself",
    )


def _selected(node: Object, selector: Mapping[str, str]) -> bool:
    labels = node["metadata"].get("labels", {})
    return all(labels.get(key) == value for key, value in selector.items())


def _tolerated(node: Object, pod: Pod) -> bool:
    """Whether a pod may run on a node with its taints; those that only say "rather not" do not count."""
    taints = node.get("spec", {}).get("taints", ())
    return all(
        taint.get("effect") == "PreferNoSchedule"
        or any(_tolerates(item.value, taint) for item in pod.spec["tolerations"])
        for taint in taints
    )


def _tolerates(toleration: Mapping[str, Any], taint: Mapping[str, Any]) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint.get("key"))
    same = (toleration.get("key"), toleration.get("value") or "")
    return same == (taint.get("key"), taint.get("value") or "")


def _holds(allocatable: Amounts, needs: Mapping[str, Decimal]) -> bool:
    return all(quantity(allocatable.get(kind, 0)) >= amount for kind, amount in needs.items())


def _plain(amount: Decimal) -> str:
    for suffix, factor in (("Gi", 2**30), ("Mi", 2**20)):
        if amount >= factor:
            return f"{(amount / factor).normalize():f}{suffix}"
    return f"{amount.normalize():f}"
