"""The files beside the page: its figures as SVG and PNG, its tables as CSV."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import pandas as pd

from hcs_ray.contracts import InputError, safe_name
from hcs_ray.report.chart import Chart

FIGURES: Final = "figures"
TABLES: Final = "tables"
_WORDS: Final = re.compile(r"[A-Za-z0-9]+(-[A-Za-z0-9]+)*")


@dataclass(frozen=True)
class Entry:
    """A figure or table in the list of files: what it shows, and its paths beside the page."""

    title: str
    paths: tuple[str, ...]


@dataclass
class Annex:
    """Collects the files that a report leaves beside its page, each under a name of its own."""

    _files: dict[str, bytes] = field(default_factory=dict)
    _entries: list[Entry] = field(default_factory=list)

    def chart(self, chart: Chart) -> Chart:
        """Take a figure in; handed back so that the page shows it."""
        paths = [f"{FIGURES}/{chart.name}.svg"]
        self._put(paths[0], chart.svg)
        if chart.png is not None:
            paths.append(f"{FIGURES}/{chart.name}.png")
            self._put(paths[1], chart.png)
        self._entries.append(Entry(chart.alt, tuple(paths)))
        return chart

    def table(self, name: str, title: str, table: pd.DataFrame) -> str:
        """Take a table in; returns its path beside the page."""
        path = f"{TABLES}/{name}.csv"
        self._put(path, table.to_csv(index=False, lineterminator="\n").encode())
        self._entries.append(Entry(title, (path,)))
        return path

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What there is, in the order of the page."""
        return tuple(self._entries)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Every file: its path beside the page, and its bytes."""
        yield from self._files.items()

    def _put(self, path: str, data: bytes) -> None:
        if path in self._files:
            raise InputError(f"the report has two files {path}")
        self._files[path] = data


def file_name(*words: str) -> str:
    """A file's name of some words, another one for others: ``file_name("batch map", "Week 1")``."""
    plain = [word.replace(" ", "-") for word in words]
    return "-".join(word if _WORDS.fullmatch(word) else safe_name(word) for word in plain)
