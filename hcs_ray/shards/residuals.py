"""What a field's rows leave unexplained by the rows above them, compiled: one pass, no copy, no GIL.

`floats` goes on from there to what a network sees: a crop of the field, corrected, as means of blocks.

A residual is the difference to the pixel above, modulo 65,536, after the field's unused low bits are shifted
away; the first row of a plane is its own residual. It is stored zig-zag, so that small differences of either
sign are small numbers: 0, -1, 1, -2, 2 become 0, 1, 2, 3, 4. Any uint16 values come back unchanged.

Importing this module imports numba.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from hcs_ray.shards.compiled import compiled

Pixels = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]
Window = tuple[int, int, int, int]  # top, bottom, left, right: half-open, in pixels


@compiled
def take(pixels: Pixels, shift: int, residuals: Pixels) -> None:
    """Write the residuals of C-contiguous (C, H, W) pixels, each shifted right by ``shift``."""
    low, one, sign = np.uint16(shift), np.uint16(1), np.uint16(15)
    channels, height, width = pixels.shape
    for channel in range(channels):
        for x in range(width):
            first = pixels[channel, 0, x] >> low
            residuals[channel, 0, x] = np.uint16(first << one) ^ np.uint16(-(first >> sign))
        for y in range(1, height):
            for x in range(width):
                step = np.uint16((pixels[channel, y, x] >> low) - (pixels[channel, y - 1, x] >> low))
                residuals[channel, y, x] = np.uint16(step << one) ^ np.uint16(-(step >> sign))


@compiled
def restore(residuals: Pixels, shift: int) -> None:
    """Turn C-contiguous (C, H, W) residuals into their pixels, in place."""
    low, one = np.uint16(shift), np.uint16(1)
    channels, height, width = residuals.shape
    for channel in range(channels):
        for x in range(width):
            first = residuals[channel, 0, x]
            residuals[channel, 0, x] = ((first >> one) ^ np.uint16(-(first & one))) << low
        for y in range(1, height):
            for x in range(width):
                code = residuals[channel, y, x]
                step = ((code >> one) ^ np.uint16(-(code & one))) << low
                residuals[channel, y, x] = np.uint16(residuals[channel, y - 1, x] + step)


@compiled
def floats(
    codes: Pixels, shift: int, window: Window, block: int, gain: Floats, bias: Floats, out: Floats
) -> None:
    """A window of a field as floats: ``pixels * gain + bias``, then the means of blocks.

    Only the window's columns are looked at, of the rows from the first to its last.

    Args:
        codes: (C, H, W): residuals, or the field's own pixels where ``shift`` is negative.
        shift: How far the residuals' values are shifted left.
        window: What is wanted of the field.
        block: Side of the blocks, px; those at the window's lower and right edge may be smaller.
        gain: (C, H, W), or empty: the counts as they are, and ``bias`` is not used.
        bias: (C,).
        out: (C, ceil(height / block), ceil(width / block)), written to.
    """
    top, bottom, left, right = window
    row, line = np.empty(right - left, np.uint16), np.empty(right - left, np.float32)
    for channel in range(codes.shape[0]):
        row[:] = 0
        if shift >= 0:
            for y in range(top):
                _add_residuals(codes[channel, y, left:right], shift, row)
        for y in range(top, bottom):
            if shift >= 0:
                _add_residuals(codes[channel, y, left:right], shift, row)
            else:
                row[:] = codes[channel, y, left:right]
            factors = gain[channel, y, left:right] if gain.size else line[:0]
            if block == 1:
                _correct(row, factors, bias[channel], out[channel, y - top])
                continue
            into, begun = (y - top) // block, (y - top) % block
            _accumulate(row, factors, begun == 0, line)
            if begun == block - 1 or y == bottom - 1:
                _block_means(line, block, begun + 1, out[channel, into])
                if gain.size:
                    out[channel, into] += bias[channel]


@compiled
def _add_residuals(codes: Pixels, shift: int, row: Pixels) -> None:
    """From a row of pixels to the next."""
    low, one = np.uint16(shift), np.uint16(1)
    for x in range(row.size):
        step = ((codes[x] >> one) ^ np.uint16(-(codes[x] & one))) << low
        row[x] = np.uint16(row[x] + step)


@compiled
def _correct(row: Pixels, gain: Floats, bias: np.float32, out: Floats) -> None:
    if gain.size:
        for x in range(row.size):
            out[x] = np.float32(row[x]) * gain[x] + bias
    else:
        for x in range(row.size):
            out[x] = np.float32(row[x])


@compiled
def _accumulate(row: Pixels, gain: Floats, first: bool, line: Floats) -> None:
    if first:
        line[:] = 0
    if gain.size:
        for x in range(row.size):
            line[x] += np.float32(row[x]) * gain[x]
    else:
        for x in range(row.size):
            line[x] += np.float32(row[x])


@compiled
def _block_means(line: Floats, block: int, rows: int, means: Floats) -> None:
    """Means of ``block`` neighbours each, the last may have fewer, in sums over ``rows`` rows."""
    full = line.size // block
    means[:] = 0
    for offset in range(block):
        for place in range(full):
            means[place] += line[place * block + offset]
    for place in range(full):
        means[place] /= np.float32(rows * block)
    if full < means.size:
        means[full] = line[full * block :].sum() / np.float32(rows * (line.size - full * block))
