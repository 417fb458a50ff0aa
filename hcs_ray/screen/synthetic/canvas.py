"""The plane of a field: its grain, and which part of it each cell covers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hcs_ray.screen.synthetic.cells import INTERPHASE, Cells
from hcs_ray.screen.synthetic.nuisance import Image

HARMONICS: Final = 4  # of the outline, from the second on
OUTSIDE: Final = 9.0  # the depth of a pixel that no cell is near


@dataclass(frozen=True)
class Canvas:
    """What all strokes of a field share: its size, a cell's diameter in pixels, smooth noise, chance."""

    size: tuple[int, int]
    diameter: float
    grain: Image  # mean 0, standard deviation 1
    chance: np.random.Generator


@dataclass(frozen=True)
class Territory:
    """Which cell a pixel belongs to, and how deep in it the pixel lies: maps (height, width).

    Cells share the plane by the smallest distance in units of their own radius, so that touching cells meet
    in a junction instead of overlapping.
    """

    owner: NDArray[np.intp]
    depth: Image  # 0 in the cell's centre, 1 on its outline
    second: Image  # the same for the next cell

    @property
    def inside(self) -> Image:
        """1 within cells, 0 outside, with a soft edge."""
        steep = np.clip((self.depth - np.float32(1.0)) * np.float32(16.0), -30.0, 30.0)
        return np.asarray(1.0 / (1.0 + np.exp(steep)), np.float32)


def canvas(size: tuple[int, int], diameter: float, chance: np.random.Generator) -> Canvas:
    """An empty plane; the noise is smooth over a thirtieth of a cell."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(chance.standard_normal(size, dtype=np.float32), 0.03 * diameter, mode="wrap")
    return Canvas(size, diameter, np.asarray(noise / noise.std(), np.float32), chance)


def territory(cells: Cells, plane: Canvas) -> Territory:
    """Divides the plane among the cells."""
    depth = np.full(plane.size, OUTSIDE, np.float32)
    second = np.full(plane.size, OUTSIDE, np.float32)
    owner = np.zeros(plane.size, np.intp)
    radius = 0.56 * plane.diameter * np.exp(cells.shape("cell_size"))
    stretch = np.exp(0.5 * cells.shape("elongation"))
    waves = _waves(cells, plane.chance)
    for number in range(len(cells)):
        reach = radius[number] * stretch[number] * 1.35
        window, y, x = window_at(cells.y[number], cells.x[number], reach, plane.size)
        turned = (x + 1j * y) * np.complex64(np.exp(-1j * cells.angle[number]) / radius[number])
        own = _depth(turned, np.float32(stretch[number]), waves[number])
        if cells.state[number] != INTERPHASE:
            own -= np.float32(0.25) * (own < 1.0)  # a rounded cell lies on top of its neighbours
        nearer = own < depth[window]
        second[window] = np.where(nearer, depth[window], np.minimum(second[window], own))
        depth[window] = np.where(nearer, own, depth[window])
        owner[window][nearer] = number
    return Territory(owner, depth, second)


def _waves(cells: Cells, chance: np.random.Generator) -> NDArray[np.complex64]:
    """Amplitudes of the outlines' harmonics: (n, HARMONICS)."""
    size = (len(cells), HARMONICS)
    waves = chance.normal(size=size) + 1j * chance.normal(size=size)
    waves *= cells.shape("protrusion")[:, None] / np.arange(1, HARMONICS + 1) ** 0.75
    return np.asarray(waves, np.complex64)


def window_at(
    y: float, x: float, reach: float, size: tuple[int, int]
) -> tuple[tuple[slice, slice], Image, Image]:
    """The part of a field within reach of a point, with the offsets from it: (rows, 1), (1, columns)."""
    rows = slice(max(0, int(y - reach)), max(0, min(size[0], int(y + reach) + 2)))
    columns = slice(max(0, int(x - reach)), max(0, min(size[1], int(x + reach) + 2)))
    offset_y = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(y)
    offset_x = np.arange(columns.start, columns.stop, dtype=np.float32)[None, :] - np.float32(x)
    return (rows, columns), offset_y, offset_x


def _depth(turned: NDArray[np.complex64], stretch: np.float32, waves: NDArray[np.complex64]) -> Image:
    """Distance from the centre over that of the outline, an ellipse with waves on it."""
    squeezed = turned.real / stretch + 1j * (turned.imag * stretch)
    distance = np.abs(squeezed) + np.float32(1e-3)
    unit = squeezed / distance
    power = unit * unit
    outline = np.ones(distance.shape, np.float32)
    for wave in waves:
        outline += (power * wave).real
        power = power * unit
    return np.asarray(distance / np.clip(outline, 0.5, 1.5), np.float32)
