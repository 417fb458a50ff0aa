"""A small BBBC021 as it is published, three tables and a zip a plate, and downloads of it.

The fixtures ``files``, ``site`` and ``fetch`` are those of a test file that gives them these names.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import tifffile

from hcs_ray.screen.download import Outcome, Request, download
from hcs_ray.screen.download.server import Patience
from tests.http_server import Site, serving

PLATES = ("Week1_22123", "Week1_22141", "Week10_40111")
IMAGE, MOA, COMPOUND = (f"BBBC021_v1_{name}.csv" for name in ("image", "moa", "compound"))
QUICK = Patience(tries=4, base_s=0.01, longest_s=0.05, connect_s=5.0, read_s=0.5)


def zip_of(plate: str) -> str:
    return f"BBBC021_v1_images_{plate}.zip"


FIRST = zip_of(PLATES[0])
ONE = [IMAGE, MOA, COMPOUND, FIRST]  # what a download of the first plate brings


def plate_zip(plate: str, seed: int, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A plate of two fields of noise, as the real zips are laid out: about 100 kB."""
    pixels = np.random.default_rng(seed).integers(0, 4096, (6, 96, 128), dtype=np.uint16) << 4
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method, compresslevel=1) as archive:
        archive.writestr(f"{plate}/", b"")
        for number, (name, image) in enumerate(zip(file_names(), pixels, strict=True)):
            tiff = io.BytesIO()
            tifffile.imwrite(tiff, image + number)
            archive.writestr(f"{plate}/{name}", tiff.getvalue())
    return buffer.getvalue()


def damaged(content: bytes) -> bytes:
    """One bit of the first member's pixels is another."""
    at = len(content) // 8
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def with_member(name: str, link: bool = False) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        member = zipfile.ZipInfo("placeholder")
        member.filename = name
        member.external_attr = (0o120777 if link else 0o100644) << 16
        archive.writestr(member, b"x" * 100)
    return buffer.getvalue()


def file_names() -> list[str]:
    return [f"{well}_s1_w{wave}.tif" for well in ("B02", "B03") for wave in (1, 2, 4)]


def image_table(plates: tuple[str, ...]) -> bytes:
    header = "TableNumber,Image_FileName_DAPI,Image_Metadata_Plate_DAPI,Image_Metadata_Well_DAPI\n"
    rows = (f'1,"{name}","{plate}","{name[:3]}"\n' for plate in plates for name in file_names()[::3])
    return (header + "".join(rows)).encode()


@pytest.fixture(scope="session")
def files() -> dict[str, bytes]:
    tables = {
        IMAGE: image_table(PLATES),
        MOA: b'"compound",concentration,"moa"\n"taxol",0.3,"Microtubule stabilizers"\n',
        COMPOUND: b'"compound","smiles"\n"DMSO",""\n"taxol","C"\n',
    }
    return tables | {zip_of(plate): plate_zip(plate, seed) for seed, plate in enumerate(PLATES)}


@pytest.fixture
def site(files: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serving(files) as site:
        yield site


class Fetch:
    """Downloads into one folder, with what was said and counted."""

    def __init__(self, folder: Path, site: Site) -> None:
        self.folder = folder
        self.site = site
        self.said: list[str] = []
        self.counted: list[tuple[int, int]] = []

    def __call__(self, *plates: str, check: bool = False, patience: Patience = QUICK) -> Outcome:
        self.said, self.counted = [], []
        request = Request(str(self.folder), plates, self.site.url, 2, check, patience)
        return download(request, lambda stage, unit: nullcontext(self._count), self.said.append)

    def _count(self, done: int, total: int) -> None:
        self.counted.append((done, total))

    def holds(self, names: list[str]) -> bool:
        """Whether the folder has the server's bytes under these names, and nothing half-done."""
        assert not list(self.folder.glob("*.part*")), "nothing is left half-done"
        return all((self.folder / name).read_bytes() == self.site.files[name] for name in names)

    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def fetch(tmp_path: Path, site: Site) -> Fetch:
    return Fetch(tmp_path / "raw", site)
