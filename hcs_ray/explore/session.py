"""The state of one browser session: what is selected, which field is looked at, what was said last."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
from bokeh.document import Document

from hcs_ray import contracts as c
from hcs_ray.explore.background import Background
from hcs_ray.explore.selecting import Mode, Rows, Selection, by_rank
from hcs_ray.explore.shared import Explorer
from hcs_ray.labels import Decision

Change = Literal["selection", "current", "labels", "said", "open", "flip"]
_POLL_MS: Final = 1000  # a look at a number; the log itself is read by the server


class Session:
    """Views tell it what a person does and are told of what changes; all on the event loop.

    Attributes:
        selection: What is selected; empty: nothing.
        current: The row of the field that is looked at.
        said: The last line for the person.
    """

    def __init__(self, explorer: Explorer, document: Document) -> None:
        self.explorer = explorer
        self.selection = Selection()
        self.current: int | None = None
        self.said = self._problem = explorer.labels.problem
        self._place: int | None = None  # among those shown: of the last of them that was looked at
        self.background = Background(explorer.pool, document, self.say)
        self._document = document
        self._listeners: dict[Change, list[Callable[[], None]]] = {}
        self._made: list[Decision] = []
        self._all = Selection(by_rank(explorer.fields), "")
        self._seen = explorer.labels.version
        document.add_periodic_callback(self._look_for_labels, _POLL_MS)

    def on(self, change: Change, listener: Callable[[], None]) -> None:
        """Call a view after each change of a kind."""
        self._listeners.setdefault(change, []).append(listener)

    @property
    def shown(self) -> Rows:
        """What the gallery shows: the selection, or without one all fields, the most unusual first."""
        return self.selection.rows if self.selection else self._all.rows

    @property
    def mask(self) -> np.ndarray[tuple[int], np.dtype[np.bool_]] | None:
        """The selection as a mask over all fields; None where nothing is selected."""
        if not self.selection:
            return None
        mask = np.zeros(len(self.explorer.fields), bool)
        mask[self.selection.rows] = True
        return mask

    def select(self, rows: Rows, title: str, mode: Mode = "new") -> None:
        """Select fields; ``title`` says where they come from."""
        self.selection = self.selection.combined(Selection(rows, title), mode)
        if self.current is not None and self.selection and self.current not in self.selection.rows:
            self.current = None
        self._place = self._current_place()
        if not self.selection:
            self.say("No fields there." if mode != "remove" else "Nothing is selected any more.")
        self._tell("selection")
        self._tell("current")

    def clear(self) -> None:
        """Select nothing."""
        self.selection = Selection()
        self._place = self._current_place()
        self._tell("selection")

    def go(self, row: int) -> None:
        """Look at a field."""
        self.current = row
        found = self._current_place()
        self._place = self._place if found is None else found
        self._tell("current")

    def open(self, row: int) -> None:
        """Look at a field in the field view."""
        self.go(row)
        self._tell("open")

    def flip(self) -> None:
        """Between the gallery and the field view."""
        self._tell("flip")

    def step(self, by: int) -> None:
        """Look at the next or previous field among those shown, also after a look at one that is not."""
        rows = self.shown
        if not len(rows):
            return
        place = 0 if self._place is None else self._place + by
        self.go(int(rows[np.clip(place, 0, len(rows) - 1)]))

    def say(self, line: str) -> None:
        """One line for the person."""
        self.said = line
        self._tell("said")

    def _current_place(self) -> int | None:
        """The place of the field that is looked at, where it is among those shown."""
        if self.current is None:
            return None
        here = np.flatnonzero(self.shown == self.current)
        return int(here[0]) if len(here) else None

    # --- Labels

    def label(
        self, whole: bool, verdict: str | None = None, clear: bool = False, add: str = "", remove: str = ""
    ) -> None:
        """Decide about the field that is looked at, or about the whole selection."""
        rows = self._about(whole)
        if rows is None:
            return
        fields, labels = self.explorer.fields, self.explorer.labels
        keys = [str(key) for key in fields[c.KEY].iloc[rows]]
        tags = {"add_tags": [add] if add else [], "remove_tags": [remove] if remove else []}
        said = verdict or ("no verdict" if clear else f"tag {add}" if add else f"without tag {remove}")

        def write() -> Decision:
            made = labels.decide(self.explorer.user, keys, verdict, clear, **tags)
            self._made.append(made)
            return made

        def written(_: Decision) -> None:
            self.say(f"{said}: {self._named(rows)}")
            self._look_for_labels()

        self.background.run_each(self.explorer.writer, "label", write, written)

    def undo(self) -> None:
        """Take back the last decision of this session that holds; others at this server keep theirs."""
        explorer, made = self.explorer, self._made

        def taken_back(last: Decision | None) -> None:
            if last is None:
                self.say(f"This page has decided nothing that still holds. {_how_to_undo(explorer)}")
                return
            rows = [self.explorer.scene.row_of(key) for key in last.keys if key in self.explorer.scene.keys]
            self.say(f"Taken back: {decision_words(last)}, {self._named(np.array(rows, np.int64))}")
            self._look_for_labels()

        self.background.run_each(
            explorer.writer, "undo", lambda: explorer.labels.undo(explorer.user, made), taken_back
        )

    def _about(self, whole: bool) -> Rows | None:
        if whole and not self.selection:
            self.say("Nothing is selected: draw a lasso on the map, click a well, or browse.")
            return None
        if whole:
            return self.selection.rows
        if self.current is None:
            self.say("No field is chosen: click a picture, or press → for the first one.")
            return None
        return np.array([self.current], np.int64)

    def _named(self, rows: Rows) -> str:
        return self.explorer.names[rows[0]] if len(rows) == 1 else f"{len(rows):,} fields"

    def _look_for_labels(self) -> None:
        labels = self.explorer.labels
        if labels.version != self._seen:
            self._seen = labels.version
            self._tell("labels")
        if labels.problem != self._problem:  # said once, so that it does not cover what was decided since
            self._problem = labels.problem
            self.say(labels.problem or "All labels can be read again.")

    def _tell(self, change: Change) -> None:
        for listener in self._listeners.get(change, []):
            listener()


def _how_to_undo(explorer: Explorer) -> str:
    """How to take back what was decided elsewhere, or before this page was opened."""
    study = explorer.scene.study.storage.url
    command = shlex.join(["hcs-ray", "label", study, "--undo", "--user", explorer.user])
    return f"An older decision is taken back in a terminal: {command}"


def decision_words(decision: Decision) -> str:
    """What a decision said."""
    words: list[str] = [decision.verdict] if decision.verdict else []
    words += ["no verdict"] if decision.clear else []
    words += [f"tag {tag}" for tag in decision.add_tags]
    words += [f"without tag {tag}" for tag in decision.remove_tags]
    return ", ".join(words)
