"""The files that a run of training leaves; light, for those who only read them."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Final

import torch

from hcs_ray.model.network import ModelSpec

MODEL_FILE: Final = "model.pt"
METRICS_FILE: Final = "metrics.json"
HISTORY_FILE: Final = "metrics.csv"
SEEN_FILE: Final = "seen.parquet"
FIELDS_FILE: Final = "fields.parquet"
PROGRESS_FILE: Final = "progress.json"


def model_bytes(spec: ModelSpec, state: Mapping[str, torch.Tensor]) -> bytes:
    """A network as a file that ``torch.load(weights_only=True)`` reads."""
    buffer = io.BytesIO()
    torch.save({"spec": spec.to_json(), "state": dict(state)}, buffer)
    return buffer.getvalue()
