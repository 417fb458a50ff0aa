"""The map of very many fields as an image, by datashader; every point counts, however many lie on a pixel."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.explore.colouring import Colouring
from hcs_ray.palette import QUIET_COLOUR

_FADED: Final = 0.22  # of the opacity of what is not selected
_MIN_ALPHA: Final = 150  # of a single point, of 255
_SPREAD_STEPS: Final = ((20_000, 3), (60_000, 2), (400_000, 1))  # up to so many points in view, pixels added

Image32 = npt.NDArray[np.uint32]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Window:
    """The part of the map that is drawn, and into how many pixels."""

    x: tuple[float, float]
    y: tuple[float, float]
    width_px: int
    height_px: int


def shade(
    places: npt.NDArray[np.float64], colouring: Colouring, selected: Mask | None, window: Window
) -> Image32:
    """Points (N, 2) as RGBA (height, width), bottom row first; with a selection, all others are faded."""
    table = pd.DataFrame({"x": places[:, 0], "y": places[:, 1]})
    radius = _radius(places, window)
    everything = _layer(table, colouring, np.ones(len(table), bool), window, radius)
    if selected is None:
        return np.asarray(everything.values, np.uint32)
    import datashader.transfer_functions as tf

    faded = everything.copy(data=_faded(np.asarray(everything.values, np.uint32)))
    chosen = _layer(table, colouring, selected, window, radius)
    return np.asarray(tf.stack(faded, chosen).values, np.uint32)


def warm_up(colouring: Colouring) -> None:
    """Let numba compile what `shade` needs, which takes seconds, before somebody waits for it."""
    count = max(len(colouring.codes), len(colouring.values))
    window = Window((-1, 1), (-1, 1), 8, 8)
    numbers = Colouring("", "", "number", np.empty(0, np.int64), np.zeros(count))
    for one in (colouring, numbers):
        shade(np.zeros((count, 2)), one, np.ones(count, bool), window)


def _layer(table: pd.DataFrame, colouring: Colouring, mask: Mask, window: Window, radius: int) -> Any:
    import datashader as ds
    import datashader.transfer_functions as tf

    canvas = ds.Canvas(window.width_px, window.height_px, x_range=window.x, y_range=window.y)
    if colouring.kind == "category":
        names = [str(number) for number in range(len(colouring.entries))]
        codes = pd.Categorical.from_codes(colouring.codes[mask], pd.Index(names))
        part = table[mask].assign(code=codes)
        key = {name: entry.style.colour for name, entry in zip(names, colouring.entries, strict=True)}
        image = tf.shade(
            canvas.points(part, "x", "y", ds.by("code", ds.count())), color_key=key, min_alpha=_MIN_ALPHA
        )
        return tf.spread(image, px=radius)
    known = mask & np.isfinite(colouring.values)
    span = (colouring.low, max(colouring.high, np.nextafter(colouring.low, np.inf)))
    part = table[known].assign(value=np.clip(colouring.values[known], *span))
    means = canvas.points(part, "x", "y", ds.mean("value"))
    image = tf.spread(tf.shade(means, cmap=colouring.ramp, how="linear", span=span), px=radius)
    return tf.stack(_unknown(canvas, table[mask & ~known], radius), image)


def _unknown(canvas: Any, part: pd.DataFrame, radius: int) -> Any:
    import datashader.transfer_functions as tf

    counts = canvas.points(part, "x", "y")
    return tf.spread(tf.shade(counts, cmap=[QUIET_COLOUR], min_alpha=_MIN_ALPHA), px=radius)


def _faded(image: Image32) -> Image32:
    alpha = (image >> 24).astype(np.float32) * _FADED
    colour = image & np.uint32(0x00FFFFFF)
    return np.asarray(colour | (alpha.astype(np.uint32) << np.uint32(24)), np.uint32)


def _radius(places: npt.NDArray[np.float64], window: Window) -> int:
    """By how many pixels a point is enlarged: the fewer are in view, the more."""
    (left, right), (bottom, top) = window.x, window.y
    x, y = places[:, 0], places[:, 1]
    seen = int(((x >= left) & (x <= right) & (y >= bottom) & (y <= top)).sum())
    return next((radius for most, radius in _SPREAD_STEPS if seen <= most), 0)
