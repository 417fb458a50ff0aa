"""What the API server says of jobs, put together for `hcs_ray.jobs.state`."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Final

from hcs_ray.jobs.kinds import (
    CLUSTER,
    EVENT,
    JOB,
    JOB_NAME,
    OURS,
    POD,
    QUEUE,
    RAY_CLUSTER,
    RAY_JOB,
    WORKLOAD,
    Kind,
    Object,
    Objects,
    created,
    label,
    name_of,
    owners,
    status_of,
    uid_of,
)
from hcs_ray.jobs.kube import Kube, KubeError
from hcs_ray.jobs.state import Facts

_NOT_FOR_US: Final = (403, 404)


def facts_of(kube: Kube, name: str) -> Facts:
    """Everything about one job; what may not be read is left out, but for the job itself."""
    job = kube.get(RAY_JOB, name)
    if job is None:
        return Facts(None)
    cluster = str(status_of(job).get("rayClusterName") or "")
    pods = listed(kube, POD, f"{JOB_NAME}={name}")
    if cluster:
        pods = pods + listed(kube, POD, f"{CLUSTER}={cluster}")
    return Facts(
        job,
        cluster=_got(kube, RAY_CLUSTER, cluster) if cluster else None,
        submitter=_got(kube, JOB, name),
        pods=pods,
        events=listed(kube, EVENT, fields="type=Warning"),
        workload=_workload(job, listed(kube, WORKLOAD) if label(job, QUEUE) else []),
    )


def list_facts(kube: Kube) -> list[Facts]:
    """Every job of ours in the namespace, the newest first, each with its pods and its Workload."""
    jobs = kube.list(RAY_JOB, OURS)
    pods = listed(kube, POD, OURS)
    workloads = listed(kube, WORKLOAD) if any(label(job, QUEUE) for job in jobs) else []
    return [
        Facts(job, pods=[pod for pod in pods if _is_of(pod, job)], workload=_workload(job, workloads))
        for job in sorted(jobs, key=lambda job: (str(created(job)), name_of(job)), reverse=True)
    ]


def listed(kube: Kube, kind: Kind, labels: str = "", fields: str = "") -> Objects:
    """Objects of a kind; none where they may not be listed, or the cluster does not know them."""
    found = list_if_allowed(kube, kind, labels, fields)
    return [] if found is None else found


def list_if_allowed(kube: Kube, kind: Kind, labels: str = "", fields: str = "") -> Objects | None:
    """Objects of a kind; None where they may not be listed, or the cluster does not know them."""
    with _not_for_us():
        return kube.list(kind, labels, fields)
    return None


def _got(kube: Kube, kind: Kind, name: str) -> Object | None:
    with _not_for_us():
        return kube.get(kind, name)
    return None


@contextlib.contextmanager
def _not_for_us() -> Iterator[None]:
    """Pass over what may not be read, and kinds that the cluster does not have."""
    try:
        yield
    except KubeError as error:
        if error.code not in _NOT_FOR_US:
            raise


def _workload(job: Object, workloads: Objects) -> Object | None:
    """Kueue's Workload of a job: the newest, as an elastic job has one for each of its sizes."""
    ours = [workload for workload in workloads if uid_of(job) in owners(workload)]
    return max(ours, key=lambda workload: str(created(workload)), default=None)


def _is_of(pod: Object, job: Object) -> bool:
    cluster = status_of(job).get("rayClusterName")
    return label(pod, JOB_NAME) == name_of(job) or (bool(cluster) and label(pod, CLUSTER) == cluster)
