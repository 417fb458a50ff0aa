"""Watches a sweep from its driver: keeps the leaderboard current, says what is best so far, and stops it.

Ray Tune pickles its callbacks and stoppers with its state, and unpickles them where a sweep goes on, so what
they work with is no part of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import pandas as pd
import ray.tune

from hcs_ray.contracts import Progress
from hcs_ray.tune.board import ENDED, FAILED, RUNNING, STOPPED, Entry, leaderboard
from hcs_ray.tune.trials import ERROR_FILE, FIGURES, FINISHED, Work, trial_name

LEADERBOARD: Final = "leaderboard.parquet"
_SECONDS: Final = 1.0  # between two writings of the leaderboard
_PICTURE_SECONDS: Final = 30.0  # and of its picture, which takes some
_LONGEST_ERROR: Final = 300

Say = Callable[[str], None]


@dataclass(frozen=True)
class News:
    """What Tune tells of a trial before it has noted it."""

    trial_id: str
    result: dict[str, Any] | None = None
    status: str | None = None


class Watcher:
    """A sweep's board.

    Args:
        write: writes the table, whole, again and again; and now and then, where it is told so, the picture.
        say: takes a line for the terminal.
    """

    def __init__(
        self, work: Work, write: Callable[[pd.DataFrame, bool], None], progress: Progress, say: Say
    ) -> None:
        self._work, self._write, self._progress, self._say = work, write, progress, say
        self._began = time.monotonic()
        self._written = self._drawn = 0.0
        self._best: float | None = None
        self._ended_at_best = 0
        self._ended = 0
        self.trials: dict[str, Any] = {}  # trial -> Tune's own

    def update(self, trials: Iterable[Any], news: News | None = None) -> None:
        """Take over how the trials stand; the news of one are newer than what Tune's trial knows itself."""
        self.trials = {trial_name(trial.trial_id, trial.config): trial for trial in trials}
        entries = [self._entry(name, trial, news) for name, trial in self.trials.items()]
        ended = sum(entry.status in (ENDED, STOPPED, FAILED) for entry in entries)
        table = leaderboard(entries, self._work.space.sweep)
        self._tell(table, ended)
        now = time.monotonic()
        if ended == self._ended and now - self._written < _SECONDS:
            return
        draw = now - self._drawn > _PICTURE_SECONDS
        self._write(table, draw)
        self._ended, self._written = ended, time.monotonic()
        self._drawn = self._written if draw else self._drawn

    def entries(self) -> list[Entry]:
        """All trials as Tune knows them."""
        return [self._entry(name, trial) for name, trial in self.trials.items()]

    def is_enough(self) -> bool:
        """Whether a rule ends the whole sweep."""
        rules = self._work.space.sweep.stop
        if rules.max_hours is not None and time.monotonic() - self._began > 3600 * rules.max_hours:
            return True
        patience = rules.trials_without_better
        return patience is not None and self._ended - self._ended_at_best >= patience

    def has_reached(self, result: dict[str, Any]) -> bool:
        """Whether a trial is as good as a rule asks."""
        least = {goal.name for goal in self._work.space.sweep.metric if goal.mode == "min"}
        return any(
            result[name] <= wanted if name in least else result[name] >= wanted
            for name, wanted in self._work.space.sweep.stop.reached.items()
            if name in result
        )

    def _tell(self, table: pd.DataFrame, ended: int) -> None:
        self._progress(ended, max(self._work.space.trials, len(table)))
        if not len(table) or pd.isna(table["score"].iloc[0]):
            return
        goal, score = self._work.space.sweep.goal, float(table["score"].iloc[0])
        if self._best is None or (score > self._best if goal.mode == "max" else score < self._best):
            self._best, self._ended_at_best = score, ended
            self._say(f"  best so far: {goal.name} {score:.4g} ({table['trial'].iloc[0]})")

    def _entry(self, name: str, trial: Any, news: News | None = None) -> Entry:
        known, status = trial.last_result or {}, trial.status
        if news is not None and news.trial_id == trial.trial_id:
            known, status = news.result or known, news.status or status
        return self._as_entry(name, trial, known, status)

    def _as_entry(self, name: str, trial: Any, result: dict[str, Any], of_tune: str) -> Entry:
        goals = [goal.name for goal in self._work.space.sweep.metric]
        status = _status(of_tune, bool(result.get(FINISHED)))
        return Entry(
            trial=name,
            values=self._work.space.values(trial.config),
            status=status,
            scores={goal: float(result[goal]) for goal in goals if goal in result},
            epochs=int(result.get("epochs", 0)),
            steps=int(result.get("optimizer_steps", 0)),
            error=self._error(name) if status == FAILED else None,
            figures=result.get(FIGURES, {}),
        )

    def _error(self, trial: str) -> str:
        found = self._work.study.storage.read_versioned(f"{self._work.trial_folder(trial)}/{ERROR_FILE}")
        return "its process died" if found is None else found[0].decode()[:_LONGEST_ERROR]


def _status(of_tune: str, finished: bool) -> str:
    if of_tune == "ERROR":
        return FAILED
    if of_tune == "TERMINATED":
        return ENDED if finished else STOPPED
    return RUNNING


class Reports(ray.tune.Callback):
    """Hands what Tune hears to the watcher of this process."""

    watcher: ClassVar[Watcher | None] = None

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if Reports.watcher is not None:
            Reports.watcher.update(trials, News(trial.trial_id, result))

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if Reports.watcher is not None:
            Reports.watcher.update(trials, News(trial.trial_id, status="TERMINATED"))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        if Reports.watcher is not None:
            Reports.watcher.update(trials, News(trial.trial_id, status="ERROR"))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        if Reports.watcher is not None:
            Reports.watcher.update(trials)


class Rules(ray.tune.Stopper):
    """The sweep's stop rules."""

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return Reports.watcher is not None and Reports.watcher.has_reached(result)

    def stop_all(self) -> bool:
        return Reports.watcher is not None and Reports.watcher.is_enough()
