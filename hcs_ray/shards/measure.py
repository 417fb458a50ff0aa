"""What is measured of one field while its pixels are at hand; all else is made of these figures later.

A field is read twice: for block means, and for a histogram. What follows works on the frame of block means,
some 160 blocks wide.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
from scipy.ndimage import uniform_filter

from hcs_ray.shards import kernels
from hcs_ray.shards.illumination import block_areas
from hcs_ray.shards.nuclei import count_nuclei

FRAME_PX: Final = 160  # blocks along a field's longer side
TILES: Final = 8  # along a side: where the background is looked for
# Evenly spaced rows with about so many pixels have the histogram: all of a small field, every second of one
# of 1024 x 1280, which has the percentiles within 1 % of all rows' (benchmarks/field_statistics.py shows it).
HISTOGRAM_PIXELS: Final = 1 << 19
LEVELS: Final = 128  # of brightness, eight an octave
LEVEL_OF_ONE: Final = 64  # a field's own 99th percentile over its background
_LEAST_FOCUS_PX: Final = 2  # single pixels' noise hides what a blur takes away
_DETAIL_BLOCKS: Final = 9  # an eighteenth of a field: about a cell on BBBC021
_MANTISSA_BITS: Final = 20  # of a float32 that are dropped to get its level
_EXPONENT_OF_ONE: Final = 127 << 3
_BACKGROUND_SHARE: Final = 0.1  # of the tiles' darkest blocks: cells cover some tiles whole
_BRIGHTEST_PERCENT: Final = 99.5  # of a nuclear channel: debris above it is cut before a threshold is sought

MEASURES: Final = ("FocusScore", "Saturated", "Zero", "Mean", "SD", "P01", "P50", "P99", "Background")

Pixels = npt.NDArray[np.uint16]
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
Edges = Sequence[npt.NDArray[np.int64]]


@dataclass(frozen=True)
class FieldMeasures:
    """The figures of one field; C channels, T tiles. A few kB, whatever the field's size.

    Attributes:
        values: (C, len(MEASURES)), in the order of ``MEASURES``.
        scale: (C, 2) the low and the high percentile that a plate's scale is made of.
        maximum: (C,) the brightest pixel.
        tiles: (C, T) the darkest block mean of each tile.
        places: (C, T) the flat place of that block in the frame.
        any_level: (LEVELS,) number of blocks of each brightness in their brightest channel, see `levels_of`.
        two_level: The same in their second brightest channel; in the only one, where there is one.
        nuclei: Their number, where there is a nuclear channel.
        alike: (C,) see `detail_correlations`; 0 with one channel.
    """

    values: Float64
    scale: Float64
    maximum: Float64
    tiles: Float32
    places: npt.NDArray[np.uint32]
    any_level: npt.NDArray[np.uint32]
    two_level: npt.NDArray[np.uint32]
    nuclei: int | None
    alike: Float64


@dataclass(frozen=True)
class _Histogram:
    """What the histogram of a plane says."""

    shares: dict[str, float]
    scale: tuple[float, float]
    brightest: float
    maximum: float


def frame_step(shape: tuple[int, int, int]) -> int:
    """Side in pixels of the blocks of a frame, an even number: 8 for a field of 1024 x 1280."""
    return min(2 * max(1, round(max(shape[1:]) / FRAME_PX / 2)), kernels.LARGEST_BLOCK)


class FieldReader:
    """Measures fields of one shape, with buffers that are used again. Not to be shared between threads."""

    def __init__(
        self,
        shape: tuple[int, int, int],
        percents: tuple[float, float],
        nuclear: int | None,
        camera_maximum: int | None,
    ) -> None:
        self.step = frame_step(shape)
        self._focus_px = max(self.step // 2, _LEAST_FOCUS_PX)
        self._nuclear = nuclear
        self._camera_maximum = camera_maximum
        self._areas = block_areas(shape[1:], self.step)
        self._fine = np.empty(block_areas(shape[1:], self._focus_px).shape, np.uint32)
        self._sums = np.empty(self._areas.shape, np.uint32)
        self._counts = np.empty(kernels.LANES * kernels.VALUES, np.uint32)
        self._edges = tuple(tile_edges(side) for side in self._areas.shape)
        self._rows = rows_apart(shape, HISTOGRAM_PIXELS)
        self._counted = len(range(0, shape[1], self._rows)) * shape[2]
        wanted = (*percents, _BRIGHTEST_PERCENT, 1.0, 50.0, 99.0, 100.0)
        self._order, self._ranks = ranks(wanted, self._counted)

    def measure(self, pixels: Pixels) -> tuple[FieldMeasures, Float32]:
        """Measure a C-contiguous field (C, H, W); also its frame (C, h, w) of block means."""
        frame = np.empty((len(pixels), *self._areas.shape), np.float32)
        values = np.empty((len(pixels), len(MEASURES)))
        histograms, darkest = [], []
        for plane, blocks, row in zip(pixels, frame, values, strict=True):
            bits, focus, mean = self._blocks(plane, blocks)
            darkest.append(darkest_blocks(blocks, self._edges))
            histograms.append(self._histogram(plane, bits))
            figures = histograms[-1].shares | {"FocusScore": focus, "Mean": mean}
            figures["Background"] = _lower_end(darkest[-1][0])
            row[:] = [figures[name] for name in MEASURES]
        brightest, second = self._brightness(frame, values)
        measures = FieldMeasures(
            values=values,
            scale=np.array([histogram.scale for histogram in histograms]),
            maximum=np.array([histogram.maximum for histogram in histograms]),
            tiles=np.stack([tiles for tiles, _ in darkest]),
            places=np.stack([places for _, places in darkest]),
            any_level=levels_of(brightest),
            two_level=levels_of(second),
            nuclei=self._nuclei(frame, histograms),
            alike=detail_correlations(frame),
        )
        return measures, frame

    def _blocks(self, plane: Pixels, blocks: Float32) -> tuple[int, float, float]:
        """Writes the block means; the bits that the pixels use, the focus score, the mean."""
        bits = kernels.block_sums(plane, self._focus_px, self._fine)
        sums = self._fine
        if self._focus_px != self.step:
            kernels.paired(self._fine, self._sums)
            sums = self._sums
        np.divide(sums, self._areas, out=blocks, casting="unsafe")
        mean = int(sums.sum(dtype=np.uint64)) / plane.size
        whole = self._fine[: plane.shape[0] // self._focus_px, : plane.shape[1] // self._focus_px]
        return bits, focus_score(whole, mean * self._focus_px**2), mean

    def _histogram(self, plane: Pixels, bits: int) -> _Histogram:
        shift = (bits & -bits).bit_length() - 1 if bits else 0  # a 12-bit camera's may be multiples of 16
        counts = self._counts[: kernels.LANES * (kernels.VALUES >> shift)].reshape(kernels.LANES, -1)
        kernels.histogram(plane, self._rows, shift, counts)
        ranked = np.empty(len(self._ranks), np.int64)
        total, squares = kernels.histogram_values(counts, shift, self._ranks, ranked)
        found = np.empty_like(ranked)
        found[self._order] = ranked
        low, high, brightest, p01, p50, p99, maximum = (float(value) for value in found)
        full = int(maximum) if self._camera_maximum is None else self._camera_maximum
        shares = {
            "Saturated": int(counts[:, -(-full >> shift) :].sum()) / self._counted,
            "Zero": int(counts[:, 0].sum()) / self._counted,
            "SD": max(squares / self._counted - (total / self._counted) ** 2, 0.0) ** 0.5,
            "P01": p01,
            "P50": p50,
            "P99": p99,
        }
        return _Histogram(shares, (low, high), brightest, maximum)

    def _brightness(self, frame: Float32, values: Float64) -> tuple[Float32, Float32]:
        """The brightest and the second brightest channel (h, w) each, opened, in units of `contrasts`."""
        background = values[:, MEASURES.index("Background")].astype(np.float32)
        unit = np.maximum(contrasts(values), 1).astype(np.float32)
        first, second = kernels.brightest_two(frame, background, unit)
        return kernels.opened(first), kernels.opened(second)

    def _nuclei(self, frame: Float32, histograms: Sequence[_Histogram]) -> int | None:
        if self._nuclear is None:
            return None
        return count_nuclei(frame[self._nuclear], self._edges, histograms[self._nuclear].brightest)


def contrasts(values: Float64) -> Float64:
    """The 99th percentile over the background, (..., C), of ``values`` (..., C, len(MEASURES))."""
    return np.asarray(values[..., MEASURES.index("P99")] - values[..., MEASURES.index("Background")])


def _lower_end(tiles: Float32) -> float:
    return float(np.sort(tiles)[int(_BACKGROUND_SHARE * len(tiles))])


def rows_apart(shape: tuple[int, int, int], pixels: int) -> int:
    """The distance of rows that together have about so many pixels; 1 for a small field."""
    return max(1, round(shape[1] * shape[2] / pixels))


def ranks(percents: Sequence[float], size: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.int64]]:
    """The order that sorts ``percents``, and in it their ranks by numpy's method "higher"."""
    order = np.argsort(percents, kind="stable")
    rank = np.ceil(np.asarray(percents)[order] / 100 * (size - 1)).astype(np.int64)
    return order, rank


def focus_score(blocks: npt.NDArray[np.uint32], mean: float) -> float:
    """Variance of the Laplacian over the squared mean (Pech-Pacheco et al. 2000), of block sums (h, w).

    Low where a field is out of focus; 0 for a black one and one of less than 3 x 3 blocks.
    """
    number = max(blocks.shape[0] - 2, 0) * max(blocks.shape[1] - 2, 0)
    if mean <= 0 or number == 0:
        return 0.0
    total, squares = kernels.laplacian_sums(blocks)
    return float(max(squares - total**2 / number, 0.0) / number / mean**2)


def detail_correlations(frame: Float32) -> Float64:
    """Mean correlation (C,) of each channel's fine detail with that of the others, of a frame (C, h, w).

    Fine is what the mean of 9 x 9 blocks leaves. Stains show different parts of a cell; what shows in all of
    them at the same place, a rim or dust, lies on the glass. 0 for a channel without detail or alone.
    """
    if len(frame) == 1:
        return np.zeros(1)
    detail = (frame - uniform_filter(frame, size=(1, _DETAIL_BLOCKS, _DETAIL_BLOCKS))).reshape(len(frame), -1)
    detail -= detail.mean(axis=1, keepdims=True)
    # Not by BLAS, whose sums depend on its threads: a plate's bytes follow from its images alone.
    products = np.einsum("ik,jk->ij", detail, detail, dtype=np.float64)
    size = np.sqrt(np.diagonal(products))
    correlation = products / np.maximum(np.outer(size, size), np.finfo(np.float32).tiny)
    np.fill_diagonal(correlation, 0.0)
    return np.asarray(correlation.sum(axis=1) / (len(frame) - 1))


def darkest_blocks(frame: Float32, edges: Edges) -> tuple[Float32, npt.NDArray[np.uint32]]:
    """The darkest block of each tile of a frame (h, w), and its flat place: (T,) each."""
    size = len(edges[0]) - 1, len(edges[1]) - 1
    values, places = np.empty(size, np.float32), np.empty(size, np.uint32)
    kernels.darkest(frame, edges[0], edges[1], values, places)
    return values.ravel(), places.ravel()


def levels_of(light: Float32) -> npt.NDArray[np.uint32]:
    """Number of blocks of each level, (LEVELS,): level ``LEVEL_OF_ONE`` begins at 1, each 8 levels double.

    A level is the exponent and the first three bits of the mantissa of a float32, cut to the first and last.
    """
    bits = np.maximum(light, np.float32(level_edges()[0])).view(np.uint32) >> np.uint32(_MANTISSA_BITS)
    levels = np.clip(bits.ravel().astype(np.intp) - (_EXPONENT_OF_ONE - LEVEL_OF_ONE), 0, LEVELS - 1)
    return np.bincount(levels, minlength=LEVELS).astype(np.uint32)


def level_edges() -> Float64:
    """The lowest brightness of each level, (LEVELS,)."""
    octave, eighth = np.divmod(np.arange(LEVELS) - LEVEL_OF_ONE, 8)
    return np.asarray(2.0**octave * (1 + eighth / 8))


def tile_edges(side: int) -> npt.NDArray[np.int64]:
    """Where the tiles along a side of a frame begin, and its end."""
    tiles = min(TILES, side)
    return np.arange(tiles + 1, dtype=np.int64) * side // tiles
