"""The end of a run: the chosen weights are tested or used, and all that the run leaves is written."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import ray.train.torch

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError
from hcs_ray.model.augment import centre
from hcs_ray.model.checkpoint import RunState
from hcs_ray.model.epochs import epoch_list
from hcs_ray.model.fitting import Run
from hcs_ray.model.inference import infer
from hcs_ray.model.judging import confusion, misclassified, validation_metrics
from hcs_ray.model.loader import FieldSource
from hcs_ray.model.network import SCORE, MoaNetwork
from hcs_ray.model.targets import EXCLUDED, LABEL, LISTED, NONE
from hcs_ray.model.tracking import Final
from hcs_ray.stage import parquet_bytes
from hcs_ray.train.files import FIELDS_FILE, HISTORY_FILE, METRICS_FILE, MODEL_FILE, SEEN_FILE, model_bytes
from hcs_ray.train.job import TrainJob
from hcs_ray.train.left_out import left_out

TIMES_SEEN = "times_seen"
_PICTURES = 12


def close_run(job: TrainJob, run: Run, state: RunState) -> Final | None:
    """Test or use the chosen weights and write the run's files; every rank calls it, the first one writes."""
    network = MoaNetwork(run.spec)
    network.load_state_dict(state.best)
    network.to(ray.train.torch.get_device())
    summary = {"selected": _selected(run, state), "score": SCORE, **_sides(job.fields)}
    if job.study.excluded().rules:
        summary["excluded"] = left_out(job.fields)
    seen = _seen(run, state)
    final: Final | None = None
    files: dict[str, bytes] = {}
    if job.final == "test":
        metrics, final = _tested(run, network, state)
        summary["test"] = metrics
    elif job.final == "labelled":
        files[FIELDS_FILE] = _labelled(run, network)
    if ray.train.get_context().get_world_rank() != 0:
        return None
    files |= {
        SEEN_FILE: parquet_bytes(pa.Table.from_pandas(seen, preserve_index=False)),
        MODEL_FILE: model_bytes(run.spec, state.best),
        HISTORY_FILE: pd.DataFrame(state.history).to_csv(index=False).encode(),
        METRICS_FILE: (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode(),
    }
    for name, data in files.items():
        job.study.storage.write(f"{job.folder}/{name}", data)
    return final


def _selected(run: Run, state: RunState) -> dict[str, float]:
    """The row of the history that was chosen: the best, the first of equals, or the last."""
    if run.config.choose == "last":
        return state.history[-1]
    return max(state.history, key=lambda row: (row[SCORE], -row["epoch"]))


def _seen(run: Run, state: RunState) -> pd.DataFrame:
    """How often every field was learned from: just as often as the lists of the epochs name it.

    Raises:
        HcsError: it was not, which a defect of ours alone can cause.
    """
    fields = run.source(c.TRAIN).fields
    wanted = np.zeros(len(fields), np.int64)
    for epoch in range(state.epoch):
        wanted += np.bincount(epoch_list(fields, run.config, epoch), minlength=len(fields))
    times = state.seen.numpy().astype(np.int64)
    if (times != wanted).any():
        row = int(np.flatnonzero(times != wanted)[0])
        raise HcsError(
            f"field {fields[c.KEY].iloc[row]} was learned from {times[row]} times instead of {wanted[row]}: "
            "please report this defect"
        )
    listed = fields[LISTED].to_numpy(bool)
    return pd.DataFrame({c.KEY: fields[c.KEY][listed].to_numpy(), TIMES_SEEN: times[listed]})


def _sides(fields: pd.DataFrame) -> dict[str, Any]:
    """Which compounds' labels took part in training and in the choice of the epoch."""
    labelled = fields[(fields[LABEL] != NONE) & (~fields[EXCLUDED] | (fields[c.SIDE] == c.TEST))]
    sides = {side: labelled[labelled[c.SIDE] == side] for side in (c.TRAIN, c.VALIDATION, c.TEST)}
    found: dict[str, Any] = {f"{side}_fields": len(rows) for side, rows in sides.items()}
    return found | {f"{side}_compounds": sorted(rows[c.COMPOUND].unique()) for side, rows in sides.items()}


def _tested(run: Run, network: MoaNetwork, state: RunState) -> tuple[dict[str, float], Final | None]:
    source = run.source(c.TEST)
    if not source.fields[LISTED].any():
        return {}, None
    found = infer(network, source, run.config, _rank(), run.anchor_fields)
    classes = len(run.spec.classes)
    metrics = validation_metrics(source.fields, found.rows, found.logits, classes, prefix="test_")
    if _rank() != 0:
        return metrics, None
    labels = source.fields[LABEL].to_numpy("int64")[found.rows.numpy()]
    crop = centre(run.reader.shape, run.config.crop_px)
    return metrics, Final(
        metrics=metrics,
        classes=run.spec.classes,
        confusion=confusion(labels, found.logits.argmax(1).numpy(), classes),
        misclassified=misclassified(
            source.fields, found.rows, found.logits, run.spec.classes, _PICTURES,
            lambda position: source.image(position, crop),
        ),
        model=model_bytes(run.spec, state.best),
    )  # fmt: skip


def _labelled(run: Run, network: MoaNetwork) -> bytes:
    """``fields.parquet``: embeddings and MoA probabilities of every labelled field and negative control."""
    fields = run.fields
    listed = (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL) | fields[c.MOA].notna()
    table = fields.assign(**{LISTED: listed})[listed].reset_index(drop=True)
    source = FieldSource(run.reader, table, run.config.downsample)
    found = infer(network, source, run.config, _rank(), run.anchor_fields, use=True)
    about = table.iloc[found.rows.numpy()]
    columns = [c.KEY, *c.metadata_columns(about), c.SIDE]
    written = pa.Table.from_pandas(about[columns], preserve_index=False)
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(found.embeddings.numpy().ravel()), found.embeddings.shape[1]
    )
    written = written.append_column(c.EMBEDDING, vectors)
    probabilities = found.logits.softmax(1).numpy()
    for number, name in enumerate(run.spec.classes):
        written = written.append_column(f"{c.PROBABILITY_PREFIX}{name}", pa.array(probabilities[:, number]))
    return parquet_bytes(written)


def _rank() -> int:
    return int(ray.train.get_context().get_world_rank())
