"""The sheet of a sweep over maps: a small picture of each trial's layout, the best first."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow.parquet as pq

from hcs_ray.config import SweepConfig
from hcs_ray.contracts import rows_of
from hcs_ray.maps import X, Y
from hcs_ray.maps.about import METADATA, MapAbout
from hcs_ray.palette import Style, mechanism_labels, mechanism_styles
from hcs_ray.tune.map_objective import BRIEF, USES_LABELS
from hcs_ray.tune.trials import MAP_FILE, Work

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SHEET: Final = "maps.png"
_MOST_COLUMNS: Final = 8
_SIDE_IN: Final = 2.1
_TITLE_IN: Final = 0.5  # above each
_HEAD_IN: Final = 0.7  # for the title, and for the legend below
_TITLE_WIDTH: Final = 42  # letters in a line
_EXTENT: Final = (1, 99)  # percentiles of the places that a picture spans, with a margin
_MARGIN: Final = 0.15
_DPI: Final = 100
_MOST_POINTS: Final = 1500  # of a small picture, evenly over the keys
_TEXT: Final = "#20242a"
_FRAME: Final = "#c5cad1"
_WARNING: Final = "#D55E00"  # frames what was told labels


@dataclass(frozen=True)
class SmallMap:
    """What a trial has left to be drawn."""

    table: pd.DataFrame  # key, ``Metadata_*``, x, y
    about: MapAbout

    @classmethod
    def of(cls, data: bytes) -> SmallMap:
        """From the file that a trial has left."""
        found = pq.read_table(io.BytesIO(data))
        about = MapAbout.model_validate_json((found.schema.metadata or {})[METADATA])
        return cls(found.to_pandas(), about)


def sheet_of(work: Work, table: pd.DataFrame) -> bytes | None:
    """The sheet of the trials that have laid out a map; None without any."""
    storage = work.study.storage
    scored = [str(trial) for trial in table["trial"][table["score"].notna()]]
    left = {trial: storage.read_versioned(f"{work.trial_folder(trial)}/{MAP_FILE}") for trial in scored}
    maps = {trial: SmallMap.of(found[0]) for trial, found in left.items() if found is not None}
    return sheet(table, maps, work.space.sweep) if maps else None


def sheet(table: pd.DataFrame, maps: Mapping[str, SmallMap], sweep: SweepConfig) -> bytes:
    """A PNG, the same for the same trials: MoAs in colours, controls and unlabelled fields grey.

    Supervised layouts are framed and marked, since what they show of MoAs is what they were told.

    Args:
        table: `hcs_ray.tune.board.leaderboard`, whose order it has; trials without a map are left out.
        maps: at least one, by trial.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows_of(table) if row["trial"] in maps]
    columns = min(len(rows), _MOST_COLUMNS, max(2, math.ceil(math.sqrt(2 * len(rows)))))
    lines = math.ceil(len(rows) / columns)
    width, height = max(columns, 3) * _SIDE_IN, lines * (_SIDE_IN + _TITLE_IN) + 2 * _HEAD_IN
    figure = Figure(figsize=(width, height), dpi=_DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    figure.subplots_adjust(
        left=0.01, right=0.99, top=1 - (_HEAD_IN + _TITLE_IN) / height, bottom=_HEAD_IN / height,
        wspace=0.05, hspace=_TITLE_IN / _SIDE_IN,
    )  # fmt: skip
    styles = mechanism_styles(maps[rows[0]["trial"]].table)
    for axis, row in zip(axes, rows, strict=False):
        _small(axis, row, maps[row["trial"]], sweep, styles)
    for axis in axes[len(rows) :]:
        axis.set_axis_off()
    _head(figure, sweep, height)
    _legend(figure, styles)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()


def _small(
    axes: Axes, row: dict[str, Any], found: SmallMap, sweep: SweepConfig, styles: dict[str, Style]
) -> None:
    table = found.table.iloc[:: max(1, math.ceil(len(found.table) / _MOST_POINTS))]
    labels = mechanism_labels(table)
    places = _within(table[[X, Y]].to_numpy(np.float64))
    for name, style in styles.items():
        x, y = places[(labels == name).to_numpy()].T
        axes.scatter(x, y, s=5, c=style.colour, marker=style.mark, linewidths=0, alpha=0.8)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_aspect("equal", adjustable="datalim")
    told = found.about.uses_labels
    for side in axes.spines.values():
        side.set_color(_WARNING if told else _FRAME)
        side.set_linewidth(2.0 if told else 0.8)
    figures = [f"{brief} {row[name]:.3f}" for name, brief in BRIEF.items() if not pd.isna(row.get(name))]
    words = ", ".join(_words(name, row[name], found.about) for name in sweep.space)
    lines = [*textwrap.wrap(f"{row['rank']}. {words}", _TITLE_WIDTH), " · ".join(figures)]
    axes.set_title("\n".join(lines), fontsize=6, color=_WARNING if told else _TEXT, loc="left", pad=3)


def _within(places: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Places (N, 2) of which those far outside all others lie at the edge: they would shrink the rest."""
    low, high = np.percentile(places, _EXTENT, axis=0)
    margin = _MARGIN * (high - low)
    return np.asarray(np.clip(places, low - margin, high + margin))


def _words(key: str, value: Any, about: MapAbout) -> str:
    """A swept key as a trial had it."""
    last = key.rpartition(".")[2]
    match last:
        case "metric":
            return about.metric
        case "neighbors":
            clipped = about.neighbors < value
            return f"k={int(value)}→{about.neighbors}" if clipped else f"k={about.neighbors}"
        case "densmap":
            return "densMAP" if about.densmap else "UMAP"
        case "supervised":
            return "USES LABELS" if about.uses_labels else "no labels"
    return f"{last} {value:g}" if isinstance(value, float) else f"{last} {value}"


def _head(figure: Figure, sweep: SweepConfig, height: float) -> None:
    labels = " (USES LABELS)" if sweep.goal.name in USES_LABELS else ""
    figure.text(
        0.01, 1 - 0.12 / height, f"Layouts, the best by {sweep.goal.name}{labels} first",
        fontsize=10, color=_TEXT, va="top",
    )  # fmt: skip
    figure.text(
        0.01, 1 - 0.34 / height,
        "orange frame: the layout was told the MoAs, so how they lie apart on it shows nothing; "
        "dots far outside are drawn at the edge",
        fontsize=7, color=_TEXT, va="top",
    )  # fmt: skip


def _legend(figure: Figure, styles: dict[str, Style]) -> None:
    from matplotlib.lines import Line2D

    marks = [
        Line2D([], [], color=style.colour, marker=style.mark, linestyle="", markersize=4, label=name)
        for name, style in styles.items()
    ]
    figure.legend(handles=marks, loc="lower left", ncols=8, fontsize=6.5, frameon=False)
