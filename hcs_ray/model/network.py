"""The network as it is trained and used: a backbone, its heads, and what it takes to build it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import nn

from hcs_ray.config import ModelConfig, StorageConfig
from hcs_ray.contracts import InputError
from hcs_ray.model.anchored import PlateStatistics, Reference, anchor_backbone
from hcs_ray.model.backbone import build_backbone
from hcs_ray.model.heads import adversary, classifier, reverse_gradient
from hcs_ray.storage.base import DEFAULTS

SCORE: Final = "validation_balanced_accuracy"  # chooses the epoch, by validation compounds


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a trained network again, beside its weights."""

    model: dict[str, Any]  # a ModelConfig
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    downsample: int
    treatments: tuple[str, ...] = ()  # empty: there is no treatment head
    domains: tuple[str, ...] = ()  # empty: there is no adversary

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        """The reverse of `to_json`, and of nothing else.

        Raises:
            InputError: another version has written it, or something else.
        """
        spec: ModelSpec | None
        try:
            data = json.loads(text)
            values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
            spec = cls(**values)
            ModelConfig.model_validate(spec.model)
        except (ValueError, TypeError, AttributeError):
            spec = None
        if spec is None or spec.to_json() != text:
            raise InputError("this network was not written by this version of hcs_ray; train it again")
        return spec


class Outputs(NamedTuple):
    """Of (B) fields, float32 whatever the precision."""

    embeddings: torch.Tensor  # (B, F)
    moa: torch.Tensor  # (B, K) logits
    treatment: torch.Tensor | None  # (B, T) logits
    domain: torch.Tensor | None  # (B, D) logits, behind a gradient reversal


class MoaNetwork(nn.Module):
    """Images (B, C, H, W) float32 to embeddings and the logits of each head.

    Args:
        spec: What it is made of.
        pretrained: Read ``model.weights``; False to fill it from a checkpoint.
        storage: How weights on S3 are reached.

    Raises:
        InputError: the weights or the normalisation do not fit the backbone.
        HcsError: the weights cannot be reached.
    """

    def __init__(
        self, spec: ModelSpec, *, pretrained: bool = False, storage: StorageConfig = DEFAULTS
    ) -> None:
        super().__init__()
        self.spec = spec
        config = ModelConfig.model_validate(spec.model)
        self.backbone = build_backbone(config, len(spec.channels), pretrained=pretrained, storage=storage)
        self._reference: Reference | None = None
        if config.normalization == "control_anchored":
            self._reference = anchor_backbone(self.backbone, len(spec.channels))
        features = self.backbone.features
        self.moa = classifier(features, len(spec.classes), config.dropout)
        self.treatment: nn.Module | None = None
        self.domain: nn.Module | None = None
        if spec.treatments:
            self.treatment = classifier(features, len(spec.treatments), config.dropout)
        if spec.domains:
            self.domain = adversary(features, len(spec.domains))

    @property
    def is_anchored(self) -> bool:
        """Whether it normalises by the controls of a plate, and so must be told of them."""
        return self._reference is not None

    def forward(
        self,
        images: torch.Tensor,
        plates: torch.Tensor | None = None,
        anchors: torch.Tensor | None = None,
        *,
        reversal: float = 0.0,
        probe: bool = False,
        statistics: PlateStatistics | None = None,
    ) -> Outputs:
        """One pass; every weight is part of its graph.

        Args:
            images: (B, C, H, W) float32.
            plates: (B,) int64, the number of each row's plate; only a control-anchored network needs it.
            anchors: (B,) bool, the negative controls that each plate is normalised by; at least one a plate.
            reversal: What the adversary's gradient is multiplied by, and turned round, before the backbone.
            probe: The MoA head learns from the embeddings and does not change them.
            statistics: Of `anchor`, instead of plates and anchors; all rows are of that plate.
        """
        self._refer(plates, anchors, statistics)
        embeddings = self.backbone(images).float()
        if self._reference is not None:
            self._reference.clear()
        # Logits of reduced precision would cost more than these few products.
        with torch.autocast(images.device.type, enabled=False):
            moa = self.moa(embeddings.detach() if probe else embeddings)
            treatment = None if self.treatment is None else self.treatment(embeddings)
            domain = None if self.domain is None else self.domain(reverse_gradient(embeddings, reversal))
        return Outputs(embeddings, moa, treatment, domain)

    def anchor(self, images: torch.Tensor) -> PlateStatistics:
        """The statistics of a plate in every layer, from (N, C, H, W) float32: its control fields.

        A pass with these ``statistics`` gives what one with the same controls as anchors gives.
        """
        if self._reference is None:
            raise InputError("model.normalization is not control_anchored: there is nothing to anchor")
        self._reference.keep(len(images), images.device)
        self.backbone(images)
        kept = self._reference.kept()
        self._reference.clear()
        return kept

    def _refer(
        self,
        plates: torch.Tensor | None,
        anchors: torch.Tensor | None,
        statistics: PlateStatistics | None,
    ) -> None:
        if self._reference is None:
            return
        if statistics is not None:
            self._reference.hold(statistics)
        elif plates is not None and anchors is not None:
            self._reference.batch(plates, anchors)
        else:
            raise ValueError("a control-anchored network needs plates and anchors, or statistics")
