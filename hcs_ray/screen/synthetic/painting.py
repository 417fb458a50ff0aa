"""Drawing Cell Painting: DNA, ER, RNA, AGP (actin, Golgi, plasma membrane) and mitochondria.

The shapes of a cell that BBBC021 shows in tubulin are seen here in what lies along the microtubules: the
endoplasmic reticulum and the mitochondria.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from hcs_ray.screen.synthetic.canvas import Canvas, Territory
from hcs_ray.screen.synthetic.cells import INTERPHASE, Cells
from hcs_ray.screen.synthetic.curves import dropped, microtubules
from hcs_ray.screen.synthetic.nuclei import Nuclei
from hcs_ray.screen.synthetic.nuisance import Image
from hcs_ray.screen.synthetic.stains import actin, bodies_beside_nuclei

GOLGI: Final = 0.45  # its light, as a share of an aggregate's


def painted(cells: Cells, ground: Territory, nuclei: Nuclei, plane: Canvas) -> tuple[Image, ...]:
    """The five stains in the order of the assay, each (height, width)."""
    return (
        nuclei.dna,
        _reticulum(cells, ground, nuclei, plane),
        _rna(cells, ground, nuclei, plane),
        actin(cells, ground, nuclei.hole, plane) + _golgi(cells, plane),
        _mitochondria(cells, ground, nuclei, plane),
    )


def _reticulum(cells: Cells, ground: Territory, nuclei: Nuclei, plane: Canvas) -> Image:
    """A mesh that is densest around the nucleus and leaves nuclei and vacuoles out; aggregates lie in it."""
    level = np.exp(cells.shape("tubulin_level")) * np.where(cells.state != INTERPHASE, 1.1, 0.9)
    mesh = np.clip(np.float32(1.0) + np.float32(0.35) * _mottle(plane, 0.022), 0.0, None)
    light = level.astype(np.float32)[ground.owner] * ground.inside * np.exp(-1.4 * _depth(ground)) * mesh
    aggregates = bodies_beside_nuclei(cells, plane, cells.shape("tubulin_aggregate"))
    return np.asarray(light * _outside(nuclei, 0.85) + aggregates, np.float32)


def _rna(cells: Cells, ground: Territory, nuclei: Nuclei, plane: Canvas) -> Image:
    """Bright nucleoli, where DNA is dark, in a dim nucleus; a finely grained cytoplasm."""
    level = 0.55 * np.exp(0.8 * cells.shape("tubulin_level"))
    fine = np.float32(1.0) + np.float32(0.12) * plane.grain
    cytoplasm = level.astype(np.float32)[ground.owner] * ground.inside * (1.2 - 0.7 * _depth(ground)) * fine
    return np.asarray(cytoplasm * _outside(nuclei, 0.45) + np.float32(2.4) * nuclei.nucleoli, np.float32)


def _golgi(cells: Cells, plane: Canvas) -> Image:
    return bodies_beside_nuclei(cells, plane, np.full(len(cells), GOLGI))


def _mitochondria(cells: Cells, ground: Territory, nuclei: Nuclei, plane: Canvas) -> Image:
    """Threads along the microtubules, broken into pieces, most of them near the nucleus."""
    threads = microtubules(cells, plane)
    lines = dropped(threads, threads.light, plane, ground, 0.016)
    pieces = np.clip(np.float32(0.5) + np.float32(0.8) * _mottle(plane, 0.045), 0.0, None)
    near = np.exp(-1.1 * _depth(ground))
    haze = np.float32(0.12) * ground.inside
    return np.asarray((lines * pieces * near + haze) * _outside(nuclei, 0.8), np.float32)


def _depth(ground: Territory) -> Image:
    return np.asarray(np.minimum(ground.depth, np.float32(1.0)))


def _outside(nuclei: Nuclei, share: float) -> Image:
    """What nuclei and vacuoles leave of a stain of which they keep out this share."""
    return np.asarray(np.maximum(np.float32(1.0) - np.float32(share) * nuclei.hole, np.float32(0.0)))


def _mottle(plane: Canvas, scale: float) -> Image:
    """Fresh noise of mean 0 and standard deviation 1, smooth over ``scale`` of a cell."""
    from scipy.ndimage import gaussian_filter

    noise = gaussian_filter(
        plane.chance.standard_normal(plane.size, dtype=np.float32), scale * plane.diameter, mode="wrap"
    )
    return np.asarray(noise / noise.std(), np.float32)
