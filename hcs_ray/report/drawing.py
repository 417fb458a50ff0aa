"""How every chart of the report is drawn, by matplotlib: the same bytes for the same numbers."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hcs_ray.report.chart import Chart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = npt.NDArray[np.float64]

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
    "text.parse_math": False,  # a compound may have $ in its name
    "svg.fonttype": "path",  # looks the same whatever fonts a reader has
    "svg.hashsalt": "hcs_ray",
}
_DPI: Final = 160


@contextmanager
def drawing(name: str, alt: str, size: tuple[float, float]) -> Iterator[tuple[Figure, list[Chart]]]:
    """A figure of some inches, and a list that holds it afterwards, as a file's ``name``."""
    import matplotlib
    from matplotlib.figure import Figure

    drawn: list[Chart] = []
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size, dpi=_DPI, layout="constrained")
        yield figure, drawn
        svg, png = io.BytesIO(), io.BytesIO()
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(png, format="png", metadata={"Software": None})
    drawn.append(Chart(name, alt, svg.getvalue(), png.getvalue()))
