"""Every kind of TIFF gives exactly its pixels, or the reason why it is not read, and never harm."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.screen import tiff

Image = npt.NDArray[Any]


def written(image: Image | list[Image], **options: Any) -> bytes:
    """A TIFF in memory; several pages where ``image`` is a list."""
    buffer = io.BytesIO()
    kind = {name: options.pop(name) for name in ("byteorder", "bigtiff") if name in options}
    options = {"photometric": "minisblack", "metadata": None, **options}
    with tifffile.TiffWriter(buffer, **kind) as writer:
        for page in image if isinstance(image, list) else [image]:
            writer.write(page, contiguous=False, **options)
    return buffer.getvalue()


def plane(data: bytes, page: int | None = None) -> Image:
    header = tiff.read_page(data, page)
    out = np.full((header.height, header.width), 0xABCD, np.uint16)
    tiff.decode(data, header, out)
    return out


def noise(shape: tuple[int, ...] = (37, 53), bits: int = 16, seed: int = 0) -> Image:
    values = np.random.default_rng(seed).integers(0, 2**bits, shape)
    return values.astype(np.uint8 if bits == 8 else np.uint16)


def edited(data: bytes, tag: int, value: int) -> bytes:
    """The TIFF with a tag's value in its first directory replaced."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        entry = file.pages.first.tags[tag]
        start = entry.offset + (12 if file.is_bigtiff else 8)
        number = struct.pack(f"{file.byteorder}{ {3: 'H', 4: 'I', 16: 'Q'}[int(entry.dtype)] }", value)
    return data[:start] + number + data[start + len(number) :]


def packed(image: Image, bits: int, **options: Any) -> bytes:
    """A TIFF whose samples lie bit by bit behind each other, the highest first, as the standard has it."""
    of_samples = np.unpackbits(image.astype(">u2").view(np.uint8), axis=1).reshape(*image.shape, 16)
    rows = np.packbits(of_samples[:, :, 16 - bits :].reshape(len(image), -1), axis=1)
    return edited(edited(written(rows, **options), 256, image.shape[1]), 258, bits)


COMPRESSIONS = (None, "zlib", "deflate", "lzw", "packbits", "zstd", "lzma")


@st.composite
def kinds(draw: st.DrawFn) -> tuple[int, dict[str, Any]]:
    bits = draw(st.sampled_from([8, 16]))
    options: dict[str, Any] = {"byteorder": draw(st.sampled_from("<>")), "bigtiff": draw(st.booleans())}
    options["compression"] = draw(st.sampled_from(COMPRESSIONS))
    options["predictor"] = draw(st.booleans()) and options["compression"] is not None
    if draw(st.booleans()):
        return bits, options | {"tile": draw(st.sampled_from([(16, 16), (32, 16), (64, 128)]))}
    return bits, options | {"rowsperstrip": draw(st.sampled_from([None, 1, 7, 40]))}


@settings(max_examples=120, deadline=None)
@given(kinds(), st.integers(1, 70), st.integers(1, 70), st.integers(0, 2**32 - 1))
def test_every_kind_of_tiff_gives_the_pixels_that_tifffile_gives(
    kind: tuple[int, dict[str, Any]], height: int, width: int, seed: int
) -> None:
    bits, options = kind
    image = noise((height, width), bits, seed)
    data = written(image, **options)
    np.testing.assert_array_equal(plane(data), image)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        np.testing.assert_array_equal(plane(data), file.pages[0].asarray())


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([10, 12, 14]), st.integers(1, 40), st.integers(1, 40), st.data())
def test_packed_samples_are_unpacked(bits: int, height: int, width: int, draw: st.DataObject) -> None:
    options = {
        "byteorder": draw.draw(st.sampled_from("<>")),
        "compression": draw.draw(st.sampled_from(COMPRESSIONS)),
        "rowsperstrip": draw.draw(st.sampled_from([None, 1, 7])),
    }
    image = noise((height, width), bits)
    np.testing.assert_array_equal(plane(packed(image, bits, **options)), image)


def test_bits_in_reverse_order_are_read() -> None:
    image = noise()
    reverse = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))
    flipped = np.frombuffer(image.tobytes().translate(reverse), np.uint16).reshape(image.shape)
    data = written(flipped, extratags=[(65000, "H", 1, 2, True)])
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages.first.tags[65000].offset
    fill_order = struct.pack("<H", 266)
    np.testing.assert_array_equal(plane(data[:at] + fill_order + data[at + 2 :]), image)


def test_each_page_of_a_file_is_had_by_its_number() -> None:
    pages = [noise(seed=seed) for seed in range(3)]
    data = written(pages)
    for number, image in enumerate(pages):
        np.testing.assert_array_equal(plane(data, number), image)


def test_a_thumbnail_is_no_second_page() -> None:
    image = noise()
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(image, photometric="minisblack", metadata=None)
        writer.write(image[::4, ::4].copy(), photometric="minisblack", metadata=None, subfiletype=1)
    np.testing.assert_array_equal(plane(buffer.getvalue()), image)


def leading(data: bytes, number: int, to: int) -> bytes:
    """The TIFF with what a page says of where the next one lies replaced."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[number].offset
    count = struct.unpack_from("<H", data, at)[0]
    end = at + 2 + 12 * count
    return data[:end] + struct.pack("<I", to) + data[end + 4 :]


def in_a_circle(pages: int = 2) -> bytes:
    data = written([noise((2, 3))] * pages)
    return leading(data, pages - 1, struct.unpack_from("<I", data, 4)[0])


def retyped(data: bytes, tag: int, kind: int) -> bytes:
    """The TIFF with the type of a tag in its first directory replaced."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages.first.tags[tag].offset + 2
    return data[:at] + struct.pack("<H", kind) + data[at + 2 :]


def renamed(data: bytes, tag: int, other: int) -> bytes:
    """The TIFF with the number of a tag in its first directory replaced."""
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages.first.tags[tag].offset
    return data[:at] + struct.pack("<H", other) + data[at + 2 :]


def many_values() -> bytes:
    """A file half of which one tag says to be strips' offsets."""
    data = written(np.zeros((2048, 4096), np.uint16), rowsperstrip=1024)
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages.first.tags[273].offset + 2
    return data[:at] + struct.pack("<HII", 3, 5_000_000, 8) + data[at + 10 :]


def short_tile() -> bytes:
    """A tile at the edge that holds no more than the four columns inside of the image."""
    data = written(noise((16, 20)), tile=(16, 16), compression="zlib")
    page = tiff.read_page(data)
    tile = imagecodecs.zlib_encode(bytes(16 * 4 * 2))
    at, size = int(page.offsets[1]), int(page.sizes[1])
    assert len(tile) <= size
    return data[:at] + tile.ljust(size, b"\0") + data[at + size :]


def short_strip(codec: str) -> bytes:
    """A strip that decompresses, but to half of what its pixels need."""
    image = noise((64, 64))
    return edited(edited(written(image[:32].copy(), compression=codec), 257, 64), 278, 64)


def bomb(codec: str) -> bytes:
    """A small image whose strip decompresses to 16 MB."""
    big = written(np.zeros((1024, 8192), np.uint16), compression=codec, rowsperstrip=1024)
    return edited(edited(edited(big, 256, 64), 257, 64), 278, 64)


def damaged_middle(codec: str) -> bytes:
    data = bytearray(written(noise((64, 64)), compression=codec))
    page = tiff.read_page(bytes(data))
    at = int(page.offsets[0] + page.sizes[0] // 2)
    data[at : at + 64] = b"\xff" * 64
    return bytes(data)


def cut_inside(data: bytes) -> bytes:
    """Cut where the pixels are, the header (which stands before them) whole."""
    return data[: int(tiff.read_page(data).offsets[0]) + 100]


GREY = written(noise())
REFUSED: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty": (lambda: b"", "is empty (0 bytes)"),
    "text": (lambda: b"<html>404</html>", "is not a TIFF"),
    "two bytes": (lambda: b"II", "is not a TIFF"),
    "header only": (lambda: GREY[:8], "is truncated"),
    "truncated": (lambda: GREY[:-1], "is truncated, has"),
    "cut in the pixels": (lambda: cut_inside(GREY), "is truncated, has"),
    "cut in a tile": (lambda: cut_inside(written(noise((64, 64)), tile=(16, 16))), "is truncated, has"),
    "circle": (in_a_circle, "run in a circle"),
    "long circle": (partial(in_a_circle, 120), "run in a circle"),
    "lost pages": (lambda: leading(written([noise()] * 2), 0, 2**31), "is truncated or its header"),
    "lost tag": (lambda: retyped(written(noise().astype(np.int16)), 339, 99), "its tag 339 is damaged"),
    "tag twice": (lambda: renamed(GREY, 282, 257), "its tag 257 is damaged"),
    "half a tile": (lambda: renamed(written(noise((9, 9)), tile=(16, 16)), 322, 65000), "its tag 322 is"),
    "many values": (many_values, "has a tag of 10000000 bytes"),
    "short tile": (short_tile, "tile 1 cannot be decoded (lacks some of its 16 x 16 px)"),
    "far directory": (lambda: GREY[:4] + b"\xff\xff\xff\x7f" + GREY[8:], "is truncated or its header"),
    "no directory": (lambda: GREY[:4] + bytes(4) + GREY[8:], "has no page"),
    "rgb": (lambda: written(noise((9, 9, 3), 8), photometric="rgb"), "3 samples a pixel (a colour image)"),
    "two samples": (lambda: written(noise((9, 9, 2)), planarconfig="contig"), "2 samples a pixel"),
    "int16": (lambda: written(noise().astype(np.int16)), "int16 pixels cannot be kept losslessly"),
    "uint32": (lambda: written(noise().astype(np.uint32)), "uint32 pixels cannot be kept losslessly"),
    "float32": (lambda: written(noise().astype(np.float32)), "float32 pixels cannot be kept losslessly"),
    "float NaN": (lambda: written(np.full((9, 9), np.nan, np.float32)), "float32 pixels cannot be kept"),
    "float16": (lambda: written(noise((9, 9), 8).astype(np.float16)), "float16 pixels cannot be kept"),
    "complex": (lambda: written(np.zeros((9, 9), np.complex64)), "complex64 pixels cannot be kept"),
    "bilevel": (lambda: written(np.zeros((9, 9), bool)), "1-bit samples are not read"),
    "inverted": (lambda: written(noise(), photometric="miniswhite"), "0 (MinIsWhite, so 0 may be the"),
    "palette": (
        lambda: written(noise(bits=8), photometric="palette", colormap=np.zeros((3, 256), np.uint16)),
        "photometric interpretation 3",
    ),
    "gigapixel": (lambda: edited(edited(GREY, 256, 60000), 257, 60000), "says 60000 x 60000 px"),
    "no width": (lambda: edited(GREY, 256, 0), "says 37 x 0 px"),
    "too wide": (lambda: edited(GREY, 256, 1000), "hold 3922 bytes of 74000"),
    "too many rows": (lambda: edited(GREY, 257, 1000), "lists 1 of its"),
    "huge tile": (
        lambda: edited(edited(written(noise(), tile=(16, 16)), 322, 65535), 323, 65535),
        "its strips or tiles have 65535 x 65535 px",
    ),
    "jpeg": (lambda: written(noise(bits=8), compression="jpeg"), "compression 7 (JPEG) is not read"),
    "strange codec": (lambda: edited(GREY, 259, 999), "compression 999 (unknown) is not read"),
    "three pages": (lambda: written([noise()] * 3), "has 3 pages; name one of them (#0 to #2)"),
    **{f"short {c}": (partial(short_strip, c), "strip 0 cannot be decoded") for c in COMPRESSIONS[1:]},
    **{f"damaged {c}": (partial(damaged_middle, c), "copy it again") for c in ("zlib", "lzma")},
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_read_rightly_is_refused_with_the_reason(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(tiff.TiffError) as caught:
        plane(make())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


GIVEN = {"circle": 3, "long circle": 300, "lost pages": 0, "lost tag": 0, "half a tile": 0, "short tile": 0}


@pytest.mark.parametrize(("name", "page"), GIVEN.items())
def test_what_is_checked_here_tifffile_alone_would_give(name: str, page: int) -> None:
    """Where it no longer does, the check can go."""
    with tifffile.TiffFile(io.BytesIO(REFUSED[name][0]())) as file:
        assert file.pages[page].asarray().dtype == np.uint16


def test_a_page_named_is_refused_where_the_pages_run_in_a_circle() -> None:
    with pytest.raises(tiff.TiffError, match="run in a circle"):
        plane(in_a_circle(), 3)


def test_odd_files_leave_the_terminal_clean(tmp_path: Path) -> None:
    (tmp_path / "files").write_bytes(pickle.dumps([make() for make, _ in REFUSED.values()]))
    code = """
import contextlib, pathlib, pickle, sys
import numpy as np
from hcs_ray.screen import tiff
for data in pickle.loads(pathlib.Path(sys.argv[1]).read_bytes()):
    with contextlib.suppress(tiff.TiffError):
        page = tiff.read_page(data)
        tiff.decode(data, page, np.empty((page.height, page.width), np.uint16))
"""
    command = [sys.executable, "-W", "always", "-c", code, str(tmp_path / "files")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout + done.stderr == ""


@pytest.mark.parametrize("codec", ["zlib", "zstd", "lzw", "packbits", "lzma"])
def test_a_strip_that_unpacks_to_more_than_its_pixels_never_gets_the_memory(codec: str) -> None:
    import tracemalloc

    data = bomb(codec)
    tracemalloc.start()
    with contextlib.suppress(tiff.TiffError):  # some codecs stop at the limit: the pixels are there
        assert not plane(data).any()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4e6


def test_no_bad_file_takes_memory_or_ends_the_process(tmp_path: Path) -> None:
    """All of them, in a process that may take 300 MB more than it has after its imports."""
    files = {name: make() for name, (make, _) in REFUSED.items()}
    files |= {f"bomb {codec}": bomb(codec) for codec in ("zlib", "zstd", "lzma")}
    files["black"] = written(np.zeros((4096, 4096), np.uint16), compression="zlib")
    (tmp_path / "files").write_bytes(pickle.dumps(files))
    code = """
import pickle, resource, sys, imagecodecs, tests.test_tiff as t
from hcs_ray.screen.tiff import TiffError
t.plane(t.written(t.noise(), compression="zlib"))
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300_000_000,) * 2)
read = []
for name, data in pickle.load(open(sys.argv[1], "rb")).items():
    try:
        t.plane(data)
        read.append(name)
    except TiffError:
        pass
print(read)
"""
    command = [sys.executable, "-c", code, str(tmp_path / "files")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(eval(done.stdout)) <= {"black", "bomb zlib", "bomb zstd", "bomb lzma"}
    assert "black" in done.stdout


SOME = tuple(
    written(noise((20, 30)), **options)
    for options in (
        {}, {"compression": "zlib", "predictor": True}, {"tile": (16, 16), "compression": "lzw"},
        {"byteorder": ">", "rowsperstrip": 4}, {"bigtiff": True, "compression": "packbits"},
    )
)  # fmt: skip


@given(st.sampled_from(SOME), st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_pixels_or_a_reason(data: bytes, draw: st.DataObject) -> None:
    damaged = bytearray(data)
    places = draw.draw(st.lists(st.tuples(st.integers(0, len(data) - 1), st.integers(0, 255)), max_size=6))
    for place, value in places:
        damaged[place] = value
    with contextlib.suppress(tiff.TiffError):
        assert plane(bytes(damaged)).dtype == np.uint16


@given(st.sampled_from(SOME), st.data())
@settings(max_examples=100, deadline=None)
def test_no_truncated_file_is_ever_read(data: bytes, draw: st.DataObject) -> None:
    page = tiff.read_page(data)
    end = int((page.offsets + page.sizes).max())  # a directory behind the pixels ends later still
    with pytest.raises(tiff.TiffError):
        plane(data[: draw.draw(st.integers(0, end - 1))])
