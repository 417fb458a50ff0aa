"""A run of Ray Train, from the driver's side: started or gone on with, watched, its errors told plainly."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import ray.train
import ray.train.torch
from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig

from hcs_ray.config import TrainConfig
from hcs_ray.contracts import HcsError, Progress
from hcs_ray.model.checkpoint import RunState, read_state
from hcs_ray.model.network import SCORE, ModelSpec
from hcs_ray.session import cause_of, ensure_session, hush, plainly, require_capacity
from hcs_ray.train.files import PROGRESS_FILE
from hcs_ray.train.job import TrainJob
from hcs_ray.train.limits import Limits
from hcs_ray.train.snapshot import SnapshotCopy, mend_snapshot

_POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Fitted:
    """What a finished run has learned; its files lie in the job's folder."""

    spec: ModelSpec
    state: RunState

    @property
    def history(self) -> pd.DataFrame:
        """One row an epoch."""
        return pd.DataFrame(self.state.history)


def fit(job: TrainJob, progress: Progress | None = None, callbacks: Sequence[Any] = ()) -> Fitted:
    """Run Ray Train in the job's folder, going on from its newest checkpoint, to the end.

    Raises:
        HcsError: it failed more often than ``max_failures``, its time was over, or workers never started.
        InputError: a worker found bad input; it is not tried again.
    """
    ensure_session()
    hush("ray.train")
    config = job.study.config.train
    gpus = config.fewest_workers if config.use_gpu else 0
    require_capacity(
        f"train.workers {config.fewest_workers}", config.fewest_workers * config.cpus_per_worker, gpus
    )
    mend_snapshot(job.study.storage, job.ray_folder)
    with _watched(job, progress):
        result = _run(_trainer(job, callbacks))
    if result.checkpoint is None:
        raise HcsError(f"{job.study.storage.url}/{job.folder}: training ended without a checkpoint")
    with result.checkpoint.as_directory() as folder:
        state = read_state(Path(folder))
    if not state.done:
        raise HcsError(
            f"train.max_hours {config.max_hours:g} are over after {state.step} optimizer steps; "
            "run the same command again to go on"
        )
    return Fitted(job.spec, state)


def _trainer(job: TrainJob, callbacks: Sequence[Any]) -> Any:
    config = job.study.config.train
    filesystem, root = job.study.storage.arrow()
    workers: Any = config.workers  # its stub knows no (min, max)
    limits: Any = Limits(60 * config.wait_minutes, _wanted(config))
    copy: Any = SnapshotCopy(job.study.storage, job.ray_folder)
    deadline = None if config.max_hours is None else time.time() + 3600 * config.max_hours
    parent, _, name = job.ray_folder.rpartition("/")
    return ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={"job": job, "deadline": deadline},
        scaling_config=ScalingConfig(
            num_workers=workers,
            use_gpu=config.use_gpu,
            resources_per_worker=resources(config),
        ),
        run_config=RunConfig(
            name=name,
            storage_path=f"{root}/{parent}",
            storage_filesystem=filesystem,
            failure_config=FailureConfig(max_failures=config.max_failures),
            checkpoint_config=CheckpointConfig(
                num_to_keep=config.keep_checkpoints,
                checkpoint_score_attribute=SCORE,
                checkpoint_score_order="max",
            ),
            callbacks=[*callbacks, limits, copy],
        ),
    )


def resources(config: TrainConfig) -> dict[str, float]:
    """What Ray sets aside for a worker."""
    gpu = {"GPU": 1.0} if config.use_gpu else {}
    return {"CPU": config.cpus_per_worker, **gpu, **config.resources_per_worker}


def _wanted(config: TrainConfig) -> str:
    each = ", ".join(f"{amount:g} {name}" for name, amount in resources(config).items())
    return f"{config.fewest_workers} workers with {each} each"


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
    failures = list((getattr(error, "worker_failures", {}) or {}).values())
    failures += [failure for failure in (getattr(error, "controller_failure", None),) if failure]
    for failure in failures:
        cause = cause_of(failure)
        if isinstance(cause, HcsError):
            return cause
    first = next(iter(failures), error)
    lines = str(first).strip().splitlines() or [""]
    return HcsError(f"training failed: {type(first).__name__}: {lines[-1]}")


@contextlib.contextmanager
def _watched(job: TrainJob, progress: Progress | None) -> Iterator[None]:
    """Show the progress that rank 0 notes in the study, from a thread of the driver."""
    if progress is None:
        yield
        return
    stop = threading.Event()

    def poll() -> None:
        while not stop.wait(_POLL_SECONDS):
            _show(job, progress)

    thread = threading.Thread(target=poll, name="train-progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        _show(job, progress)


def _show(job: TrainJob, progress: Progress) -> None:
    try:
        found = job.study.storage.read_versioned(f"{job.ray_folder}/{PROGRESS_FILE}")
    except HcsError:  # a store that is away for a moment costs a bar its step, not a run its life
        return
    if found is not None:
        note = json.loads(found[0])
        progress(int(note["steps_done"]), int(note["steps"]))


def _train_worker(config: Mapping[str, Any]) -> None:
    """A rank's work; Lightning and what else it needs take seconds to import, which only workers wait for."""
    from hcs_ray.train.worker import train_worker

    train_worker(config)
