"""One plane of a TIFF, lossless, as uint16: read rightly or refused with its reason.

Read are unsigned samples of 8, 10, 12, 14 or 16 bits (fewer are widened, their values kept), packed or not,
in strips or tiles, either byte order, classic or BigTIFF, uncompressed or with LZW, Deflate, PackBits,
Zstandard or LZMA, with or without the horizontal predictor, and any page of a file with several.

Every size is taken from the header and held against the file before anything is allocated or decompressed,
and a strip or tile that decompresses to too little is an error, never a patch of zeros. [TIFF 6.0, Adobe
1992; BigTIFF, AWare Systems 2007; tags as registered by libtiff]
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt

MAX_PIXELS: Final = 2**26  # 8192 x 8192; a header that says more is damaged, or a stitched plane to be cut
Plane = npt.NDArray[np.uint16]

_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 256, 257, 258, 259, 262
_FILL_ORDER, _STRIPS, _SAMPLES, _STRIP_ROWS, _STRIP_BYTES, _PREDICTOR = 266, 273, 277, 278, 279, 317
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _SAMPLE_FORMAT, _DEPTH = 322, 323, 324, 325, 339, 32997
_WANTED: Final = frozenset({
    _SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIPS, _SAMPLES, _STRIP_ROWS,
    _STRIP_BYTES, _PREDICTOR, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _SAMPLE_FORMAT, _DEPTH,
})  # fmt: skip
_INTEGERS: Final = {1: "u1", 3: "u2", 4: "u4", 16: "u8"}  # the types a size or an offset may have
_CODECS: Final = {
    5: "lzw", 8: "deflate", 32946: "deflate", 32773: "packbits", 34925: "lzma", 34926: "zstd", 50000: "zstd",
}  # fmt: skip
_OTHER_CODECS: Final = {
    2: "CCITT", 3: "CCITT", 4: "CCITT", 6: "JPEG", 7: "JPEG", 33003: "JPEG 2000", 33005: "JPEG 2000",
    34712: "JPEG 2000", 34887: "LERC", 34892: "JPEG", 34933: "PNG", 50001: "WebP", 50002: "JPEG XL",
}  # fmt: skip
_CLASSIC: Final = ("H", "HHI4s", "I")  # entries of a directory, an entry, an offset
_BIG: Final = ("Q", "HHQ8s", "Q")
_BITS_READ: Final = (8, 10, 12, 14, 16)
_REDUCED_OR_MASK: Final = 0b101
_LOSSY_WAY_OUT: Final = "cannot be kept losslessly as 16-bit integers; export the camera's integers"


class TiffError(ValueError):
    """Why a plane is not read; the message is the reason alone."""


class Page(NamedTuple):
    """What the header says of a plane; `read_page` has checked it against the file."""

    height: int
    width: int
    bits: int
    order: str  # "<" or ">"
    compression: int
    predicted: bool
    reversed_bits: bool
    tiled: bool
    segment: tuple[int, int]  # rows, columns of a strip or tile
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Layout:
    """How the numbers of a file are written: classic or BigTIFF."""

    order: str
    first: int  # offset of the first directory
    count: struct.Struct
    entry: struct.Struct
    number: struct.Struct  # an offset; a tag's value stands in its place where it fits


Tags = dict[int, tuple[int, int, bytes]]  # tag -> type, count, the value or its offset


def read_page(data: bytes, number: int | None = None) -> Page:
    """The header of a plane.

    Args:
        data: The whole file.
        number: The page from 0; None where the file must have but one (smaller copies and masks not counted).

    Raises:
        TiffError: not a TIFF, damaged, truncated, or of a kind that is not read.
    """
    layout = _layout(data)
    tags = _only_page(data, layout) if number is None else _page_at(data, layout, number)
    return _checked(_Header(data, layout, tags), len(data))


def decode(data: bytes, page: Page, out: Plane) -> None:
    """Write the plane into ``out``, (height, width) uint16; `TiffError` where a strip or tile is damaged."""
    if page.compression == 1 and not page.predicted and not page.reversed_bits and _in_one_piece(page):
        plane = np.frombuffer(data, _sample_type(page), page.height * page.width, int(page.offsets[0]))
        out[...] = plane.reshape(page.height, page.width)
        return
    across = ceil(page.width / page.segment[1])
    view = memoryview(data)
    for index, (offset, size) in enumerate(zip(page.offsets.tolist(), page.sizes.tolist(), strict=True)):
        top, left = index // across * page.segment[0], index % across * page.segment[1]
        target = out[top : top + page.segment[0], left : left + page.segment[1]]
        rows = page.segment[0] if page.tiled else target.shape[0]
        values = _segment(view[offset : offset + size], page, rows, f"{_kind(page)} {index}")
        target[...] = values[: target.shape[0], : target.shape[1]]


def _kind(page: Page) -> str:
    return "tile" if page.tiled else "strip"


def _sample_type(page: Page) -> np.dtype[Any]:
    return np.dtype(f"{page.order}u{page.bits // 8}")


def _in_one_piece(page: Page) -> bool:
    """Whether the strips lie one behind the other, whole samples in each."""
    if page.tiled or page.bits not in (8, 16):
        return False
    full = page.segment[0] * page.width * page.bits // 8
    return bool((np.diff(page.offsets) == full).all())


def _segment(chunk: memoryview, page: Page, rows: int, what: str) -> npt.NDArray[Any]:
    """The values of a strip or tile, (rows, columns of the segment)."""
    row_bytes = ceil(page.segment[1] * page.bits / 8)
    raw = _decompressed(chunk, page, page.segment[0] * row_bytes, what)
    if len(raw) < rows * row_bytes:
        raise TiffError(f"{what} holds {len(raw)} bytes of {rows * row_bytes}; copy it again")
    values = _samples(raw[: rows * row_bytes], page).reshape(rows, page.segment[1])
    return np.add.accumulate(values, axis=1, dtype=values.dtype) if page.predicted else values


def _decompressed(chunk: memoryview, page: Page, most: int, what: str) -> bytes | memoryview:
    if page.reversed_bits:
        import imagecodecs

        chunk = memoryview(imagecodecs.bitorder_decode(bytes(chunk)))
    if page.compression == 1:
        return chunk
    try:
        return bytes(_decoder(page.compression)(chunk, out=most))  # never more than `most` bytes
    except Exception as error:  # each codec has kinds of its own
        raise TiffError(f"{what} cannot be decompressed ({error}); copy it again") from None


def _decoder(compression: int) -> Callable[..., bytes]:
    import imagecodecs

    decoder: Callable[..., bytes] = getattr(imagecodecs, f"{_CODECS[compression]}_decode")
    return decoder


def _samples(raw: bytes | memoryview, page: Page) -> npt.NDArray[Any]:
    """Native unsigned integers; the rows of packed ones begin at whole bytes."""
    if page.bits in (8, 16):
        values = np.frombuffer(raw, _sample_type(page))
        return values.astype(values.dtype.newbyteorder("="), copy=False)
    import imagecodecs

    unpacked = imagecodecs.packints_decode(bytes(raw), np.dtype("u2"), page.bits, runlen=page.segment[1])
    return np.asarray(unpacked, np.uint16)


def _layout(data: bytes) -> _Layout:
    if not data:
        raise TiffError("is empty (0 bytes); copy it again")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None or len(data) < 4:
        raise TiffError("is not a TIFF")
    magic = struct.unpack_from(f"{order}H", data, 2)[0]
    big, first = magic == 43, 8 if magic == 43 else 4
    if magic not in (42, 43) or (big and data[4:8] != struct.pack(f"{order}HH", 8, 0)[: len(data) - 4]):
        raise TiffError("is not a TIFF")
    if len(data) < 2 * first:
        raise TiffError(f"is truncated, has {len(data)} bytes; copy it again")
    count, entry, number = (struct.Struct(f"{order}{code}") for code in (_BIG if big else _CLASSIC))
    return _Layout(order, number.unpack_from(data, first)[0], count, entry, number)


def _directories(data: bytes, layout: _Layout) -> Iterator[Tags]:
    """The tags of one page after the other, of those that matter here."""
    at, seen = layout.first, set()
    while at:
        if at in seen:
            raise TiffError("its directories run in a circle; it is damaged")
        seen.add(at)
        start = at + layout.count.size
        if start > len(data):
            raise TiffError(f"is truncated, a directory lies behind its {len(data)} bytes; copy it again")
        end = start + layout.count.unpack_from(data, at)[0] * layout.entry.size
        if end + layout.number.size > len(data):
            raise TiffError(f"is truncated, a directory ends behind its {len(data)} bytes; copy it again")
        entries = layout.entry.iter_unpack(memoryview(data)[start:end])
        yield {tag: (kind, count, value) for tag, kind, count, value in entries if tag in _WANTED}
        at = layout.number.unpack_from(data, end)[0]


def _page_at(data: bytes, layout: _Layout, number: int) -> Tags:
    pages = 0
    for pages, tags in enumerate(_directories(data, layout), start=1):
        if pages == number + 1:
            return tags
    raise TiffError(f"has no page {number}: its pages are #0 to #{pages - 1}" if pages else "has no page")


def _only_page(data: bytes, layout: _Layout) -> Tags:
    directories = _directories(data, layout)
    first = next(directories, None)
    if first is None:
        raise TiffError("has no page")
    full = [0, *(n for n, tags in enumerate(directories, start=1) if not _is_extra(data, layout, tags))]
    if len(full) > 1:
        raise TiffError(f"has {len(full)} pages; name one of them (#{full[0]} to #{full[-1]})")
    return first


def _is_extra(data: bytes, layout: _Layout, tags: Tags) -> bool:
    """Whether a page is a smaller copy of another (a thumbnail) or a mask."""
    return bool(_Header(data, layout, tags).one(_SUBFILE, 0) & _REDUCED_OR_MASK)


@dataclass(frozen=True)
class _Header:
    """The tags of one page, read on demand."""

    data: bytes
    layout: _Layout
    tags: Tags

    def many(self, tag: int) -> npt.NDArray[np.int64]:
        """All values of a tag; empty where it is not there."""
        if tag not in self.tags:
            return np.empty(0, np.int64)
        kind, count, value = self.tags[tag]
        if kind not in _INTEGERS:
            raise TiffError(f"tag {tag} has type {kind}, not a whole number; it is damaged")
        dtype = np.dtype(f"{self.layout.order}{_INTEGERS[kind]}")
        size = count * dtype.itemsize
        if size <= len(value):
            return np.frombuffer(value, dtype, count).astype(np.int64)
        at = self.layout.number.unpack(value)[0]
        if at + size > len(self.data):
            raise TiffError(f"is truncated, tag {tag} lies behind its {len(self.data)} bytes; copy it again")
        return np.frombuffer(self.data, dtype, count, at).astype(np.int64)

    def one(self, tag: int, default: int | None = None) -> int:
        """A tag's first value."""
        values = self.many(tag)
        if len(values):
            return int(values[0])
        if default is None:
            raise TiffError(f"lacks tag {tag}; it is damaged")
        return default


def _checked(header: _Header, length: int) -> Page:
    _check_kind(header)
    height, width = header.one(_HEIGHT), header.one(_WIDTH)
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        raise TiffError(
            f"its header says {height} x {width} px; fields of 1 to {MAX_PIXELS} px are read "
            "(is it damaged, or a stitched plane?)"
        )
    page = _segments(header, height, width)
    if (page.offsets <= 0).any() or (page.sizes <= 0).any():
        raise TiffError(f"has a {_kind(page)} that was never written")
    if (end := int((page.offsets + page.sizes).max())) > length or end < 0:
        raise TiffError(f"is truncated, has {length} bytes of at least {end}; copy it again")
    if page.compression == 1:
        _check_uncompressed(page)
    return page


def _check_kind(header: _Header) -> None:
    """Refuse what is not one plane of unsigned integers of at most 16 bits."""
    samples, bits = header.one(_SAMPLES, 1), header.many(_BITS)
    kind, photometric = header.one(_SAMPLE_FORMAT, 1), header.one(_PHOTOMETRIC, 1)
    width = int(bits[0]) if len(bits) else 1
    if samples != 1 or len(bits) > 1 or photometric in (2, 5, 6, 8):
        raise TiffError(f"has {max(samples, len(bits))} samples a pixel (a colour image), not one channel")
    if kind in (2, 3, 5, 6):
        name = {2: f"int{width}", 3: f"float{width}"}.get(kind, "complex")
        raise TiffError(f"{name} pixels {_LOSSY_WAY_OUT}")
    if width > 16:
        raise TiffError(f"uint{width} pixels {_LOSSY_WAY_OUT}")
    if width not in _BITS_READ or kind not in (1, 4):
        raise TiffError(f"{width}-bit samples are not read (8, 10, 12, 14 or 16 bits are)")
    if photometric == 0:
        raise TiffError("is stored as MinIsWhite, so 0 may be the brightest; export it as MinIsBlack")
    if photometric != 1:
        raise TiffError(f"has photometric interpretation {photometric} (a palette?), not grey levels")
    if header.one(_DEPTH, 1) != 1:
        raise TiffError("is a volume, not a plane")


def _segments(header: _Header, height: int, width: int) -> Page:
    compression, bits = header.one(_COMPRESSION, 1), header.one(_BITS)
    if compression != 1 and compression not in _CODECS:
        name = _OTHER_CODECS.get(compression, "unknown")
        raise TiffError(f"compression {compression} ({name}) is not read; save it with LZW, Deflate or none")
    predictor, fill = header.one(_PREDICTOR, 1), header.one(_FILL_ORDER, 1)
    if predictor not in (1, 2) or (predictor == 2 and bits not in (8, 16)):
        raise TiffError(f"predictor {predictor} of {bits}-bit samples is not read")
    tiled = _TILES in header.tags
    if tiled:
        segment = header.one(_TILE_HEIGHT), header.one(_TILE_WIDTH)
    else:
        segment = min(header.one(_STRIP_ROWS, height), height), width
    if not (segment[0] > 0 and segment[1] > 0 and segment[0] * segment[1] <= MAX_PIXELS):
        raise TiffError(f"its strips or tiles have {segment[0]} x {segment[1]} px; it is damaged")
    count = ceil(height / segment[0]) * ceil(width / segment[1])
    offsets = header.many(_TILES if tiled else _STRIPS)
    sizes = header.many(_TILE_BYTES if tiled else _STRIP_BYTES)
    if (listed := min(len(offsets), len(sizes))) < count:
        raise TiffError(f"lists {listed} of its {count} strips or tiles; it is damaged")
    predicted, flipped = predictor == 2, fill == 2
    return Page(
        height, width, bits, header.layout.order, compression, predicted, flipped, tiled, segment,
        offsets[:count], sizes[:count],
    )  # fmt: skip


def _check_uncompressed(page: Page) -> None:
    """Strips and tiles that hold fewer bytes than their pixels need."""
    row_bytes = ceil(page.segment[1] * page.bits / 8)
    rows = np.full(len(page.sizes), page.segment[0])
    if not page.tiled:
        rows[-1] = page.height - page.segment[0] * (len(rows) - 1)
    if (short := np.flatnonzero(page.sizes < rows * row_bytes)).size:
        first = int(short[0])
        needed = rows[first] * row_bytes
        raise TiffError(f"{_kind(page)} {first} holds {page.sizes[first]} bytes of {needed}; it is damaged")
