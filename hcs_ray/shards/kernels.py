"""Single passes over a plane's pixels, compiled: what numpy would need several copies for.

Compiled by numba in the first call of a process, a few seconds for all, for one thread and without the
GIL. The machine code is kept beside the source or in the user's cache folder, where one of them can be
written; a read-only installation compiles again. Sums are integers, so results do not depend on the order of
summation.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from hcs_ray.shards.compiled import compiled

LANES: Final = 4  # histograms side by side: neighbours of equal value must not wait for each other
VALUES: Final = 65_536  # of a uint16
LARGEST_BLOCK: Final = 256  # px: 32 bits hold the sum of its pixels

Plane = npt.NDArray[np.uint16]
Counts = npt.NDArray[np.uint32]
Sums = npt.NDArray[np.uint32]
Frame = npt.NDArray[np.float32]


@compiled
def _add_rows(first: Plane, second: Plane, third: Plane, fourth: Plane, line: Counts) -> int:
    """Add four rows to ``line``; the bits that any of their pixels uses."""
    bits = np.uint16(0)
    for x in range(first.size):
        line[x] += np.uint32(first[x]) + np.uint32(second[x]) + np.uint32(third[x]) + np.uint32(fourth[x])
        bits |= first[x] | second[x] | third[x] | fourth[x]
    return bits  # type: ignore[return-value]


@compiled
def _add_row(row: Plane, line: Counts) -> int:
    bits = np.uint16(0)
    for x in range(row.size):
        line[x] += np.uint32(row[x])
        bits |= row[x]
    return bits  # type: ignore[return-value]


@compiled
def _add_neighbours(line: Counts, size: int, pairs: Counts) -> int:
    """Add up each two of the first ``size`` values; a stride that is known when compiling is fast."""
    for place in range(size // 2):
        pairs[place] = line[2 * place] + line[2 * place + 1]
    if size % 2:
        pairs[size // 2] = line[size - 1]
    return (size + 1) // 2


@compiled
def _fold(line: Counts, spare: Counts, block: int, sums: Sums) -> None:
    """Sums of ``block`` neighbours each, the last may have fewer; overwrites ``line`` and ``spare``."""
    size = line.size
    while block % 2 == 0:
        size = _add_neighbours(line, size, spare)
        line, spare = spare, line
        block //= 2
    if block == 1:
        sums[:] = line[:size]
        return
    full = size // block
    sums[:] = 0
    for offset in range(block):
        for place in range(full):
            sums[place] += line[place * block + offset]
    for place in range(full * block, size):
        sums[full] += line[place]


@compiled
def block_sums(plane: Plane, block: int, sums: Sums) -> int:
    """Write the sums of ``block`` x ``block`` pixels of a plane (H, W) to ``sums`` (ceil(H/b), ceil(W/b)).

    Blocks at the lower and right edge may be smaller; ``block`` is at most ``LARGEST_BLOCK``. Returns the
    bits that any pixel uses.
    """
    height, width = plane.shape
    line, spare = np.empty(width, np.uint32), np.empty(width, np.uint32)
    bits = np.uint16(0)
    for row in range(sums.shape[0]):
        line[:] = 0
        y, end = row * block, min(height, (row + 1) * block)
        while y + 4 <= end:  # four at a time: one pass over ``line`` for them all
            bits |= _add_rows(plane[y], plane[y + 1], plane[y + 2], plane[y + 3], line)
            y += 4
        while y < end:
            bits |= _add_row(plane[y], line)
            y += 1
        _fold(line, spare, block, sums[row])
    return bits  # type: ignore[return-value]


@compiled
def _count_row(row: Plane, shift: int, counts: Counts) -> None:
    first, second, third, fourth = counts[0], counts[1], counts[2], counts[3]
    whole = row.size // 4 * 4
    for x in range(0, whole, 4):
        first[row[x] >> shift] += np.uint32(1)
        second[row[x + 1] >> shift] += np.uint32(1)
        third[row[x + 2] >> shift] += np.uint32(1)
        fourth[row[x + 3] >> shift] += np.uint32(1)
    for x in range(whole, row.size):
        first[row[x] >> shift] += np.uint32(1)


@compiled
def histogram(plane: Plane, every: int, shift: int, counts: Counts) -> None:
    """Count the values of every so-manieth row, shifted right, in ``counts`` (LANES, 65536 >> shift)."""
    counts[:] = 0
    for y in range(0, plane.shape[0], every):
        _count_row(plane[y], shift, counts)


@compiled
def histogram_values(
    counts: Counts, shift: int, ranks: npt.NDArray[np.int64], values: npt.NDArray[np.int64]
) -> tuple[int, int]:
    """Write to ``values`` the pixels at these ranks, which rise; the sum of all and of their squares."""
    done = total = squares = 0
    wanted = 0
    for place in range(counts.shape[1]):
        number = 0
        for lane in range(counts.shape[0]):
            number += int(counts[lane, place])
        value = place << shift
        done += number
        total += number * value
        squares += number * value * value
        while wanted < ranks.size and ranks[wanted] < done:
            values[wanted] = value
            wanted += 1
    return total, squares


@compiled
def paired(fine: Sums, sums: Sums) -> None:
    """Add 2 x 2 neighbours of ``fine`` (h, w) up in ``sums`` (ceil(h/2), ceil(w/2))."""
    sums[:] = 0
    for y in range(fine.shape[0]):
        for x in range(fine.shape[1]):
            sums[y // 2, x // 2] += fine[y, x]


@compiled
def laplacian_sums(values: Sums) -> tuple[float, float]:
    """The sum and the sum of squares of the Laplacian (4 neighbours) of an array, its edges left out."""
    height, width = values.shape
    total = squares = 0.0
    for y in range(1, height - 1):
        above, row, below = values[y - 1], values[y], values[y + 1]
        row_total = row_squares = 0
        for x in range(1, width - 1):
            around = int(above[x]) + int(below[x]) + int(row[x - 1]) + int(row[x + 1])
            value = 4 * int(row[x]) - around
            row_total += value
            row_squares += value * value
        total += float(row_total)
        squares += float(row_squares)
    return total, squares


@compiled
def darkest(
    frame: Frame,
    rows: npt.NDArray[np.int64],
    columns: npt.NDArray[np.int64],
    values: Frame,
    places: npt.NDArray[np.uint32],
) -> None:
    """The darkest block of each tile and its flat place in the frame; tiles lie between the edges given."""
    width = frame.shape[1]
    for row in range(rows.size - 1):
        for column in range(columns.size - 1):
            low, place = np.float32(np.inf), 0
            for y in range(rows[row], rows[row + 1]):
                for x in range(columns[column], columns[column + 1]):
                    if frame[y, x] < low:
                        low, place = frame[y, x], y * width + x
            values[row, column] = low
            places[row, column] = place


@compiled
def opened(frame: Frame) -> Frame:
    """The grey opening with 3 x 3 blocks: what is bright but smaller than that disappears.

    scipy's ``grey_opening`` gives the same in some twenty times the time, a millisecond a field for two.
    """
    height, width = frame.shape
    across, low = np.empty_like(frame), np.empty_like(frame)
    for y in range(height):
        for x in range(width):
            across[y, x] = min(frame[y, max(x - 1, 0)], frame[y, x], frame[y, min(x + 1, width - 1)])
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for x in range(width):
            low[y, x] = min(across[above, x], across[y, x], across[below, x])
    for y in range(height):
        for x in range(width):
            across[y, x] = max(low[y, max(x - 1, 0)], low[y, x], low[y, min(x + 1, width - 1)])
    for y in range(height):
        above, below = max(y - 1, 0), min(y + 1, height - 1)
        for x in range(width):
            low[y, x] = max(across[above, x], across[y, x], across[below, x])
    return low


@compiled
def brightest_two(frame: Frame, background: Frame, unit: Frame) -> tuple[Frame, Frame]:
    """The largest and the second largest of ``(frame - background) / unit`` over the channels (C, h, w).

    Of a single channel both are its own.
    """
    channels, height, width = frame.shape
    first = (frame[0] - background[0]) / unit[0]
    second = first.copy() if channels == 1 else np.full((height, width), np.float32(-np.inf))
    for channel in range(1, channels):
        for y in range(height):
            for x in range(width):
                light = (frame[channel, y, x] - background[channel]) / unit[channel]
                second[y, x] = max(second[y, x], min(light, first[y, x]))
                first[y, x] = max(first[y, x], light)
    return first, second
