"""What follows from all decisions: the label of each field."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
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
        tags = (self.tags | set(decision.add_tags)) - set(decision.remove_tags)
        return replace(self, verdict=verdict, tags=tags, user=decision.user, time=decision.time)


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
        for key in decision.keys:
            found[key] = found.get(key, FieldLabel()).after(decision)
    return {key: label for key, label in sorted(found.items()) if label.verdict or label.tags}


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
