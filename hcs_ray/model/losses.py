"""What a network learns by: each head's loss, every field counted once, whatever the ranks.

A head's loss is summed over the fields that have its target, and divided by all fields of the global batch.
"""

from __future__ import annotations

from typing import NamedTuple

import pandas as pd
import torch
from torch.nn import functional

from hcs_ray.config import TrainConfig
from hcs_ray.model.epochs import epoch_list
from hcs_ray.model.network import Outputs
from hcs_ray.model.targets import DOMAIN_LABEL, LABEL, NONE, PLATE_NUMBER, TREATMENT_LABEL


class Wanted(NamedTuple):
    """The targets of a table of fields, (N,) int64 each; `NONE` where a field has none."""

    moa: torch.Tensor
    treatment: torch.Tensor
    domain: torch.Tensor
    plates: torch.Tensor

    @classmethod
    def of(cls, fields: pd.DataFrame) -> Wanted:
        columns = (LABEL, TREATMENT_LABEL, DOMAIN_LABEL, PLATE_NUMBER)
        return cls(*(torch.from_numpy(fields[name].to_numpy("int64").copy()) for name in columns))

    def to(self, device: torch.device) -> Wanted:
        return Wanted(*(column.to(device) for column in self))

    def at(self, rows: torch.Tensor) -> Wanted:
        """The targets of some rows, on the same device."""
        return Wanted(*(column[rows] for column in self))


def losses(
    outputs: Outputs,
    wanted: Wanted,
    weights: torch.Tensor,
    class_weights: torch.Tensor,
    config: TrainConfig,
) -> dict[str, torch.Tensor]:
    """This rank's share of each head's loss, in float32: ``moa``, ``treatment``, ``domain`` where they are.

    Args:
        outputs: of (B) fields.
        wanted: their targets.
        weights: (B,) one over the size of the global batch; zero for what must not count.
        class_weights: (K,) of the MoA classes.
        config: label smoothing.
    """
    found = {"moa": _cross_entropy(outputs.moa, wanted.moa, weights, config.label_smoothing, class_weights)}
    if outputs.treatment is not None:
        found["treatment"] = _cross_entropy(outputs.treatment, wanted.treatment, weights, 0.0)
    if outputs.domain is not None:
        found["domain"] = _cross_entropy(outputs.domain, wanted.domain, weights, 0.0)
    return found


def total(parts: dict[str, torch.Tensor], config: TrainConfig) -> torch.Tensor:
    """One loss to go down. The adversary's head learns at full weight; the reversal scales what it undoes."""
    # With moa_weight 0 the MoA head sees embeddings cut off from the backbone, and still learns.
    loss = parts["moa"] * (config.moa_weight or 1.0)
    if "treatment" in parts:
        loss = loss + parts["treatment"] * config.treatment.weight
    return loss + parts["domain"] if "domain" in parts else loss


def class_weights(fields: pd.DataFrame, config: TrainConfig, classes: int) -> torch.Tensor:
    """(K,) float32: inverse of the fields of a class in an epoch, with mean 1 over the fields."""
    if not config.class_weights:
        return torch.ones(classes)
    labels = torch.from_numpy(fields[LABEL].to_numpy("int64")[epoch_list(fields, config, 0)].copy())
    counts = torch.bincount(labels[labels != NONE], minlength=classes).float()
    return counts.sum() / (classes * counts.clamp(min=1))


def _cross_entropy(
    logits: torch.Tensor,
    labels: torch.Tensor,
    weights: torch.Tensor,
    smoothing: float,
    class_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    known = labels != NONE
    safe = labels.clamp(min=0)
    each = functional.cross_entropy(logits.float(), safe, reduction="none", label_smoothing=smoothing)
    if class_weights is not None:
        each = each * class_weights[safe]
    return (each * weights * known).sum()
