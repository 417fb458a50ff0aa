"""Two runs side by side: what has changed from one to the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.outliers.find import LEVELS, REASON
from hcs_ray.profiles.build import evaluation_of
from hcs_ray.report.answers import Answer, held_out_answers, overall_answers, percent
from hcs_ray.report.scores import MechanismScore, mechanisms, queries
from hcs_ray.stage import read_record
from hcs_ray.study import Study


@dataclass(frozen=True)
class Run:
    """What a run of the study has left: ``evaluation.json``, and its outliers where they were looked for."""

    name: str
    evaluation: Mapping[str, Any]
    outliers: Mapping[str, pd.DataFrame] | None


@dataclass(frozen=True)
class Figure:
    """A headline figure of both runs; ``change`` in words."""

    title: str
    before: Answer
    after: Answer
    change: str


@dataclass(frozen=True)
class Mechanism:
    """NSCB and NSC of one mechanism in both runs, as ``3/4``; held-out and leaked."""

    moa: str
    cells: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Outliers:
    """How many rows of a level have a reason, in both runs."""

    level: str
    reason: str
    before: int
    after: int


@dataclass(frozen=True)
class BeforeAfter:
    """Two runs side by side; ``notes`` say what else differs."""

    before: str
    after: str
    figures: tuple[Figure, ...]
    mechanisms: tuple[Mechanism, ...]
    outliers: tuple[Outliers, ...]
    notes: tuple[str, ...]


MECHANISM_HEADS: Final = ("NSCB, held out", "NSCB, leaked", "NSC, held out", "NSC, leaked")


def read_run(study: Study, outliers: bool) -> Run:
    """Another run, from what its records list, whatever configuration it was made with."""
    storage = study.storage
    record = read_record(storage, study.place("profile"))
    assert record is not None  # the report's claim lists it
    evaluation = evaluation_of(study, record)
    tables = None
    place = study.place("outliers")
    if outliers and (found := read_record(storage, place)):
        names = [level.name for level in LEVELS]
        tables = {name: found.read_table(storage, f"{place.folder}/{name}.parquet") for name in names}
    return Run(study.name, evaluation, tables)


def side_by_side(before: Run, after: Run) -> BeforeAfter:
    """What the page shows of two runs."""
    pairs = zip(_answers(before.evaluation), _answers(after.evaluation), strict=True)
    return BeforeAfter(
        before=before.name,
        after=after.name,
        figures=tuple(Figure(old.title, old, new, _change(old, new)) for old, new in pairs),
        mechanisms=tuple(_mechanisms(before.evaluation, after.evaluation)),
        outliers=tuple(_outliers(before.outliers, after.outliers)),
        notes=tuple(_notes(before.evaluation, after.evaluation)),
    )


def figures_table(found: BeforeAfter) -> pd.DataFrame:
    """The headline figures as numbers: a row a figure."""
    return pd.DataFrame(
        [
            {"figure": one.title}
            | {
                f"{what} {run}": value
                for run, answer in ((found.before, one.before), (found.after, one.after))
                for what, value in (
                    ("share", answer.share),
                    ("low", answer.interval[0] if answer.interval else None),
                    ("high", answer.interval[1] if answer.interval else None),
                    ("verdict", answer.verdict),
                )
            }
            for one in found.figures
        ]
    )


def _answers(evaluation: Mapping[str, Any]) -> list[Answer]:
    return [*held_out_answers(evaluation), *overall_answers(evaluation)]


def _change(old: Answer, new: Answer) -> str:
    if old.share is None or new.share is None:
        return "–"
    points = 100 * (new.share - old.share)
    if old.total != new.total:
        return f"{points:+.0f} points, of other treatments"
    apart = (
        old.interval
        and new.interval
        and (old.interval[1] < new.interval[0] or new.interval[1] < old.interval[0])
    )
    return f"{points:+.0f} points; {'the intervals lie apart' if apart else 'the intervals overlap'}"


def _mechanisms(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[Mechanism]:
    found = [{row.moa: row for row in mechanisms(queries(one))} for one in (old, new)]
    names = sorted({*found[0], *found[1]})
    return [
        Mechanism(name, tuple(zip(*(_hits(side.get(name)) for side in found), strict=True))) for name in names
    ]


def _hits(row: MechanismScore | None) -> Sequence[str]:
    if row is None:
        return ("–",) * len(MECHANISM_HEADS)
    return [str(hits) for hits in (row.nscb_held_out, row.nscb_leaked, row.nsc_held_out, row.nsc_leaked)]


def _outliers(
    old: Mapping[str, pd.DataFrame] | None, new: Mapping[str, pd.DataFrame] | None
) -> list[Outliers]:
    if old is None or new is None:
        return []
    rows = []
    for level in LEVELS:
        counts = [tables[level.name][REASON].value_counts() for tables in (old, new)]
        reasons = sorted({str(name) for count in counts for name in count.index} | {level.reason})
        rows += [
            Outliers(level.name, name, *(int(count.get(name, 0)) for count in counts)) for name in reasons
        ]
    return rows


def _notes(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What differs beside the figures."""
    notes = []
    methods = [one["normalization"]["method"] for one in (old, new)]
    if methods[0] != methods[1]:
        notes.append(f"Normalisation: {methods[0]} before, {methods[1]} after.")
    asked = [{row[c.TREATMENT] for row in one["nscb"]["queries"]} for one in (old, new)]
    if asked[0] != asked[1]:
        notes.append(
            f"Not the same treatments are scored: {len(asked[0] - asked[1])} only before, "
            f"{len(asked[1] - asked[0])} only after."
        )
    leaked = [set(one["track"]["leaked_compounds"]) for one in (old, new)]
    if leaked[0] != leaked[1]:
        notes.append(
            f"Not the same compounds have leaked: {len(leaked[0] - leaked[1])} only before, "
            f"{len(leaked[1] - leaked[0])} only after; held-out figures are of other compounds."
        )
    shares = [one["same_batch_share"] for one in (old, new)]
    if None not in shares:
        notes.append(
            f"Nearest neighbours of the same batch: {percent(shares[0])} before, {percent(shares[1])} after."
        )
    return notes
