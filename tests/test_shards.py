"""Raw images become tars that are lossless, the same byte for byte, and readable by everybody's tools."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hcs_ray import contracts as c
from hcs_ray.config import ShardsConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.screen import file_column
from hcs_ray.shards import codec, quality
from hcs_ray.shards.codec import Pixels
from hcs_ray.shards.illumination import IlluminationEstimate, block_means
from hcs_ray.shards.read import Plate, ShardReader, corrected
from hcs_ray.shards.write import PlateJob, write_plate
from hcs_ray.storage import LocalStorage

CHANNELS = ("DAPI", "Tubulin", "Actin")


@settings(deadline=None, max_examples=30)
@given(
    hnp.arrays(np.uint16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=40)),
    st.sampled_from(["blosc2-lz4", "blosc2-zstd"]),
)
def test_the_codec_is_lossless(pixels: Pixels, name: codec.Codec) -> None:
    data = codec.encode(pixels, name)
    assert codec.encode(pixels.copy(), name) == data
    np.testing.assert_array_equal(codec.decode(data, np.empty_like(pixels)), pixels)


def test_foreign_bytes_are_not_pixels() -> None:
    out = np.empty((3, 8, 8), np.uint16)
    with pytest.raises(HcsError):
        codec.decode(b"not a field", out)
    with pytest.raises(HcsError):
        codec.decode(codec.encode(np.zeros((3, 4, 4), np.uint16), "blosc2-lz4"), out)


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.uint16, (2, 13, 17)), st.integers(1, 20))
def test_block_means_are_those_of_a_loop(pixels: Pixels, block: int) -> None:
    found = block_means(pixels, block)
    for row in range(found.shape[1]):
        for column in range(found.shape[2]):
            part = pixels[:, row * block : (row + 1) * block, column * block : (column + 1) * block]
            np.testing.assert_allclose(found[:, row, column], part.mean(axis=(1, 2)))


def test_a_known_vignetting_is_found_and_taken_out() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:96j, -1:1:128j]
    vignetting = 1 - 0.4 * (x**2 + y**2) / 2
    estimate = IlluminationEstimate((1, 96, 128), 8, (0.1, 99.9))
    fields = [rng.gamma(4, 500, (1, 96, 128)) * vignetting for _ in range(60)]
    for field in fields:
        estimate.add(field.astype(np.uint16))
    function = estimate.functions(0.05)[0]
    np.testing.assert_allclose(function.mean(), 1, atol=1e-3)
    true = vignetting / vignetting.mean()
    before, after = np.abs(1 / true - 1), np.abs(function / true - 1)
    assert np.median(after) < 0.02 < 0.07 < np.median(before)
    assert after.max() < before.max() / 3, "at the corners the smoothing still flattens a little"


def test_one_saturated_field_does_not_set_the_scale_of_its_plate() -> None:
    estimate = IlluminationEstimate((1, 64, 64), 8, (0.1, 99.9))
    for _ in range(9):
        estimate.add(np.full((1, 64, 64), 1000, np.uint16))
    estimate.add(np.full((1, 64, 64), 65520, np.uint16))
    low, high = estimate.percentiles()
    assert (low[0], high[0]) == (1000, 1000)


def test_quality_measures_tell_blur_and_saturation() -> None:
    from scipy import ndimage

    sharp = np.random.default_rng(0).gamma(2, 800, (3, 64, 64)).astype(np.uint16)
    blurred = ndimage.gaussian_filter(sharp, (0, 2, 2))
    bright = np.full_like(sharp, quality.SATURATED)
    measures = [quality.measure(pixels, CHANNELS) for pixels in (sharp, blurred, bright)]
    assert measures[1]["QC_FocusScore_DAPI"] < measures[0]["QC_FocusScore_DAPI"] / 10
    assert [row["QC_Flag_Saturated"] for row in measures] == [False, False, True]
    assert measures[2]["QC_Saturated_Actin"] == 1


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
    raw, study = LocalStorage(tmp_path / "raw"), LocalStorage(tmp_path / "study")
    return PlateJob("Week1_1", fields, CHANNELS, raw, study, ShardsConfig())


def index_of(job: PlateJob) -> pd.DataFrame:
    return pd.read_parquet(io.BytesIO(job.study.read("shards/parts/Week1_1.parquet")))


def test_every_tool_reads_the_same_fields(job: PlateJob, tmp_path: Path) -> None:
    write_plate(job)
    tar = tmp_path / "study" / "shards" / "Week1_1-000.tar"
    _, pixels = fields_of_a_plate()
    index = index_of(job)
    listed = subprocess.run(
        ["tar", "tf", str(tar)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert listed == [f"{key}.{kind}" for key in index[c.KEY] for kind in ("json", "blosc2")]
    samples = list(webdataset.WebDataset(str(tar), shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == list(index[c.KEY])
    for sample, row, planes in zip(samples, index.to_dict("records"), pixels, strict=True):
        about = json.loads(sample["json"])
        assert about["channels"] == list(CHANNELS)
        assert about[c.WELL] == row[c.WELL]
        found = codec.decode(sample["blosc2"], np.empty(about["shape"], np.uint16))
        np.testing.assert_array_equal(found, planes)
        ranged = job.study.read_range(f"shards/{row[c.SHARD]}", row[c.OFFSET], row[c.SIZE])
        assert ranged == sample["blosc2"], "the index says where the member lies"


def test_the_bytes_follow_from_the_images_alone(job: PlateJob) -> None:
    write_plate(job)
    first = {path: job.study.read(path) for path in job.study.sizes()}
    for path in first:
        job.study.delete(path)
    write_plate(job)
    assert {path: job.study.read(path) for path in job.study.sizes()} == first
    with tarfile.open(fileobj=io.BytesIO(first["shards/Week1_1-000.tar"])) as tar:
        assert {(member.mtime, member.uid, member.uname) for member in tar} == {(0, 0, "")}


def test_tars_are_closed_before_they_grow_too_large(job: PlateJob) -> None:
    import dataclasses

    large, _ = fields_of_a_plate(5)
    assert len(large) == 5
    small = dataclasses.replace(
        job, config=ShardsConfig.model_construct(**{**dict(ShardsConfig()), "max_shard_mb": 0.02})
    )
    write_plate(small)
    index = index_of(small)
    assert index[c.SHARD].nunique() > 1
    assert index[c.KEY].is_monotonic_increasing
    for row in index.to_dict("records"):
        data = small.study.read_range(f"shards/{row[c.SHARD]}", row[c.OFFSET], row[c.SIZE])
        codec.decode(data, np.empty((3, 40, 48), np.uint16))


def damage_truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-700])


def damage_text(file: Path) -> None:
    file.write_text("not an image")


def damage_kind(file: Path) -> None:
    tifffile.imwrite(file, np.zeros((40, 48), np.uint8))


def damage_shape(file: Path) -> None:
    tifffile.imwrite(file, np.zeros((40, 50), np.uint16))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_truncate, "truncated"),
        (damage_text, "not a readable TIFF"),
        (damage_kind, "uint8"),
        (damage_shape, "differ in size"),
    ],
)
def test_a_bad_image_is_named_and_no_part_is_written(job: PlateJob, damage: object, words: str) -> None:
    file = Path(job.raw.url) / str(job.fields[file_column("DAPI")].iloc[3])
    assert callable(damage)
    damage(file)
    with pytest.raises(InputError) as caught:
        write_plate(job)
    assert words in str(caught.value)
    assert file.name in str(caught.value)
    assert "shards/parts/Week1_1.parquet" not in job.study.sizes()


def test_correcting_a_crop_is_cropping_the_corrected_field() -> None:
    rng = np.random.default_rng(2)
    pixels = rng.integers(0, 65536, (3, 30, 40), np.uint16)
    plate = Plate(rng.random((3, 30, 40), np.float32), rng.random((3, 1, 1), np.float32))
    whole = corrected(pixels, plate, slice(0, 30), slice(0, 40))
    crop = corrected(pixels, plate, slice(3, 20), slice(5, 33))
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole[:, 3:20, 5:33], crop)
    assert ShardReader.plate is not None
