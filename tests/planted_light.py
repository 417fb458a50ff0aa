"""Block means of fields under a known light, with dirt and overexposure among them."""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Float64 = NDArray[np.float64]
BLOCKS = (128, 160)  # of 8 px: a field of 1024 x 1280


def vignetting(kind: str) -> Float64:
    y, x = np.linspace(-1, 1, BLOCKS[0])[:, None], np.linspace(-1, 1, BLOCKS[1])[None]
    gaussian = np.exp(-0.35 * ((y - 0.2) ** 2 + (x + 0.15) ** 2))
    lens = np.cos(np.arctan(0.4 * np.hypot(y - 0.1, x - 0.1))) ** 4
    shades = {"gaussian": gaussian, "cos4": lens, "tilted": gaussian * (1 + 0.1 * x), "none": np.ones(BLOCKS)}
    return np.asarray(shades[kind] / shades[kind].mean())


def cells_of(rng: np.random.Generator, radius: float = 3.0, light: float = 6500.0) -> Float64:
    """Block means of a field of round cells over a background, some beyond its edges."""
    field = np.full(BLOCKS, 900.0)
    number = rng.poisson(110 * (1 + 24 / BLOCKS[0]) * (1 + 24 / BLOCKS[1]))
    reach = int(radius * 1.5 + 4)
    for y, x in rng.uniform(-12, (BLOCKS[0] + 12, BLOCKS[1] + 12), (number, 2)):
        rows, columns = (slice(max(0, int(at) - reach), max(0, int(at) + reach + 1)) for at in (y, x))
        part = field[rows, columns]
        own_y, own_x = np.ogrid[: part.shape[0], : part.shape[1]]
        distance = np.hypot(own_y + rows.start - y, own_x + columns.start - x)
        part += light * np.exp(0.3 * rng.normal()) / (1 + np.exp((distance - radius) * 3))
    return np.asarray(field * np.exp(0.1 * rng.normal()))


def outlier(field: Float64, rng: np.random.Generator, blazing: bool) -> Float64:
    """A field that is twelve times as bright, or one with lumps of dirt."""
    if blazing:
        return np.asarray(900 + (field - 900) * 12)
    y, x = np.ogrid[: BLOCKS[0], : BLOCKS[1]]
    for centre_y, centre_x in rng.uniform(0, BLOCKS, (6, 2)):
        field = field + 20_000 * np.exp(-(((y - centre_y) / 8) ** 2 + ((x - centre_x) / 3) ** 2))
    return field


@functools.cache
def plate_of(number: int, seed: int, radius: float) -> Float64:
    """Block means (number, h, w) of evenly lit fields, one in twenty an outlier, with a little noise."""
    rng = np.random.default_rng(seed)
    fields = []
    for place in range(number):
        field = cells_of(rng, radius)
        if place % 20 == 7:
            field = outlier(field, rng, blazing=place % 40 == 7)
        fields.append(field * rng.normal(1, 0.01, BLOCKS))
    return np.array(fields)


def residual(function: Float64 | NDArray[np.float32], shade: Float64) -> tuple[float, float]:
    """The median and the largest relative deviation, in percent."""
    deviation = 100 * np.abs(function / shade - 1)
    return float(np.median(deviation)), float(deviation.max())


def plain(fields: Float64) -> Float64:
    """How it is mostly done: the mean of the fields, smoothed."""
    smooth = ndimage.gaussian_filter(np.mean(fields, axis=0), 8, mode="nearest")
    return np.asarray(smooth / smooth.mean())
