"""Charts with axes, by matplotlib, as SVG: the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.palette import OKABE_ITO, QUIET_COLOUR, SEQUENTIAL, Style
from hcs_ray.report.order import plates_in_order
from hcs_ray.report.pictures import Picture, data_uri

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_STYLE: Final[dict[Any, Any]] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a919b",
    "axes.labelcolor": "#3b424c",
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8eaed",
    "text.color": "#1d232b",
    "xtick.color": "#5a626d",
    "ytick.color": "#5a626d",
    "legend.frameon": False,
    "legend.fontsize": 8,
    "svg.fonttype": "path",  # looks the same whatever fonts a reader has
    "svg.hashsalt": "hcs_ray",
}
_SIZE_INCHES: Final = (4.6, 3.1)
_MAP_INCHES: Final = (3.7, 3.6)
_LINE: Final = 56  # letters beside one another below a chart
_RASTER_ABOVE: Final = 1500  # points: as pixels inside the SVG, which stays small
_CLIP: Final = (0.01, 0.99)  # of values: one extreme must not take the whole scale
_DPI: Final = 160

Numbers = npt.NDArray[np.float64]


@contextmanager
def _drawing(
    alt: str, size: tuple[float, float] = _SIZE_INCHES
) -> Iterator[tuple[Figure, Axes, list[Picture]]]:
    """A figure with one axes, and a list that holds its picture afterwards."""
    import matplotlib
    from matplotlib.figure import Figure

    drawn: list[Picture] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        yield figure, figure.add_subplot(), drawn
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    drawn.append(Picture(data_uri(buffer.getvalue(), "image/svg+xml"), alt))


def curves(
    title: str,
    history: pd.DataFrame,
    lines: Mapping[str, str],
    chosen_epoch: int,
    chance: float | None = None,
) -> Picture:
    """Columns of a training's history (``lines``: column -> its name) by epoch, the chosen one marked."""
    alt = f"{title} by epoch: {', '.join(lines.values())}; epoch {chosen_epoch} was chosen"
    with _drawing(alt) as (_, axes, drawn):
        from matplotlib.ticker import MaxNLocator

        for (column, name), colour, dash in zip(lines.items(), OKABE_ITO, ("-", "--", ":"), strict=False):
            axes.plot(history["epoch"], history[column], dash, color=colour, label=name, marker="o", ms=3)
        axes.axvline(chosen_epoch, color="#1d232b", lw=1, alpha=0.6, label=f"epoch {chosen_epoch}, chosen")
        if chance is not None:
            axes.axhline(chance, color="#7b828c", lw=1, ls=(0, (1, 2)), label=f"guessing, {chance:.2f}")
            axes.set_ylim(0, None)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return drawn[0]


def by_plate(title: str, fields: pd.DataFrame, column: str) -> Picture:
    """Median and quartiles of a column of fields, a plate at a time, plates in the order of their batches."""
    plates = plates_in_order(fields)
    batch = [name for name, _ in plates]
    groups = fields.groupby(fields[c.PLATE].astype(str))[column]
    low, middle, high = (
        groups.quantile(share).loc[[plate for _, plate in plates]].to_numpy(dtype=np.float64)
        for share in (0.25, 0.5, 0.75)
    )
    starts = [i for i in range(len(batch)) if i == 0 or batch[i] != batch[i - 1]]
    ends = [*starts[1:], len(batch)]
    alt = f"{title}: median and quartiles of fields on each of {len(batch)} plates, by batch"
    with _drawing(alt, (3.7, 2.3)) as (_, axes, drawn):
        for start, end in list(zip(starts, ends, strict=True))[::2]:
            axes.axvspan(start - 0.5, end - 0.5, color="#f3f5f7", lw=0, zorder=0)
        axes.errorbar(
            np.arange(len(batch)), middle, np.stack([middle - low, high - middle]),
            fmt="o", ms=4, color=OKABE_ITO[0], ecolor="#8bb8d6", elinewidth=2.5,
        )  # fmt: skip
        middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
        axes.set_xticks(middles, [batch[start] for start in starts])
        letters = sum(len(batch[start]) for start in starts)
        axes.tick_params(axis="x", length=0, rotation=0 if letters < _LINE * 2 / 3 else 60)
        axes.set(title=title, xlim=(-0.5, len(batch) - 0.5))
        axes.set_ylim(0, None)
        axes.grid(axis="x", visible=False)
    return drawn[0]


def category_map(
    title: str,
    places: Numbers,
    labels: Sequence[str],
    styles: Mapping[str, Style],
    legend: Mapping[str, Style],
) -> Picture:
    """Points (N, 2) in the style of their label; labels are drawn in the order of ``styles``."""
    label = np.asarray(labels, dtype=object)
    alt = f"Map of {len(places)} fields coloured by {title.lower()}: {', '.join(legend)}"
    with _drawing(alt, _MAP_INCHES) as (_, axes, drawn):
        for name, style in styles.items():
            rows = label == name
            _points(axes, places[rows], len(places), style.mark, c=style.colour)
        for name, style in legend.items():
            axes.scatter([], [], s=22, c=style.colour, marker=style.mark, label=name)
        axes.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0.0),
            ncols=_legend_columns(list(legend)),
            handletextpad=0.1,
            columnspacing=0.6,
        )
        _bare(axes, title, places)
    return drawn[0]


def _legend_columns(names: Sequence[str]) -> int:
    """As many as fit beside one another, at most four."""
    longest = max(map(len, names), default=0) + len(" o ")
    return max(1, min(_LINE // longest, len(names), 4))


def value_map(title: str, places: Numbers, values: Numbers, unit: str) -> Picture:
    """Points (N, 2) coloured by a number, high ones on top; those without one are grey.

    The scale ends at the 1st and 99th percentiles.
    """
    alt = f"Map of {len(places)} fields coloured by {title.lower()} ({unit})"
    with _drawing(alt, _MAP_INCHES) as (figure, axes, drawn):
        missing = np.isnan(values)
        _points(axes, places[missing], len(places), "o", c=QUIET_COLOUR)
        order = np.flatnonzero(~missing)[np.argsort(values[~missing], kind="stable")]
        low, high = np.quantile(values[order], _CLIP) if len(order) else (0.0, 1.0)
        dots = _points(
            axes, places[order], len(places), "o", c=values[order], cmap=SEQUENTIAL, vmin=low, vmax=high
        )
        if len(order):
            figure.colorbar(
                dots, ax=axes, orientation="horizontal", shrink=0.7, aspect=35, pad=0.03, label=unit
            ).outline.set_visible(False)
        _bare(axes, title, places)
    return drawn[0]


def _points(axes: Axes, places: Numbers, of: int, mark: str, **colour: Any) -> Any:
    size = float(np.clip(9000 / max(of, 1), 3, 20))
    return axes.scatter(
        places[:, 0], places[:, 1], s=size, marker=mark, alpha=0.85, linewidths=0,
        rasterized=of > _RASTER_ABOVE, **colour,
    )  # fmt: skip


def _bare(axes: Axes, title: str, places: Numbers) -> None:
    """A map has no units: no ticks, and equal scales."""
    axes.set(title=title, xticks=[], yticks=[])
    axes.set_aspect("equal", adjustable="datalim")
    for spine in axes.spines.values():
        spine.set_visible(False)
    if not len(places):
        axes.text(0.5, 0.5, "no field", ha="center", transform=axes.transAxes)
