"""One plane of a TIFF, lossless, as uint16: read rightly or refused with its reason.

tifffile reads the tags and decodes strips and tiles. Read are unsigned samples of 8, 10, 12, 14 or 16 bits
(fewer are widened, their values kept), packed or not, in strips or tiles, either byte order, classic or
BigTIFF, uncompressed or with LZW, Deflate, PackBits, Zstandard or LZMA, with or without the horizontal
predictor, and any page of a file with several. tifffile goes on where a file is damaged; here it is refused.
"""

from __future__ import annotations

import io
import logging
import struct
from math import ceil
from operator import index
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
from tifffile import TiffFile, TiffPage

MAX_PIXELS: Final = 2**26  # 8192 x 8192; a header that says more is damaged, or a stitched plane to be cut
Plane = npt.NDArray[np.uint16]

_STARTS: Final = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CODECS: Final = (1, 5, 8, 32946, 32773, 34925, 34926, 50000)  # those of this module's first lines
_NEEDED: Final = {254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 317, 322, 323, 324, 325, 339, 32997}
_MAX_TAG_BYTES: Final = 2**23  # 2**20 offsets of a BigTIFF; as Python objects they take up to 18 x the memory
_TILES: Final = (322, 323, 324)  # all or none of these tags
_REDUCED_OR_MASK: Final = 0b101
_LOSSY_WAY_OUT: Final = "cannot be kept losslessly as 16-bit integers; export the camera's integers"

logging.getLogger("tifffile").addHandler(logging.NullHandler())  # what it finds odd is judged here


class TiffError(ValueError):
    """Why a plane is not read; the message is the reason alone."""


class Page(NamedTuple):
    """What the header says of a plane; `read_page` has checked it against the file."""

    height: int
    width: int
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    parsed: TiffPage


class _Header(io.BytesIO):
    """A file of which only tags are read, none of them large."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= _MAX_TAG_BYTES:
            raise TiffError(f"has a tag of {size} bytes; it is damaged")
        return super().read(size)


def read_page(data: bytes, number: int | None = None) -> Page:
    """The header of a plane.

    Args:
        data: The whole file.
        number: The page from 0; None where the file must have but one (smaller copies and masks not counted).

    Raises:
        TiffError: not a TIFF, damaged, truncated, or of a kind that is not read.
    """
    if not data:
        raise TiffError("is empty (0 bytes); copy it again")
    if data[:4] not in _STARTS:
        raise TiffError("is not a TIFF")
    try:
        with _Header(data) as header, np.errstate(all="ignore"):  # closed, it lets go of the data
            file = TiffFile(header, is_lsm=False, is_ndpi=False, is_scanimage=False)  # no vendor's own chain
            return _checked(_page(file, data, number), data)
    except TiffError:
        raise
    except Exception as error:  # a damaged header fails in many ways
        raise TiffError(f"is truncated or its header is damaged ({error!r:.99}); copy it again") from None


def decode(data: bytes, page: Page, out: Plane) -> None:
    """Write the plane into ``out``, (height, width) uint16; `TiffError` where a strip or tile is damaged."""
    if _in_one_piece(page):
        dtype = f"{page.parsed.parent.byteorder}u{page.parsed.bitspersample // 8}"
        plane = np.frombuffer(data, dtype, page.height * page.width, int(page.offsets[0]))
        out[...] = plane.reshape(page.height, page.width)
        return
    view = memoryview(data)
    for number, (offset, size) in enumerate(zip(page.offsets.tolist(), page.sizes.tolist(), strict=True)):
        try:  # never more memory than the pixels of a strip or tile take
            values, (_, _, top, left, _), shape = page.parsed.decode(view[offset : offset + size], number)
            if values is None or values.shape != shape:
                raise ValueError(f"lacks some of its {shape[1]} x {shape[2]} px")
        except Exception as error:  # each codec has kinds of its own
            name = "tile" if page.parsed.is_tiled else "strip"
            raise TiffError(f"{name} {number} cannot be decoded ({error}); copy it again") from None
        target = out[top : top + shape[1], left : left + shape[2]]
        target[...] = values[0, : target.shape[0], : target.shape[1], 0]


def _in_one_piece(page: Page) -> bool:
    """Whether plain samples lie one behind the other (tifffile takes that for granted of STK and LSM)."""
    parsed = page.parsed
    plain = (parsed.compression, parsed.predictor, parsed.fillorder, parsed.is_tiled) == (1, 1, 1, False)
    full = parsed.rowsperstrip * page.width * parsed.bitspersample // 8
    whole = (page.sizes[:-1] == full).all() and (np.diff(page.offsets) == full).all()
    return bool(plain and parsed.bitspersample in (8, 16) and whole)


def _page(file: TiffFile, data: bytes, number: int | None) -> TiffPage:
    """A page, or the only one."""
    last = _count(file, data, number) - 1
    if last < 0:
        raise TiffError("has no page")
    if number is not None and number > last:
        raise TiffError(f"has no page {number}: its pages are #0 to #{last}")
    rest = range(1, last + 1) if number is None else ()
    if others := [at for at in rest if not _parsed(file, at).subfiletype & _REDUCED_OR_MASK]:
        raise TiffError(f"has {len(others) + 1} pages; name one of them (#0 to #{others[-1]})")
    return _parsed(file, number or 0)


def _parsed(file: TiffFile, number: int) -> TiffPage:
    page = file.pages.get(number)
    assert isinstance(page, TiffPage)
    return page


def _count(file: TiffFile, data: bytes, number: int | None) -> int:
    """How many pages there are, counted to the named one.

    tifffile goes round in a circle of pages, for ever where they are over a hundred, and takes a damaged
    page for the file's end.
    """
    form, seen = file.tiff, set[int]()
    at = struct.unpack_from(form.offsetformat, data, form.offsetsize)[0]
    while at and (number is None or len(seen) <= number):
        if at in seen:
            raise TiffError("its directories run in a circle; it is damaged")
        seen.add(at)
        end = at + form.tagnosize + struct.unpack_from(form.tagnoformat, data, at)[0] * form.tagsize
        at = struct.unpack_from(form.offsetformat, data, end)[0]
    return len(seen)


def _checked(parsed: TiffPage, data: bytes) -> Page:
    _check_tags(parsed, data)
    _check_kind(parsed)
    height, width = index(parsed.imagelength), index(parsed.imagewidth)
    if not (height > 0 and width > 0 and height * width <= MAX_PIXELS):
        limits = f"fields of 1 to {MAX_PIXELS} px are read (is it damaged, or a stitched plane?)"
        raise TiffError(f"its header says {height} x {width} px; {limits}")
    segment = (parsed.tilelength, parsed.tilewidth) if parsed.is_tiled else (parsed.rowsperstrip, width)
    if not (segment[0] > 0 and segment[1] > 0 and segment[0] * segment[1] <= MAX_PIXELS):
        raise TiffError(f"its strips or tiles have {segment[0]} x {segment[1]} px; it is damaged")
    count = ceil(height / segment[0]) * ceil(width / segment[1])
    offsets = np.array(parsed.dataoffsets[:count], np.int64)
    sizes = np.array(parsed.databytecounts[:count], np.int64)
    if (listed := min(len(offsets), len(sizes))) < count:
        raise TiffError(f"lists {listed} of its {count} strips or tiles; it is damaged")
    if (offsets <= 0).any() or (sizes <= 0).any():
        raise TiffError("has a strip or tile that was never written")
    if (end := int((offsets + sizes).max())) > len(data) or int(offsets.max()) > len(data):
        raise TiffError(f"is truncated, has {len(data)} bytes of at least {end}; copy it again")
    needed = ceil(height * width * parsed.bitspersample / 8)
    if parsed.compression == 1 and (held := int(sizes.sum())) < needed:
        raise TiffError(f"its strips or tiles hold {held} bytes of {needed}; it is damaged")
    return Page(height, width, offsets, sizes, parsed)


def _check_tags(parsed: TiffPage, data: bytes) -> None:
    """Refuse a page with a tag twice, or without one that stands there: tifffile goes on with a default."""
    form, at = parsed.parent.tiff, parsed.offset
    first, count = at + form.tagnosize, struct.unpack_from(form.tagnoformat, data, at)[0]
    places = range(first, first + count * form.tagsize, form.tagsize)
    listed = [struct.unpack_from(f"{form.byteorder}H", data, place)[0] for place in places]
    wrong = [tag for tag in _NEEDED if listed.count(tag) != (tag in parsed.tags)]
    tiles = [tag for tag in _TILES if tag not in listed]
    if wrong or 0 < len(tiles) < len(_TILES):
        raise TiffError(f"its tag {min(wrong or tiles)} is damaged or missing; copy it again")


def _check_kind(parsed: TiffPage) -> None:
    """Refuse what is not one plane of unsigned integers of at most 16 bits, or is not decoded."""
    bits, predictor, compression = parsed.bitspersample, parsed.predictor, parsed.compression
    if parsed.samplesperpixel != 1:
        raise TiffError(f"has {parsed.samplesperpixel} samples a pixel (a colour image), not one channel")
    if parsed.sampleformat not in (1, 4) or bits > 16:
        raise TiffError(f"{parsed.dtype} pixels {_LOSSY_WAY_OUT}")
    if bits not in (8, 10, 12, 14, 16):
        raise TiffError(f"{bits}-bit samples are not read (8, 10, 12, 14 or 16 bits are)")
    if (photometric := parsed.tags.valueof(262, 1)) != 1:
        why = "MinIsWhite, so 0 may be the brightest" if photometric == 0 else "not grey levels"
        raise TiffError(f"has photometric interpretation {photometric} ({why}); export it as MinIsBlack")
    if parsed.imagedepth != 1:
        raise TiffError("is a volume, not a plane")
    if compression not in _CODECS:
        name = getattr(compression, "name", "unknown")
        raise TiffError(f"compression {compression} ({name}) is not read; save it with LZW, Deflate or none")
    if predictor not in (1, 2) or (predictor == 2 and bits not in (8, 16)) or parsed.fillorder not in (1, 2):
        raise TiffError(f"predictor {predictor} of {bits}-bit samples is not read")
