"""The leaderboards of finished sweeps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd

from hcs_ray.config import LEAVE_OUT
from hcs_ray.contracts import rows_of
from hcs_ray.report.annex import file_name
from hcs_ray.report.chart import Chart
from hcs_ray.stage import StageRecord, read_record
from hcs_ray.study import SWEEP_FILE, Study

_SHOWN: Final = 10


@dataclass(frozen=True)
class Board:
    """A sweep: its trials best first (``rows``, of ``trials``), and what its score is worth."""

    name: str
    metric: str
    mode: str
    best: str
    trials: int
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    picture: Chart
    note: str
    uses_labels: bool
    table: pd.DataFrame


def board(study: Study, name: str) -> Board:
    """Of a sweep that is finished."""
    storage, place = study.storage, replace(study, name=name).place("tune")
    record = read_record(storage, place)
    assert record is not None  # the report's claim lists it
    table = record.read_table(storage, f"{place.folder}/leaderboard.parquet")
    summary = record.read_json(storage, f"{place.folder}/{SWEEP_FILE}")
    sweep = record.config["sweep"]
    space = list(sweep["space"])
    alt = (
        f"Sweep {name}: {len(table)} trials by what they tried ({', '.join(space)}) and their "
        f"{summary['metric']}, and their learning curves; the best is {summary['best']}"
    )
    picture = record.read(storage, f"{place.folder}/leaderboard.svg")
    shown = ["rank", "trial", "score", *space, "epochs", "status"]
    return Board(
        name=name,
        metric=str(summary["metric"]),
        mode=str(summary["mode"]),
        best=str(summary["best"]),
        trials=len(table),
        columns=tuple(shown),
        rows=tuple(_cells(row, shown) for row in rows_of(table.head(_SHOWN))),
        picture=Chart(file_name("sweep", name), alt, picture),
        note=_note(record, space),
        uses_labels=bool(summary.get("uses_labels")),
        table=table,
    )


def _note(record: StageRecord, space: list[str]) -> str:
    if LEAVE_OUT in space:
        return (
            "Each trial left one compound out; its score is of other compounds. What those left out say "
            " stands under the folds."
        )
    if record.config["sweep"]["objective"] == "map":
        return (
            "Trials are layouts of the same embeddings; their scores say how well a layout keeps neighbours."
        )
    return (
        "The score is of validation compounds, by which the best trial was chosen: it flatters, and is no "
        "estimate for new compounds."
    )


def _cells(row: dict[str, Any], columns: list[str]) -> tuple[str, ...]:
    return tuple(_text(row.get(name)) for name in columns)


def _text(value: Any) -> str:
    if value is None or value != value:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)
