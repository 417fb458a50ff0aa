"""What all sessions of one server share: the scene, its pictures, the labels, and threads to work on."""

from __future__ import annotations

import functools
import secrets
import threading
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError
from hcs_ray.explore.scene import Scene
from hcs_ray.explore.thumbnails import Thumbnails
from hcs_ray.labels import Decision, FieldLabel, LabelLog, LabelState, holding, label_table, labels_csv

_THREADS: Final = 4
_NO_LABEL: Final = FieldLabel()


class SharedLabels:
    """The labels of a study as its sessions see them; thread-safe. ``version`` grows with every change.

    ``problem`` is a line on what of the labels could not be read at the last look, or empty.
    """

    def __init__(self, scene: Scene) -> None:
        self._log = LabelLog(scene.study.storage)
        self._rows = {key: row for row, key in enumerate(scene.keys)}
        self._lock = threading.Lock()
        self._state = LabelState()
        self._by_row: dict[int, FieldLabel] = {}  # never changed, but replaced: readers take no lock
        self.version = 0
        self.problem = ""

    def refresh(self) -> None:
        """Take in what others have decided; where the storage does not answer, `problem` says so."""
        try:
            changed = self._log.refresh()
            problem = _first_of(self._log.problems)
        except HcsError as error:
            changed, problem = False, str(error)
        if changed or problem != self.problem:
            self._renew(problem)

    def by_row(self) -> dict[int, FieldLabel]:
        """Row -> label of the labelled fields."""
        return self._by_row

    def of(self, row: int) -> FieldLabel:
        """The label of a field, which may be empty."""
        return self._by_row.get(row, _NO_LABEL)

    def verdicts(self) -> dict[int, str]:
        """Row -> verdict, of those that have one."""
        return {row: label.verdict for row, label in self._by_row.items() if label.verdict}

    def tags(self) -> list[str]:
        """All tags in use."""
        return sorted({tag for label in self._by_row.values() for tag in label.tags})

    def decide(
        self,
        user: str,
        keys: Iterable[str],
        verdict: str | None = None,
        clear: bool = False,
        add_tags: Iterable[str] = (),
        remove_tags: Iterable[str] = (),
    ) -> Decision:
        """As `LabelLog.decide`."""
        made = self._log.decide(
            user, keys, verdict=verdict, clear=clear, add_tags=add_tags, remove_tags=remove_tags
        )
        self._renew()
        return made

    def undo(self, user: str, made: list[Decision]) -> Decision | None:
        """Take back the last of ``made`` that still holds; None where there is none."""
        if self._log.refresh():
            self._renew()
        holds = {decision.id for decision in holding(self._log.decisions)}
        last = next((decision for decision in reversed(made) if decision.id in holds), None)
        if last is not None:
            self._log.undo(user, last.id)
            self._renew()
        return last

    def csv(self) -> bytes:
        """The table of labels as a file, as far as they are known here."""
        with self._lock:
            labels = self._state.labels()
        return labels_csv(label_table(labels))

    def _renew(self, problem: str | None = None) -> None:
        """Follow the log, as it is once the lock is had: of two at once the later one never sees less."""
        with self._lock:
            touched = self._state.follow(self._log.decisions)
            by_row = self._by_row.copy()
            for key, label in touched.items():
                if key in self._rows:
                    _put(by_row, self._rows[key], label)
            self._by_row = by_row
            if problem is not None:
                self.problem = problem
            self.version += 1


def _put(by_row: dict[int, FieldLabel], row: int, label: FieldLabel | None) -> None:
    if label is None:
        by_row.pop(row, None)
    else:
        by_row[row] = label


def _first_of(problems: list[str]) -> str:
    """The first problem, and how many more there are."""
    more = f" (and {len(problems) - 1} more such files: hcs-ray verify)" if len(problems) > 1 else ""
    return "".join(problems[:1]) + more


@dataclass(frozen=True)
class Explorer:
    """One server's study. ``version`` marks its pictures' addresses, which browsers keep."""

    scene: Scene
    user: str
    thumbnails: Thumbnails
    labels: SharedLabels
    pool: ThreadPoolExecutor  # what the sessions have computed
    painter: ThreadPoolExecutor  # fields, which may wait for a store, keep no session's work waiting
    writer: ThreadPoolExecutor  # one thread: decisions are written in the order in which they are made
    version: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def title(self) -> str:
        """The study's title and run, as in the report."""
        study = self.scene.study
        return f"{study.config.report.title}: {study.name}"

    @property
    def fields(self) -> pd.DataFrame:
        return self.scene.fields

    @functools.cached_property
    def names(self) -> list[str]:
        """Each field in words: ``taxol@0.3 · Week1_22123 B02 site 1``."""
        columns = [self.fields[name] for name in (c.TREATMENT, c.PLATE, c.WELL, c.SITE)]
        return [
            f"{treatment} · {plate} {well} site {site}"
            for treatment, plate, well, site in zip(*columns, strict=True)
        ]

    def close(self) -> None:
        """Let go of the threads; what is being written is written to its end."""
        self.writer.shutdown(wait=True)
        self.thumbnails.close()
        for pool in (self.pool, self.painter):
            pool.shutdown(wait=False, cancel_futures=True)


def open_explorer(scene: Scene, user: str) -> Explorer:
    """All that a server shares, with the labels as they are; their `problem` says where that fails."""
    labels = SharedLabels(scene)
    labels.refresh()
    return Explorer(
        scene,
        user,
        Thumbnails(scene),
        labels,
        ThreadPoolExecutor(_THREADS, thread_name_prefix="explore"),
        ThreadPoolExecutor(_THREADS, thread_name_prefix="explore-fields"),
        ThreadPoolExecutor(1, thread_name_prefix="explore-labels"),
    )
