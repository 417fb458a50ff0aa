"""Every raw image is found where its location says, and a field is whole or one line says what it lacks."""

from __future__ import annotations

import http.server
import io
import threading
import tracemalloc
import zipfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from hcs_ray.screen import BadImageError, file_column
from hcs_ray.screen.images import Location, TiffSource, parse_location
from hcs_ray.storage import LocalStorage, open_storage
from tests.test_tiff import REFUSED, noise, written

CHANNELS = ("DNA", "RNA")


NAMES = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)


@given(NAMES, st.none() | NAMES, st.integers(0, 10**9 - 1))
def test_a_location_with_its_page_is_read_as_it_was_written(path: str, member: str | None, page: int) -> None:
    location = Location(path if member is None else f"{path}.zip", member, page)
    if ".zip::" in path.lower():
        return  # a folder called so has no location
    assert parse_location(str(location)) == location


def test_locations_as_people_write_them() -> None:
    assert parse_location("a/b.tif") == Location("a/b.tif")
    assert parse_location("b.ome.tif#12") == Location("b.ome.tif", None, 12)
    assert parse_location("w #1 s::x.tif") == Location("w #1 s::x.tif")
    assert parse_location("p/A.ZIP::d/b.tif#3") == Location("p/A.ZIP", "d/b.tif", 3)
    assert parse_location("s3://bucket/key.tif#0") == Location("s3://bucket/key.tif", None, 0)


def row_of(*locations: str | None) -> dict[str, Any]:
    channels = (*CHANNELS, "ER")[: len(locations)]
    return {"key": "P_A01_s1"} | {
        file_column(channel): text for channel, text in zip(channels, locations, strict=True)
    }


class Counting(LocalStorage):
    """A folder that counts what is read from it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.reads: Counter[str] = Counter()

    def read(self, path: str) -> bytes:
        self.reads[path] += 1
        return super().read(path)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "one.tif").write_bytes(written(noise(seed=1)))
    (tmp_path / "d" / "two.tif").write_bytes(written(noise(seed=2), compression="zlib"))
    (tmp_path / "small.tif").write_bytes(written(noise((37, 52))))
    (tmp_path / "byte.tif").write_bytes(written(noise(bits=8)))
    (tmp_path / "stack.tif").write_bytes(written([noise(seed=seed) for seed in range(3)]))
    return tmp_path


def test_a_field_has_its_channels_in_order_with_digests_of_their_files(folder: Path) -> None:
    raw = TiffSource(LocalStorage(folder), CHANNELS).read(row_of("d/two.tif", "byte.tif"))
    assert raw.pixels.dtype == np.uint16
    assert raw.pixels.flags.c_contiguous
    np.testing.assert_array_equal(raw.pixels[0], noise(seed=2))
    np.testing.assert_array_equal(raw.pixels[1], noise(bits=8))
    files = [(folder / name).read_bytes() for name in ("d/two.tif", "byte.tif")]
    assert raw.digests == tuple(xxhash.xxh3_128_hexdigest(data) for data in files)


def test_a_file_that_channels_share_is_read_once(folder: Path) -> None:
    storage = Counting(folder)
    raw = TiffSource(storage, (*CHANNELS, "ER")).read(row_of("stack.tif#2", "stack.tif#0", "byte.tif"))
    assert storage.reads == {"stack.tif": 1, "byte.tif": 1}
    np.testing.assert_array_equal(raw.pixels[0], noise(seed=2))
    np.testing.assert_array_equal(raw.pixels[1], noise(seed=0))
    assert raw.digests[0] == raw.digests[1]


@pytest.mark.parametrize("options", [{}, {"compression": "zlib", "tile": (64, 64)}])
def test_the_files_of_a_field_are_not_held_all_at_once(tmp_path: Path, options: dict[str, Any]) -> None:
    names = [f"{number}.tif" for number in range(3)]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(written(noise((1024, 512), seed=number), **options))
    source = TiffSource(LocalStorage(tmp_path), (*CHANNELS, "ER"))
    source.read(row_of(*names))
    tracemalloc.start()
    raw = source.read(row_of(*names))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < raw.pixels.nbytes + 1.5 * (tmp_path / names[0]).stat().st_size


@pytest.mark.parametrize(
    ("locations", "words"),
    [
        (("d/one.tif", "small.tif"), "small.tif: RNA has 37 x 52 px, DNA of the same field 37 x 53"),
        (("d/one.tif", "d/three.tif"), "d/three.tif: no such file"),
        (("stack.tif#0", "stack.tif#3"), "stack.tif#3: has no page 3: its pages are #0 to #2"),
        (("d/one.tif", "../x.tif"), "'../x.tif' is not a path below"),
        (("d/one.tif", ""), "P_A01_s1: has no image of RNA"),
        (("d/one.tif", None), "P_A01_s1: has no image of RNA"),
        (("d/one.tif", "ftp://x/y.tif"), "ftp://x/y.tif: images are read from folders, s3://, http"),
    ],
)
def test_a_field_that_lacks_a_channel_says_which(
    folder: Path, locations: tuple[str, str], words: str
) -> None:
    with pytest.raises(BadImageError) as caught:
        TiffSource(LocalStorage(folder), CHANNELS).read(row_of(*locations))
    assert words in str(caught.value)


def test_an_absolute_location_lies_anywhere(folder: Path, tmp_path: Path) -> None:
    source = TiffSource(LocalStorage(tmp_path / "elsewhere"), CHANNELS)
    raw = source.read(row_of(f"{folder}/d/one.tif", f"{folder}/stack.tif#1"))
    np.testing.assert_array_equal(raw.pixels, [noise(seed=1), noise(seed=1)])


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def web(folder: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_images_are_read_from_the_web(web: str, tmp_path: Path) -> None:
    source = TiffSource(LocalStorage(tmp_path / "elsewhere"), CHANNELS)
    raw = source.read(row_of(f"{web}/d/one.tif", f"{web}/stack.tif#2"))
    np.testing.assert_array_equal(raw.pixels, [noise(seed=1), noise(seed=2)])
    with pytest.raises(BadImageError, match=r"gone\.tif: the server answers 404"):
        source.read(row_of(f"{web}/d/one.tif", f"{web}/gone.tif"))


def test_images_are_read_from_a_bucket_beside_the_screen(s3: str, folder: Path) -> None:
    store = open_storage(f"{s3}/images")
    store.write("a/one.tif", (folder / "d" / "one.tif").read_bytes())
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(folder / "d" / "two.tif", "p/two.tif")
    store.write("z.zip", buffer.getvalue())
    raw = TiffSource(LocalStorage(folder), CHANNELS).read(
        row_of(f"{s3}/images/a/one.tif", f"{s3}/images/z.zip::p/two.tif")
    )
    np.testing.assert_array_equal(raw.pixels, [noise(seed=1), noise(seed=2)])


def test_an_ome_tiff_is_read_by_its_pages(tmp_path: Path) -> None:
    stack = noise((2, 37, 53))
    tifffile.imwrite(tmp_path / "f.ome.tif", stack, metadata={"axes": "CYX"}, photometric="minisblack")
    raw = TiffSource(LocalStorage(tmp_path), CHANNELS).read(row_of("f.ome.tif#0", "f.ome.tif#1"))
    np.testing.assert_array_equal(raw.pixels, stack)


@pytest.mark.parametrize("name", REFUSED)
def test_an_image_that_is_not_read_is_refused_by_file_and_reason(name: str, tmp_path: Path) -> None:
    make, reason = REFUSED[name]
    (tmp_path / "bad.tif").write_bytes(make())
    source = TiffSource(LocalStorage(tmp_path), CHANNELS)
    with pytest.raises(BadImageError) as caught:
        source.read(row_of("bad.tif", "bad.tif"))
    assert str(caught.value).startswith(f"{tmp_path}/bad.tif: ")
    assert reason in str(caught.value)
    assert "\n" not in str(caught.value)
