"""What follows from all decisions: the label of each field."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from hcs_ray.config import Verdict
from hcs_ray.contracts import KEY
from hcs_ray.labels.decision import Decision

if TYPE_CHECKING:
    import pandas as pd

VERDICT: Final = "verdict"
TAGS: Final = "tags"
USER: Final = "user"
TIME: Final = "time"
COLUMNS: Final = (KEY, VERDICT, TAGS, USER, TIME)


@dataclass(frozen=True)
class FieldLabel:
    """What holds for a field; ``user`` and ``time`` are of the last decision about it that holds."""

    verdict: Verdict | None = None
    tags: frozenset[str] = field(default_factory=frozenset)
    user: str = ""
    time: str = ""

    def after(self, decision: Decision) -> FieldLabel:
        """The label once a decision was made."""
        verdict = None if decision.clear else decision.verdict or self.verdict
        tags = self.tags.union(decision.add_tags).difference(decision.remove_tags)
        return FieldLabel(verdict, tags, decision.user, decision.time)


_NO_LABEL: Final = FieldLabel()


def holding(decisions: Iterable[Decision]) -> list[Decision]:
    """The decisions that were not taken back, in the order of their ids, without those that take back.

    A decision is taken back wherever its undo stands; an undo itself cannot be taken back.
    """
    every = list(decisions)
    undone = {decision.undoes for decision in every}
    left = [decision for decision in every if decision.undoes is None and decision.id not in undone]
    return sorted(left, key=lambda decision: decision.id)


def field_labels(decisions: Iterable[Decision]) -> dict[str, FieldLabel]:
    """Key -> label, by key, of the fields that have a verdict or a tag."""
    found: dict[str, FieldLabel] = {}
    for decision in holding(decisions):
        _take_in(found, decision, decision.keys)
    return dict(sorted(found.items()))


def _take_in(labels: dict[str, FieldLabel], decision: Decision, keys: Iterable[str]) -> None:
    """Let a decision, the last one so far, hold for some of its fields; what is left without a word goes."""
    after = functools.cache(lambda label: label.after(decision))  # most fields come from a few labels
    for key in keys:
        label = after(labels.get(key, _NO_LABEL))
        if label.verdict or label.tags:
            labels[key] = label
        else:
            labels.pop(key, None)


class LabelState:
    """The labels of `field_labels`, kept while decisions come, go and are taken back.

    Only what a change touches is computed again, however many fields were decided about before. Not to be
    shared by threads.
    """

    def __init__(self) -> None:
        self._held: dict[str, Decision] = {}  # by id, in the order of the ids
        self._labels: dict[str, FieldLabel] = {}

    def labels(self) -> dict[str, FieldLabel]:
        """Key -> label, by key, of the fields that have a verdict or a tag."""
        return dict(sorted(self._labels.items()))

    def follow(self, decisions: Iterable[Decision]) -> dict[str, FieldLabel | None]:
        """Take over all decisions that are known now; key -> label, or None, of each field this touches."""
        held = {decision.id: decision for decision in holding(decisions)}
        come = [decision for name, decision in held.items() if name not in self._held]
        gone = [decision for name, decision in self._held.items() if name not in held]
        touched = {key for decision in (*come, *gone) for key in decision.keys}
        follows = not gone and (not come or not self._held or come[0].id > next(reversed(self._held)))
        if not follows:  # their histories from the beginning: something in between is new or gone
            come = list(held.values())
            for key in touched:
                self._labels.pop(key, None)
        for decision in come:
            _take_in(self._labels, decision, touched.intersection(decision.keys))
        self._held = held
        return {key: self._labels.get(key) for key in touched}


def label_table(labels: dict[str, FieldLabel]) -> pd.DataFrame:
    """One row a labelled field, by key: key, verdict (or None), tags (sorted list), user, time."""
    import pandas as pd

    rows = [(key, one.verdict, sorted(one.tags), one.user, one.time) for key, one in labels.items()]
    return pd.DataFrame(rows, columns=list(COLUMNS), dtype=object)


def labels_csv(table: pd.DataFrame) -> bytes:
    """The table of labels as CSV (UTF-8): tags are joined by ``;``, no verdict is empty."""
    joined = [";".join(tags) for tags in table[TAGS]]
    text: str = table.assign(**{TAGS: joined}).to_csv(index=False, lineterminator="\n")
    return text.encode()


def last_of(decisions: Sequence[Decision], user: str) -> Decision | None:
    """The last decision of a user that holds."""
    return next((one for one in reversed(holding(decisions)) if one.user == user), None)
