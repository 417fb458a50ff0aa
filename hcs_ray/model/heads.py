"""What is learned from the embeddings: classes to tell apart, and an adversary's to forget."""

from __future__ import annotations

import math
from typing import Any, Final

import torch
from torch import nn
from torch.nn import functional

from hcs_ray.config import AdversaryConfig

_ADVERSARY_UNITS: Final = 256
_PACE: Final = 20.0  # how many times as fast the adversary learns
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
    """(B, F) to logits (B, D) through one hidden layer: it also finds what no straight line separates.

    Its layers learn `_PACE` times as fast as the rest. An adversary that lags behind the embeddings chases
    them round and round, and they end up with more of the domain in them than before; one that has always
    caught up with them lets them settle where there is nothing left to tell (two time scales: Heusel et al.
    2017, "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium").
    """
    hidden = min(features, _ADVERSARY_UNITS)
    return nn.Sequential(_Swift(features, hidden), nn.ReLU(), _Swift(hidden, domains))


class _Swift(nn.Linear):
    """A linear layer whose weights are kept small and multiplied in use (Karras et al. 2018, section 4.1).

    So steps of one size, as Adam makes them, change it `_PACE` times as much. It begins like any other.
    """

    def reset_parameters(self) -> None:
        super().reset_parameters()
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.div_(_PACE)

    def forward(self, embeddings: torch.Tensor) -> torch.Tensor:
        return functional.linear(embeddings, self.weight * _PACE, self.bias * _PACE)
