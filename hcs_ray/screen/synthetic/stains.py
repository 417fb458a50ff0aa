"""Drawing tubulin and actin: what fills a cell, its fibres, and what lies beside its nucleus."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hcs_ray.screen.synthetic.canvas import Canvas, Territory, window_at
from hcs_ray.screen.synthetic.cells import INTERPHASE, Cells
from hcs_ray.screen.synthetic.curves import dropped, foci, microtubules, needles, stress_fibres
from hcs_ray.screen.synthetic.nuisance import Image


def tubulin(cells: Cells, ground: Territory, hole: Image, plane: Canvas) -> Image:
    """A diffuse part, brightest around the nucleus, and microtubules: single, bundled, or a spindle."""
    rounded = cells.state != INTERPHASE
    level = (np.exp(cells.shape("tubulin_level")) * np.where(rounded, 1.3, 0.6)).astype(np.float32)
    depth = np.minimum(ground.depth, np.float32(1.0))
    diffuse = level[ground.owner] * ground.inside * (np.float32(1.25) - np.float32(0.75) * depth)
    diffuse *= (np.float32(1.0) + np.float32(0.16) * plane.grain) * (
        np.float32(1.0) - np.float32(0.55) * hole
    )
    bundle, fibres = cells.shape("tubulin_bundle"), microtubules(cells, plane)
    lines = dropped(fibres, fibres.light * (1.0 - bundle), plane, ground, 0.011)
    lines += dropped(fibres, fibres.light * bundle, plane, ground, 0.022)
    shade = np.where(rounded, 0.0, 0.72).astype(np.float32)[ground.owner] * hole
    return np.asarray(
        diffuse
        + lines * np.maximum(np.float32(1.0) - shade, 0.0)
        + bodies_beside_nuclei(cells, plane, cells.shape("tubulin_aggregate")),
        np.float32,
    )


def bodies_beside_nuclei(cells: Cells, plane: Canvas, strength: NDArray[np.float64]) -> Image:
    """One round body beside each nucleus, as bright as its cell's strength (n,)."""
    out = np.zeros(plane.size, np.float32)
    side = plane.chance.uniform(0.0, 2.0 * np.pi, len(cells))
    away = 0.2 * plane.diameter * np.exp(cells.shape("nucleus_size"))
    radius = 0.085 * plane.diameter * np.exp(0.2 * plane.chance.normal(size=len(cells)))
    for number in np.flatnonzero((strength > 0.1) & (cells.state == INTERPHASE)):
        centre_y = cells.y[number] + away[number] * np.sin(side[number])
        centre_x = cells.x[number] + away[number] * np.cos(side[number])
        window, y, x = window_at(centre_y, centre_x, 3.0 * radius[number], plane.size)
        body = np.exp(-(y * y + x * x) / np.float32(radius[number] ** 2))
        out[window] += np.float32(2.6 * strength[number]) * body
    return out


def actin(cells: Cells, ground: Territory, hole: Image, plane: Canvas) -> Image:
    """A diffuse part, the rim, junctions between cohesive cells, stress fibres, lumps, needles."""
    rounded = cells.state != INTERPHASE
    level = (np.exp(cells.shape("actin_level")) * np.where(rounded, 1.1, 0.7)).astype(np.float32)
    rim = (cells.shape("actin_cortex") * np.where(rounded, 1.5, 1.0)).astype(np.float32)
    uneven = np.float32(1.0) + np.float32(0.3) * plane.grain
    light = (
        level[ground.owner]
        * ground.inside
        * (0.5 + 0.5 * uneven)
        * (np.float32(1.0) - np.float32(0.45) * hole)
    )
    light += rim[ground.owner] * _ridge((ground.depth - np.float32(0.95)) / np.float32(0.07)) * uneven
    junction = 2.6 * np.maximum(cells.shape("cohesion") - 0.1, 0.0)
    meeting = _ridge((ground.second - ground.depth) / np.float32(0.11)) * (ground.second < 1.25)
    light += junction.astype(np.float32)[ground.owner] * meeting * ground.inside
    fibres, lumps, spikes = stress_fibres(cells, plane), foci(cells, plane), needles(cells, plane)
    light += dropped(fibres, fibres.light, plane, ground, 0.012) * (np.float32(1.0) - np.float32(0.5) * hole)
    light += dropped(lumps, lumps.light, plane, ground, 0.028)
    light += dropped(spikes, spikes.light, plane, None, 0.012)
    return np.asarray(light, np.float32)


def _ridge(distance: Image) -> Image:
    """1 where the distance is 0, falling off like a Gaussian."""
    return np.asarray(np.exp(-np.square(np.clip(distance, -6.0, 6.0))), np.float32)
