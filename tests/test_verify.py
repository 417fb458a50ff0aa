"""`hcs-ray verify` names what is damaged, missing or surplus, and `--repair` brings back the same bytes."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from hcs_ray import contracts as c
from hcs_ray.config import ShardsConfig
from hcs_ray.shards.plate import PlateJob
from hcs_ray.shards.write import shard
from hcs_ray.storage import LocalStorage
from hcs_ray.study import open_study
from hcs_ray.tables import read_index
from hcs_ray.verify import verify
from tests.command import hcs_ray, refused
from tests.drawn_screen import PLATES, STUDY_YAML, draw_tiny

TAR = f"shards/{PLATES[1]}-000.tar"


def quiet(done: int, total: int) -> None:
    assert done <= total


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "study"
    draw_tiny(folder / "raw")
    (folder / "study.yaml").write_text(STUDY_YAML)
    shard(open_study(str(folder)), quiet)
    return folder


@pytest.fixture
def sharded(reference: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(reference, tmp_path / "study"))


def key_of(folder: Path, number: int = 3) -> tuple[str, int, int]:
    """Key, offset and size of a field in `TAR`."""
    index = read_index(open_study(str(folder)))
    row = index[index[c.SHARD] == Path(TAR).name].iloc[number]
    return str(row[c.KEY]), int(row[c.OFFSET]), int(row[c.SIZE])


def patch(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(data)


def flip_an_image(folder: Path) -> str:
    flip_an_image_bytes(folder)
    return f"{TAR}: member {key_of(folder)[0]}.{extension(folder)} is damaged"


def flip_a_sample(folder: Path) -> str:
    key, _, _ = key_of(folder)
    at = (folder / TAR).read_bytes().index(b'{"Metadata', 2000)
    del key
    with tarfile.open(folder / TAR) as tar:
        name = next(member.name for member in tar if member.offset_data == at)
    patch(folder / TAR, at + 2, b"X")
    return f"{TAR}: member {name} is damaged"


def flip_padding(folder: Path) -> str:
    patch(folder / TAR, (folder / TAR).stat().st_size - 5, b"x")
    return f"{TAR}: bytes outside its members are damaged"


def cut_the_end(folder: Path) -> str:
    data = (folder / TAR).read_bytes()
    (folder / TAR).write_bytes(data[: len(data) // 2])
    return f"{TAR}: cannot be read on after"


def flip_a_header(folder: Path) -> str:
    _, offset, _ = key_of(folder)
    patch(folder / TAR, offset - 512 + 10, b"\xff\xff")
    return f"{TAR}: the header at byte {offset - 512} is damaged"


def lose_manifest_and_tar(folder: Path) -> str:
    flip_an_image_bytes(folder)
    (folder / "shards/manifest.json").unlink()
    return f"{TAR}: damaged"


def flip_an_image_bytes(folder: Path) -> None:
    _, offset, size = key_of(folder)
    patch(folder / TAR, offset + size // 2, b"\xff\x00\xff\x00")


def drop_a_member(folder: Path) -> str:
    key, _, _ = key_of(folder)
    rewrite(folder, lambda name: name != f"{key}.json")
    return f"{TAR}: member {key}.json is missing"


def add_a_member(folder: Path) -> str:
    rewrite(folder, lambda name: True, extra="stranger.txt")
    return f"{TAR}: member stranger.txt is surplus"


def lose_the_tar(folder: Path) -> str:
    (folder / TAR).unlink()
    return f"{TAR}: missing"


def flip_a_part(folder: Path) -> str:
    patch(folder / f"shards/parts/{PLATES[0]}.parquet", 200, b"\xff\x00\xff")
    return f"shards/parts/{PLATES[0]}.parquet: damaged"


def flip_a_function(folder: Path) -> str:
    patch(folder / f"shards/illumination/{PLATES[2]}_IllumActin.npy", 400, b"\xff\x00\xff")
    return f"shards/illumination/{PLATES[2]}_IllumActin.npy: damaged"


def lose_the_index(folder: Path) -> str:
    (folder / "shards/index.parquet").unlink()
    return "shards/index.parquet: missing"


DAMAGES = [
    flip_an_image, flip_a_sample, flip_padding, cut_the_end, drop_a_member, add_a_member, lose_the_tar,
    flip_a_part, flip_a_function, lose_the_index, flip_a_header, lose_manifest_and_tar,
]  # fmt: skip


def extension(folder: Path) -> str:
    return str(json.loads((folder / "shards/manifest.json").read_text())["member"])


def rewrite(folder: Path, keep: Callable[[str], bool], extra: str = "") -> None:
    """The tar with some members left out or one more."""
    old = io.BytesIO((folder / TAR).read_bytes())
    with tarfile.open(fileobj=old) as tar, tarfile.open(folder / TAR, "w", format=tarfile.GNU_FORMAT) as new:
        for member in tar:
            if keep(member.name):
                new.addfile(member, tar.extractfile(member))
        if extra:
            new.addfile(tarfile.TarInfo(extra))


def shards_of(folder: Path) -> dict[str, bytes]:
    storage = LocalStorage(folder)
    return {path: storage.read(path) for path in storage.sizes("shards")}


def test_a_sound_study_has_no_flaw(reference: Path) -> None:
    files, flaws = verify(open_study(str(reference)), quiet)
    assert files == 18
    assert flaws == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_repaired_to_the_same_bytes(
    reference: Path, sharded: Path, cluster: str, damage: Callable[[Path], str]
) -> None:
    from hcs_ray.shards.repair import repair_shards

    words = damage(sharded)
    study = open_study(str(sharded))
    _, flaws = verify(study, quiet)
    assert any(str(flaw).startswith(words) for flaw in flaws), [str(flaw) for flaw in flaws]
    repair_shards(study, {flaw.path for flaw in flaws}, quiet)
    assert shards_of(sharded) == shards_of(reference)
    assert verify(study, quiet) == (18, [])


def test_all_at_once(reference: Path, sharded: Path, cluster: str) -> None:
    words = [damage(sharded) for damage in (flip_an_image, flip_a_part, flip_a_function, lose_the_index)]
    done = hcs_ray("verify", sharded, RAY_ADDRESS=cluster)
    assert done.returncode == 1
    assert all(
        any(line.startswith(start.split(": ")[0]) for line in done.stdout.splitlines()) for start in words
    )
    assert "hcs-ray verify STUDY --repair" in done.stderr
    mended = hcs_ray("verify", sharded, "--repair", RAY_ADDRESS=cluster)
    assert mended.returncode == 0, mended.stderr
    assert shards_of(sharded) == shards_of(reference)
    assert hcs_ray("verify", sharded).returncode == 0


def test_a_file_that_nobody_lists_is_surplus_and_left_alone(sharded: Path) -> None:
    stranger = sharded / "shards/notes.txt"
    stranger.write_text("mine")
    done = hcs_ray("verify", sharded, "--repair")
    assert done.returncode == 1
    assert "shards/notes.txt: surplus" in done.stdout
    assert stranger.read_text() == "mine"


def test_nothing_is_repaired_from_raw_images_that_have_changed(sharded: Path, cluster: str) -> None:
    lose_the_tar(sharded)
    image = sorted((sharded / "raw" / PLATES[1]).glob("*.tif"))[0]
    image.write_bytes(image.read_bytes() + bytes(8))
    line = refused("verify", sharded, "--repair", RAY_ADDRESS=cluster)
    assert f"raw {PLATES[1]} changed" in line
    assert "hcs-ray shard --force" in line
    assert not (sharded / TAR).exists()


def test_a_repair_that_would_differ_leaves_what_is_sound(
    reference: Path, sharded: Path, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after an upgrade of a library: the plate's tars would get other bytes."""
    from hcs_ray.contracts import HcsError
    from hcs_ray.shards import repair
    from hcs_ray.shards.plate import write_plate

    flip_a_part(sharded)
    tar = f"shards/{PLATES[0]}-000.tar"

    def another_version(job: PlateJob, report: Callable[[int], None]) -> None:
        write_plate(dataclasses.replace(job, config=ShardsConfig(codec="jpegxl", max_shard_mb=1)), report)

    monkeypatch.setattr(repair, "write_plate", another_version)
    with pytest.raises(HcsError, match="it differs from the one written"):
        repair.repair_shards(open_study(str(sharded)), {f"shards/parts/{PLATES[0]}.parquet"}, quiet)
    assert (sharded / tar).read_bytes() == (reference / tar).read_bytes()


def test_a_repair_that_fails_leaves_the_part(sharded: Path, cluster: str) -> None:
    from hcs_ray.contracts import HcsError
    from hcs_ray.screen.sources import open_screen
    from hcs_ray.shards.plate import write_plate
    from hcs_ray.shards.write import claim_of, plate_jobs

    study = open_study(str(sharded))
    screen = open_screen(study.config.screen, study.storage)
    job = plate_jobs(study, screen, claim_of(study, screen))[0]
    part = (sharded / job.part_path).read_bytes()
    with pytest.raises(HcsError, match="it differs from the one written"):
        write_plate(dataclasses.replace(job, expected={}))
    assert (sharded / job.part_path).read_bytes() == part


def test_a_study_of_which_nothing_is_complete_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(STUDY_YAML)
    assert "no stage of main is complete" in refused("verify", tmp_path)
