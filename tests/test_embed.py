"""What an actor of `hcs-ray embed` computes, without Ray: the same as the network on the same fields."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import EmbedConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.embed import sound_chunks
from hcs_ray.embed.actor import Embedder
from hcs_ray.embed.chunks import Unreadable, inspect_chunk
from hcs_ray.embed.index import INDEX, IndexReader, check_index
from hcs_ray.embed.views import pool, see, tiles_of, turned
from hcs_ray.model import augment
from hcs_ray.model.augment import Crop
from hcs_ray.model.loader import FieldSource
from hcs_ray.model.network import MoaNetwork, Outputs
from hcs_ray.shards.read import DamagedMemberError, ShardReader
from hcs_ray.stage import parquet_bytes
from hcs_ray.storage import LocalStorage
from hcs_ray.study import Study, open_study
from hcs_ray.tables import chunk_file, read_index
from hcs_ray.train import load_network, model_bytes
from tests.embedding_study import CLASSES, DOWNSAMPLE, sharded_study, trained
from tests.stored_fields import flip

PROBABILITIES = [f"{c.PROBABILITY_PREFIX}{name}" for name in CLASSES]


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded_study(tmp_path_factory.mktemp("embed"), "embed: {batch: 5}\n")


@pytest.fixture
def own(sharded: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(sharded, tmp_path / "study"))


def parts_of(table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Embeddings and probabilities of a chunk."""
    probabilities = [table[name].to_numpy() for name in PROBABILITIES]
    return np.stack(table[c.EMBEDDING].to_pylist()), np.stack(probabilities, 1)


def images_of(study: Study, crop: Crop | None = None, fields: int | None = None) -> torch.Tensor:
    """The first of the fields, or all, as the network sees them."""
    source = FieldSource(ShardReader(study.storage, study.require("shard")), read_index(study), DOWNSAMPLE)
    view = crop or augment.whole(source.reader.shape)
    return torch.from_numpy(
        np.stack([source.image(row, view) for row in range(fields or len(source.fields))])
    )


def expected(network: MoaNetwork, images: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        outputs = network(images)
    return outputs.embeddings.numpy(), outputs.moa.softmax(1).numpy()


def assert_close(found: tuple[np.ndarray, np.ndarray], wanted: tuple[np.ndarray, np.ndarray]) -> None:
    for values, others in zip(found, wanted, strict=True):
        np.testing.assert_allclose(values, others, rtol=1e-4, atol=1e-5)


def test_a_chunk_holds_what_the_network_gives_for_its_fields(sharded: Path) -> None:
    study, network = trained(sharded)
    index = read_index(study)
    table = Embedder(study, "digest").table(3, len(index) - 1)
    assert table[c.KEY].to_pylist() == index[c.KEY].tolist()[3:]
    assert table[c.EMBEDDING].type.value_type == pa.float32()
    assert table.column_names == [c.KEY, *c.metadata_columns(index), c.EMBEDDING, *PROBABILITIES]
    embeddings, probabilities = expected(network, images_of(study))
    assert_close(parts_of(table), (embeddings[3:], probabilities[3:]))


def test_the_same_chunk_has_the_same_bytes_whatever_the_threads(sharded: Path) -> None:
    study, _ = trained(sharded)
    other = open_study(str(sharded), "main", ["embed.threads=1"])
    chunks = [parquet_bytes(Embedder(one, "digest").table(0, 12)) for one in (study, study, other)]
    assert chunks[0] == chunks[1] == chunks[2]


def test_an_anchored_network_is_given_the_controls_of_each_plate(sharded: Path) -> None:
    """Plates are measured alone, whatever chunk and batch their fields are in."""
    study, network = trained(sharded, name="anchored", normalization="control_anchored")
    fields, images = read_index(study), images_of(study)
    controls = (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy().copy()
    plates = torch.from_numpy(fields.groupby(c.PLATE).ngroup().to_numpy("int64").copy())
    assert controls.sum() <= 16 * fields[c.PLATE].nunique(), "all controls of a plate anchor it"
    with torch.inference_mode():
        wanted = network(images, plates, torch.from_numpy(controls)).embeddings
    embedder, last = Embedder(study, "digest"), len(fields) - 1
    parts = [parts_of(embedder.table(*chunk))[0] for chunk in ((0, 10), (11, last))]
    np.testing.assert_allclose(np.concatenate(parts), wanted, rtol=1e-3, atol=1e-4)


def test_tiles_of_an_anchored_network_are_anchored_by_tiles(sharded: Path) -> None:
    """With one tile a field, its middle, the plate's statistics come from the middles of its controls."""
    tiled = ("embed.tiles=center", "embed.tile_px=80")
    study, network = trained(sharded, *tiled, name="anchored", normalization="control_anchored")
    fields = read_index(study)
    images = images_of(study, augment.centre((3, 96, 112), 80))
    controls = torch.from_numpy((fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy().copy())
    plates = torch.from_numpy(fields.groupby(c.PLATE).ngroup().to_numpy("int64").copy())
    with torch.inference_mode():
        wanted = network(images, plates, controls).embeddings
    found = parts_of(Embedder(study, "digest").table(0, len(fields) - 1))[0]
    np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-4)


def test_bf16_is_close_and_stays_float32(sharded: Path) -> None:
    study, _ = trained(sharded)
    exact = parts_of(Embedder(study, "digest").table(0, 9))[0]
    reduced, _ = trained(sharded, "embed.precision=bf16")
    found = parts_of(Embedder(reduced, "digest").table(0, 9))[0]
    assert not np.array_equal(found, exact)
    np.testing.assert_allclose(found, exact, rtol=0.1, atol=0.05)
    Embedder(study, "digest")
    assert not torch.backends.cudnn.allow_tf32, "precision 32 is that on a GPU as well"


def test_float16_halves_the_values_and_keeps_three_digits(sharded: Path) -> None:
    study, _ = trained(sharded)
    exact = parts_of(Embedder(study, "digest").table(0, 9))
    half, _ = trained(sharded, "embed.dtype=float16")
    table = Embedder(half, "digest").table(0, 9)
    assert table[c.EMBEDDING].type.value_type == pa.float16()
    embeddings, probabilities = parts_of(table)
    np.testing.assert_allclose(embeddings, exact[0], rtol=1e-3, atol=1e-6)
    np.testing.assert_array_equal(probabilities, exact[1])


def test_a_plate_without_controls_is_named(own: Path) -> None:
    index = pd.read_parquet(own / INDEX)
    plate = str(index[c.PLATE].iloc[0])
    index.loc[index[c.PLATE] == plate, c.PERT_TYPE] = c.TREATED
    replace_index(own, pa.Table.from_pandas(index, preserve_index=False))
    study, _ = trained(own, name="anchored", normalization="control_anchored")
    with pytest.raises(InputError, match=f"plate {plate}: no negative control"):
        Embedder(study, "digest").table(0, 3)


def replace_index(study: Path, index: pa.Table) -> None:
    """As if ``hcs-ray shard`` had written another one."""
    data = parquet_bytes(index)
    (study / INDEX).write_bytes(data)
    record = json.loads((study / "shards/_stage.json").read_text())
    record["outputs"][INDEX] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (study / "shards/_stage.json").write_text(json.dumps(record))
    for folder in ("splits", "runs"):
        shutil.rmtree(study / folder, ignore_errors=True)


# --- tiles, turns, pooling ---------------------------------------------------------------------------


def test_the_centre_is_the_middle_crop(sharded: Path) -> None:
    study, network = trained(sharded, "embed.tiles=center", "embed.tile_px=80")
    found = parts_of(Embedder(study, "digest").table(0, 11))
    assert_close(found, expected(network, images_of(study, augment.centre((3, 96, 112), 80), 12)))


@pytest.mark.parametrize("how", ["mean", "max", "median"])
def test_a_grid_is_pooled_over_the_tiles_that_cover_the_field(sharded: Path, how: str) -> None:
    """64 px of 96 x 112: two by two tiles of 32 px after downsampling, which overlap."""
    study, network = trained(sharded, "embed.tiles=grid", "embed.tile_px=64", f"embed.pool={how}")
    images = images_of(study, fields=12)
    corners = [(top, left) for top in (0, 16) for left in (0, 24)]
    tiles = [expected(network, images[:, :, y : y + 32, x : x + 32].contiguous()) for y, x in corners]
    embeddings = np.stack([tile[0] for tile in tiles])
    wanted = {"mean": embeddings.mean(0), "max": embeddings.max(0), "median": np.median(embeddings, 0)}[how]
    found = parts_of(Embedder(study, "digest").table(0, len(images) - 1))
    assert_close(found, (wanted, np.mean([tile[1] for tile in tiles], 0)))


def test_a_tile_too_small_for_the_network_is_refused(sharded: Path) -> None:
    study, _ = trained(sharded, "embed.tiles=center", "embed.tile_px=16")
    with pytest.raises(InputError, match=r"embed.tile_px 16: tiny takes at least"):
        Embedder(study, "digest")


@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 200))
@settings(deadline=None, max_examples=60)
def test_tiles_cover_every_pixel_with_as_few_as_can_be(height: int, width: int, side: int) -> None:
    seen = np.zeros((height, width), int)
    tiles = tiles_of(height, width, side)
    for rows, columns in tiles:
        assert rows.stop - rows.start == min(side, height)
        assert columns.stop - columns.start == min(side, width)
        seen[rows, columns] += 1
    assert seen.min() >= 1
    assert len(tiles) == -(-height // side) * -(-width // side)
    if height % side == 0 and width % side == 0:
        assert seen.max() == 1


@given(st.integers(1, 6), st.integers(1, 4), st.integers(1, 5), st.integers(0, 99))
@settings(deadline=None, max_examples=30)
def test_pooling_is_numpys(tiles: int, fields: int, features: int, seed: int) -> None:
    values = np.random.default_rng(seed).normal(size=(tiles, fields, features)).astype(np.float32)
    for how, oracle in (("mean", np.mean), ("max", np.max), ("median", np.median)):
        found = pool(torch.from_numpy(values), how).numpy()  # type: ignore[arg-type]
        np.testing.assert_allclose(found, oracle(values, axis=0), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("augmentation", "views"), [("none", 1), ("flips", 4), ("dihedral", 8)])
def test_every_turn_is_seen_once_and_what_is_seen_does_not_depend_on_the_turn(
    augmentation: str, views: int
) -> None:
    """A field and the same field turned have one embedding, of a network that is no friend of symmetry."""
    torch.manual_seed(0)
    config = EmbedConfig.model_validate({"test_time_augmentation": augmentation})
    field, weights = torch.rand(2, 3, 5, 5), torch.randn(3 * 5 * 5, 4)

    def network(images: torch.Tensor) -> Outputs:
        embeddings = images.flatten(1) @ weights
        return Outputs(embeddings, embeddings[:, :2], None, None)

    all_views = [view.numpy().tobytes() for view in turned(field, config.test_time_augmentation)]
    assert len(set(all_views)) == views
    found = see(field, config, 1, network)
    wanted = torch.stack([network(view).embeddings for view in turned(field, config.test_time_augmentation)])
    torch.testing.assert_close(found.embeddings, wanted.mean(0))
    for view in turned(field, config.test_time_augmentation):
        again = see(view.contiguous(), config, 1, network)
        torch.testing.assert_close(again.embeddings, found.embeddings)
        torch.testing.assert_close(again.probabilities, found.probabilities)


# --- the index, chunk by chunk -----------------------------------------------------------------------


@pytest.mark.parametrize("group_rows", [1, 4, 1000])
def test_rows_and_controls_are_the_indexs_whatever_its_groups(own: Path, group_rows: int) -> None:
    index = pq.read_table(own / INDEX)
    (own / INDEX).write_bytes(parquet_bytes(index, group_rows))
    reader, whole = IndexReader(LocalStorage(own)), index.to_pandas()
    assert reader.fields == len(whole)
    names = reader.rows(0, 0).column_names
    for first, last in ((0, len(whole) - 1), (3, 3), (2, 11), (len(whole) - 2, len(whole) - 1)):
        found = reader.rows(first, last).to_pandas()
        pd.testing.assert_frame_equal(found, whole.iloc[first : last + 1][names].reset_index(drop=True))
    for plate, rows in whole[whole[c.PERT_TYPE] == c.NEGATIVE_CONTROL].groupby(c.PLATE):
        assert reader.controls(str(plate))[c.KEY].to_pylist() == rows[c.KEY].tolist()


def test_an_index_that_is_not_the_recorded_one_is_refused(own: Path) -> None:
    study = open_study(str(own))
    check_index(study)
    flip(own / INDEX, 100)
    with pytest.raises(HcsError, match=r"index.parquet is damaged"):
        check_index(study)
    flip(own / INDEX, (own / INDEX).stat().st_size - 2)
    with pytest.raises(HcsError, match=r"index.parquet is damaged: .*hcs-ray shard --force"):
        IndexReader(study.storage)


# --- chunks on disk ----------------------------------------------------------------------------------


def test_a_chunk_is_whole_only_with_its_claim_its_rows_and_all_its_bytes(sharded: Path) -> None:
    study, _ = trained(sharded)
    data = parquet_bytes(Embedder(study, "digest").table(2, 9))
    found = inspect_chunk(data, (2, 9), "digest")
    assert found is not None
    assert found.size == len(data)
    assert found.unreadable == ()
    assert inspect_chunk(data, (2, 9), "another") is None
    assert inspect_chunk(data, (2, 10), "digest") is None
    assert inspect_chunk(data, (3, 10), "digest") is None
    assert inspect_chunk(data[:-1], (2, 9), "digest") is None
    assert inspect_chunk(b"", (2, 9), "digest") is None
    sound = pq.read_table(pa.BufferReader(data))
    for place in range(0, len(data), 97):
        damaged = bytearray(data)
        damaged[place] ^= 1
        if inspect_chunk(bytes(damaged), (2, 9), "digest") is not None:  # a statistic, say, that nobody reads
            assert pq.read_table(pa.BufferReader(bytes(damaged))).equals(sound), place


def test_a_worker_that_was_left_over_writes_nothing(own: Path) -> None:
    """Another command has begun the stage anew with another claim, as --force does."""
    study, _ = trained(own)
    claim = study.claim("embed")
    with study.writing("embed", claim), pytest.raises(HcsError, match="begun anew by another command"):
        Embedder(study, "of an older claim").write(0, 3)
    assert not list((own / "embeddings/main").glob("*.parquet"))


# --- damaged members ---------------------------------------------------------------------------------


def damage(study: Path, row: int) -> Unreadable:
    """Flip a bit in the middle of a member; the field as it should be listed, but for the reason."""
    about = pd.read_parquet(study / INDEX).iloc[row]
    flip(study / "shards" / about[c.SHARD], int(about[c.OFFSET]) + int(about[c.SIZE]) // 2)
    return Unreadable(about[c.KEY], about[c.SHARD], int(about[c.OFFSET]), "")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hcs_ray.shards.read._PAUSES", (0.0,))


@pytest.mark.usefixtures("impatient")
def test_a_damaged_member_ends_it_with_field_shard_and_offset(own: Path) -> None:
    study, _ = trained(own)
    field = damage(own, 7)
    with pytest.raises(DamagedMemberError) as told:
        Embedder(study, "digest").table(0, 12)
    for word in (f"field {field.key}", field.shard, f"byte {field.offset} "):
        assert word in str(told.value)


@pytest.mark.usefixtures("impatient")
def test_damaged_members_are_left_out_and_listed_where_that_is_wanted(own: Path) -> None:
    study, network = trained(own, "embed.on_error=quarantine")
    whole = expected(network, images_of(study, fields=13))
    fields = [damage(own, row) for row in (0, 7)]
    table = Embedder(study, "digest").table(0, 12)
    kept = [row for row in range(13) if row not in (0, 7)]
    assert table[c.KEY].to_pylist() == read_index(study)[c.KEY].iloc[kept].tolist()
    assert_close(parts_of(table), (whole[0][kept], whole[1][kept]))
    found = inspect_chunk(parquet_bytes(table), (0, 12), "digest")
    assert found is not None
    assert [row[:3] for row in found.unreadable] == [field[:3] for field in fields]
    assert all("is damaged" in row.reason for row in found.unreadable)


@pytest.mark.usefixtures("impatient")
def test_a_chunk_of_damaged_members_alone_is_empty_and_whole(own: Path) -> None:
    study, _ = trained(own, "embed.on_error=quarantine")
    for row in range(3):
        damage(own, row)
    table = Embedder(study, "digest").table(0, 2)
    assert table.num_rows == 0
    found = inspect_chunk(parquet_bytes(table), (0, 2), "digest")
    assert found is not None
    assert len(found.unreadable) == 3


@pytest.mark.usefixtures("impatient")
def test_a_damaged_control_anchors_nothing(own: Path) -> None:
    """The others of its plate do, as where it had never been; for every chunk alike."""
    study, network = trained(
        own, "embed.on_error=quarantine", name="anchored", normalization="control_anchored"
    )
    fields, images = read_index(study), images_of(study)
    controls = (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy().copy()
    row = int(np.flatnonzero(controls)[1])
    damage(own, row)
    controls[row] = False
    plates = torch.from_numpy(fields.groupby(c.PLATE).ngroup().to_numpy("int64").copy())
    with torch.inference_mode():
        wanted = network(images, plates, torch.from_numpy(controls)).embeddings.numpy()
    found = parts_of(Embedder(study, "digest").table(0, len(fields) - 1))[0]
    np.testing.assert_allclose(found, np.delete(wanted, row, axis=0), rtol=1e-3, atol=1e-4)


@pytest.mark.usefixtures("impatient")
def test_chunks_that_a_damaged_control_did_not_anchor_are_told_from_whole_ones(own: Path) -> None:
    """They lack no field, but their plate's statistics are others once the shards are whole again."""
    study, _ = trained(own, "embed.on_error=quarantine", name="anchored", normalization="control_anchored")
    fields = read_index(study)
    controls = np.flatnonzero((fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy())
    row = int(controls[0])
    of_plate = np.flatnonzero((fields[c.PLATE] == fields[c.PLATE][row]).to_numpy())
    elsewhere = np.flatnonzero((fields[c.PLATE] != fields[c.PLATE][row]).to_numpy())
    beside = int(next(other for other in of_plate if other != row))
    chunks = [(number, number) for number in (row, beside, int(elsewhere[0]))]
    before = shutil.copytree(own / "shards", own / "whole")
    key = damage(own, row).key
    folder = study.place("embed").folder
    with study.writing("embed", study.claim("embed")) as writer:
        for chunk in chunks:
            data = parquet_bytes(Embedder(study, "digest").table(*chunk))
            writer.write(chunk_file(*chunk), data)
    found = [
        inspect_chunk((own / folder / chunk_file(*chunk)).read_bytes(), chunk, "digest") for chunk in chunks
    ]
    assert [file.not_anchored_by for file in found if file] == [(), (key,), ()]
    assert [len(file.unreadable) for file in found if file] == [1, 0, 0]
    assert [chunk for chunk, _ in sound_chunks(study, chunks, "digest")] == chunks
    strict, _ = trained(own, name="anchored", normalization="control_anchored")
    shutil.rmtree(own / "shards")
    before.rename(own / "shards")
    assert [chunk for chunk, _ in sound_chunks(strict, chunks, "digest")] == chunks[2:]


def scaled(study: Study, factor: float) -> None:
    """The network again, its last weights multiplied."""
    network, spec = load_network(study)
    state = network.state_dict()
    last = [name for name in state if name.startswith("backbone") and name.endswith("weight")][-1]
    state[last] *= factor
    with study.writing("train", study.claim("train"), force=True) as writer:
        writer.write("model.pt", model_bytes(spec, state))


def test_an_embedding_that_is_not_finite_is_not_written(own: Path) -> None:
    study, _ = trained(own, "embed.dtype=float16")
    key = read_index(study)[c.KEY][3]
    scaled(study, 1e7)
    with pytest.raises(InputError, match=f"embed.dtype float16: too small for the embedding of field {key}"):
        Embedder(study, "digest").table(3, 5)
    exact = open_study(str(own))
    assert Embedder(exact, "digest").table(3, 5).num_rows == 3
    scaled(study, float("nan"))
    with pytest.raises(InputError, match=f"field {key}: the network's embedding of it is not finite"):
        Embedder(exact, "digest").table(3, 5)


def test_a_store_that_does_not_answer_is_no_damage(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fields are left out only where their bytes are wrong, not where they cannot be had."""
    monkeypatch.setattr("hcs_ray.shards.read._PAUSES", ())
    study, _ = trained(own, "embed.on_error=quarantine")
    embedder = Embedder(study, "digest")

    def away(self: LocalStorage, path: str, offset: int, size: int) -> bytes:
        raise HcsError("the store is away")

    monkeypatch.setattr(LocalStorage, "read_range", away)
    with pytest.raises(HcsError, match="the store is away") as told:
        embedder.table(0, 3)
    assert not isinstance(told.value, DamagedMemberError)
