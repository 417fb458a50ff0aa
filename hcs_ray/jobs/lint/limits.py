"""A job against what the cluster has and allows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Object = dict[str, Any]


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
