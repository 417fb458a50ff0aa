"""What is wrong with a job before it is submitted: pure, from manifests to findings.

``schema`` is what a strict API server refuses, ``controller`` and ``clusters`` what makes KubeRay end a job
as ``ValidationFailed``, ``queues`` what Kueue turns away, ``security``, ``pods`` and ``ours`` what would cost
hours or money, ``limits`` what this cluster has no room for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain

from hcs_ray.jobs.findings import Finding
from hcs_ray.jobs.lint.clusters import cluster_findings
from hcs_ray.jobs.lint.controller import controller_findings
from hcs_ray.jobs.lint.job import Job
from hcs_ray.jobs.lint.limits import ClusterLimits, gpu_hours, hour_findings, limit_findings
from hcs_ray.jobs.lint.node import Node
from hcs_ray.jobs.lint.ours import config_map_findings, our_findings, study_findings
from hcs_ray.jobs.lint.pods import head_and_worker_findings, pod_findings
from hcs_ray.jobs.lint.queues import queue_findings
from hcs_ray.jobs.lint.schema import schema_findings
from hcs_ray.jobs.lint.security import secret_findings, security_findings
from hcs_ray.jobs.manifests import Manifest

__all__ = ["ClusterLimits", "gpu_hours", "lint"]

_RULES = (
    controller_findings, cluster_findings, queue_findings, our_findings, head_and_worker_findings,
    pod_findings, security_findings,
)  # fmt: skip


def lint(
    manifests: Sequence[Manifest],
    *,
    limits: ClusterLimits | None = None,
    max_gpu_hours: float | None = None,
) -> list[Finding]:
    """Every rule that the RayJobs among some manifests break, errors first.

    A RayJob that the schema refuses is told of that alone.

    Args:
        limits: what the cluster has and allows; without, nothing is said of it.
        max_gpu_hours: more than this, at most, is an error (`gpu_hours`).
    """
    found = [finding for manifest in manifests for finding in secret_findings(_node(manifest))]
    config_maps = {str(_name(item)) for item in manifests if item.get("kind") == "ConfigMap"}
    for manifest in manifests:
        if manifest.get("kind") == "RayJob":
            found += _job(manifest, config_maps, limits, max_gpu_hours)
        elif manifest.get("kind") == "ConfigMap":
            found += config_map_findings(_node(manifest))
    once = dict.fromkeys(found)
    return sorted(once, key=lambda finding: finding.severity)


def _job(
    manifest: Manifest, config_maps: set[str], limits: ClusterLimits | None, max_gpu_hours: float | None
) -> Iterator[Finding]:
    node = _node(manifest)
    refused = list(schema_findings(node))
    if refused:
        yield from refused
        return
    job = Job(node)
    yield from chain.from_iterable(rule(job) for rule in _RULES)
    yield from study_findings(job, config_maps)
    if limits is not None:
        yield from limit_findings(job, limits)
    if max_gpu_hours is not None:
        yield from hour_findings(job, max_gpu_hours)


def _node(manifest: Manifest) -> Node:
    return Node(f"{manifest.get('kind')}/{_name(manifest) or '?'} ", manifest)


def _name(manifest: Manifest) -> object:
    metadata = manifest.get("metadata")
    return metadata.get("name") if isinstance(metadata, dict) else None
