"""Retrospective illumination functions of a plate, from all its fields.

Each field's block means, divided by their own mean so that a bright field weighs no more than a dim one, are
averaged over the fields, or their median is taken. The logarithm of that is a polynomial of low degree, which
follows vignetting into the corners where a gaussian alone flattens it, and a remainder, smoothed with a
gaussian. What two halves of the fields do not agree about is the cells' doing, not the light's: terms of the
polynomial and the remainder are shrunk by that noise (positive-part Wiener factors).

Each function has mean 1 and is divided by on reading; pixels are stored as they were.
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt
from scipy import ndimage

FloatArray = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]

_FLOOR: Final = 0.05  # of the mean: a dead corner must not become an infinite gain
_DEGREE: Final = 4  # of the polynomial
# Terms whose square is not above so many times their noise are left out, others shrunk by it: vignetting is
# mostly of degree 2, so higher terms need better evidence. benchmarks/field_statistics.py shows what is left.
_CAUTION: Final = 2.0
_CAUTION_ABOVE: Final = 4.0
_TINY: Final = 1e-300
MEDIAN_FRAMES: Final = 64  # kept at most for the median, evenly spread over the plate's fields
_MEDIAN_FRAMES_A_SITE: Final = 8  # at least, however many sites


class IlluminationEstimate:
    """What is kept of a plate's fields, all channels at once: running sums, or some frames for a median."""

    def __init__(
        self, shape: tuple[int, int, int], block_px: int, method: Literal["mean", "median"], by_site: bool
    ) -> None:
        self._shape = shape
        self._block = block_px
        self._method = method
        self._by_site = by_site
        self._parts: dict[int, _Halves | _Sample] = {}

    def add(self, frame: FloatArray, site: int) -> None:
        """Add the block means of one field, (C, h, w)."""
        levels = frame.mean(axis=(1, 2), keepdims=True, dtype=np.float64).astype(np.float32)
        frame = np.asarray(
            frame / np.where(levels > 0, levels, np.float32(1)), np.float32
        )  # black stays black
        key = site if self._by_site else 0
        if key not in self._parts:
            self._parts[key] = _Halves(frame.shape) if self._method == "mean" else _Sample()
        self._parts[key].add(frame)
        if self._method == "median":
            limit = max(MEDIAN_FRAMES // len(self._parts), _MEDIAN_FRAMES_A_SITE)
            for part in self._parts.values():
                part.keep(limit)

    @property
    def sites(self) -> list[int]:
        """The sites with a function each, in order; [0] where one is for all."""
        return sorted(self._parts)

    @property
    def kept_frames(self) -> int:
        """Frames, or sums of frames, in memory: independent of the number of fields."""
        return sum(part.kept_frames for part in self._parts.values())

    def functions(self, sigma: float) -> FloatArray:
        """(S, C, H, W) float32, each plane with mean 1; ``sigma`` is a share of a field's longer side."""
        return np.stack([self.function(site, sigma) for site in self.sites])

    def function(self, site: int, sigma: float) -> FloatArray:
        """That of one of `sites`, (C, H, W): by itself, since all together need not fit into memory."""
        sigma_blocks = sigma * max(self._shape[1:]) / self._block
        planes = zip(*self._parts[site].halves(), strict=True)
        return np.stack([self._function(first, second, sigma_blocks) for first, second in planes])

    def channel(self, number: int, sigma: float) -> FloatArray:
        """One channel's functions of all `sites`, (S, H, W)."""
        sigma_blocks = sigma * max(self._shape[1:]) / self._block
        functions = np.empty((len(self._parts), *self._shape[1:]), np.float32)
        for function, site in zip(functions, self.sites, strict=True):
            first, second = self._parts[site].halves()
            function[...] = self._function(first[number], second[number], sigma_blocks)
        return functions

    def _function(self, first: Float64, second: Float64, sigma_blocks: float) -> FloatArray:
        """One plane (H, W) from the two halves' block means (h, w); ones where they cannot be compared."""
        height, width = self._shape[1:]
        if not (np.mean(first) > 0 and np.mean(second) > 0):  # NaN: fewer than two fields have light
            return np.ones((height, width), np.float32)
        function = np.exp(_log_function(first, second, (height, width), self._block, sigma_blocks))
        function /= function.mean()
        function = np.maximum(function, _FLOOR)
        return np.asarray(function / function.mean(), np.float32)


class _Halves:
    """Sums of normalised frames over two halves of the fields."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._sums = np.zeros((2, *shape))
        self._counts = np.zeros((2, shape[0]), np.int64)
        self._seen = 0

    def add(self, frame: FloatArray) -> None:
        half = _half_of(self._seen)
        self._seen += 1
        self._sums[half] += frame
        self._counts[half] += frame.any(axis=(1, 2))

    def keep(self, limit: int) -> None:
        """Sums need no limit."""

    @property
    def kept_frames(self) -> int:
        return len(self._sums)

    def halves(self) -> Float64:
        """(2, C, h, w) means; NaN in a half without fields that have light."""
        with np.errstate(invalid="ignore"):
            return np.asarray(self._sums / self._counts[:, :, None, None])


class _Sample:
    """Normalised frames of every n-th field, n doubling as the fields come: never more than a limit."""

    def __init__(self) -> None:
        self._frames: dict[int, FloatArray] = {}
        self._seen = 0
        self._stride = 1

    def add(self, frame: FloatArray) -> None:
        if self._seen % self._stride == 0:
            self._frames[self._seen] = frame
        self._seen += 1

    @property
    def kept_frames(self) -> int:
        return len(self._frames)

    def keep(self, limit: int) -> None:
        """Drop every second frame until there are not more than ``limit``."""
        while len(self._frames) > limit:
            self._stride *= 2
            self._frames = {seen: frame for seen, frame in self._frames.items() if seen % self._stride == 0}

    def halves(self) -> Float64:
        """(2, C, h, w) medians; NaN in a half without frames."""
        frames = list(self._frames.values())
        dealt: tuple[list[FloatArray], list[FloatArray]] = ([], [])
        for number, frame in enumerate(frames):
            dealt[_half_of(number)].append(frame)
        empty = np.full((1, *frames[0].shape), np.nan)
        with np.errstate(invalid="ignore"):
            return np.stack([np.median(np.stack(half) if half else empty, axis=0) for half in dealt])


def _half_of(number: int) -> int:
    """0 or 1, without a period that a plate's sites or columns might share (Thue-Morse)."""
    return number.bit_count() & 1


def _log_function(
    first: Float64, second: Float64, size: tuple[int, int], block_px: int, sigma_blocks: float
) -> Float64:
    """The logarithm of a function on all pixels (H, W), from two halves' block means (h, w)."""
    halves = [np.log(np.maximum(half, _FLOOR * half.mean())) for half in (first, second)]
    rows, columns = (_Basis(side, block_px) for side in size)
    terms = [_projected(half, rows.on_blocks, columns.on_blocks) for half in halves]
    kept = _shrunk(*terms)
    smooth = _evaluated(kept, rows.on_blocks, columns.on_blocks)
    rest = [ndimage.gaussian_filter(half - smooth, sigma_blocks, mode="nearest") for half in halves]
    remainder = _agreement(*rest) * (rest[0] + rest[1]) / 2
    enlarged = columns.enlarged(rows.enlarged(remainder).T).T
    return _evaluated(kept, rows.on_pixels, columns.on_pixels) + enlarged


# einsum without optimize sums in one order; a matrix product's depends on the threads that BLAS has.
def _projected(values: Float64, rows: Float64, columns: Float64) -> Float64:
    return np.asarray(np.einsum("ic,cj->ij", np.einsum("ri,rc->ic", rows, values), columns))


def _evaluated(terms: Float64, rows: Float64, columns: Float64) -> Float64:
    return np.asarray(np.einsum("rj,cj->rc", np.einsum("ri,ij->rj", rows, terms), columns))


def _shrunk(first: Float64, second: Float64) -> Float64:
    """The polynomial's terms (degree + 1, degree + 1) from two halves, each shrunk by the noise in all.

    Cells lie anywhere, so their noise is the same in all terms of low degree.
    """
    degree = np.add.outer(np.arange(_DEGREE + 1), np.arange(_DEGREE + 1))
    used = (degree > 0) & (degree <= _DEGREE)
    terms = (first + second) / 2
    noise = ((first - second)[used] ** 2).mean() / 4
    caution = np.where(degree <= 2, _CAUTION, _CAUTION_ABOVE)
    kept = np.maximum(1 - caution * noise / np.maximum(terms**2, _TINY), 0) * used
    return np.asarray(np.where(degree == 0, terms, kept * terms))


def _agreement(first: Float64, second: Float64) -> float:
    """The share of the mean of two noisy copies that is kept: 1 less ``_CAUTION`` times its noise's share."""
    power = float(((first + second) ** 2).sum())
    noise = float(((first - second) ** 2).sum())
    return max(1 - _CAUTION * noise / power, 0.0) if power > 0 else 0.0


class _Basis:
    """Along one side of n pixels in m blocks: polynomials (m, k) and (n, k), orthonormal over the blocks."""

    def __init__(self, side: int, block_px: int) -> None:
        starts = np.arange(0, side, block_px)
        self._centres = (starts + np.minimum(starts + block_px, side) - 1) / 2
        self._pixels = np.arange(side)
        degree = min(_DEGREE, len(starts) - 1)
        on_blocks, on_pixels = (
            np.polynomial.legendre.legvander(2 * at / side - 1, degree)
            for at in (self._centres, self._pixels)
        )
        orthonormal, triangle = np.linalg.qr(on_blocks)
        self.on_blocks = _widened(orthonormal)
        self.on_pixels = _widened(np.linalg.solve(triangle.T, on_pixels.T).T)

    def enlarged(self, values: Float64) -> Float64:
        """(m, k) to (n, k): linear between the blocks' centres, and on beyond the outermost."""
        if len(self._centres) == 1:
            return np.repeat(values, len(self._pixels), axis=0)
        left = np.searchsorted(self._centres, self._pixels, side="right") - 1
        left = np.clip(left, 0, len(self._centres) - 2)
        share = (self._pixels - self._centres[left]) / np.diff(self._centres)[left]
        return np.asarray(values[left] * (1 - share[:, None]) + values[left + 1] * share[:, None])


def _widened(basis: Float64) -> Float64:
    """With columns of 0 for the degrees that so few blocks do not have."""
    return np.pad(basis, ((0, 0), (0, _DEGREE + 1 - basis.shape[1])))


def block_areas(size: tuple[int, int], block_px: int) -> npt.NDArray[np.int64]:
    """Pixels in each block of a field of (H, W); blocks at the lower and right edge may be smaller."""
    rows, columns = (np.diff(np.append(np.arange(0, side, block_px), side)) for side in size)
    return np.outer(rows, columns)


def block_means(pixels: npt.NDArray[np.uint16] | FloatArray, block_px: int) -> Float64:
    """(C, H, W) to (C, ceil(H/b), ceil(W/b)) means of blocks; blocks at the edge may be smaller."""
    _, height, width = pixels.shape
    sums = np.add.reduceat(pixels, np.arange(0, width, block_px), axis=2, dtype=np.float64)
    sums = np.add.reduceat(sums, np.arange(0, height, block_px), axis=1)
    return np.asarray(sums / block_areas((height, width), block_px))
