"""One field as bytes: a lossless (C, H, W) uint16 member of a tar that describes and checks itself.

``blosc2``, the default, is a Blosc2 chunk of the field's residuals (`hcs_ray.shards.residuals`), bytes
shuffled, Zstandard. ``jpegxl`` is a lossless grey JPEG XL image of the planes one below the other: smaller
and much slower. Either is followed by 28 bytes that a reader of the plain format skips; docs/codecs.md says
what they hold, how other programs get at the pixels, and what was measured.

Neither direction holds the GIL, and neither starts threads. `decode_floats` goes from a member to what a
network sees without a field of integers between.
"""

from __future__ import annotations

import functools
import math
import struct
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final, Literal, NamedTuple

import imagecodecs as _imagecodecs
import numpy as np
import numpy.typing as npt
import xxhash

from hcs_ray.contracts import HcsError, InputError

Codec = Literal["blosc2", "jpegxl"]
Pixels = npt.NDArray[np.uint16]
Floats = npt.NDArray[np.float32]
Buffer = bytes | bytearray | memoryview
Shape = tuple[int, ...]

imagecodecs: Any = _imagecodecs  # its stubs name fewer buffer types than it takes

LARGEST_BYTES: Final = 2**31 - 2**16  # of a field: what one Blosc2 chunk holds
_MEMBER: Final[dict[Codec, str]] = {"blosc2": "blosc2", "jpegxl": "jxl"}
_NUMBER: Final[dict[Codec, int]] = {"blosc2": 1, "jpegxl": 2}
_MAGIC: Final = b"HCSR"
_ABOUT: Final = struct.Struct("<4sBBHIII")  # magic, codec's number, low bits, 0, channels, height, width
_CHECK: Final = struct.Struct("<Q")  # XXH3-64 of everything before it
TRAILER_BYTES: Final = _ABOUT.size + _CHECK.size
_BLOCK_BYTES: Final = 2**20
_CHUNK_OVERHEAD: Final = 32  # bytes of a Blosc2 chunk that holds its data as they are
_CHUNK: Final = struct.Struct("<4xIII")  # of a Blosc2 chunk's header: its bytes unpacked, a block's, packed


def member(codec: Codec) -> str:
    """The extension of a codec's members."""
    return _MEMBER[codec]


def encode(pixels: Pixels, codec: Codec) -> bytes:
    """(C, H, W) uint16, nothing empty, to bytes: the same for the same pixels and library versions.

    Low bits that no pixel of the field uses are left out.

    Raises:
        InputError: the field is larger than `LARGEST_BYTES`.
    """
    if pixels.ndim != 3 or pixels.dtype != np.uint16 or pixels.size == 0:
        raise ValueError(f"not a field: {pixels.dtype} of shape {pixels.shape}")
    if pixels.nbytes > LARGEST_BYTES:
        raise InputError(
            f"a field of {pixels.nbytes / 1e9:.1f} GB is more than a member holds (2.1 GB); cut it into sites"
        )
    pixels = np.ascontiguousarray(pixels)
    low_bits = unused_low_bits(pixels)
    about = _ABOUT.pack(_MAGIC, _NUMBER[codec], low_bits, 0, *pixels.shape)
    packed = _ENCODE[codec](pixels, low_bits)
    check = xxhash.xxh3_64(packed)
    check.update(about)
    return b"".join((packed, about, _CHECK.pack(check.intdigest())))


def decode(data: Buffer, out: Pixels) -> Pixels:
    """A member into ``out``, C-contiguous (C, H, W) uint16; returns it.

    Raises:
        HcsError: the bytes are not those that `encode` made, or of another shape; ``out`` may be written to.
    """
    if out.ndim != 3 or out.dtype != np.uint16 or not out.flags.c_contiguous:
        raise ValueError(f"no place for a field: {out.dtype} of shape {out.shape}")
    opened = open_member(data, out.shape)
    _unpack(opened, out)
    if opened.codec == "blosc2":
        _residuals().restore(out, opened.low_bits)
    return out


class Opened(NamedTuple):
    """A member whose bytes are whole, not yet decoded."""

    packed: memoryview  # what the plain format holds
    codec: Codec
    low_bits: int
    shape: Shape


class Look(NamedTuple):
    """What is wanted of a field: a crop, and means of blocks of it."""

    rows: slice  # of pixels; both slices have a start and a stop
    columns: slice
    block_px: int = 1  # blocks at the lower and right edge of the crop may be smaller

    def shape(self, channels: int) -> tuple[int, int, int]:
        """(C, h, w) of the result."""
        height, width = (-(-(part.stop - part.start) // self.block_px) for part in self[:2])
        return channels, height, width


def open_member(data: Buffer, shape: Shape) -> Opened:
    """A member, its checksum and its shape compared; the result refers to ``data``.

    Raises:
        HcsError: the bytes are not those that `encode` made, or of another shape.
    """
    opened = _parted(memoryview(data))
    if opened.shape != shape:
        raise HcsError(f"holds a field of shape {opened.shape} instead of {shape}")
    return opened


def decode_floats(opened: Opened, look: Look, scale: tuple[Floats, Floats] | None, out: Floats) -> Floats:
    """What ``look`` wants of a member, straight into ``out``; returns it.

    Memory for what lies between is the thread's own and reused; the way from there is one pass.

    Args:
        opened: As `open_member` gives it.
        look: Within the field.
        scale: Gain (C, H, W) and bias (C,), float32: ``pixels * gain + bias``; none: the counts as they are.
        out: C-contiguous float32 of ``look.shape(C)``.

    Raises:
        HcsError: the member is forged; ``out`` may be written to.
    """
    shape = opened.shape
    for part, size in zip(look[:2], shape[1:], strict=True):
        if not 0 <= part.start < part.stop <= size:
            raise ValueError(f"{part} does not lie in a field of shape {shape}")
    if out.shape != look.shape(shape[0]) or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"no place for {look}: {out.dtype} of shape {out.shape}")
    codes = _buffers(shape)[0]
    _unpack(opened, codes)
    shift = opened.low_bits if opened.codec == "blosc2" else -1
    gain, bias = scale or (_NO_GAIN, np.zeros(shape[0], np.float32))
    window = look.rows.start, look.rows.stop, look.columns.start, look.columns.stop
    _residuals().floats(codes, shift, window, look.block_px, gain, bias, out)
    return out


def _unpack(opened: Opened, codes: Pixels) -> None:
    """Blosc2's residuals, or JPEG XL's pixels."""
    try:
        _DECODE[opened.codec](opened.packed, codes, opened.low_bits)
    except HcsError:
        raise
    except Exception as error:  # the libraries raise RuntimeErrors and ValueErrors of their own
        raise HcsError(f"holds no {opened.codec} field ({error})") from None


def unused_low_bits(pixels: Pixels) -> int:
    """How many of the lowest bits are 0 in every pixel; 0 where all pixels are 0."""
    used = int(np.bitwise_or.reduce(pixels, axis=None))
    return max((used & -used).bit_length() - 1, 0)


def _parted(data: memoryview) -> Opened:
    """The plain format's bytes, and what the trailer says of them; `HcsError` where it does not fit them."""
    if len(data) <= TRAILER_BYTES or bytes(data[-TRAILER_BYTES:][: len(_MAGIC)]) != _MAGIC:
        raise HcsError(f"{len(data)} bytes that do not end as a field's member does")
    checked = data[: -_CHECK.size]
    if xxhash.xxh3_64_intdigest(checked) != _CHECK.unpack(data[-_CHECK.size :])[0]:
        raise HcsError("damaged: the bytes do not match their own checksum")
    _, number, low_bits, zero, *shape = _ABOUT.unpack(checked[-_ABOUT.size :])
    codec = next((name for name in _NUMBER if _NUMBER[name] == number), None)
    if codec is None or low_bits > 15 or zero != 0:
        raise HcsError(f"of a kind that this version does not know ({number}, {low_bits}, {zero})")
    return Opened(data[:-TRAILER_BYTES], codec, low_bits, tuple(shape))


def _to_blosc2(pixels: Pixels, low_bits: int) -> memoryview:
    """A Blosc2 chunk, valid until the thread's next one."""
    field, room = _buffers(pixels.shape)
    _residuals().take(pixels, low_bits, field)
    packed = imagecodecs.blosc2_encode(
        field,
        level=1,
        compressor="zstd",
        shuffle="shuffle",
        typesize=2,
        blocksize=_BLOCK_BYTES,
        numthreads=1,
        out=room,
    )
    return memoryview(packed)


def _from_blosc2(packed: memoryview, out: Pixels, low_bits: int) -> None:
    """The residuals, still without the low bits."""
    unpacked_bytes, block_bytes, packed_bytes = _CHUNK.unpack_from(packed)
    if (unpacked_bytes, packed_bytes) != (out.nbytes, len(packed)) or not 0 < block_bytes <= out.nbytes:
        raise HcsError("holds a Blosc2 chunk of another size")  # before the library makes room for it
    imagecodecs.blosc2_decode(packed, numthreads=1, out=out.reshape(-1).view(np.uint8))


def _to_jpegxl(pixels: Pixels, low_bits: int) -> bytes:
    planes = np.right_shift(pixels, np.uint16(low_bits)).reshape(-1, pixels.shape[-1])
    return bytes(imagecodecs.jpegxl_encode(planes, lossless=True, effort=2, photometric="GRAY", numthreads=1))


def _from_jpegxl(packed: memoryview, out: Pixels, low_bits: int) -> None:
    """The library refuses an image of another shape before it makes room for it."""
    planes = out.reshape(-1, out.shape[-1])
    imagecodecs.jpegxl_decode(packed, numthreads=1, out=planes)
    np.left_shift(planes, np.uint16(low_bits), out=planes)


_ENCODE: Final[dict[Codec, Callable[[Pixels, int], bytes | memoryview]]] = {
    "blosc2": _to_blosc2,
    "jpegxl": _to_jpegxl,
}
_DECODE: Final[dict[Codec, Callable[[memoryview, Pixels, int], None]]] = {
    "blosc2": _from_blosc2,
    "jpegxl": _from_jpegxl,
}
_NO_GAIN: Final = np.empty((0, 0, 0), np.float32)
_reused: Final = threading.local()  # fresh memory would cost as much as the residuals: the pages' first touch


def _buffers(shape: Shape) -> tuple[Pixels, memoryview]:
    """This thread's memory for a field's residuals, and for a chunk of them and not a byte more.

    How much room there is decides how Blosc2 stores noise, so it must follow from the field alone.
    """
    size = math.prod(shape)
    if getattr(_reused, "size", 0) < size:
        _reused.residuals, _reused.room = np.empty(size, np.uint16), bytearray(2 * size + _CHUNK_OVERHEAD)
        _reused.size = size
    return _reused.residuals[:size].reshape(shape), memoryview(_reused.room)[: 2 * size + _CHUNK_OVERHEAD]


@functools.cache
def _residuals() -> ModuleType:
    """Loaded with the first field: it imports numba."""
    from hcs_ray.shards import residuals

    return residuals
