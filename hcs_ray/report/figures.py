"""Charts of the training and of the plates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.name_order import plates_in_order
from hcs_ray.palette import OKABE_ITO
from hcs_ray.report.chart import Chart
from hcs_ray.report.drawing import drawing

_SIZE_INCHES: Final = (4.6, 3.1)
_LINE: Final = 37  # letters beside one another below a chart


def curves(
    name: str,
    title: str,
    history: pd.DataFrame,
    lines: Mapping[str, str],
    chosen_epoch: int,
    chance: float | None = None,
) -> Chart:
    """Columns of a training's history (``lines``: column -> its name) by epoch, the chosen one marked."""
    alt = f"{title} by epoch: {', '.join(lines.values())}; epoch {chosen_epoch} was chosen"
    with drawing(name, alt, _SIZE_INCHES) as (figure, drawn):
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        for (column, words), colour, dash in zip(lines.items(), OKABE_ITO, ("-", "--", ":"), strict=False):
            axes.plot(history["epoch"], history[column], dash, color=colour, label=words, marker="o", ms=3)
        axes.axvline(chosen_epoch, color="#1d232b", lw=1, alpha=0.6, label=f"epoch {chosen_epoch}, chosen")
        if chance is not None:
            axes.axhline(chance, color="#7b828c", lw=1, ls=(0, (1, 2)), label=f"guessing, {chance:.2f}")
            axes.set_ylim(0, None)
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=2)
    return drawn[0]


def by_plate(name: str, title: str, fields: pd.DataFrame, column: str) -> Chart:
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
    with drawing(name, alt, (3.7, 2.3)) as (figure, drawn):
        axes = figure.add_subplot()
        for start, end in list(zip(starts, ends, strict=True))[::2]:
            axes.axvspan(start - 0.5, end - 0.5, color="#f3f5f7", lw=0, zorder=0)
        axes.errorbar(
            np.arange(len(batch)), middle, np.stack([middle - low, high - middle]),
            fmt="o", ms=4, color=OKABE_ITO[0], ecolor="#8bb8d6", elinewidth=2.5,
        )  # fmt: skip
        middles = [(start + end - 1) / 2 for start, end in zip(starts, ends, strict=True)]
        axes.set_xticks(middles, [batch[start] for start in starts])
        letters = sum(len(batch[start]) for start in starts)
        axes.tick_params(axis="x", length=0, rotation=0 if letters < _LINE else 60)
        axes.set(title=title, xlim=(-0.5, len(batch) - 0.5))
        axes.set_ylim(0, None)
        axes.grid(axis="x", visible=False)
    return drawn[0]
