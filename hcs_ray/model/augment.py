"""Random crops, right-angle turns, mirrors and gains, drawn from (seed, epoch, key).

So a field is changed in the same way whatever the number of workers and wherever a run is resumed.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hcs_ray.shards.codec import Pixels
from hcs_ray.shards.illumination import FloatArray, block_means
from hcs_ray.shards.read import Plate, corrected


@dataclass(frozen=True)
class View:
    """How one field is looked at."""

    rows: slice
    columns: slice
    quarter_turns: int
    mirrored: bool
    gains: npt.NDArray[np.float32]  # (C,)


def whole(shape: tuple[int, int, int]) -> View:
    """The whole field (C, H, W), unchanged."""
    return View(slice(0, shape[1]), slice(0, shape[2]), 0, False, np.ones(shape[0], np.float32))


def centre(shape: tuple[int, int, int], crop_px: int) -> View:
    """The square crop in the middle."""
    side = min(crop_px, shape[1], shape[2])
    top, left = (shape[1] - side) // 2, (shape[2] - side) // 2
    gains = np.ones(shape[0], np.float32)
    return View(slice(top, top + side), slice(left, left + side), 0, False, gains)


def draw(shape: tuple[int, int, int], crop_px: int, jitter: float, seed: tuple[int, int, str]) -> View:
    """A random view; ``seed`` is (seed, epoch, key)."""
    rng = np.random.default_rng([seed[0], seed[1], zlib.crc32(seed[2].encode())])
    side = min(crop_px, shape[1], shape[2])
    top = int(rng.integers(shape[1] - side + 1))
    left = int(rng.integers(shape[2] - side + 1))
    turns, mirrored = int(rng.integers(4)), bool(rng.integers(2))
    gains = (1 + jitter * rng.uniform(-1, 1, shape[0])).astype(np.float32)
    return View(slice(top, top + side), slice(left, left + side), turns, mirrored, gains)


def render(pixels: Pixels, plate: Plate, view: View, downsample: int) -> FloatArray:
    """(C, H, W) uint16 to the (C, h, w) float32 that the network sees."""
    image = corrected(pixels, plate, view.rows, view.columns)
    if downsample > 1:
        image = block_means(image, downsample).astype(np.float32)
    image = image * view.gains[:, None, None]
    image = np.rot90(image, view.quarter_turns, axes=(1, 2))
    return np.ascontiguousarray(image[:, :, ::-1] if view.mirrored else image)
