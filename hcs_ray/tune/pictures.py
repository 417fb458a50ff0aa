"""The picture of a sweep: its trials as lines over the swept keys, and their learning curves."""

from __future__ import annotations

import io
import math
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.config import SearchSpace, SweepConfig
from hcs_ray.config.sweep import LISTED

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE: Final = "leaderboard.svg"
_SCALE: Final = "viridis"
_QUIET: Final = "#c5cad1"  # a trial without a score
_TEXT: Final = "#20242a"
_TICKS: Final = 4
_LONGEST_LABEL: Final = 18
_LABEL: Final[dict[str, Any]] = {
    "fontsize": 7, "color": _TEXT, "va": "center", "zorder": 5,
    "bbox": {"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
}  # fmt: skip
_ABSENT: Final = -0.12  # where a key was not active

Positions = npt.NDArray[np.float64]


def picture(table: pd.DataFrame, history: pd.DataFrame, sweep: SweepConfig) -> bytes:
    """An SVG: parallel coordinates above, learning curves of the first metric below.

    Args:
        table: `hcs_ray.tune.board.leaderboard`.
        history: `hcs_ray.tune.board.curves`; where no trial told two epochs, there are no curves.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    metric = sweep.goal.name
    curves = metric in history and (history.groupby("trial").size() > 1).any()
    colours = _colours(table, sweep)
    with matplotlib.rc_context({"svg.hashsalt": "hcs_ray", "svg.fonttype": "path", "font.size": 9}):
        width = max(7.0, 1.6 * (len(sweep.space) + 1))
        figure = Figure(figsize=(width, 7.5 if curves else 4.0), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(2 if curves else 1, 1, squeeze=False)[:, 0]
        _parallel(axes[0], table, sweep, colours)
        if curves:
            _curves(axes[1], table, history, metric, colours)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _colours(table: pd.DataFrame, sweep: SweepConfig) -> dict[str, str]:
    """Trial -> colour by its score, the better the darker."""
    import matplotlib
    from matplotlib.colors import to_hex

    scores = table["score"].to_numpy(float) * (1 if sweep.goal.mode == "max" else -1)
    known = ~np.isnan(scores)
    low, high = (scores[known].min(), scores[known].max()) if known.any() else (0.0, 1.0)
    shares = 0.9 * (1 - (scores - low) / (high - low if high > low else 1.0))
    scale = matplotlib.colormaps[_SCALE]
    return {
        str(trial): to_hex(scale(share)) if share == share else _QUIET
        for trial, share in zip(table["trial"], shares, strict=True)
    }


def _parallel(axes: Axes, table: pd.DataFrame, sweep: SweepConfig, colours: dict[str, str]) -> None:
    names = [*sweep.space, "score"]
    places = np.column_stack([_axis(axes, x, table, name, sweep) for x, name in enumerate(names)])
    for row in range(len(table) - 1, -1, -1):  # the best is drawn last, above the others
        best = row == 0
        axes.plot(
            range(len(names)), places[row], color=colours[str(table["trial"].iloc[row])],
            linewidth=2.4 if best else 1.0, alpha=1.0 if best else 0.7, marker="o", markersize=3,
        )  # fmt: skip
    labels = [_short(name) for name in sweep.space] + [_short(sweep.goal.name)]
    axes.set_xticks(range(len(names)), labels, color=_TEXT)
    axes.set_xlim(-0.1, len(names) - 0.6)
    axes.set_ylim(_ABSENT - 0.05, 1.06)
    axes.set_yticks([])
    axes.set_title("Trials by what they tried, and their score", loc="left", fontsize=10, color=_TEXT)
    for side in axes.spines.values():
        side.set_visible(False)


def _axis(axes: Axes, x: int, table: pd.DataFrame, name: str, sweep: SweepConfig) -> Positions:
    """Draw one vertical axis with its ticks; returns where the trials cross it, nan where they do not."""
    space = sweep.space.get(name)
    axes.axvline(x, color=_QUIET, linewidth=1.0, zorder=0)
    places, ticks = _places(table[name], space)
    for place, label in ticks:
        axes.text(x + 0.03, place, label, **_LABEL)
    if np.isnan(places).any() and space is not None:
        axes.text(x + 0.03, _ABSENT, "not set", **_LABEL)
        return np.where(np.isnan(places), _ABSENT, places)
    return places


def _places(column: pd.Series[Any], space: SearchSpace | None) -> tuple[Positions, list[tuple[float, str]]]:
    """Shares of an axis, 0 to 1, and its ticks: by value, by its logarithm, or one place a listed value."""
    if space is not None and space.kind in LISTED:
        listed = sorted(set(column.dropna()))
        spots = {value: _share(i, 0, len(listed) - 1) for i, value in enumerate(listed)}
        places = np.array([spots.get(value, np.nan) for value in column], float)
        every = max(1, math.ceil(len(listed) / 12))
        return places, [(spots[value], _short(_words(value))) for value in listed[::every]]
    values = column.to_numpy(float)
    known = values[~np.isnan(values)]
    if not len(known):
        return values, []
    log = space is not None and space.kind == "loguniform" and known.min() > 0
    scaled = np.log10(values) if log else values
    low, high = np.nanmin(scaled), np.nanmax(scaled)
    marks = np.linspace(low, high, _TICKS) if high > low else np.array([low])
    ticks = [(_share(mark, low, high), f"{10**mark if log else mark:.3g}") for mark in marks]
    return np.array([_share(value, low, high) for value in scaled]), ticks


def _share(value: float, low: float, high: float) -> float:
    return (value - low) / (high - low) if high > low else 0.5 + 0.0 * value


def _curves(
    axes: Axes, table: pd.DataFrame, history: pd.DataFrame, metric: str, colours: dict[str, str]
) -> None:
    from matplotlib.ticker import MaxNLocator

    for trial in reversed([str(name) for name in table["trial"]]):
        rows = history[history["trial"] == trial].sort_values("epoch")
        best = trial == str(table["trial"].iloc[0])
        axes.plot(
            rows["epoch"] + 1, rows[metric], color=colours[trial], linewidth=2.4 if best else 1.0,
            alpha=1.0 if best else 0.7, marker="o" if len(rows) < 30 else None, markersize=2.5,
            label=f"best: {trial}" if best else None,
        )  # fmt: skip
    axes.set_xlabel("epoch", color=_TEXT)
    axes.set_ylabel(metric, color=_TEXT)
    axes.set_title("Learning curves", loc="left", fontsize=10, color=_TEXT)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(color=_QUIET, linewidth=0.4)
    axes.legend(frameon=False, loc="best")
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _words(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_LABEL else f"…{name[1 - _LONGEST_LABEL :]}"
