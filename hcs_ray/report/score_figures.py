"""Charts of the scores: bars of each mechanism, and confusion matrices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np

from hcs_ray.palette import OKABE_ITO
from hcs_ray.report.annex import file_name
from hcs_ray.report.chart import Chart
from hcs_ray.report.drawing import drawing
from hcs_ray.report.scores import Confusion

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PALE: Final = "#cfe0ec"
_LONGEST: Final = 34
_BAR: Final = 0.36  # of the two of a mechanism; a row is one high

# The share of a bar, or None where there is none, and what is written beside it.
Bar = tuple[float | None, str]


def mechanism_bars(names: Sequence[str], panels: Sequence[tuple[str, Sequence[Bar], Sequence[Bar]]]) -> Chart:
    """Bars of mechanisms, panel by panel: its title, and the bars of held-out and of leaked treatments."""
    titles = ", ".join(title for title, _, _ in panels)
    alt = f"{titles} of {len(names)} mechanisms: solid bars are held-out treatments, hatched ones leaked"
    height = 1.5 + 0.44 * len(names)
    with drawing("scores-by-mechanism", alt, (3.3 * len(panels) + 1.6, height)) as (figure, drawn):
        every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, (title, held_out, leaked) in zip(every, panels, strict=True):
            _bars(axes, held_out, -_BAR / 2, "held out: not used in training or any choice", False)
            _bars(axes, leaked, _BAR / 2, "leaked: the network knows the compound", True)
            axes.set(title=title, xlim=(0, 1.25), ylim=(len(names) - 0.4, -0.6))
            axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
            axes.grid(axis="y", visible=False)
        every[0].set_yticks(range(len(names)), [_short(name) for name in names])
        figure.legend(*every[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return drawn[0]


def _bars(axes: Axes, bars: Sequence[Bar], shift: float, label: str, leaked: bool) -> None:
    rows = np.arange(len(bars)) + shift
    shares = [max(share or 0.0, 0.0) for share, _ in bars]
    axes.barh(
        rows, shares, _BAR, label=label, color=_PALE if leaked else OKABE_ITO[0],
        edgecolor="#6f8ba0" if leaked else OKABE_ITO[0], hatch="///" if leaked else None, linewidth=0.6,
    )  # fmt: skip
    for row, share, (_, words) in zip(rows, shares, bars, strict=True):
        axes.text(share + 0.02, row, words, va="center", fontsize=7)


def confusion_figure(confusion: Confusion) -> Chart:
    """A matrix with the shares of its rows as colours, and the counts."""
    names = [label for label, _ in confusion.rows]
    shares = np.array([[cell.share for cell in cells] for _, cells in confusion.rows]).reshape(
        len(names), len(confusion.columns)
    )
    alt = (
        f"Confusion of {confusion.count} held-out {confusion.level}: rows are true mechanisms "
        f"({', '.join(names)}), columns what the network says; colours are shares of a row"
    )
    size = (3.2 + 0.5 * len(confusion.columns), 2.6 + 0.42 * len(names))
    with drawing(file_name("confusion", confusion.level), alt, size) as (figure, drawn):
        axes = figure.add_subplot()
        drawn_shares = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        for row, (_, cells) in enumerate(confusion.rows):
            for column, cell in enumerate(cells):
                if cell.count:
                    ink = "white" if cell.share > 0.5 else "black"
                    axes.text(column, row, str(cell.count), ha="center", va="center", color=ink, fontsize=8)
        axes.set_xticks(
            range(len(confusion.columns)), [_short(name) for name in confusion.columns], rotation=90
        )
        axes.set_yticks(range(len(names)), [_short(name) for name in names])
        axes.set(title=f"{confusion.count} {confusion.level}, held out", xlabel="the network", ylabel="true")
        axes.grid(visible=False)
        figure.colorbar(drawn_shares, ax=axes, label="share of the row", shrink=0.7)
    return drawn[0]


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
