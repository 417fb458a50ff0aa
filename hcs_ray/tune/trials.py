"""A trial: one whole distributed training (or one layout), step by step as Ray Tune asks for it.

A training runs in a thread of the trial's process, with Ray Train's own workers. A callback of Ray Train
notes each finished epoch in the trial's folder, in the study; a step of the trial hands the next one to Tune.
So Tune counts epochs, never the reports in their middle, and a trial that goes on after a kill tells again
what it told before.

**Exploiting.** Tune's checkpoint of a trial is only a pointer: to the checkpoint of Ray Train behind the last
epoch that was told. A trial that is handed the pointer of another trial, or one of its own with other values
(PBT, PB2), begins a new training in a folder of its own from the weights that are pointed at, with the new
values. That folder's name follows from both, so that the same command finds it again after a kill.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import ray.tune
from ray.train import UserCallback

from hcs_ray.config import LEAVE_OUT, canonical_digest
from hcs_ray.contracts import HcsError
from hcs_ray.session import prepare_environment
from hcs_ray.storage import Storage
from hcs_ray.study import Study
from hcs_ray.train import TrainJob, fit, prepare
from hcs_ray.tune.algorithms import NUMBER
from hcs_ray.tune.exploit import write_start
from hcs_ray.tune.judging import judged
from hcs_ray.tune.places import FreesPlaces
from hcs_ray.tune.space import Space, Values

TRIALS: Final = "trials"
EPOCHS_FILE: Final = "epochs.json"  # what a training has told: a row an epoch
VALUES_FILE: Final = "values.json"
ENDED_FILE: Final = "ended.json"  # the training has come to its end and written what it leaves
ERROR_FILE: Final = "error.txt"
MAP_FILE: Final = "map.parquet"  # of a layout: the judged fields in their places
FIGURES: Final = "figures"  # of a result: what is shown beside the scores
_START: Final = "start"  # the checkpoint that an exploiting training begins from
FINISHED: Final = "finished"  # of a result: the trial came to its own end (Tune's ``done`` also when stopped)
_POLL_SECONDS: Final = 0.3
_KEEP_ALL: Final = 1_000_000  # a population must find the checkpoints that it points at

Row = dict[str, Any]


@dataclass(frozen=True)
class Work:
    """What every trial of a sweep is given."""

    study: Study
    space: Space
    folder: str  # of the sweep, below the study

    def trial_folder(self, trial: str) -> str:
        return f"{self.folder}/{TRIALS}/{trial}"


def trial_name(trial_id: str, draw: Mapping[str, Any]) -> str:
    """``t0003``: the same for the same place in a sweep's order, whatever Ray calls it."""
    number = draw[NUMBER] if NUMBER in draw else int(trial_id.rpartition("_")[2])
    return f"t{number:04d}"


class TrainTrial(ray.tune.Trainable):
    """One training."""

    def setup(self, config: Values, work: Work | None = None) -> None:
        assert work is not None
        prepare_environment()
        self._work = work
        self._name = trial_name(self.trial_id, config)
        with _noting(work, self._name):
            self._values = work.space.values(config)
            self._epochs = work.space.study_config(self._values).train.epochs
        self._training: _Training | None = None
        self._pointer: Row | None = None
        self._told = 0

    def step(self) -> Row:
        """The next epoch; ``done`` with the last one, when the training has written what it leaves.

        So no scheduler asks whether to go on after the last epoch.

        Raises:
            HcsError: the training failed; the line is in the trial's folder, too.
        """
        with _noting(self._work, self._name):
            return self._step()

    def _step(self) -> Row:
        if self._training is None:
            self._training = self._begin()
        row = self._training.next_after(self._told)
        if row is not None:
            self._told += 1
            if int(row["epoch"]) + 1 < self._epochs:
                return self._result(done=False)
            self._training.wait()
        return self._result(done=True)

    def save_checkpoint(self, checkpoint_dir: str) -> Row:
        """The pointer."""
        assert self._training is not None
        rows = self._training.rows[: self._told]
        return {
            "trial": self._name,
            "values": self._values,
            "folder": self._training.folder,
            "checkpoint": rows[-1]["checkpoint"],
            "rows": rows,
        }

    def load_checkpoint(self, checkpoint: Row | None) -> None:
        self._pointer = checkpoint
        self._told = len(checkpoint["rows"]) if checkpoint else 0

    def cleanup(self) -> None:
        """Tune ends this process, and with it the training that it began."""

    def _result(self, done: bool) -> Row:
        assert self._training is not None
        rows = self._training.rows[: self._told] if not done else self._training.rows
        figures = judged(rows, self._work.space)
        return {**figures, "folder": self._training.folder, FINISHED: done, "done": done}

    def _begin(self) -> _Training:
        folder, pointer = self._work.trial_folder(self._name), self._pointer
        exploits = pointer is not None and (
            pointer["trial"] != self._name or pointer["values"] != self._values
        )
        if pointer is not None and not exploits:
            folder = pointer["folder"]
        if exploits:
            assert pointer is not None
            origin = {"values": self._values, "checkpoint": pointer["checkpoint"]}
            folder = f"{folder}/{self._name}-{canonical_digest(origin)[:8]}"
        started = pointer if exploits else None
        return _Training(self._work, self._name, self._values, folder, started)


@contextlib.contextmanager
def _noting(work: Work, trial: str) -> Iterator[None]:
    """Leave the line of an error in the trial's folder: Tune keeps only that there was one."""
    try:
        yield
    except Exception as error:
        line = str(error) if isinstance(error, HcsError) else f"{type(error).__name__}: {error}"
        work.study.storage.write(f"{work.trial_folder(trial)}/{ERROR_FILE}", line.encode())
        raise


class _Training:
    """A training in its thread, and what it has told so far."""

    def __init__(self, work: Work, name: str, values: Values, folder: str, start: Row | None) -> None:
        self.folder = folder
        self._storage = work.study.storage
        self._error: BaseException | None = None
        self._own = work.trial_folder(name)
        _clear_other(self._storage, folder, values)
        self._storage.delete(f"{self._own}/{ERROR_FILE}")
        if start is not None and self._storage.size(f"{folder}/{EPOCHS_FILE}") is None:
            self._storage.write(f"{folder}/{EPOCHS_FILE}", json.dumps(start["rows"]).encode())
        self.rows = read_rows(self._storage, folder)
        self._work, self._values, self._start = work, values, start
        self._thread = threading.Thread(target=self._run, name=f"train-{name}", daemon=True)
        # Tune may have been killed before it heard of the end of a trial.
        if self._storage.size(f"{folder}/{ENDED_FILE}") is None:
            self._thread.start()

    def next_after(self, told: int) -> Row | None:
        """The row behind so many told ones, as soon as it is there; None at the end."""
        while True:
            alive = self._thread.is_alive()
            # A store that is away for a moment costs a report its time, not a training its life.
            with contextlib.suppress(*([HcsError] if alive else [])):
                self.rows = read_rows(self._storage, self.folder)
            if len(self.rows) > told:
                return self.rows[told]
            if not alive:
                self.wait()
                return None
            time.sleep(_POLL_SECONDS)

    def wait(self) -> None:
        """Until the training has ended; raises its error."""
        if self._thread.ident is not None:
            self._thread.join()
        self.rows = read_rows(self._storage, self.folder)
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            job = job_of(self._work, self._values, self.folder, self._start)
            noted = _Notes(self._storage, self.folder)
            history = fit(job, callbacks=[noted, FreesPlaces()]).state.history
            # A kill between a checkpoint and its note has cost a row; the checkpoint itself has them all.
            noted.replace(history)
            self._storage.write(f"{self.folder}/{ENDED_FILE}", b"{}")
        except BaseException as error:
            self._error = error


def job_of(work: Work, values: Values, folder: str, start: Row | None = None) -> TrainJob:
    """The training of a trial, ready for `fit`."""
    config = work.space.study_config(values)
    if work.space.sweep.is_population:
        train = config.train.model_copy(update={"keep_checkpoints": _KEEP_ALL})
        config = config.model_copy(update={"train": train})
    study = replace(work.study, config=config)
    if LEAVE_OUT in values:
        from hcs_ray.tune.folds import prepare_fold

        return prepare_fold(study, folder, work.study.name)
    begin = f"{folder}/{_START}" if start is not None else None
    if begin is not None and start is not None:
        write_start(study.storage, start["checkpoint"], begin, config.train)
    return prepare(study, folder, final="none", group=work.study.name, start=begin)


def read_rows(storage: Storage, folder: str) -> list[Row]:
    """The epochs that a training has told, in order."""
    found = storage.read_versioned(f"{folder}/{EPOCHS_FILE}")
    rows: list[Row] = json.loads(found[0]) if found else []
    return rows


def _clear_other(storage: Storage, folder: str, values: Values) -> None:
    """Delete what a training with other values has left in a folder."""
    path, wanted = f"{folder}/{VALUES_FILE}", json.dumps(values, sort_keys=True).encode()
    found = storage.read_versioned(path)
    if found is not None and found[0] == wanted:
        return
    for file in storage.sizes(folder):
        storage.delete(file)
    storage.write(path, wanted)


class _Notes(UserCallback):
    """Notes the ends of epochs; it travels to Ray Train's controller."""

    def __init__(self, storage: Storage, folder: str) -> None:
        self._storage, self._folder = storage, folder

    def after_report(self, run_context: Any, metrics: list[Row], checkpoint: Any) -> None:
        if metrics and metrics[0].get("epoch_end") == 1.0:
            # The checkpoint holds the row, too: `replace` puts it where the store was away.
            with contextlib.suppress(HcsError):
                self._note(metrics[0], checkpoint)

    def _note(self, metrics: Row, checkpoint: Any) -> None:
        _, root = self._storage.arrow()
        path = "" if checkpoint is None else str(checkpoint.path).removeprefix(root).lstrip("/")
        rows = read_rows(self._storage, self._folder)
        row = {**metrics, "checkpoint": path, "told_unix_s": round(time.time(), 3)}
        before = [old for old in rows if old["epoch"] < row["epoch"]]
        self._write([*before, row])

    def replace(self, history: list[dict[str, float]]) -> None:
        """Make the notes whole, from the history that the last checkpoint holds."""
        known = {row["epoch"]: row for row in read_rows(self._storage, self._folder)}
        self._write([{"checkpoint": "", **known.get(row["epoch"], {}), **row} for row in history])

    def _write(self, rows: list[Row]) -> None:
        self._storage.write(f"{self._folder}/{EPOCHS_FILE}", json.dumps(rows).encode())


class MapTrial(ray.tune.Trainable):
    """One layout of a run's embeddings, judged; a process lays out many, since it compiles UMAP once."""

    def setup(self, config: Values, work: Work | None = None) -> None:
        assert work is not None
        prepare_environment()
        self._work = work
        self.reset_config(config)

    def reset_config(self, new_config: Values) -> bool:
        self._values = self._work.space.values(new_config)
        self._draw = new_config
        return True

    def step(self) -> Row:
        from hcs_ray.tune import map_objective

        storage, name = self._work.study.storage, trial_name(self.trial_id, self._draw)
        folder = self._work.trial_folder(name)
        storage.delete(f"{folder}/{ERROR_FILE}")
        study = replace(self._work.study, config=self._work.space.study_config(self._values))
        with _noting(self._work, name):
            found = map_objective.evaluate(study, self._work.space.sweep.seed)
            rows = [{"epoch": 0.0, "optimizer_steps": 0.0, **found.figures}]
            scores = judged(rows, self._work.space)
        storage.write(f"{folder}/{MAP_FILE}", found.file())
        storage.write(f"{folder}/{EPOCHS_FILE}", json.dumps(rows).encode())
        shown = {name: found.figures[name] for name in map_objective.SHOWN if name in found.figures}
        return {**scores, FIGURES: shown, "folder": folder, FINISHED: True, "done": True}

    def save_checkpoint(self, checkpoint_dir: str) -> Row:
        return {"values": self._values}

    def load_checkpoint(self, checkpoint: Row | None) -> None:
        """A layout begins anew."""
