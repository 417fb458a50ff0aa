"""How far a command is, on standard error: a bar on a terminal, else a line now and then.

Both tell the rate and the remaining time. Bytes are counted in their own units.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Final

from rich.console import Console
from rich.filesize import decimal
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.progress import Progress as Bars
from rich.text import Text

from hcs_ray.contracts import Progress

BYTES: Final = "bytes"
_LINE_EVERY_S: Final = 30.0


@contextmanager
def progress_bar(stage: str, unit: str, line_every_s: float = _LINE_EVERY_S) -> Iterator[Progress]:
    """Show a stage's progress, and at its end the time it took, or that it was complete.

    Args:
        stage: What is done.
        unit: What is counted, as in "fields"; "bytes" are shown as MB and GB.
        line_every_s: Between two lines, where standard error is no terminal.

    Yields:
        Takes (done, total); safe to share between threads. The first call tells what was there before, and
        is no part of the rate.
    """
    console = Console(stderr=True, highlight=False)
    lines = _Lines(console, stage, unit, line_every_s)
    with Bars(*_columns(unit), console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(stage, total=None, words="")

        yield _Shown(lines, bars, task)
    lines.end()


def tell(progress: Progress, words: str) -> None:
    """Say what a stage is at, beside its count; a progress that only counts leaves it out."""
    if isinstance(progress, _Shown):
        progress.tell(words)


def _columns(unit: str) -> tuple[ProgressColumn, ...]:
    counts: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), _Rate(unit))
    if unit == BYTES:
        counts = (DownloadColumn(), TransferSpeedColumn())
    times = (TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn())
    said = TextColumn("{task.fields[words]}")
    return (TextColumn("{task.description:<9}"), BarColumn(), *counts, *times, said)


class _Rate(ProgressColumn):
    """Units a second, or a minute where they are slow."""

    def __init__(self, unit: str) -> None:
        super().__init__()
        self._unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        return Text(_rate(speed, self._unit) if speed else self._unit)


class _Shown:
    """What `progress_bar` yields."""

    def __init__(self, lines: _Lines, bars: Bars, task: TaskID) -> None:
        self._lines, self._bars, self._task = lines, bars, task

    def __call__(self, done: int, total: int) -> None:
        if not self._lines.begun and done == total:
            return  # nothing is left to do
        self._lines.update(done, total)
        self._bars.update(self._task, completed=done, total=total)

    def tell(self, words: str) -> None:
        self._lines.tell(words)
        self._bars.update(self._task, words=words)


class _Lines:
    """What is said where there is no bar, and at the end."""

    def __init__(self, console: Console, stage: str, unit: str, every_s: float) -> None:
        self._console = console
        self._stage = stage
        self._unit = unit
        self._every_s = every_s
        self._started = self._began = self._said = time.monotonic()
        self._first = self._done = 0
        self.begun = False

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if not self.begun:
            self.begun, self._first, self._began, self._said = True, done, now, now
            self._say(f"{_amount(total, self._unit)} ...")
        self._done = done
        if now - self._said >= self._every_s:
            self._said = now
            whole = _amount(total, self._unit)
            part = decimal(done) if self._unit == BYTES else done
            self._say(f"{part} of {whole}{self._pace(total)}")

    def tell(self, words: str) -> None:
        self._say(words)

    def end(self) -> None:
        took = time.monotonic() - self._started
        state = f"{took:.1f} s" if self.begun else "complete"
        self._console.print(f"{self._stage:<9} {state}")

    def _pace(self, total: int) -> str:
        speed = (self._done - self._first) / max(time.monotonic() - self._began, 1e-9)
        if speed <= 0:
            return ""
        left = timedelta(seconds=round((total - self._done) / speed))
        return f", {_rate(speed, self._unit)}, {left} left"

    def _say(self, text: str) -> None:
        if not self._console.is_terminal:
            self._console.print(f"{self._stage:<9} {text}")


def _amount(count: int, unit: str) -> str:
    return decimal(count) if unit == BYTES else f"{count} {unit}"


def _rate(speed: float, unit: str) -> str:
    if unit == BYTES:
        return f"{decimal(int(speed))}/s"
    return f"{speed:.1f} {unit}/s" if speed >= 1 else f"{60 * speed:.1f} {unit}/min"
