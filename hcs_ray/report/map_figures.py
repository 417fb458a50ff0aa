"""Small maps of all fields, by what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from hcs_ray.palette import QUIET_COLOUR, SEQUENTIAL, Style
from hcs_ray.report.chart import Chart
from hcs_ray.report.drawing import Numbers, drawing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAP_INCHES: Final = (3.7, 3.6)
_LINE: Final = 56  # letters beside one another below a chart
_RASTER_ABOVE: Final = 1500  # points: as pixels inside the SVG, which stays small
_CLIP: Final = (0.01, 0.99)  # of values: one extreme must not take the whole scale


def category_map(
    name: str,
    title: str,
    places: Numbers,
    labels: Sequence[str],
    styles: Mapping[str, Style],
    legend: Mapping[str, Style],
    size: tuple[float, float] = MAP_INCHES,
) -> Chart:
    """Points (N, 2) in the style of their label; labels are drawn in the order of ``styles``."""
    label = np.asarray(labels, dtype=object)
    alt = f"Map of {len(places)} fields coloured by {title.lower()}: {', '.join(legend)}"
    with drawing(name, alt, size) as (figure, drawn):
        axes = figure.add_subplot()
        for category, style in styles.items():
            rows = label == category
            _points(axes, places[rows], len(places), style.mark, c=style.colour)
        for category, style in legend.items():
            axes.scatter([], [], s=22, c=style.colour, marker=style.mark, label=category)
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


def value_map(name: str, title: str, places: Numbers, values: Numbers, unit: str) -> Chart:
    """Points (N, 2) coloured by a number, high ones on top; those without one are grey.

    The scale ends at the 1st and 99th percentiles.
    """
    alt = f"Map of {len(places)} fields coloured by {title.lower()} ({unit})"
    with drawing(name, alt, MAP_INCHES) as (figure, drawn):
        axes = figure.add_subplot()
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
