"""The leaderboard of a sweep: a table of its trials, best first, and their learning curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray.config import SweepConfig
from hcs_ray.tune.space import Values

RUNNING: Final = "running"
ENDED: Final = "ended"
STOPPED: Final = "stopped"  # by a scheduler or a stop rule, before its last epoch
FAILED: Final = "failed"

CURVE_COLUMNS: Final = ("trial", "epoch", "optimizer_steps")


@dataclass(frozen=True)
class Entry:
    """A trial as it stands."""

    trial: str
    values: Values  # of the swept keys that are active
    status: str
    scores: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 0
    steps: int = 0
    error: str | None = None
    figures: Mapping[str, float] = field(default_factory=dict)  # told beside the scores


def leaderboard(entries: Sequence[Entry], sweep: SweepConfig) -> pd.DataFrame:
    """One row a trial, best first.

    Returns:
        ``rank`` (from 1), ``trial``, ``status``, ``score`` (of the first metric), with several metrics a
        column for each and ``front`` (1: no other trial is better in one and as good in all; 2: none but
        those of front 1; ...), ``epochs``, ``optimizer_steps``, ``error``, a column a swept key, blank where
        the key was not active, and one a figure that trials tell beside their scores. Trials that failed
        come after all others, those without a score last.
    """
    rows = [_row(entry, sweep) for entry in entries]
    told = dict.fromkeys(name for entry in entries for name in entry.figures)
    columns = _columns(sweep)
    table = pd.DataFrame(rows, columns=[*columns, *(name for name in told if name not in columns)])
    table["failed"] = table["status"] == FAILED  # their networks are not handed on
    order = ["score", "trial"]
    ascending = [sweep.goal.mode == "min", True]
    if len(sweep.metric) > 1:
        table["front"] = fronts(table, sweep)
        order, ascending = ["front", *order], [True, *ascending]
    order, ascending = ["failed", *order], [True, *ascending]
    table = table.sort_values(order, ascending=ascending, na_position="last", ignore_index=True)
    table = table.drop(columns="failed")
    table.insert(0, "rank", range(1, len(table) + 1))
    for name in sweep.space:
        table[name] = _plain(table[name])
    return table


def fronts(table: pd.DataFrame, sweep: SweepConfig) -> pd.Series[float]:
    """The Pareto front of each row, from 1 (Deb et al. 2002); nan where a metric is missing."""
    signs = [1.0 if goal.mode == "max" else -1.0 for goal in sweep.metric]
    points = table[[goal.name for goal in sweep.metric]].to_numpy(float) * signs
    found = np.full(len(points), np.nan)
    left = np.flatnonzero(~np.isnan(points).any(axis=1))
    front = 1
    while len(left):
        here = points[left]
        as_good = (here[:, None] >= here[None]).all(axis=2)
        better = (here[:, None] > here[None]).any(axis=2)
        beaten = (as_good & better).any(axis=0)
        found[left[~beaten]] = front
        left, front = left[beaten], front + 1
    return pd.Series(found, index=table.index)


def curves(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> pd.DataFrame:
    """The learning curves: a row a trial and epoch, with every figure that its training told."""
    flat = [
        {"trial": trial, **{name: value for name, value in row.items() if isinstance(value, int | float)}}
        for trial, told in rows.items()
        for row in told
    ]
    table = pd.DataFrame(flat)
    return table if len(table) else pd.DataFrame(columns=list(CURVE_COLUMNS))


def _columns(sweep: SweepConfig) -> list[str]:
    several = [goal.name for goal in sweep.metric] if len(sweep.metric) > 1 else []
    return ["trial", "status", "score", *several, "epochs", "optimizer_steps", "error", *sweep.space]


def _row(entry: Entry, sweep: SweepConfig) -> dict[str, Any]:
    scores = {goal.name: float(entry.scores.get(goal.name, np.nan)) for goal in sweep.metric}
    return {
        **entry.figures,
        **(scores if len(scores) > 1 else {}),
        **{name: entry.values.get(name) for name in sweep.space},
        "trial": entry.trial,
        "status": entry.status,
        "score": scores[sweep.goal.name],
        "epochs": entry.epochs,
        "optimizer_steps": entry.steps,
        "error": entry.error,
    }


def _plain(column: pd.Series[Any]) -> pd.Series[Any]:
    """Numbers as numbers; what is of mixed or nested types as text, which Parquet can hold."""
    values = [value for value in column if value is not None and value == value]
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return column.astype(float)
    kinds = {type(value) for value in values}
    if len(kinds) == 1 and kinds <= {str, bool}:
        return column.astype(object)
    return column.map(lambda value: None if value is None else str(value)).astype(object)
