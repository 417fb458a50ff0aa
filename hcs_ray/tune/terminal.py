"""The leaderboard on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import pandas as pd
from rich.console import Console
from rich.table import Table

_ROWS: Final = 20


def show(
    table: pd.DataFrame, swept: list[str], metrics: list[str], told: Mapping[str, str] | None = None
) -> None:
    """Print the best trials on standard error; swept keys by their last part, where that is clear.

    How far trials came is left out where all came as far.

    Args:
        table: `hcs_ray.tune.board.leaderboard`.
        swept: its columns of swept keys.
        metrics: names of the metrics, the first one that of ``score``.
        told: its columns of other figures to show, and what they are called.
    """
    told = told or {}
    columns = ["rank", "trial", *(metrics if len(metrics) > 1 else ["score"]), *told]
    columns += [name for name in ("epochs", "status") if table[name].nunique() > 1 or len(table) == 1]
    columns += swept
    last_part = _last_part(swept)
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in columns:
        shown.add_column(last_part(name) if name in swept else told.get(name, name), overflow="fold")
    for _, row in table.head(_ROWS).iterrows():
        shown.add_row(*(_cell(row[name]) for name in columns))
    console = Console(stderr=True, highlight=False)
    if len(metrics) == 1:
        console.print(f"\nscore: {metrics[0]}")
    console.print(shown)
    if len(table) > _ROWS:
        console.print(f"... and {len(table) - _ROWS} more")


def _last_part(names: list[str]) -> Callable[[str], str]:
    last = [name.rpartition(".")[2] for name in names]
    return lambda name: part if last.count(part := name.rpartition(".")[2]) == 1 else name


def _cell(value: Any) -> str:
    if value is None or value != value:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)
