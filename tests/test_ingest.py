"""`hcs-ray shard` over a screen: the same bytes for all workers, plates that come and go, quarantine."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pandas as pd
import pyarrow.fs
import pytest
import ray.data

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.screen.sources import open_screen
from hcs_ray.shards import codec
from hcs_ray.shards.plate import is_whole, write_plate
from hcs_ray.shards.read import ShardReader
from hcs_ray.shards.write import claim_of, of_its_own, plate_jobs, shard
from hcs_ray.storage import LocalStorage
from hcs_ray.study import Study, open_study
from hcs_ray.tables import read_index
from tests.drawn_screen import PLATES, STUDY_YAML, draw_tiny
from tests.jump_screen import write_simple

pytestmark = pytest.mark.usefixtures("cluster")


def quiet(done: int, total: int) -> None:
    assert 0 <= done <= total


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    """A tiny study, sharded once and undisturbed by two workers."""
    folder = tmp_path_factory.mktemp("ingest") / "study"
    draw_tiny(folder / "raw")
    (folder / "study.yaml").write_text(STUDY_YAML)
    shard(open_study(str(folder)), quiet)
    return folder


@pytest.fixture
def sharded(reference: Path, tmp_path: Path) -> Path:
    """A copy of the sharded study."""
    return Path(shutil.copytree(reference, tmp_path / "study"))


@pytest.fixture
def fresh(reference: Path, tmp_path: Path) -> Path:
    """Only the raw screen and the study's file."""
    return Path(
        shutil.copytree(reference, tmp_path / "study", ignore=shutil.ignore_patterns("shards", "configs"))
    )


def study_at(folder: Path, *overrides: str) -> Study:
    return open_study(str(folder), overrides=list(overrides))


def only(*plates: str) -> str:
    return f"screen.plates=[{', '.join(plates)}]"


def files_of(folder: Path) -> dict[str, bytes]:
    """Everything in ``shards/`` but the record, which names the configuration in use."""
    storage = LocalStorage(folder)
    return {path: storage.read(path) for path in storage.sizes("shards") if not path.endswith("_stage.json")}


def written_at(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "shards").glob("*.tar")}


def damage_an_image(folder: Path, plate: str) -> Path:
    image = sorted((folder / "raw" / plate).glob("*_w1*.tif"))[0]
    image.write_bytes(image.read_bytes()[:-900])
    return image


def test_one_worker_writes_what_two_wrote(reference: Path, fresh: Path) -> None:
    study = study_at(fresh)
    screen = open_screen(study.config.screen, study.storage)
    for job in plate_jobs(study, screen, claim_of(study, screen)):
        write_plate(job)
    parts = {
        path: data for path, data in files_of(reference).items() if path.count("/") > 1 or ".tar" in path
    }
    assert len(parts) == 3 * 5, "a part, a tar and three functions a plate"
    assert files_of(fresh) == parts


def test_the_index_follows_the_keys_and_carries_what_is_known_of_each_field(reference: Path) -> None:
    study = study_at(reference)
    index = read_index(study)
    assert index[c.KEY].is_monotonic_increasing
    assert index[c.KEY].is_unique
    assert set(c.FIELD_COLUMNS) <= set(index)
    assert {"QC_FocusScore_DAPI", "QC_NucleusCount", "QC_Flag_Saturated"} <= set(index)
    plates = pd.read_parquet(reference / "shards/plates.parquet")
    assert list(plates[c.PLATE]) == list(PLATES)
    assert plates["fields"].sum() == len(index)
    reader = ShardReader(study.storage, study.require("shard"))
    row = index.iloc[5]
    assert reader.pixels(row[c.SHARD], row[c.OFFSET], row[c.SIZE], row[c.SHA256]).shape == reader.shape


def test_ray_data_reads_the_tars(reference: Path) -> None:
    index = read_index(study_at(reference))
    tars = [str(path) for path in sorted((reference / "shards").glob("*.tar"))]
    found = ray.data.read_webdataset(tars, filesystem=pyarrow.fs.LocalFileSystem(), decoder=None).take_all()
    assert sorted(row["__key__"] for row in found) == list(index[c.KEY])
    extension = codec.member(study_at(reference).config.shards.codec)
    assert all(row[extension] for row in found)


def test_a_second_time_does_nothing(sharded: Path) -> None:
    before = written_at(sharded)
    figures = shard(study_at(sharded), quiet)
    assert figures == {"fields": 36, "plates": 3}
    assert written_at(sharded) == before


def test_plates_that_are_added_are_all_that_is_written(reference: Path, fresh: Path) -> None:
    shard(study_at(fresh, only(PLATES[1])), quiet)
    before = written_at(fresh)
    assert len(before) == 1
    assert shard(study_at(fresh), quiet) == {"fields": 36, "plates": 3}
    after = written_at(fresh)
    assert {name: after[name] for name in before} == before
    assert files_of(fresh) == files_of(reference)


def test_a_plate_that_is_taken_away_makes_the_shards_stale(reference: Path, sharded: Path) -> None:
    fewer = study_at(sharded, only(*PLATES[:2]))
    with pytest.raises(InputError, match=f"raw {PLATES[2]} is new or gone"):
        shard(fewer, quiet)
    before = written_at(sharded)
    shard(fewer, quiet, force=True)
    assert written_at(sharded) == {name: time for name, time in before.items() if PLATES[2] not in name}
    assert not [path for path in files_of(sharded) if PLATES[2] in path]


def test_a_changed_image_makes_only_its_plate_again(reference: Path, sharded: Path) -> None:
    image = sorted((sharded / "raw" / PLATES[0]).glob("*.tif"))[0]
    image.write_bytes(image.read_bytes() + bytes(8))
    with pytest.raises(InputError, match=f"raw {PLATES[0]} changed"):
        shard(study_at(sharded), quiet)
    before = written_at(sharded)
    shard(study_at(sharded), quiet, force=True)
    changed = {name for name, time in written_at(sharded).items() if before[name] != time}
    assert changed == {f"{PLATES[0]}-000.tar"}


def test_a_changed_setting_makes_all_again(sharded: Path) -> None:
    with pytest.raises(InputError, match=r"shards\.illumination_sigma changed"):
        shard(study_at(sharded, "shards.illumination_sigma=0.1"), quiet)
    before = written_at(sharded)
    shard(study_at(sharded, "shards.illumination_sigma=0.1"), quiet, force=True)
    assert all(before[name] != time for name, time in written_at(sharded).items())


def test_a_bad_image_ends_the_run_in_one_line(fresh: Path) -> None:
    image = damage_an_image(fresh, PLATES[1])
    with pytest.raises(InputError) as caught:
        shard(study_at(fresh), quiet)
    assert image.name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (fresh / "shards/_stage.json").exists()


def test_the_quarantine_is_counted_aloud_and_says_why(fresh: Path) -> None:
    cut, gone = damage_an_image(fresh, PLATES[0]), sorted((fresh / "raw" / PLATES[2]).glob("*.tif"))[-1]
    gone.unlink()
    figures = shard(study_at(fresh, "shards.on_error=quarantine"), quiet)
    assert figures["fields"] == 34
    assert figures["QUARANTINED"].startswith("2 fields")
    left_out = pd.read_parquet(fresh / "shards/quarantine.parquet")
    assert list(left_out[c.PLATE]) == [PLATES[0], PLATES[2]]
    for name, reason in zip((cut.name, gone.name), left_out["reason"], strict=True):
        assert name in reason
    assert not set(left_out[c.KEY]) & set(read_index(study_at(fresh, "shards.on_error=quarantine"))[c.KEY])


def test_a_run_that_failed_on_an_image_goes_on_with_the_quarantine(fresh: Path) -> None:
    damage_an_image(fresh, PLATES[2])
    with pytest.raises(InputError, match=r"shards\.on_error"):
        shard(study_at(fresh), quiet)
    before = written_at(fresh)
    figures = shard(study_at(fresh, "shards.on_error=quarantine"), quiet)
    assert figures["QUARANTINED"].startswith("1 fields")
    assert {name: written_at(fresh)[name] for name in before} == before, "whole plates stay"
    with pytest.raises(InputError, match="truncated"):
        shard(study_at(fresh), quiet)


def test_a_missing_image_is_named_before_any_work(fresh: Path) -> None:
    gone = sorted((fresh / "raw" / PLATES[2]).glob("*.tif"))[-1]
    gone.unlink()
    with pytest.raises(InputError, match=gone.name):
        shard(study_at(fresh), quiet)
    assert not (fresh / "shards").exists()


def test_a_screen_of_which_nothing_can_be_read_is_refused(fresh: Path) -> None:
    for image in (fresh / "raw" / PLATES[0]).glob("*.tif"):
        image.write_bytes(b"")
    with pytest.raises(HcsError, match="no field of the screen can be read"):
        shard(study_at(fresh, only(PLATES[0]), "shards.on_error=quarantine"), quiet)


def test_a_part_of_another_time_is_not_taken_over(reference: Path, fresh: Path) -> None:
    """A plate's part names what it was made from; one with another claim is made again."""
    shard(study_at(fresh, only(PLATES[0])), quiet)
    stolen = (fresh / "shards/parts" / f"{PLATES[0]}.parquet").read_bytes()
    shutil.rmtree(fresh / "shards")
    (fresh / "shards/parts").mkdir(parents=True)
    (fresh / "shards/parts" / f"{PLATES[1]}.parquet").write_bytes(stolen)
    shard(study_at(fresh), quiet)
    assert files_of(fresh) == files_of(reference)


def test_what_is_not_of_our_making_stays(sharded: Path) -> None:
    notes = sharded / "shards/notes.txt"
    notes.write_text("mine")
    shard(study_at(sharded, only(*PLATES[:2])), quiet, force=True)
    assert notes.read_text() == "mine"


def test_a_part_does_not_vouch_for_tars_that_were_written_over(sharded: Path) -> None:
    study = study_at(sharded)
    screen = open_screen(study.config.screen, study.storage)
    job = plate_jobs(study, screen, claim_of(study, screen))[0]
    image = damage_an_image(sharded, PLATES[0])
    with pytest.raises(InputError, match=image.name):
        write_plate(job)
    assert not is_whole(job, study.storage.sizes("shards"))


def test_a_table_that_other_plates_widen_changes_no_plate() -> None:
    rows = pd.DataFrame({c.KEY: ["a"], "Metadata_Text": ["x"]})
    wider = rows.assign(Metadata_More=pd.Series([None], dtype="str"))
    pd.testing.assert_frame_equal(of_its_own(rows), of_its_own(wider))


JUMP_YAML = "screen: {kind: load_data, load_data: ['*.csv']}\n"


@pytest.mark.parametrize("passage", ["7.5", "p8"])
def test_a_plate_that_widens_the_table_changes_no_other(tmp_path: Path, passage: str) -> None:
    grown, whole = tmp_path / "grown", tmp_path / "whole"
    for folder in (grown, whole):
        write_simple(folder / "raw", Metadata_Passage="7")
        (folder / "study.yaml").write_text(JUMP_YAML)
    shard(study_at(grown), quiet)
    for folder in (grown, whole):
        table = pd.read_csv(folder / "raw/load_data.csv", dtype=str)
        more = {"Metadata_Plate": "P2", "Metadata_Passage": passage, "Metadata_Extra": "new"}
        table.assign(**more).to_csv(folder / "raw/more.csv", index=False)
        shard(study_at(folder), quiet)
    assert files_of(grown) == files_of(whole)
    kind = pd.read_parquet(grown / "shards/index.parquet")["Metadata_Passage"].tolist()
    assert kind == ([7.0, 7.5] if passage == "7.5" else ["7", "p8"])


def test_the_manifest_says_how_to_read_the_shards(reference: Path) -> None:
    manifest = json.loads((reference / "shards/manifest.json").read_text())
    assert manifest["channels"] == ["DAPI", "Tubulin", "Actin"]
    assert manifest["field_px"] == [96, 112]
    assert set(manifest["plates"]) == set(PLATES)
    assert {len(plate["raw_xxh3_128"]) for plate in manifest["plates"].values()} == {32}
    assert all(path.endswith(".csv") and len(digest) == 64 for path, digest in manifest["tables"].items())
    index = pd.read_parquet(io.BytesIO((reference / "shards/index.parquet").read_bytes()))
    assert manifest["fields"] == len(index)
