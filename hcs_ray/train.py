"""`hcs-ray train`: learn to predict MoA, data-parallel, with Ray Train and PyTorch Lightning.

A killed run goes on from its newest checkpoint (they are written at epoch ends). The result is
``runs/NAME/model.pt``: the epoch with the best validation score, chosen by validation compounds alone.
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint, CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError, Progress
from hcs_ray.model.network import CHECKPOINT_FILE, CHECKPOINT_KEY, SCORE, MoaNetwork, ModelSpec
from hcs_ray.model.tracking import Tracking
from hcs_ray.session import cause_of, ensure_session, hush, plainly, require_capacity
from hcs_ray.shards.read import ShardReader
from hcs_ray.study import Study
from hcs_ray.tables import read_index, read_split

_RAY_FOLDER = "ray"  # Ray Train's own, below runs/NAME
_PROGRESS_FILE = "progress.json"
_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class TrainJob:
    """What every rank of a run is given; it travels to the workers."""

    study: Study
    spec: ModelSpec
    fields: pd.DataFrame  # training and validation fields, with side and label
    folder: str  # Ray Train's, below the study


def train(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Train this run's network; does nothing where that is complete."""
    claim = study.claim("train")
    if not force and study.is_complete("train", claim):
        return _headline(read_metrics(study))
    job = prepare(study, f"{study.place('train').folder}/{_RAY_FOLDER}")
    with study.writing("train", claim, force) as writer:
        checkpoint = fit(job, progress)
        state = load_checkpoint(checkpoint)
        history = pd.DataFrame(json.loads(state["history"]))
        best = history.sort_values([SCORE, "epoch"], ascending=[False, True]).iloc[0]
        writer.write("model.pt", model_bytes(job.spec, state["best"]))
        writer.write("metrics.csv", history.to_csv(index=False).encode())
        summary = {"selected": json.loads(best.to_json()), "score": SCORE, **_seen(job.fields)}
        writer.write("metrics.json", (json.dumps(summary, indent=1, sort_keys=True) + "\n").encode())
    return _headline(summary)


def read_metrics(study: Study) -> dict[str, Any]:
    """``metrics.json`` of a finished run: the selected epoch, the classes, the compounds that were seen."""
    found: dict[str, Any] = study.require("train").read_json(
        study.storage, f"{study.place('train').folder}/metrics.json"
    )
    return found


def load_network(study: Study) -> tuple[MoaNetwork, ModelSpec]:
    """The trained network of a finished run, in evaluation mode."""
    data = study.require("train").read(study.storage, f"{study.place('train').folder}/model.pt")
    saved = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    spec = ModelSpec.from_json(saved["spec"])
    network = MoaNetwork(spec)
    network.load_state_dict(saved["state"])
    return network.eval(), spec


def model_bytes(spec: ModelSpec, state: Mapping[str, torch.Tensor]) -> bytes:
    """A network as a file that ``torch.load(weights_only=True)`` reads."""
    buffer = io.BytesIO()
    torch.save({"spec": spec.to_json(), "state": dict(state)}, buffer)
    return buffer.getvalue()


def prepare(study: Study, folder: str) -> TrainJob:
    """Join index and split into the fields to learn from and be judged by; Ray Train works in ``folder``."""
    reader = ShardReader(study.storage, study.require("shard"))
    sides = read_split(study)[[c.PLATE, c.WELL, c.SIDE]]
    fields = read_index(study).merge(sides, on=[c.PLATE, c.WELL], validate="many_to_one")
    fields = fields[fields[c.SIDE].isin((c.TRAIN, c.VALIDATION))].reset_index(drop=True)
    controls = fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL
    if not study.config.model.dmso_class:
        fields = fields[~controls].reset_index(drop=True)
    names = fields[c.MOA].where(fields[c.PERT_TYPE] != c.NEGATIVE_CONTROL, fields[c.COMPOUND])
    classes = tuple(sorted(names[fields[c.SIDE] == c.TRAIN].unique()))
    if len(classes) < 2:
        raise InputError(f"{study.storage.url}: the training side has {len(classes)} classes; it needs two")
    fields["label"] = names.map({name: number for number, name in enumerate(classes)})
    fields = fields[fields["label"].notna()].astype({"label": "int64"}).reset_index(drop=True)
    if not (fields[c.SIDE] == c.VALIDATION).any():
        raise InputError(
            f"{study.storage.url}: no compound validates; a MoA needs three compounds, or set split.folds"
        )
    config = study.config
    spec = ModelSpec(config.model.model_dump(mode="json"), reader.channels, classes, config.train.downsample)
    return TrainJob(study, spec, fields, folder)


def fit(job: TrainJob, progress: Progress | None = None, callbacks: list[Any] | None = None) -> Checkpoint:
    """Run Ray Train in the job's folder, going on from its newest checkpoint; returns the last one."""
    ensure_session()
    hush("ray.train")
    config = job.study.config.train
    gpus = config.workers if config.use_gpu else 0
    require_capacity(f"train.workers {config.workers}", config.workers * config.cpus_per_worker, gpus)
    _drop_cut_snapshot(job)
    filesystem, root = job.study.storage.arrow()
    parent, _, name = job.folder.rpartition("/")
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"job": job},
        scaling_config=ScalingConfig(
            num_workers=config.workers,
            use_gpu=config.use_gpu,
            resources_per_worker={"CPU": config.cpus_per_worker} | ({"GPU": 1} if config.use_gpu else {}),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=f"{root}/{parent}",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=config.keep_checkpoints),
            callbacks=callbacks or [],
        ),
    )
    with _Watch(job.study, f"{job.folder}/{_PROGRESS_FILE}", progress, config.epochs):
        result = _run(trainer)
    if result.checkpoint is None:
        raise HcsError(f"{job.study.storage.url}/{job.folder}: training ended without a checkpoint")
    checkpoint: Checkpoint = result.checkpoint
    return checkpoint


def _drop_cut_snapshot(job: TrainJob) -> None:
    """Ray Train writes its list of checkpoints in place; where a kill has cut it, training begins again."""
    path = f"{job.folder}/checkpoint_manager_snapshot.json"
    found = job.study.storage.read_versioned(path)
    try:
        json.loads(found[0] if found else b"{}")
    except ValueError:
        message = "%s was cut by a kill; training begins again"
        logging.getLogger("hcs_ray").warning(message, f"{job.study.storage.url}/{path}")
        job.study.storage.delete(path)


def _run(trainer: Any) -> Any:
    try:
        with plainly("training"):
            result = trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise _readable(error) from None
    if result.error is not None:
        raise _readable(result.error)
    return result


def _readable(error: BaseException) -> BaseException:
    """The first error of ours in a failed run, or one line about the first of a worker."""
    failures = getattr(error, "worker_failures", {}) or {}
    for failure in failures.values():
        cause = cause_of(failure)
        if isinstance(cause, HcsError):
            return cause
    first = next(iter(failures.values()), error)
    return HcsError(f"training failed: {type(first).__name__}: {str(first).strip().splitlines()[-1]}")


def load_checkpoint(checkpoint: Checkpoint) -> dict[str, Any]:
    """Our part of a checkpoint: the best weights so far and the history of metrics."""
    with checkpoint.as_directory() as folder:
        state: dict[str, Any] = torch.load(
            Path(folder, CHECKPOINT_FILE), map_location="cpu", weights_only=True
        )[CHECKPOINT_KEY]
    return state


class _Watch:
    """Shows the progress that rank 0 notes in the study, from a thread of the driver."""

    def __init__(self, study: Study, file: str, progress: Progress | None, epochs: int) -> None:
        self._study, self._file, self._progress, self._epochs = study, file, progress, epochs
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="train-progress", daemon=True)

    def __enter__(self) -> None:
        if self._progress is not None:
            self._progress(0, self._epochs)
            self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._progress is not None:
            self._thread.join()
            self._show()

    def _poll(self) -> None:
        while not self._stop.wait(_POLL_SECONDS):
            self._show()

    def _show(self) -> None:
        try:
            found = self._study.storage.read_versioned(self._file)
        except HcsError:  # a store that is away for a moment costs a bar its step, not a run its life
            return
        if found is not None and self._progress is not None:
            self._progress(int(json.loads(found[0])["epochs_done"]), self._epochs)


def _train_worker(config: Mapping[str, Any]) -> None:
    """One rank."""
    import ray.train.lightning

    from hcs_ray.model import fitting

    job: TrainJob = config["job"]
    lightning: Any = ray.train.lightning
    context = ray.train.get_context()
    reader = ShardReader(job.study.storage, job.study.require("shard"))
    reporter = _Reporter(job)
    rank = fitting.Rank(
        rank=context.get_world_rank(),
        world=context.get_world_size(),
        strategy=lightning.RayDDPStrategy(find_unused_parameters=False),
        environment=lightning.RayLightningEnvironment(),
        report=reporter,
    )
    run = fitting.Run(job.spec, job.study.config.train, reader, job.fields)
    latest = ray.train.get_checkpoint()
    with (
        contextlib.closing(reporter),
        latest.as_directory() if latest else contextlib.nullcontext() as folder,
    ):
        resume = Path(folder, CHECKPOINT_FILE) if folder else None
        fitting.fit(run, rank, lightning.prepare_trainer, resume)


class _Reporter:
    """Hands an epoch's metrics and rank 0's checkpoint to Ray Train; a barrier of all ranks."""

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._first = ray.train.get_context().get_world_rank() == 0
        self._tracking: Tracking | None = None
        if self._first:
            folder = job.folder.rpartition("/")[0]
            self._tracking = Tracking(job.study.storage, folder, job.study.config)

    def __call__(self, metrics: Mapping[str, float], folder: Path) -> None:
        checkpoint = Checkpoint.from_directory(folder) if self._first else None
        name = f"epoch_{int(metrics['epoch']):04d}"
        ray.train.report(dict(metrics), checkpoint=checkpoint, checkpoint_dir_name=name)
        if self._tracking is not None:
            self._tracking.log(metrics)
            note = json.dumps({"epochs_done": int(metrics["epoch"]) + 1}).encode()
            self._job.study.storage.write(f"{self._job.folder}/{_PROGRESS_FILE}", note)

    def close(self) -> None:
        if self._tracking is not None:
            self._tracking.finish()


def _seen(fields: pd.DataFrame) -> dict[str, Any]:
    """Which compounds' labels took part in training and in the choice of the epoch."""
    return {
        f"{side}_compounds": sorted(fields.loc[fields[c.SIDE] == side, c.COMPOUND].unique())
        for side in (c.TRAIN, c.VALIDATION)
    } | {f"{side}_fields": int((fields[c.SIDE] == side).sum()) for side in (c.TRAIN, c.VALIDATION)}


def _headline(summary: Mapping[str, Any]) -> dict[str, Any]:
    selected = summary["selected"]
    return {
        "epoch": int(selected["epoch"]),
        "validation_balanced_accuracy": round(float(selected[SCORE]), 3),
        "train_fields": summary["train_fields"],
    }
