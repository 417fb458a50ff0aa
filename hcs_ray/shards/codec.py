"""One field as bytes: uint16 planes, bit-shuffled and compressed with Blosc2, lossless.

Blosc2 frames describe themselves: ``imagecodecs.blosc2_decode`` or the blosc2 package read them, and
numpy gives them back their shape from the sample's JSON. Encoding and decoding release the GIL.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import imagecodecs as _imagecodecs
import numpy as np
import numpy.typing as npt

from hcs_ray.contracts import HcsError

MEMBER: Final = "blosc2"  # the image member's extension
Codec = Literal["blosc2-lz4", "blosc2-zstd"]
_LEVEL: Final = {"blosc2-lz4": 5, "blosc2-zstd": 1}

Pixels = npt.NDArray[np.uint16]
imagecodecs: Any = _imagecodecs  # its stubs name fewer buffer types than it takes


def encode(pixels: Pixels, codec: Codec) -> bytes:
    """(C, H, W) uint16 to bytes, the same for the same pixels."""
    return bytes(
        imagecodecs.blosc2_encode(
            np.ascontiguousarray(pixels, dtype="<u2"),
            level=_LEVEL[codec],
            compressor=codec.removeprefix("blosc2-"),
            shuffle="bitshuffle",
            typesize=2,
            numthreads=1,
        )
    )


def decode(data: bytes, out: Pixels) -> Pixels:
    """Bytes into ``out`` (C, H, W) uint16, contiguous; `HcsError` where they are no such field."""
    try:
        decoded = imagecodecs.blosc2_decode(data, numthreads=1, out=out.reshape(-1).view(np.uint8))
    except Exception as error:  # the codec raises its own RuntimeErrors and ValueErrors
        raise HcsError(f"not a Blosc2 field of {out.nbytes} bytes ({error})") from None
    if len(decoded) != out.nbytes:
        raise HcsError(f"holds {len(decoded)} bytes of pixels instead of {out.nbytes}")
    return out
