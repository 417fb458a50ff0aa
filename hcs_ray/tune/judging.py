"""What a trial is worth, from the epochs that it has told."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from hcs_ray.contracts import InputError
from hcs_ray.model.network import SCORE
from hcs_ray.tune.algorithms import EPOCHS
from hcs_ray.tune.space import Space

Row = Mapping[str, Any]


def judged(rows: Sequence[Row], space: Space, *, ended: bool = False) -> dict[str, float]:
    """The metrics at the epoch whose weights are kept, and how far the trial is.

    So a trial's score belongs to the network that it hands on. A population that has not ``ended`` is judged
    by its last epochs, since their weights are those that others go on from.

    Raises:
        InputError: the training tells no figure of a metric's name.
    """
    last = rows[-1]
    kept = last if space.sweep.is_population and not ended else kept_row(rows, space)
    names = [*(goal.name for goal in space.sweep.metric), *space.sweep.stop.reached]
    figures = {name: float(_figure(kept, name)) for name in names}
    return {**figures, EPOCHS: int(last["epoch"]) + 1, "optimizer_steps": int(last["optimizer_steps"])}


def kept_row(rows: Sequence[Row], space: Space) -> Row:
    """The epoch whose weights are kept so far: the best by validation, the first of equals, or the last."""
    if SCORE not in rows[-1] or space.config.train.choose == "last":
        return rows[-1]
    return max(rows, key=lambda row: (row[SCORE], -row["epoch"]))


def _figure(row: Row, name: str) -> Any:
    if name in row:
        return row[name]
    figures = sorted(key for key, value in row.items() if isinstance(value, float | int))
    close = difflib.get_close_matches(name, figures, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]}?" if close else f"there are: {', '.join(figures)}"
    raise InputError(f"no trial tells a figure {name}; {hint}")
