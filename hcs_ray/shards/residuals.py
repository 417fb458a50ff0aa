"""What a field's rows leave unexplained by the rows above them, compiled: one pass, no copy, no GIL.

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
