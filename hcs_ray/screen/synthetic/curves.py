"""Microtubules, stress fibres, lumps and needles: points dropped on the pixels, blurred once a field."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from hcs_ray.screen.synthetic.canvas import Canvas, Territory
from hcs_ray.screen.synthetic.cells import INTERPHASE, METAPHASE, MONOASTRAL, Cells
from hcs_ray.screen.synthetic.nuclei import NUCLEUS
from hcs_ray.screen.synthetic.nuisance import Image

Floats = NDArray[np.float64]
MICROTUBULES: Final = 56  # a cell
BUNDLES: Final = 7
STRESS_FIBRES: Final = 14
FOCI: Final = 22
NEEDLES: Final = 18


@dataclass(frozen=True)
class Curves:
    """Points of curves: positions (n, curves, points) in pixels, the light of a point by cell (n,)."""

    y: NDArray[np.float32]
    x: NDArray[np.float32]
    light: Floats


def dropped(curves: Curves, light: Floats, plane: Canvas, within: Territory | None, blur: float) -> Image:
    """The points' light on the pixels, blurred; ``within`` leaves out points outside their own cell."""
    from scipy.ndimage import gaussian_filter

    height, width = plane.size
    row, column = np.rint(curves.y).astype(np.intp), np.rint(curves.x).astype(np.intp)
    bright = (light > 1e-4)[:, None, None]
    keep = (row >= 0) & (row < height) & (column >= 0) & (column < width) & bright
    cell = np.broadcast_to(np.arange(len(light))[:, None, None], row.shape)[keep]
    place = row[keep] * width + column[keep]
    if within is not None:
        own = (within.owner.ravel()[place] == cell) & (within.depth.ravel()[place] < 0.98)
        place, cell = place[own], cell[own]
    counts = np.bincount(place, light[cell], minlength=height * width)
    return np.asarray(
        gaussian_filter(counts.reshape(height, width).astype(np.float32), blur * plane.diameter)
    )


def microtubules(cells: Cells, plane: Canvas) -> Curves:
    """Curves from around the nucleus, or from a rounded cell's poles, outwards; bundles run together."""
    chance, diameter = plane.chance, plane.diameter
    size = (len(cells), MICROTUBULES)
    rounded = (cells.state != INTERPHASE)[:, None]
    direction, start_at, bend = _directions(cells, chance)
    nucleus = NUCLEUS * diameter * np.exp(cells.shape("nucleus_size"))[:, None]
    begin = np.where(rounded, 0.02 * diameter, nucleus) * chance.uniform(0.5, 1.25, size)
    length = np.where(rounded, 0.30, 0.62) * diameter * chance.uniform(0.45, 1.0, size)
    step = np.linspace(0.0, 1.0, int(0.75 * diameter), dtype=np.float32)
    turn = (direction[:, :, None] + bend[:, :, None] * (step - 0.3)).astype(np.float32)
    stride = (length / len(step)).astype(np.float32)[:, :, None]
    pole = np.where(np.arange(MICROTUBULES) % 2, 0.2, -0.2) * diameter * (cells.state == METAPHASE)[:, None]
    y = cells.y[:, None] + pole * np.sin(cells.angle)[:, None] + begin * np.sin(start_at)
    x = cells.x[:, None] + pole * np.cos(cells.angle)[:, None] + begin * np.cos(start_at)
    y_points = y.astype(np.float32)[:, :, None] + np.cumsum(np.sin(turn), axis=2) * stride
    x_points = x.astype(np.float32)[:, :, None] + np.cumsum(np.cos(turn), axis=2) * stride
    light = (
        cells.shape("tubulin_fibre") * np.where(cells.state == MONOASTRAL, 1.5, 1.1) * 24.0 * _point(diameter)
    )
    return Curves(y_points, x_points, light)


def _directions(cells: Cells, chance: np.random.Generator) -> tuple[Floats, Floats, Floats]:
    """Of each microtubule (n, MICROTUBULES): where it points, from which side it starts, how it bends."""
    size = (len(cells), MICROTUBULES)
    pull = np.where(cells.state == INTERPHASE, cells.shape("tubulin_bundle"), 0.0)[:, None]
    bundle = np.arange(MICROTUBULES) % BUNDLES
    alone = chance.uniform(0.0, 2.0 * np.pi, size)
    shared = chance.uniform(0.0, 2.0 * np.pi, (len(cells), BUNDLES))[:, bundle]
    start_at = alone + pull * 0.96 * ((shared - alone + np.pi) % (2.0 * np.pi) - np.pi)
    slant = np.where(cells.state == INTERPHASE, 0.55, 0.0)[:, None] * chance.normal(size=size)
    around = chance.choice([-1.2, 1.2], (len(cells), BUNDLES))[:, bundle]  # bundles run around the nucleus
    bend = (1.0 - pull) * 1.1 * chance.normal(size=size) + pull * 0.9 * around
    return start_at + (1.0 - pull) * slant + pull * 0.9 * around, start_at, bend


def stress_fibres(cells: Cells, plane: Canvas) -> Curves:
    """Nearly parallel lines along the cell's long axis."""
    size = (len(cells), STRESS_FIBRES, 1)
    along = np.linspace(-0.75, 0.75, int(1.6 * plane.diameter)) * plane.chance.uniform(0.5, 1.0, size)
    across = plane.chance.uniform(-0.5, 0.5, size) + plane.chance.normal(0.0, 0.07, size) * along
    along = along + plane.chance.uniform(-0.2, 0.2, size)
    y, x = _turned(cells, along * plane.diameter, across * plane.diameter)
    return Curves(y, x, cells.shape("actin_fibre") * 48.0 * _point(plane.diameter))


def foci(cells: Cells, plane: Canvas) -> Curves:
    """Lumps scattered over the cell."""
    size = (len(cells), FOCI, 1)
    angle = plane.chance.uniform(0.0, 2.0 * np.pi, size)
    away = 0.56 * plane.diameter * np.sqrt(plane.chance.uniform(0.05, 0.9, size))
    spot = plane.chance.normal(0.0, 0.02 * plane.diameter, (2, len(cells), FOCI, 12))
    y, x = _turned(cells, away * np.cos(angle) + spot[0], away * np.sin(angle) + spot[1])
    strong = np.where(cells.state == INTERPHASE, cells.shape("actin_foci"), 0.0)
    return Curves(y, x, strong * 2.8 * (plane.diameter / 52.0) ** 2)


def needles(cells: Cells, plane: Canvas) -> Curves:
    """Straight lines from inside the cell to well beyond its rim."""
    size = (len(cells), NEEDLES, 1)
    angle = plane.chance.uniform(0.0, 2.0 * np.pi, size)
    step = np.linspace(0.3, 1.0, int(0.7 * plane.diameter))
    away = plane.diameter * plane.chance.uniform(0.65, 0.95, size) * step
    y, x = _turned(cells, away * np.cos(angle), away * np.sin(angle))
    spiked = (cells.shape("spikes") > 0.15) & (cells.state == INTERPHASE)
    return Curves(y, x, np.where(spiked, cells.shape("spikes"), 0.0) * 60.0 * _point(plane.diameter))


def _point(diameter: float) -> float:
    """The light of a point that makes a cell as bright at one magnification as at another."""
    return diameter / 58.0**2


def _turned(cells: Cells, u: Floats, v: Floats) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Cell coordinates (n, curves, points) as pixels of the field."""
    cosine, sine = np.cos(cells.angle)[:, None, None], np.sin(cells.angle)[:, None, None]
    y = cells.y[:, None, None] + u * sine + v * cosine
    x = cells.x[:, None, None] + u * cosine - v * sine
    return y.astype(np.float32), x.astype(np.float32)
