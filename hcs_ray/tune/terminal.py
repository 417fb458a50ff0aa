"""The leaderboard on the terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

import pandas as pd
from rich.console import Console
from rich.table import Table

_ROWS: Final = 20


def show(table: pd.DataFrame, swept: list[str], metrics: list[str], told: Sequence[str] = ()) -> None:
    """Print the best trials on standard error; swept keys by their last part, where that is clear.

    Args:
        table: `hcs_ray.tune.board.leaderboard`.
        swept: its columns of swept keys.
        metrics: names of the metrics, the first one that of ``score``.
        told: its columns of other figures to show.
    """
    others = [*(metrics if len(metrics) > 1 else ["score"]), *told]
    shown = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("rank", "trial", *others, "epochs", "status", *map(_last_part(swept), swept)):
        shown.add_column(name, overflow="fold")
    for _, row in table.head(_ROWS).iterrows():
        cells = [row["rank"], row["trial"], *(row[name] for name in others), row["epochs"], row["status"]]
        shown.add_row(*map(_cell, [*cells, *(row[name] for name in swept)]))
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
