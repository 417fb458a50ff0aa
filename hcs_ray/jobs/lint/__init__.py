"""What is wrong with a job before it is submitted: pure, from manifests to findings."""

from __future__ import annotations

from collections.abc import Sequence

from hcs_ray.jobs.findings import Finding
from hcs_ray.jobs.lint.limits import ClusterLimits
from hcs_ray.jobs.manifests import Manifest

__all__ = ["ClusterLimits", "lint"]


def lint(
    manifests: Sequence[Manifest],
    *,
    limits: ClusterLimits | None = None,
    max_gpu_hours: float | None = None,
) -> list[Finding]:
    """Every rule that the RayJobs among some manifests break, errors first.

    Args:
        limits: what the cluster has and allows; without, nothing is said of it.
        max_gpu_hours: more than this, at most, is an error: GPUs times ``activeDeadlineSeconds``.
    """
    return []
