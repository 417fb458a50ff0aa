"""What a job has taken so far: CPU- and GPU-hours from its pods' times, and what they cost. Pure.

A pod holds what it requests from the moment that a node takes it until its last container ends, busy or not.
The API server forgets deleted pods, so figures may be too low; `Usage.at_least` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Final

from hcs_ray.config.cluster import Prices
from hcs_ray.jobs.kinds import Object, condition, instant, status_of
from hcs_ray.jobs.lint.job import Pod, is_gpu
from hcs_ray.jobs.lint.node import Node

_HOUR_S: Final = 3600.0


@dataclass(frozen=True)
class Usage:
    """What pods have held.

    Args:
        cpu_hours: of CPU cores requested.
        gpu_hours: of GPUs requested.
        at_least: whether pods may have been forgotten.
    """

    cpu_hours: float
    gpu_hours: float
    at_least: bool

    def cost(self, prices: Prices) -> float:
        """In the prices' currency."""
        return self.cpu_hours * prices.cpu_hour + self.gpu_hours * prices.gpu_hour

    def words(self, prices: Prices | None) -> str:
        """``at least 12.4 CPU-hours, 3.1 GPU-hours, 9.85 USD``."""
        parts = [f"{self.cpu_hours:.1f} CPU-hours", f"{self.gpu_hours:.1f} GPU-hours"]
        if prices is not None:
            parts.append(f"{self.cost(prices):.2f} {prices.currency}")
        return f"{'at least ' if self.at_least else ''}{', '.join(parts)}"


def usage_of(job: Object, pods: Iterable[Object], now: datetime) -> Usage:
    """What the pods of a job have taken until now, as far as the API server remembers them."""
    cpu = gpu = 0.0
    for pod in pods:
        hours, (cores, gpus) = _hours(pod, now), requested(pod["spec"])
        cpu += hours * cores
        gpu += hours * gpus
    return Usage(cpu, gpu, _may_have_forgotten(job))


def requested(pod_spec: Object) -> tuple[float, float]:
    """CPU cores, and GPUs of any make, that a pod holds while it runs."""
    nowhere = Node("", None)
    pod = Pod("worker", nowhere, Node("", {"spec": pod_spec}), 1)
    gpus = sum((pod.amount(kind) for kind in pod.kinds if is_gpu(kind)), Decimal(0))
    return float(pod.amount("cpu")), float(gpus)


def _hours(pod: Object, now: datetime) -> float:
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") != "True":
        return 0.0
    began = instant(scheduled.get("lastTransitionTime")) or instant(status_of(pod).get("startTime"))
    if began is None:
        return 0.0
    return max(0.0, (_ended(pod, now) - began).total_seconds()) / _HOUR_S


def _ended(pod: Object, now: datetime) -> datetime:
    """When a pod gave back what it held; now where it has not."""
    if status_of(pod).get("phase") not in ("Succeeded", "Failed"):
        return now
    return max(_ends(pod), default=now)


def _ends(pod: Object) -> Iterator[datetime]:
    for container in status_of(pod).get("containerStatuses") or ():
        ended = (container.get("state") or {}).get("terminated") or {}
        if (when := instant(ended.get("finishedAt"))) is not None:
            yield when


def _may_have_forgotten(job: Object) -> bool:
    """Whether pods of the job may be gone: of an attempt before, scaled down, or of a deleted cluster."""
    status = status_of(job)
    scales = bool((job["spec"].get("rayClusterSpec") or {}).get("enableInTreeAutoscaling"))
    return scales or bool(status.get("failed")) or status.get("jobDeploymentStatus") != "Running"
