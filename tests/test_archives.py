"""A zip that nobody unpacked gives what its folder would give, or one line that names the zip."""

from __future__ import annotations

import pickle
import shutil
import struct
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

from hcs_ray.contracts import InputError
from hcs_ray.screen import BadImageError
from hcs_ray.screen.archives import read_directory
from hcs_ray.screen.images import TiffSource
from hcs_ray.screen.sources import open_screen
from hcs_ray.shards.plate import write_plate
from hcs_ray.shards.write import claim_of, plate_jobs
from hcs_ray.storage import LocalStorage
from hcs_ray.study import open_study
from tests.drawn_screen import PLATES, STUDY_YAML, draw_tiny
from tests.test_images import CHANNELS, row_of
from tests.test_tiff import noise, written


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "one.tif").write_bytes(written(noise(seed=1)))
    (tmp_path / "d" / "two.tif").write_bytes(written(noise(seed=2), compression="zlib"))
    return tmp_path


def zipped(folder: Path, method: int = zipfile.ZIP_DEFLATED, name: str = "p.zip") -> Path:
    with zipfile.ZipFile(folder / name, "w", method) as archive:
        archive.mkdir("P")
        for file in ("one", "two"):
            archive.write(folder / "d" / f"{file}.tif", f"P/{file}.tif")
    return folder / name


ZIPPED = row_of("p.zip::P/one.tif", "p.zip::P/two.tif")


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_a_zip_gives_what_its_unpacked_folder_gives(folder: Path, method: int) -> None:
    zipped(folder, method)
    source = TiffSource(LocalStorage(folder), CHANNELS)
    inside, outside = source.read(ZIPPED), source.read(row_of("d/one.tif", "d/two.tif"))
    np.testing.assert_array_equal(inside.pixels, outside.pixels)
    assert inside.digests == outside.digests


def test_many_threads_and_a_pickled_source_read_one_zip(folder: Path) -> None:
    zipped(folder)
    source = TiffSource(LocalStorage(folder), CHANNELS)
    digests = source.read(ZIPPED).digests
    source = pickle.loads(pickle.dumps(source))
    with ThreadPoolExecutor(8) as pool:
        assert {raw.digests for raw in pool.map(source.read, [ZIPPED] * 64)} == {digests}


class Opening(LocalStorage):
    """A folder that notes what is opened."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.opened: list[str] = []

    def open(self, path: str) -> BinaryIO:
        self.opened.append(path)
        return super().open(path)


def test_the_directory_of_a_zip_is_read_once(folder: Path) -> None:
    zipped(folder)
    storage = Opening(folder)
    source = TiffSource(storage, CHANNELS)
    for _ in range(3):
        source.read(ZIPPED)
    assert storage.opened == ["p.zip"]


@pytest.mark.parametrize("name", ["../x.tif", "/etc/x.tif", "a/../../x.tif", "C:/x.tif", "a\\..\\x.tif"])
def test_a_zip_with_members_outside_of_it_is_refused(folder: Path, name: str) -> None:
    with zipfile.ZipFile(folder / "evil.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    with pytest.raises(InputError) as caught:
        read_directory(LocalStorage(folder), "evil.zip")
    assert f"evil.zip: its member {name!r} lies outside of the zip" in str(caught.value)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_zip_with_a_member_twice_is_refused(folder: Path) -> None:
    with zipfile.ZipFile(folder / "twice.zip", "w") as archive:
        archive.writestr("a.tif", b"x")
        archive.writestr("a.tif", b"y")
    with pytest.raises(InputError, match=r"twice\.zip: holds the member 'a\.tif' twice"):
        read_directory(LocalStorage(folder), "twice.zip")


def _flip_content(data: bytearray) -> None:
    data[data.index(b"P/one.tif") + 60] ^= 1


def _encrypt(data: bytearray) -> None:
    entry = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)  # the second entry; the first is the folder
    data[entry + 8] |= 1


def _swell(data: bytearray) -> None:
    entry = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    struct.pack_into("<I", data, entry + 24, 4_000_000_000)


def _misplace(data: bytearray) -> None:
    entry = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    struct.pack_into("<I", data, entry + 42, 77)


@pytest.mark.parametrize(
    ("method", "damage", "words"),
    [
        (zipfile.ZIP_STORED, _flip_content, "its CRC does not match"),
        (zipfile.ZIP_DEFLATED, _flip_content, "download the zip again"),
        (zipfile.ZIP_DEFLATED, _encrypt, "is encrypted"),
        (zipfile.ZIP_DEFLATED, _swell, "bytes do not hold 4000000000"),
        (zipfile.ZIP_DEFLATED, _misplace, "is not where the zip says"),
        (zipfile.ZIP_BZIP2, lambda data: None, "zip compression 12 is not read; unpack the zip"),
        (zipfile.ZIP_STORED, lambda data: data.__delitem__(slice(-30, None)), "not a readable zip"),
        (zipfile.ZIP_STORED, lambda data: data.clear(), "not a readable zip"),
    ],
)
def test_a_damaged_zip_is_one_line(
    folder: Path, method: int, damage: Callable[[bytearray], None], words: str
) -> None:
    path = zipped(folder, method)
    data = bytearray(path.read_bytes())
    damage(data)
    path.write_bytes(data)
    with pytest.raises(BadImageError) as caught:
        TiffSource(LocalStorage(folder), CHANNELS).read(ZIPPED)
    assert "p.zip" in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_member_that_is_not_there_is_named(folder: Path) -> None:
    zipped(folder)
    with pytest.raises(BadImageError, match=r"p\.zip: has no member P/three\.tif"):
        TiffSource(LocalStorage(folder), CHANNELS).read(row_of("p.zip::P/one.tif", "p.zip::P/three.tif"))


def test_shards_from_zips_are_byte_for_byte_those_from_folders(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    draw_tiny(folder / "raw")
    (folder / "study.yaml").write_text(STUDY_YAML)
    unpacked = shards_of(folder)
    for plate in PLATES[:2]:  # the third stays a folder
        with zipfile.ZipFile(folder / "raw" / f"BBBC021_v1_images_{plate}.zip", "w") as archive:
            for image in sorted((folder / "raw" / plate).iterdir()):
                archive.write(image, f"{plate}/{image.name}", zipfile.ZIP_DEFLATED)
        shutil.rmtree(folder / "raw" / plate)
    shutil.rmtree(folder / "shards")
    assert shards_of(folder) == unpacked
    assert len(unpacked) == 3 * 4, "a tar and three functions a plate"


def shards_of(folder: Path) -> dict[str, bytes]:
    """The tars and the illumination functions of all plates, written one after the other."""
    study = open_study(str(folder))
    screen = open_screen(study.config.screen, study.storage)
    for job in plate_jobs(study, screen, claim_of(study, screen)):
        write_plate(job)
    paths = study.storage.sizes("shards")
    return {path: study.storage.read(path) for path in paths if path.endswith((".tar", ".npy"))}
