"""Every query with its neighbour, the score of each mechanism, and who was taken for whom."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import pandas as pd

from hcs_ray import contracts as c

Outcome = Literal["right", "wrong", "not scored"]


@dataclass(frozen=True)
class Query:
    """A labelled treatment and its nearest neighbours under NSCB (shown) and NSC (outcome)."""

    treatment: str
    moa: str
    neighbour: str | None
    neighbour_moa: str | None
    distance: float | None
    outcome: Outcome
    nsc_outcome: Outcome
    leaked: bool
    note: str


@dataclass(frozen=True)
class Hits:
    """Right of scored queries."""

    right: int
    total: int

    @property
    def share(self) -> float | None:
        """None without a query."""
        return self.right / self.total if self.total else None

    def __str__(self) -> str:
        return f"{self.right}/{self.total}" if self.total else "–"


@dataclass(frozen=True)
class MechanismScore:
    """NSCB and NSC of one mechanism, of held-out compounds and of leaked ones."""

    moa: str
    nscb_held_out: Hits
    nscb_leaked: Hits
    nsc_held_out: Hits
    nsc_leaked: Hits


@dataclass(frozen=True)
class Cell:
    """A cell of a confusion matrix: a count, and its share of the row as colours."""

    count: int
    share: float
    colour: str
    ink: str
    title: str
    diagonal: bool


@dataclass(frozen=True)
class Confusion:
    """True mechanisms (rows that occur) against predicted ones (all classes)."""

    level: str
    count: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    figures: dict[str, float]


def queries(evaluation: Mapping[str, Any]) -> list[Query]:
    """One a labelled treatment: held-out ones first, then by mechanism and name."""
    nsc = {row[c.TREATMENT]: row for row in evaluation["nsc"]["queries"]}
    found = [_query(row, nsc[row[c.TREATMENT]]) for row in evaluation["nscb"]["queries"]]
    return sorted(found, key=lambda query: (query.leaked, query.moa, query.treatment))


def mechanisms(listed: Sequence[Query]) -> list[MechanismScore]:
    """NSCB and NSC by mechanism, in the order of names."""
    return [_mechanism(moa, listed) for moa in sorted({query.moa for query in listed})]


def confusions(classification: Mapping[str, Any] | None) -> list[Confusion]:
    """Matrices of treatments and of fields; none where nothing was held out."""
    if classification is None:
        return []
    labels = tuple(str(label) for label in classification["labels"])
    return [
        _confusion(name, labels, classification[level])
        for level, name in (("treatment", "treatments"), ("field", "fields"))
    ]


def query_table(listed: Sequence[Query]) -> pd.DataFrame:
    """The same as a table."""
    return pd.DataFrame([asdict(query) for query in listed], columns=[one.name for one in fields(Query)])


def mechanism_table(
    rows: Sequence[MechanismScore], means: Mapping[tuple[str, bool], tuple[float, int]]
) -> pd.DataFrame:
    """A row a mechanism; ``means`` are those of the replicates, `replicates.by_mechanism`."""
    sides = (("held_out", False), ("leaked", True))
    return pd.DataFrame(
        [
            {"moa": row.moa}
            | {
                f"{guard}_{side}_{what}": getattr(getattr(row, f"{guard}_{side}"), what)
                for guard in ("nscb", "nsc")
                for side, _ in sides
                for what in ("right", "total")
            }
            | {f"replicate_map_{side}": means.get((row.moa, leaked), (None,))[0] for side, leaked in sides}
            for row in rows
        ]
    )


def confusion_table(confusion: Confusion) -> pd.DataFrame:
    """Counts, a row a true mechanism."""
    return pd.DataFrame(
        [
            {"true": label, **dict(zip(confusion.columns, (cell.count for cell in cells), strict=True))}
            for label, cells in confusion.rows
        ]
    )


def _query(row: Mapping[str, Any], nsc: Mapping[str, Any]) -> Query:
    return Query(
        treatment=str(row[c.TREATMENT]),
        moa=str(row[c.MOA]),
        neighbour=row["neighbour"],
        neighbour_moa=row["neighbour_moa"],
        distance=row["distance"],
        outcome=_outcome(row),
        nsc_outcome=_outcome(nsc),
        leaked=bool(row["leaked"]),
        note=_note(row),
    )


def _outcome(row: Mapping[str, Any]) -> Outcome:
    if row["dropped"] is not None:
        return "not scored"
    return "right" if row["correct"] else "wrong"


def _note(row: Mapping[str, Any]) -> str:
    if row["dropped"] is not None:
        return str(row["dropped"])
    if not row["matchable"]:
        return "cannot be right: no candidate of its mechanism is left"
    return "several neighbours are equally near" if row["tied"] else ""


def _mechanism(moa: str, listed: Sequence[Query]) -> MechanismScore:
    mine = [query for query in listed if query.moa == moa]
    held_out, leaked = ([query for query in mine if query.leaked is side] for side in (False, True))
    return MechanismScore(
        moa,
        nscb_held_out=_hits(query.outcome for query in held_out),
        nscb_leaked=_hits(query.outcome for query in leaked),
        nsc_held_out=_hits(query.nsc_outcome for query in held_out),
        nsc_leaked=_hits(query.nsc_outcome for query in leaked),
    )


def _hits(outcomes: Iterable[Outcome]) -> Hits:
    scored = [outcome for outcome in outcomes if outcome != "not scored"]
    return Hits(scored.count("right"), len(scored))


def _confusion(level: str, labels: tuple[str, ...], metrics: Mapping[str, Any]) -> Confusion:
    rows = tuple(
        (
            label,
            tuple(
                _cell(label, other, int(count), sum(counts))
                for other, count in zip(labels, counts, strict=True)
            ),
        )
        for label, counts in zip(labels, metrics["confusion"], strict=True)
        if sum(counts)
    )
    names = ("accuracy", "balanced_accuracy", "macro_f1", "mcc")
    return Confusion(
        level, int(metrics["count"]), labels, rows, {name: float(metrics[name]) for name in names}
    )


def _cell(true: str, predicted: str, count: int, total: int) -> Cell:
    share = count / total
    # From white to a deep blue; white ink where white is the better contrast.
    colour = "#" + "".join(f"{round(255 + (deep - 255) * share):02x}" for deep in (0, 84, 140))
    return Cell(
        count=count,
        share=share,
        colour=colour,
        ink="#ffffff" if share > 0.5 else "#1d232b",
        title=f"{count} of {total} of {true} were taken for {predicted} ({100 * share:.0f} %)",
        diagonal=true == predicted,
    )
