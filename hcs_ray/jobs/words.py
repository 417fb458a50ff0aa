"""How jobs speak: a line at a time, ages and tables as kubectl writes them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime

Say = Callable[[str], None]  # takes a line for the terminal


def age(since: datetime | None, now: datetime) -> str:
    """``42s``, ``17m``, ``3h12m``, ``6d4h``; empty where the time is not known."""
    if since is None:
        return ""
    seconds = max(0, int((now - since).total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3600, seconds // 86400
    if minutes < 2:
        return f"{seconds}s"
    if hours < 1:
        return f"{minutes}m"
    return f"{hours}h{minutes % 60}m" if days < 1 else f"{days}d{hours % 24}h"


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows as lines, the first one the heads, each column as wide as its widest cell."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ("   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
