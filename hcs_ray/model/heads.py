"""What is learned from the embeddings: classes to tell apart, and an adversary's to forget."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn

from hcs_ray.config import AdversaryConfig

_ADVERSARY_UNITS: Final = 256
_STEEPNESS: Final = 10.0  # gamma of Ganin et al. 2016, section 5.2.2


class _Reversal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: torch.Tensor, scale: float) -> torch.Tensor:
        ctx.scale = scale
        return embeddings.view_as(embeddings)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradients[0] * -ctx.scale, None


def reverse_gradient(embeddings: torch.Tensor, scale: float) -> torch.Tensor:
    """The same embeddings (B, F), whose gradient is multiplied by ``-scale`` on its way back.

    What comes after learns to tell domains apart, what comes before to make them alike (Ganin et al. 2016,
    "Domain-Adversarial Training of Neural Networks"). With a scale of 0 nothing goes back, but all weights
    stay part of the graph, as DDP wants.
    """
    reversed_: torch.Tensor = _Reversal.apply(embeddings, scale)  # type: ignore[no-untyped-call]
    return reversed_


def reversal_at(step: int, steps: int, config: AdversaryConfig) -> float:
    """The scale of the reversed gradient at an optimizer step of a training of ``steps``.

    It grows from 0 as ``weight * (2 / (1 + exp(-10 p)) - 1)`` of Ganin et al. 2016, with p from 0 to 1 over
    the share ``warmup`` of the steps (over the whole training in their paper), and then is ``weight``.
    """
    if config.target == "none":
        return 0.0
    warm = config.warmup * steps
    if step >= warm:
        return config.weight
    return config.weight * (2 / (1 + math.exp(-_STEEPNESS * step / warm)) - 1)


def classifier(features: int, classes: int, dropout: float) -> nn.Module:
    """(B, F) to logits (B, K), linear, so that the embeddings themselves must hold the classes apart."""
    return nn.Sequential(nn.Dropout(dropout), nn.Linear(features, classes))


def adversary(features: int, domains: int) -> nn.Module:
    """(B, F) to logits (B, D) through one hidden layer: it also finds what no straight line separates."""
    hidden = min(features, _ADVERSARY_UNITS)
    return nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, domains))
