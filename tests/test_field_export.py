"""Fields in the hands of other programs: a table with pictures and neighbours, and OME-TIFFs."""

from __future__ import annotations

import io
import shutil
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.export import export
from hcs_ray.export.atlas import nearest
from hcs_ray.export.ome_tiff import write_fields
from hcs_ray.maps import read_map
from hcs_ray.shards.read import ShardReader
from hcs_ray.stage import StaleStageError
from hcs_ray.storage import open_storage
from hcs_ray.study import Study, open_study
from hcs_ray.tables import read_embeddings, read_index
from hcs_ray.verify import verify
from tests.command import hcs_ray, refused
from tests.large_study import make_large_study
from tests.report_study import CHANNELS, EVIL, FIELD_PX, make_study, quiet
from tests.stored_fields import flip

ATLAS = "exports/main/atlas"
OME = "{http://www.openmicroscopy.org/Schemas/OME/2016-06}"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A whole run; two of its fields were damaged before they could be embedded."""
    return make_study(tmp_path_factory.mktemp("study"), slice(3, 5))


@pytest.fixture(scope="module")
def exported(study: Study, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = shutil.copytree(study.storage.url, tmp_path_factory.mktemp("exported") / "study")
    export(open_study(str(folder)), ["atlas"], quiet)
    return Path(folder)


@pytest.fixture
def own(study: Study, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(study.storage.url, tmp_path / "study"))


@pytest.fixture(scope="module")
def shaded(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Fields whose light falls off to the corners."""
    return make_large_study(tmp_path_factory.mktemp("shaded"), 12, 4, (24, 30))


# --- For embedding-atlas and FiftyOne ---------------------------------------------------------------------


def test_the_table_is_as_embedding_atlas_takes_it(exported: Path) -> None:
    """Its data-formats.md and tool.md: ids are row numbers from 0; images are bytes with a path."""
    schema = pq.read_schema(exported / ATLAS / "fields.parquet")
    assert schema.field("neighbors").type == pa.struct(
        [("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float32()))]
    )
    assert schema.field("image").type == pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    assert schema.field("x").type == schema.field("y").type == pa.float32()
    assert not any(pa.types.is_null(field.type) for field in schema)
    assert {"key", "Metadata_MOA", "side", "predicted_moa", "outlier_reason", "QC_Mean_DAPI"} <= set(
        schema.names
    )
    assert not {"shard", "offset", "sha256"} & set(schema.names)


def test_every_embedded_field_is_there_with_its_place_and_its_nearest(exported: Path) -> None:
    study = open_study(str(exported))
    table = pd.read_parquet(exported / ATLAS / "fields.parquet")
    meta, embeddings = read_embeddings(study)
    assert table[c.KEY].tolist() == meta[c.KEY].tolist()
    assert len(table) == len(read_index(study)) - 2
    places = read_map(study).set_index(c.KEY).loc[table[c.KEY]]
    np.testing.assert_array_equal(table[["x", "y"]], places[["x", "y"]])
    unit = embeddings.astype(float) / np.linalg.norm(embeddings, axis=1, keepdims=True)
    away = 1 - unit @ unit.T
    np.fill_diagonal(away, np.inf)
    for row, found in enumerate(table["neighbors"]):
        assert found["ids"].tolist() == np.argsort(away[row])[:15].tolist()
        np.testing.assert_allclose(found["distances"], np.sort(away[row])[:15], atol=1e-5)


def test_the_pictures_lie_beside_the_table_and_in_it(exported: Path) -> None:
    table = pd.read_parquet(exported / ATLAS / "fields.parquet")
    for row in c.rows_of(table):
        file = exported / ATLAS / row["filepath"]
        assert file.read_bytes() == row["image"]["bytes"]
        assert file.name == row["image"]["path"] == f"{row[c.KEY]}.jpg"
    assert Image.open(io.BytesIO(table["image"][0]["bytes"])).size == FIELD_PX[::-1]
    files = {str(path.relative_to(exported / ATLAS)) for path in (exported / ATLAS).rglob("*.jpg")}
    assert files == set(table["filepath"])


def test_a_finished_export_is_left_alone_and_a_stale_one_refused(exported: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(exported, tmp_path / "study"))
    table = folder / ATLAS / "fields.parquet"
    before = table.stat().st_mtime_ns
    study = open_study(str(folder))
    export(study, ["atlas"], quiet)
    assert table.stat().st_mtime_ns == before
    (table.parent / "images").joinpath(pd.read_parquet(table)["filepath"][0][7:]).unlink()
    assert [flaw for flaw in verify(study, quiet)[1] if ATLAS in str(flaw)]
    export(study, ["atlas"], quiet)
    assert [flaw for flaw in verify(study, quiet)[1] if ATLAS in str(flaw)] == []
    smaller = open_study(str(folder), overrides=["export.thumbnail_px=20"])
    with pytest.raises(StaleStageError, match=r"thumbnail_px changed from 256 to 20"):
        export(smaller, ["atlas"], quiet)
    export(smaller, ["atlas"], quiet, force=True)
    image = pd.read_parquet(table)["image"][0]["bytes"]
    assert Image.open(io.BytesIO(image)).size == (20, 16)


def test_without_a_map_there_are_no_places(own: Path) -> None:
    study = open_study(str(own))
    (own / study.place("map").record).unlink()
    with pytest.raises(InputError, match="map main is not complete; run hcs-ray map first"):
        export(study, ["atlas"], quiet)
    assert not (own / ATLAS).exists()


def test_what_is_not_complete_is_said(own: Path) -> None:
    study = open_study(str(own))
    (own / study.place("outliers").record).unlink()
    figures = export(study, ["atlas"], quiet)
    assert "not complete; run hcs-ray outliers" in figures["atlas, WITHOUT outliers"]["text"]
    names = pq.read_schema(own / ATLAS / "fields.parquet").names
    assert "outlier_score" not in names
    assert "side" in names


def test_a_damaged_field_ends_the_export_and_names_its_place(own: Path) -> None:
    study = open_study(str(own))
    row = read_index(study).iloc[9]
    flip(own / "shards" / row[c.SHARD], int(row[c.OFFSET]) + int(row[c.SIZE]) // 2)
    with pytest.raises(HcsError, match=f"{row[c.SHARD]}: the member at byte {row[c.OFFSET]} is damaged"):
        export(study, ["atlas"], quiet)
    assert not (own / ATLAS / "_stage.json").exists()


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(
        np.float32,
        st.tuples(st.integers(2, 14), st.integers(1, 3)),
        elements=st.integers(-3, 3).map(float),  # many that are alike, and some that are all 0
    ),
    st.integers(1, 20),
)
def test_nearest_are_all_others_and_never_itself(features: Any, count: int) -> None:
    blocks = list(nearest(features, count))
    ids, distances = (np.concatenate(part) for part in zip(*blocks, strict=True))
    k = min(count, len(features) - 1)
    assert ids.shape == distances.shape == (len(features), k)
    lengths = np.linalg.norm(features.astype(float), axis=1, keepdims=True)
    unit = features / np.where(lengths > 0, lengths, 1)
    naive = ((unit[:, None] - unit[None]) ** 2).sum(axis=2) / 2
    np.fill_diagonal(naive, np.inf)
    for row in range(len(features)):
        assert row not in ids[row]
        assert len(set(ids[row].tolist())) == k
        np.testing.assert_allclose(naive[row, ids[row]], np.sort(naive[row])[:k], atol=1e-4)
        np.testing.assert_allclose(distances[row], naive[row, ids[row]], atol=1e-4)


# --- OME-TIFF -----------------------------------------------------------------------------------------------


def raw(study: Study, row: Any) -> Any:
    reader = ShardReader(study.storage, study.require("shard"))
    return reader.pixels(row[c.SHARD], int(row[c.OFFSET]), int(row[c.SIZE]), row[c.SHA256])


def test_the_stored_pixels_are_read_back_with_their_channels(study: Study, tmp_path: Path) -> None:
    index = read_index(study)
    rows = c.rows_of(index.iloc[[20, 0, 7]])
    names = write_fields(study, [row[c.KEY] for row in rows], open_storage(str(tmp_path)), quiet)
    assert names == [f"{row[c.KEY]}.ome.tiff" for row in rows]
    for row, name in zip(rows, names, strict=True):
        with tifffile.TiffFile(tmp_path / name) as file:
            assert file.is_ome
            assert (file.series[0].axes, file.series[0].dtype.name) == ("CYX", "uint16")
            np.testing.assert_array_equal(file.asarray(), raw(study, row))
            root = ElementTree.fromstring(file.ome_metadata or "")
        assert [found.get("Name") for found in root.iter(f"{OME}Channel")] == list(CHANNELS)
        pixels = next(root.iter(f"{OME}Pixels"))
        assert pixels.get("PhysicalSizeX") is None, "a study does not record it"
        assert next(root.iter(f"{OME}Image")).get("Name") == row[c.KEY]
        about = {found.get("K"): found.text for found in root.iter(f"{OME}M")}
        assert about["Treatment"] == row[c.TREATMENT]
        assert about["Well"] == row[c.WELL]


def test_a_compounds_name_stays_text(study: Study, tmp_path: Path) -> None:
    index = read_index(study)
    key = index[index[c.COMPOUND] == EVIL][c.KEY].iloc[0]
    (name,) = write_fields(study, [key], open_storage(str(tmp_path)), quiet)
    with tifffile.TiffFile(tmp_path / name) as file:
        root = ElementTree.fromstring(file.ome_metadata or "")
    assert {found.get("K"): found.text for found in root.iter(f"{OME}M")}["Compound"] == EVIL


def test_corrected_fields_are_floats_without_the_fall_of_light(shaded: Study, tmp_path: Path) -> None:
    row = c.rows_of(read_index(shaded).head(1))[0]
    target = open_storage(str(tmp_path))
    (name,) = write_fields(shaded, [row[c.KEY]], target, quiet, corrected=True, pixel_um=0.65)
    manifest = ShardReader(shaded.storage, shaded.require("shard")).manifest
    path = manifest["plates"][row[c.PLATE]]["illumination"][0]
    light = np.load(Path(shaded.storage.url) / "shards" / path)
    with tifffile.TiffFile(tmp_path / name) as file:
        found = file.asarray()
        pixels = next(ElementTree.fromstring(file.ome_metadata or "").iter(f"{OME}Pixels"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, raw(shaded, row) / light, rtol=1e-5)
    assert (pixels.get("PhysicalSizeX"), pixels.get("PhysicalSizeYUnit")) == ("0.65", "µm")


def test_nothing_is_written_over_in_silence(study: Study, tmp_path: Path) -> None:
    keys, target = read_index(study)[c.KEY].tolist()[:2], open_storage(str(tmp_path))
    (name,) = write_fields(study, keys[1:], target, quiet)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(InputError, match=f"{name} is there already; --force writes over it"):
        write_fields(study, keys, target, quiet)
    assert [path.name for path in tmp_path.iterdir()] == [name], "nothing of the others either"
    assert (tmp_path / name).read_bytes() == b"mine"
    assert len(write_fields(study, [*keys, keys[0]], target, quiet, force=True)) == 2
    assert tifffile.imread(tmp_path / name).shape == (3, *FIELD_PX)


def test_a_damaged_field_is_named(study: Study, tmp_path: Path) -> None:
    keys = read_index(study)[c.KEY].tolist()
    with pytest.raises(HcsError, match="is damaged"):
        write_fields(study, [keys[0], keys[3]], open_storage(str(tmp_path)), quiet)
    assert [path.name for path in tmp_path.iterdir()] == [f"{keys[0]}.ome.tiff"]


def test_the_commands(study: Study, tmp_path: Path) -> None:
    keys, root = read_index(study)[c.KEY].tolist(), study.storage.url
    listed = tmp_path / "selection.csv"
    listed.write_text(f'key,verdict\n"{keys[5]}",good\n{keys[6]},bad\n', "utf-8-sig")  # as Excel does
    done = hcs_ray("fields", root, keys[0], "--keys", listed, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert f"3 OME-TIFFs in {tmp_path / 'out'}" in done.stderr
    assert len(list((tmp_path / "out").iterdir())) == 3
    almost = keys[0][:-1] + "7"
    line = refused("fields", root, almost, "nonsense", "--out", tmp_path / "none")
    assert f"has no field {almost} (and 1 more); the nearest is {keys[0][:-1]}" in line
    assert not (tmp_path / "none").exists()
    assert "say where the files go" in refused("fields", root, keys[0])
    assert "no KEY" in refused("fields", root, "--out", tmp_path / "none")
    assert "no export to fiftyone; there are anndata, gallery, atlas" in refused(
        "export", root, "--to", "fiftyone"
    )
