"""Raw images become tars that are lossless, the same byte for byte, and readable by everybody's tools."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import webdataset

from hcs_ray import contracts as c
from hcs_ray.config import ShardsConfig
from hcs_ray.contracts import HcsError
from hcs_ray.screen import BadImageError, file_column
from hcs_ray.screen.images import TiffSource
from hcs_ray.shards import codec
from hcs_ray.shards.codec import Pixels
from hcs_ray.shards.plate import Part, PlateJob, is_whole, read_part, rewrite_tar, write_plate
from hcs_ray.shards.read import Plate, corrected
from hcs_ray.storage import LocalStorage

CHANNELS = ("DAPI", "Tubulin", "Actin")


def fields_of_a_plate(count: int = 5) -> tuple[pd.DataFrame, Pixels]:
    pixels = np.random.default_rng(1).integers(0, 4096, (count, 3, 40, 48), np.uint16) * 16
    rows = []
    for number in range(count):
        well = f"B{number + 2:02d}"
        row = dict.fromkeys(c.FIELD_COLUMNS, "x") | {
            c.KEY: c.field_key("Week1_1", well, 1), c.PLATE: "Week1_1", c.WELL: well, c.SITE: 1,
            c.REPLICATE: 1, c.CONCENTRATION: 0.3, c.MOA: None if number else "Epithelial", c.SMILES: None,
        }  # fmt: skip
        rows.append(row | {file_column(name): f"Week1_1/{well}_{name}.tif" for name in CHANNELS})
    return pd.DataFrame(rows), pixels


@pytest.fixture
def job(tmp_path: Path) -> PlateJob:
    fields, pixels = fields_of_a_plate()
    for row, planes in zip(fields.to_dict("records"), pixels, strict=True):
        for name, plane in zip(CHANNELS, planes, strict=True):
            file = tmp_path / "raw" / str(row[file_column(name)])
            file.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(file, plane, metadata=None)
    source = TiffSource(LocalStorage(tmp_path / "raw"), CHANNELS)
    study = LocalStorage(tmp_path / "study")
    return PlateJob(
        "Week1_1", fields, CHANNELS, source, study, ShardsConfig(), claim="x", nuclear_channel="DAPI"
    )


def quarantining(job: PlateJob) -> PlateJob:
    return dataclasses.replace(job, config=ShardsConfig(on_error="quarantine"))


def part_of(job: PlateJob) -> Part:
    part = read_part(job)
    assert part is not None
    return part


def index_of(job: PlateJob) -> pd.DataFrame:
    table: pd.DataFrame = part_of(job).rows.to_pandas()
    return table


def raw_file(tmp_path: Path, job: PlateJob, row: int, channel: str = "DAPI") -> Path:
    return tmp_path / "raw" / str(job.fields[file_column(channel)].iloc[row])


def test_every_tool_reads_the_same_fields(job: PlateJob, tmp_path: Path) -> None:
    write_plate(job)
    tar = tmp_path / "study" / "shards" / "Week1_1-000.tar"
    _, pixels = fields_of_a_plate()
    index = index_of(job)
    extension = codec.member(job.config.codec)
    listed = subprocess.run(
        ["tar", "tf", str(tar)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed == [f"{key}.{kind}" for key in index[c.KEY] for kind in ("json", extension)]
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(index[c.KEY])
    for sample, row, planes in zip(samples, index.to_dict("records"), pixels, strict=True):
        about = json.loads(sample["json"])
        assert about["channels"] == list(CHANNELS)
        assert about[c.WELL] == row[c.WELL]
        found = codec.decode(sample[extension], np.empty(about["shape"], np.uint16))
        np.testing.assert_array_equal(found, planes)
        ranged = job.study.read_range(f"shards/{row[c.SHARD]}", row[c.OFFSET], row[c.SIZE])
        assert ranged == sample[extension], "the index says where the member lies"


def test_the_bytes_follow_from_the_images_alone(job: PlateJob) -> None:
    write_plate(job)
    first = {path: job.study.read(path) for path in job.study.sizes()}
    for path in first:
        job.study.delete(path)
    write_plate(dataclasses.replace(job, config=ShardsConfig(readers=5)))
    assert {path: job.study.read(path) for path in job.study.sizes()} == first
    with tarfile.open(fileobj=io.BytesIO(first["shards/Week1_1-000.tar"])) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_the_streamed_tar_is_the_one_that_python_writes(job: PlateJob) -> None:
    write_plate(job)
    data = job.study.read("shards/Week1_1-000.tar")
    buffer = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(data)) as tar,
        tarfile.TarFile(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as again,
    ):
        for member in tar:
            again.addfile(member, tar.extractfile(member))
    assert buffer.getvalue() == data


def test_tars_are_closed_before_they_grow_too_large(job: PlateJob) -> None:
    small = dataclasses.replace(
        job, config=ShardsConfig.model_construct(**{**dict(ShardsConfig()), "max_shard_mb": 0.02})
    )
    write_plate(small)
    index = index_of(small)
    assert index[c.SHARD].nunique() > 1
    assert index[c.KEY].is_monotonic_increasing
    assert set(part_of(small).about["files"]) > set(index[c.SHARD])
    for row in index.to_dict("records"):
        data = small.study.read_range(f"shards/{row[c.SHARD]}", row[c.OFFSET], row[c.SIZE])
        codec.decode(data, np.empty((3, 40, 48), np.uint16))


def test_one_tar_is_written_again_the_same_or_not_at_all(job: PlateJob, tmp_path: Path) -> None:
    write_plate(job)
    expected = part_of(job).about["files"]["Week1_1-000.tar"]
    good = job.study.read("shards/Week1_1-000.tar")
    job.study.write("shards/Week1_1-000.tar", b"damaged")
    rewrite_tar(job, "Week1_1-000.tar", expected)
    assert job.study.read("shards/Week1_1-000.tar") == good
    tifffile.imwrite(raw_file(tmp_path, job, 3), np.zeros((40, 48), np.uint16), metadata=None)
    job.study.write("shards/Week1_1-000.tar", b"damaged")
    with pytest.raises(HcsError, match="it differs from the one written"):
        rewrite_tar(job, "Week1_1-000.tar", expected)
    assert job.study.read("shards/Week1_1-000.tar") == b"damaged"


def damage_truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-700])


def damage_text(file: Path) -> None:
    file.write_text("not an image")


def damage_kind(file: Path) -> None:
    tifffile.imwrite(file, np.zeros((40, 48), np.float32))


def damage_channel(file: Path) -> None:
    tifffile.imwrite(file, np.zeros((40, 50), np.uint16))


def damage_missing(file: Path) -> None:
    file.unlink()


DAMAGES = [damage_truncate, damage_text, damage_kind, damage_channel, damage_missing]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_image_is_named_and_no_part_is_written(
    job: PlateJob, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    file = raw_file(tmp_path, job, 3)
    damage(file)
    with pytest.raises(BadImageError) as caught:
        write_plate(job)
    assert file.name.partition("_")[0] in str(caught.value)
    assert job.study.sizes() == {}, "neither a part nor half a tar"


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_image_goes_to_the_quarantine_where_that_is_wanted(
    job: PlateJob, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    file = raw_file(tmp_path, job, 3)
    damage(file)
    write_plate(quarantining(job))
    (row,) = part_of(job).about["quarantine"]
    assert row[c.KEY] == job.fields[c.KEY].iloc[3]
    assert file.name.partition("_")[0] in row["reason"]
    assert list(index_of(job)[c.KEY]) == [key for key in job.fields[c.KEY] if key != row[c.KEY]]


def test_an_odd_first_field_does_not_outlaw_the_others(job: PlateJob, tmp_path: Path) -> None:
    for name in CHANNELS:
        tifffile.imwrite(raw_file(tmp_path, job, 0, name), np.zeros((64, 48), np.uint16), metadata=None)
    with pytest.raises(BadImageError, match=r"64 x 48 px|40 x 48 px"):
        write_plate(job)
    write_plate(quarantining(job))
    (row,) = part_of(job).about["quarantine"]
    assert row[c.KEY] == job.fields[c.KEY].iloc[0]
    assert "64 x 48 px; others of plate Week1_1 have 40 x 48 px" in row["reason"]


def test_a_plate_without_one_good_field_has_a_part_without_rows(job: PlateJob, tmp_path: Path) -> None:
    for row in range(len(job.fields)):
        damage_text(raw_file(tmp_path, job, row))
    write_plate(quarantining(job))
    assert index_of(job).empty
    assert len(part_of(job).about["quarantine"]) == len(job.fields)


def test_a_field_that_the_listing_lacks_is_not_read(job: PlateJob) -> None:
    key = job.fields[c.KEY].iloc[2]
    absent = dataclasses.replace(quarantining(job), absent={key: "x.tif is not there"})
    write_plate(absent)
    assert [row["reason"] for row in part_of(absent).about["quarantine"]] == ["x.tif is not there"]


def test_a_plate_is_whole_only_with_its_files_and_for_its_claim(job: PlateJob) -> None:
    assert not is_whole(job, job.study.sizes())
    write_plate(job)
    assert is_whole(job, job.study.sizes())
    assert not is_whole(dataclasses.replace(job, claim="another"), job.study.sizes())
    job.study.write("shards/Week1_1-000.tar", b"cut")
    assert not is_whole(job, job.study.sizes())


@pytest.mark.parametrize("by_site", [False, True])
def test_illumination_is_kept_a_file_a_channel(job: PlateJob, by_site: bool) -> None:
    write_plate(dataclasses.replace(job, config=ShardsConfig(illumination_by_site=by_site)))
    about = part_of(job).about
    for path in about["illumination"]:
        function = np.load(io.BytesIO(job.study.read(f"shards/{path}")), allow_pickle=False)
        assert function.shape == ((1, 40, 48) if by_site else (40, 48))
        assert function.dtype == np.float32
    assert about["sites"] == ([1] if by_site else None)


def test_correcting_a_crop_is_cropping_the_corrected_field() -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 65536, (3, 30, 40), np.uint16)
    plate = Plate(rng.random((3, 30, 40), np.float32), rng.random((3, 1, 1), np.float32))
    whole = corrected(pixels, plate, slice(0, 30), slice(0, 40))
    crop = corrected(pixels, plate, slice(3, 20), slice(5, 33))
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole[:, 3:20, 5:33], crop)
