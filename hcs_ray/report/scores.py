"""Every query with its neighbour, the score of each mechanism, and who was taken for whom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

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
class MechanismScore:
    """NSCB of one mechanism: right of scored queries, of held-out compounds and of leaked ones."""

    moa: str
    held_out_right: int
    held_out: int
    leaked_right: int
    leaked: int


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
    """NSCB by mechanism, in the order of names."""
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
    mine = [query for query in listed if query.moa == moa and query.outcome != "not scored"]
    right = [query for query in mine if query.outcome == "right"]
    return MechanismScore(
        moa=moa,
        held_out_right=sum(not query.leaked for query in right),
        held_out=sum(not query.leaked for query in mine),
        leaked_right=sum(query.leaked for query in right),
        leaked=sum(query.leaked for query in mine),
    )


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
