"""Retrospective illumination functions and intensity percentiles of a plate, from all its fields.

The mean over fields of block means, smoothed with a gaussian: block means agree with a full-resolution
filter to about 2e-5 where a plain subsample does not. Each function has mean 1 and is divided by on
reading; pixels are stored as they were.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from hcs_ray.shards.codec import Pixels

FloatArray = npt.NDArray[np.float32]
_FLOOR = 0.05  # of the mean: a dead corner must not become an infinite gain


class IlluminationEstimate:
    """Streaming sums over the fields of one plate, all channels at once."""

    def __init__(self, shape: tuple[int, int, int], block_px: int, percents: tuple[float, float]) -> None:
        self._shape = shape
        self._block = block_px
        channels, height, width = shape
        self._sum = np.zeros((channels, -(-height // block_px), -(-width // block_px)))
        self._percents = percents
        self._percentiles: list[npt.NDArray[np.float64]] = []

    def add(self, pixels: Pixels) -> None:
        """Add one field, (C, H, W) uint16."""
        self._sum += block_means(pixels, self._block)
        planes = pixels.reshape(len(pixels), -1)
        self._percentiles.append(np.percentile(planes, self._percents, axis=1, method="higher"))

    def functions(self, sigma: float) -> FloatArray:
        """(C, H, W) float32, each channel with mean 1; ``sigma`` is a share of the longer side."""
        _, height, width = self._shape
        sigma_blocks = sigma * max(height, width) / self._block
        rows = (np.arange(height) + 0.5) / self._block - 0.5
        columns = (np.arange(width) + 0.5) / self._block - 0.5
        planes = []
        for mean in self._sum / len(self._percentiles):
            smooth = ndimage.gaussian_filter(mean, sigma_blocks, mode="nearest")
            full = ndimage.map_coordinates(
                smooth, np.meshgrid(rows, columns, indexing="ij"), order=1, mode="nearest"
            )
            level = full.mean()
            planes.append(np.maximum(full / level, _FLOOR) if level > 0 else np.ones_like(full))
        return np.stack(planes).astype(np.float32)

    def percentiles(self) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """The low and the high percentile of each channel, (C,): medians over the fields.

        So that one saturated field does not set the scale of its whole plate.
        """
        low, high = np.median(self._percentiles, axis=0)
        return low, high


def block_means(pixels: Pixels | FloatArray, block_px: int) -> npt.NDArray[np.float64]:
    """(C, H, W) to (C, ceil(H/b), ceil(W/b)) means of blocks; blocks at the edge may be smaller."""
    _, height, width = pixels.shape
    rows, columns = np.arange(0, height, block_px), np.arange(0, width, block_px)
    sums = np.add.reduceat(pixels, columns, axis=2, dtype=np.float64)
    sums = np.add.reduceat(sums, rows, axis=1)
    areas = np.outer(np.diff([*rows, height]), np.diff([*columns, width]))
    return np.asarray(sums / areas)
