"""`hcs-ray train`: learn to predict MoA, data-parallel, with Ray Train and PyTorch Lightning.

A killed run goes on from its newest checkpoint, in the middle of an epoch too, on as many workers or on
others. The result is ``runs/NAME/model.pt``: the epoch with the best validation score, chosen by validation
compounds alone, then tested once.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

import torch

from hcs_ray import contracts as c
from hcs_ray.contracts import Progress
from hcs_ray.model.network import SCORE, MoaNetwork, ModelSpec
from hcs_ray.model.tracking import preflight
from hcs_ray.model.weights import weights_digest
from hcs_ray.study import Study
from hcs_ray.train.driver import Fitted, fit
from hcs_ray.train.files import HISTORY_FILE, METRICS_FILE, MODEL_FILE, SEEN_FILE, model_bytes
from hcs_ray.train.job import TrainJob, prepare

__all__ = [
    "Fitted",
    "TrainJob",
    "fit",
    "load_network",
    "model_bytes",
    "prepare",
    "read_metrics",
    "train",
]

_OUTPUTS = (MODEL_FILE, HISTORY_FILE, METRICS_FILE, SEEN_FILE)


def train(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Train this run's network; does nothing where that is complete."""
    study = study.with_labels_of("train", force)
    model = study.config.model
    weights = weights_digest(model.weights, study.config.storage)
    claim = study.claim("train", {f"weights {model.weights}": weights} if weights else None)
    if force or not study.is_complete("train", claim):
        preflight(study.config.wandb)
        job = prepare(study, study.place("train").folder)
        with study.writing("train", claim, force) as writer:
            fit(job, progress)
            for file in _OUTPUTS:
                data = study.storage.read(writer.path(file))
                writer.add(file, len(data), hashlib.sha256(data).hexdigest())
    return _headline(read_metrics(study))


def read_metrics(study: Study) -> dict[str, Any]:
    """``metrics.json`` of a finished run: the selected epoch, the test, the compounds that were seen."""
    found: dict[str, Any] = study.require("train").read_json(
        study.storage, f"{study.place('train').folder}/{METRICS_FILE}"
    )
    return found


def load_network(study: Study) -> tuple[MoaNetwork, ModelSpec]:
    """The network of this finished run, or of a trial of a sweep (`Study.model`), in evaluation mode."""
    record, path = study.model()
    data = record.read(study.storage, path)
    saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    spec = ModelSpec.from_json(saved["spec"])
    network = MoaNetwork(spec)
    network.load_state_dict(saved["state"])
    return network.eval(), spec


def _headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    selected, tested = summary["selected"], summary.get("test") or {}
    found: dict[str, Any] = {
        "epoch": int(selected["epoch"]),
        "validation_balanced_accuracy": round(float(selected[SCORE]), 3),
    }
    if tested:
        found["test_balanced_accuracy"] = round(float(tested["test_balanced_accuracy"]), 3)
    found["train_fields"] = summary["train_fields"]
    if "excluded" in summary:
        counts = summary["excluded"]["fields"]
        told = ", ".join(f"{counts[side]} {side}" for side in (c.TRAIN, c.VALIDATION, c.TEST))
        lost = sum(summary["excluded"]["wells_lost"].values())
        wells = f"; {lost} wells have none left" if lost else ""
        found["fields left out by labels"] = {"text": f"{told} (tested all the same){wells}"}
    return found
