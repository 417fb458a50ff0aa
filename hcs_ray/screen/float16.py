"""The pixels of a pybbbc preparation: float16, back to 16-bit integers, with what that has cost.

pybbbc (github.com/giacomodeodato/pybbbc) reads a TIFF as float16, divides by the plate's illumination at that
site, scales each plate and channel so that its percentiles 0.1 and 99.9 become 0 and 1, clips, and keeps that
as float16. Such **scaled** pixels are read as ``round(65535 * value)``. Some people keep the TIFFs' values
themselves in the same layout; such **raw** pixels are read as they are. A file is one or the other.

What is gone for good, whoever reads the file:

- raw values: float16 has 11 significant bits. Of a 12-bit camera's values stored in 16 bits (multiples of
  16), those up to 32768 are exact, those above were rounded to multiples of 32, and the largest, 65520,
  became infinity; it alone did, so infinity is read as 65520. Of a true 16-bit camera's values, all are exact
  up to 2048; the step is 2 up to 4096, then 4, 8, 16, and 32 above 32768; 65520 to 65535 are all infinity.
- scaled values: the camera's integers, the illumination and the two percentiles, none of which is in the
  file, and what lay in the 0.1 % of pixels at either end. Reading the TIFF, dividing and scaling each rounded
  to 11 bits, by up to 1/2048 of the value at that step. Reading the file adds at most half of 1/65535: values
  from 1/64 on keep every bit of their float16, smaller ones are rounded to multiples of 1/65535, about a
  sixteenth of the finest step that a 12-bit camera can show. Where one pixel was saturated (infinity), those
  steps have made the channel NaN on the whole plate: such fields are refused.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

import numpy as np
import numpy.typing as npt

Half = npt.NDArray[np.float16]
Plane = npt.NDArray[np.uint16]
Codes = npt.NDArray[np.uint8]

FULL_SCALE: Final = 65535  # what the value 1 of a scaled file becomes
INFINITE: Final = 65520  # the one multiple of 16 that float16 turned into infinity
_FINE, _NAN, _NEGATIVE, _FRACTION, _ABOVE = range(5)
_PROBLEMS: Final = {
    _NAN: "is not a number (did a saturated pixel, infinite in float16, spoil the plate's illumination?)",
    _NEGATIVE: "is negative",
    _FRACTION: "is no whole number in a file of raw values",
    _ABOVE: "is above 1 in a file that is scaled to 0 .. 1",
}


class Float16Error(ValueError):
    """Why float16 pixels are not read; the message is the reason alone."""


def is_scaled(values: Half) -> bool | None:
    """Whether pixels are scaled (some lie between 0 and 1) or raw (some are above 1); None: neither shows."""
    if ((values > 0) & (values < 1)).any():
        return True
    return False if (values > 1).any() else None


def to_integers(values: Half, scaled: bool) -> Plane:
    """Pixels as 16-bit integers.

    Args:
        values: float16, any shape.
        scaled: Whether they are pybbbc's, from 0 to 1, or whole raw values.

    Raises:
        Float16Error: a value that such a file cannot hold, with its number and kind.
    """
    integers, codes = _table(scaled)
    bits = values.view(np.uint16)
    found = np.take(codes, bits, mode="clip")  # all are in range, but "clip" is four times as fast
    if found.any():
        code = int(found[found != _FINE][0])
        raise Float16Error(f"a pixel {_PROBLEMS[code]} ({np.count_nonzero(found == code)} of {found.size})")
    return np.take(integers, bits, mode="clip")


@lru_cache(maxsize=2)
def _table(scaled: bool) -> tuple[Plane, Codes]:
    """The integer, and the problem, of each of the 65,536 float16 numbers."""
    values = np.arange(65536, dtype=np.uint16).view(np.float16).astype(np.float64)
    codes = np.full(values.shape, _FINE, np.uint8)
    if scaled:
        codes[values > 1] = _ABOVE
    else:
        values[values == np.inf] = INFINITE
        codes[np.modf(np.nan_to_num(values))[0] != 0] = _FRACTION
    codes[values < 0] = _NEGATIVE
    codes[np.isnan(values)] = _NAN
    values[codes != _FINE] = 0
    return np.rint(values * (FULL_SCALE if scaled else 1)).astype(np.uint16), codes
