"""The picture of a bake-off: biology kept against batch effects left, one mark a normalisation."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from hcs_ray.profiles.bake_off import CANDIDATE, CHOSEN, METHOD, REPLICATE_MAP, WEEK_EXCESS
from hcs_ray.profiles.normalize import METHODS

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_TEXT: Final = "#20242a"
_QUIET: Final = "#9aa3ae"
_MARK: Final = "#2f6fb0"
_BEST: Final = "#c2410c"
_SHAPES: Final = ("o", "v", "^", "s", "D", "*", "P", "X", "<", "h")  # one a method, in their order


def picture(table: pd.DataFrame) -> bytes:
    """An SVG of `comparison.parquet`: what the choice is made by on the left, what it does not see beside it.

    Normalisations that could not be made are left out. The same table gives the same bytes.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    made = table[table[REPLICATE_MAP].notna()].reset_index(drop=True)
    scored = "nscb_total" in made and (made["nscb_total"] > 0).any()
    with matplotlib.rc_context({"svg.hashsalt": "hcs_ray", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(11.0 if scored else 6.5, 4.4), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(1, 2 if scored else 1, squeeze=False)[0]
        _week(axes[0], made)
        if scored:
            _neighbours(axes[1], made)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _week(axes: Axes, made: pd.DataFrame) -> None:
    """The choice: as high as can be, and not to the right of none."""
    known = made[WEEK_EXCESS].notna().all()
    x = made[WEEK_EXCESS] if known else pd.Series(np.zeros(len(made)))
    if known:
        limit = float(x[made[METHOD] == "none"].iloc[0])
        axes.axvline(limit, color=_QUIET, linewidth=0.8, linestyle=(0, (4, 3)), zorder=0)
    _marks(axes, made, x, made[REPLICATE_MAP])
    axes.set_xlabel(
        "week of control wells told above chance (excess balanced accuracy)"
        if known
        else "the week of control wells cannot be gauged in this screen"
    )
    axes.set_ylabel("replicates find one another (normalised mAP)")
    axes.set_title("What the choice is made by", loc="left", fontsize=10, color=_TEXT)


def _neighbours(axes: Axes, made: pd.DataFrame) -> None:
    """What the choice does not see; of the compounds whose labels were not used, where some were."""
    held_out = bool((made["nscb_held_out_total"] < made["nscb_total"]).any())
    name, whose = ("nscb_held_out", "held-out") if held_out else ("nscb", "all")
    nscb = made[f"{name}_correct"] / made[f"{name}_total"].replace(0, np.nan)
    axes.axvline(float(made["same_week_expected"].iloc[0]), color=_QUIET, linewidth=0.8, zorder=0)
    _marks(axes, made, made["same_week_share"], nscb)
    axes.set_xlabel("nearest neighbours of the same week (share; line: chance)")
    axes.set_ylabel(f"NSCB, {whose} compounds (share correct)")
    axes.set_title("What it does not see", loc="left", fontsize=10, color=_TEXT)


def _marks(axes: Axes, made: pd.DataFrame, x: pd.Series[float], y: pd.Series[float]) -> None:
    """A mark a normalisation: always of the same shape, filled where the rule could choose it."""
    shapes = dict(zip(METHODS, _SHAPES, strict=True))
    rows = zip(made[METHOD], made[CHOSEN], made[CANDIDATE], x, y, strict=True)
    for method, chosen, candidate, across, up in rows:
        colour = _BEST if chosen else _MARK
        axes.plot(
            [across],
            [up],
            linestyle="",
            marker=shapes[method],
            markersize=13 if chosen else 8,
            markerfacecolor=colour if candidate else "white",
            markeredgecolor=colour if not candidate else "white",
            label=f"{method} (chosen)" if chosen else method,
            zorder=4 if chosen else 3,
        )
    axes.margins(0.08)
    axes.grid(color=_QUIET, linewidth=0.3, alpha=0.6)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
