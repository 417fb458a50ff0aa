"""What the ranks of a run tell each other; alone, a rank tells itself."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist


def world_size() -> int:
    return dist.get_world_size() if _together() else 1


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all ranks, a new tensor on the same device."""
    tensor = tensor.detach().clone()
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def from_first(tensor: torch.Tensor) -> torch.Tensor:
    """Rank 0's values, in place."""
    if world_size() > 1:
        dist.broadcast(tensor, src=0)
    return tensor


def first_says(value: int) -> int:
    """Rank 0's value of a whole number."""
    if world_size() == 1:
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    return int(from_first(torch.tensor(value, device=device)))


def gathered(value: Any) -> list[Any]:
    """Every rank's value, in the order of ranks; it travels pickled between the processes of one run."""
    if world_size() == 1:
        return [value]
    everyone: list[Any] = [None] * world_size()
    dist.all_gather_object(everyone, value)
    return everyone


def share_buffers(network: torch.nn.Module) -> None:
    """Give every rank rank 0's buffers (of batch normalisation, where each rank has its own)."""
    for buffer in network.buffers():
        from_first(buffer)


def _together() -> bool:
    return dist.is_available() and dist.is_initialized()
