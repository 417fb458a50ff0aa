"""The log of all decisions of a study, for a command that reads it once and a server that keeps watching."""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from hcs_ray.contracts import HcsError, InputError, safe_name
from hcs_ray.labels.decision import (
    EVENTS,
    FOREIGN,
    Decision,
    check_decision,
    checked_key,
    checked_user,
    checked_verdict,
    is_event,
    next_stamp,
    parse_decision,
    tidy_tags,
)
from hcs_ray.labels.table import FieldLabel, field_labels, holding, label_table, last_of
from hcs_ray.storage import Storage

if TYPE_CHECKING:
    import pandas as pd

_READERS: Final = 16  # an S3 answers one small read at a time slowly, and many at once no slower
_ATTEMPTS: Final = 3
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """This machine's clock."""
    return datetime.now(UTC)


def decide(
    storage: Storage,
    user: str,
    keys: Iterable[str],
    *,
    verdict: str | None = None,
    clear: bool = False,
    add_tags: Iterable[str] = (),
    remove_tags: Iterable[str] = (),
) -> Decision:
    """Write one decision about some fields; it sorts after all that are there.

    InputError: a user, key, verdict or tag that cannot be, or a decision that says nothing.
    """
    newest = max(map(_id_of, filter(is_event, storage.sizes(EVENTS))), default=None)
    asked = _asked(user, keys, verdict, clear, add_tags, remove_tags)
    return _put(storage, asked, newest, utc_now)


def undo(storage: Storage, user: str, decision_id: str) -> Decision:
    """Take one decision back, whoever made it; `InputError` where there is none that holds."""
    log = LabelLog(storage)
    log.refresh()
    return log.undo(user, decision_id)


def read_labels(storage: Storage) -> pd.DataFrame:
    """The table of labels as of now; a file that is no decision is warned of in one line."""
    log = LabelLog(storage)
    log.refresh()
    log.warn()
    return log.table()


class LabelLog:
    """All decisions of a study as far as they were read; several threads may share one.

    Decisions are ordered by id, which begins with a time. That of a new one is the writer's clock, or just
    after the newest that the writer has seen where that clock is behind it: so what a person decides on
    seeing another decision always comes after it, however wrong the clocks. Two decisions about one field
    that were made without seeing each other are ordered by the clocks of their writers alone, and with skewed
    clocks the one made later may come first. Either way all readers see the same order, and no decision is
    lost.
    """

    def __init__(self, storage: Storage, clock: Clock = utc_now) -> None:
        self._storage = storage
        self._clock = clock
        self._refreshing = threading.Lock()
        self._lock = threading.Lock()
        self._known: dict[str, Decision] = {}  # by path
        self._problems: dict[str, str] = {}  # path -> what is wrong
        self._labels: dict[str, FieldLabel] | None = None
        self._table: pd.DataFrame | None = None

    @property
    def decisions(self) -> list[Decision]:
        """All decisions, with undone ones and undos, in the order of their ids."""
        with self._lock:
            return sorted(self._known.values(), key=lambda decision: decision.id)

    @property
    def problems(self) -> list[str]:
        """One line for each file below ``labels/events`` that is no decision; it has no part in the table."""
        return [f"{self._storage.url}/{path}: {why}" for path, why in self.flaws().items()]

    def flaws(self) -> dict[str, str]:
        """The same: path below the study's root -> what is wrong with the file."""
        with self._lock:
            return dict(sorted(self._problems.items()))

    def warn(self) -> None:
        """Log `problems`."""
        for line in self.problems:
            logging.getLogger("hcs_ray").warning("%s (left out of the labels)", line)

    def refresh(self) -> bool:
        """List ``labels/events`` and read what was not understood yet; True where the decisions changed.

        HcsError: the storage does not answer. What was read before stays.
        """
        with self._refreshing:
            with self._lock:
                before = set(self._known)
            there = self._storage.sizes(EVENTS).keys()
            found, problems = self._read(sorted(there - before))
            gone = before - there
            with self._lock:
                changed = bool(gone or found.keys() - self._known.keys())
                for path in gone:
                    del self._known[path]
                self._known |= found
                self._problems = problems
                if changed:
                    self._labels = self._table = None
            return changed

    def _read(self, paths: list[str]) -> tuple[dict[str, Decision], dict[str, str]]:
        """The decisions of some files, and what is wrong with the others; foreign files are not read."""
        found: dict[str, Decision] = {}
        problems = {path: FOREIGN for path in paths if not is_event(path)}
        events = [path for path in paths if path not in problems]
        with ThreadPoolExecutor(_READERS) as pool:
            contents = list(pool.map(self._storage.read_versioned, events))
        for path, content in zip(events, contents, strict=True):
            if content is None:  # deleted since it was listed
                continue
            try:
                found[path] = parse_decision(path, content[0])
            except InputError as error:
                problems[path] = str(error)
        return found, problems

    def decide(
        self,
        user: str,
        keys: Iterable[str],
        *,
        verdict: str | None = None,
        clear: bool = False,
        add_tags: Iterable[str] = (),
        remove_tags: Iterable[str] = (),
    ) -> Decision:
        """As `hcs_ray.labels.decide`, without a listing; the log holds it at once."""
        return self._add(_asked(user, keys, verdict, clear, add_tags, remove_tags))

    def undo(self, user: str, decision_id: str) -> Decision:
        """As `hcs_ray.labels.undo`; the log holds it at once."""
        if all(decision.id != decision_id for decision in holding(self.decisions)):
            raise InputError(f"there is no decision {decision_id!r} that could be taken back")
        return self._add(Decision("", "", checked_user(user), undoes=decision_id))

    def _add(self, asked: Decision) -> Decision:
        with self._lock:
            newest = max((decision.id for decision in self._known.values()), default=None)
        made = _put(self._storage, asked, newest, self._clock)
        with self._lock:
            self._known[made.path] = made
            self._labels = self._table = None
        return made

    def labels(self) -> dict[str, FieldLabel]:
        """Key -> label, by key, of the labelled fields."""
        with self._lock:
            if self._labels is None:
                self._labels = field_labels(self._known.values())
            return dict(self._labels)

    def table(self) -> pd.DataFrame:
        """One row a labelled field, by key: key, verdict (or None), tags (sorted list), user, time."""
        with self._lock:
            if self._labels is None:
                self._labels = field_labels(self._known.values())
            if self._table is None:
                self._table = label_table(self._labels)
            return self._table.copy()

    def last_of(self, user: str) -> Decision | None:
        """The last decision of a user that was not taken back: what an undo takes back."""
        return last_of(self.decisions, checked_user(user))


def _id_of(path: str) -> str:
    return path.rpartition("/")[2].removesuffix(".json")


def _asked(
    user: str,
    keys: Iterable[str],
    verdict: str | None,
    clear: bool,
    add_tags: Iterable[str],
    remove_tags: Iterable[str],
) -> Decision:
    """A checked decision that has no id and time yet."""
    asked = Decision(
        "",
        "",
        checked_user(user),
        tuple(sorted({checked_key(key) for key in keys})),
        None if verdict is None else checked_verdict(verdict),
        clear,
        tidy_tags(add_tags),
        tidy_tags(remove_tags),
    )
    check_decision(asked)
    return asked


def _put(storage: Storage, asked: Decision, newest: str | None, clock: Clock) -> Decision:
    """Write a decision under an id after ``newest``."""
    for _ in range(_ATTEMPTS):
        now = clock()
        name = f"{next_stamp(now, newest)}-{safe_name(asked.user)}-{uuid.uuid4().hex}"
        made = replace(asked, id=name, time=now.strftime("%Y-%m-%dT%H:%M:%S.%fZ"))
        data = made.to_bytes()
        if storage.put_if_absent(made.path, data):
            return made
        found = storage.read_versioned(made.path)
        if found is not None and found[0] == data:  # a put that was sent again found its own file
            return made
    raise HcsError(f"{storage.url}/{EVENTS}: the store takes no new file; nothing was labelled")
