"""One rank of a run, in a worker of Ray Train."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray.train import Checkpoint

from hcs_ray.contracts import HcsError
from hcs_ray.model import fitting, ranks
from hcs_ray.model.checkpoint import CHECKPOINT_FILE, RunState, read_state
from hcs_ray.model.tracking import Tracking
from hcs_ray.shards.cache import node_cache
from hcs_ray.shards.read import ShardReader
from hcs_ray.train.closing import close_run
from hcs_ray.train.files import PROGRESS_FILE
from hcs_ray.train.job import TrainJob

_PROGRESS_SECONDS = 2.0


def train_worker(config: Mapping[str, Any]) -> None:
    """Go on from the newest checkpoint to the end, then test and keep the chosen weights."""
    job: TrainJob = config["job"]
    train = job.study.config.train
    fitting.settle(train.seed)
    cache = node_cache(train.cache_folder, train.cache_gb)
    reader = ShardReader(job.study.storage, job.study.require("shard"), cache)
    run = fitting.Run(job.spec, train, reader, job.fields, job.study.config.storage)
    with _checkpoint(job) as folder:
        state = read_state(folder) if folder else RunState()
        with contextlib.closing(_Teller(job, state, config["deadline"])) as teller:
            if not state.done:
                with contextlib.suppress(fitting.StoppedError):
                    state = fitting.fit(
                        run, teller.rank(), state, folder / CHECKPOINT_FILE if folder else None
                    )
            if state.done:
                teller.finished(close_run(job, run, state))


@contextlib.contextmanager
def _checkpoint(job: TrainJob) -> Iterator[Path | None]:
    """The folder of the newest checkpoint of this run, or of the one that it starts from."""
    newest = ray.train.get_checkpoint()
    if newest is None and job.start is not None:
        filesystem, root = job.study.storage.arrow()
        newest = Checkpoint(f"{root}/{job.start}", filesystem)
    if newest is None:
        yield None
        return
    with newest.as_directory() as folder:
        yield Path(folder)


class _Teller:
    """What this rank tells Ray Train, and, if it is the first, the study and the tracker."""

    def __init__(self, job: TrainJob, state: RunState, deadline: float | None) -> None:
        context = ray.train.get_context()
        self._job, self._deadline = job, deadline
        self._number = context.get_world_rank()
        self._shown = 0.0
        self._tracking: Tracking | None = None
        if self._number == 0:
            self._tracking = Tracking(
                job.study.storage, job.folder, job.study.config,
                group=job.group, name=job.folder.rpartition("/")[2], told=state.points,
            )  # fmt: skip

    def rank(self) -> fitting.Rank:
        import ray.train.lightning

        lightning: Any = ray.train.lightning
        return fitting.Rank(
            number=self._number,
            strategy=lightning.RayDDPStrategy(find_unused_parameters=False),
            environment=lightning.RayLightningEnvironment(),
            prepare=lightning.prepare_trainer,
            report=self._report,
            note=self._note,
            step_done=self._step_done,
            leaving=lambda: ray.train.get_preemption_info() is not None,
            time_over=self._time_over,
        )

    def finished(self, final: Any) -> None:
        if self._tracking is not None:
            self._tracking.finish(final)
            self._tracking = None

    def close(self) -> None:
        if self._tracking is not None:
            self._tracking.close()

    def _report(self, metrics: Mapping[str, float], folder: Path) -> None:
        checkpoint = Checkpoint.from_directory(folder) if self._number == 0 else None
        name = f"step_{int(metrics['optimizer_steps']):08d}"
        ray.train.report(dict(metrics), checkpoint=checkpoint, checkpoint_dir_name=name)

    def _note(self, figures: Mapping[str, float]) -> None:
        if self._tracking is not None:
            self._tracking.log(figures)

    def _step_done(self, step: int, steps: int) -> None:
        now = time.monotonic()
        if self._number or (now - self._shown < _PROGRESS_SECONDS and step < steps):
            return
        self._shown = now
        note = json.dumps({"steps_done": step, "steps": steps}).encode()
        # A store that is away for a moment costs a bar its step, not a run its life.
        with contextlib.suppress(HcsError):
            self._job.study.storage.write(f"{self._job.ray_folder}/{PROGRESS_FILE}", note)

    def _time_over(self) -> bool:
        return bool(ranks.first_says(self._deadline is not None and time.time() > self._deadline))
