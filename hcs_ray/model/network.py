"""The network as it is trained and used: a backbone and a MoA head, and what it takes to build it again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import nn

from hcs_ray.config import ModelConfig
from hcs_ray.model.backbone import build_backbone

CHECKPOINT_FILE: Final = "checkpoint.ckpt"  # Lightning's, in every checkpoint folder
CHECKPOINT_KEY: Final = (
    "hcs_ray"  # our part of it: {"history": JSON, "best": weights of the best epoch so far}
)
SCORE: Final = "validation_balanced_accuracy"  # chooses the epoch, by validation compounds


@dataclass(frozen=True)
class ModelSpec:
    """All that is needed to build a trained network again, beside its weights."""

    model: dict[str, Any]  # a ModelConfig
    channels: tuple[str, ...]
    classes: tuple[str, ...]
    downsample: int

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelSpec:
        data = json.loads(text)
        return cls(data["model"], tuple(data["channels"]), tuple(data["classes"]), data["downsample"])


class MoaNetwork(nn.Module):
    """Images (B, C, H, W) to embeddings (B, F) and logits (B, K)."""

    def __init__(self, spec: ModelSpec, *, pretrained: bool = False) -> None:
        super().__init__()
        config = ModelConfig.model_validate(spec.model)
        self.backbone = build_backbone(config, len(spec.channels), pretrained=pretrained)
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(self.backbone.features, len(spec.classes))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embeddings = self.backbone(images)
        return embeddings, self.head(self.dropout(embeddings))
