"""What an actor of `hcs-ray embed` computes, without Ray: the same as the network on the same fields."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from hcs_ray import contracts as c
from hcs_ray.config import ModelConfig
from hcs_ray.embed import _Embedder, chunk_file
from hcs_ray.model import augment
from hcs_ray.model.loader import FieldSource
from hcs_ray.model.network import MoaNetwork, ModelSpec
from hcs_ray.screen.sources import open_screen
from hcs_ray.screen.splits import split
from hcs_ray.shards.plate import write_plate
from hcs_ray.shards.read import ShardReader
from hcs_ray.shards.write import claim_of, plate_jobs, shard
from hcs_ray.study import Study, open_study
from hcs_ray.tables import read_index
from hcs_ray.train import model_bytes
from tests.drawn_screen import STUDY_YAML, draw_tiny

CLASSES = ("DMSO", "Microtubule stabilizers")


def idle(done: int, total: int) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with shards and a split; its plates are written here and not by tasks of Ray."""
    folder = tmp_path_factory.mktemp("embed")
    draw_tiny(folder / "raw")
    (folder / "study.yaml").write_text(STUDY_YAML + "split: {folds: 3}\nembed: {batch: 5}\n")
    study = open_study(str(folder))
    screen = open_screen(study.config.screen, study.storage)
    for job in plate_jobs(study, screen, claim_of(study, screen)):
        write_plate(job, lambda _: None)
    shard(study, idle)
    split(study, idle)
    return folder


def trained(folder: Path, normalization: str, *overrides: str) -> tuple[Study, MoaNetwork]:
    """A run whose network has seen a few steps of noise, so that nothing of it is as it began."""
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"backbone": "tiny", "normalization": normalization})
    study = open_study(str(folder), normalization, overrides)
    channels = ShardReader(study.storage, study.require("shard")).channels
    spec = ModelSpec(config.model_dump(mode="json"), channels, CLASSES, 2)
    network = MoaNetwork(spec)
    images, plates = torch.rand(4, 3, 32, 32), torch.zeros(4, dtype=torch.int64)
    network(images, plates, torch.ones(4, dtype=torch.bool))
    split(study, idle)
    claim = study.claim("train")
    if not study.is_complete("train", claim):
        with study.writing("train", claim) as writer:
            writer.write("model.pt", model_bytes(spec, network.state_dict()))
    return study, network.eval()


def chunk(study: Study, first: int, last: int) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Embeddings, probabilities and keys of a chunk, as its actor writes them."""
    told = _Embedder(study, "digest")({"first": [first], "last": [last]})
    assert told["error"] == [""], told
    folder = study.place("embed").folder
    table = pq.read_table(io.BytesIO(study.storage.read(f"{folder}/{chunk_file(first, last)}")))
    assert table[c.EMBEDDING].type.value_type == pa.float32()
    probabilities = [table[f"{c.PROBABILITY_PREFIX}{name}"].to_numpy() for name in CLASSES]
    embeddings = np.stack(table[c.EMBEDDING].to_pylist())
    return embeddings, np.stack(probabilities, 1), table[c.KEY].to_pylist()


def whole_fields(study: Study, downsample: int) -> torch.Tensor:
    source = FieldSource(ShardReader(study.storage, study.require("shard")), read_index(study), downsample)
    view = augment.whole(source.reader.shape)
    return torch.from_numpy(np.stack([source.image(row, view) for row in range(len(source.fields))]))


def test_a_chunk_holds_what_the_network_gives_for_its_fields(sharded: Path) -> None:
    study, network = trained(sharded, "batch")
    fields = read_index(study)
    with torch.inference_mode():
        expected = network(whole_fields(study, 2))
    found, probabilities, keys = chunk(study, 3, len(fields) - 1)
    assert keys == fields[c.KEY].tolist()[3:]
    np.testing.assert_allclose(found, expected.embeddings[3:], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(probabilities, expected.moa.softmax(1)[3:], rtol=1e-4, atol=1e-5)


def test_an_anchored_network_is_given_the_controls_of_each_plate(sharded: Path) -> None:
    """Plates are measured alone, whatever chunk and batch their fields are in."""
    study, network = trained(sharded, "control_anchored")
    fields, images = read_index(study), whole_fields(study, 2)
    controls = (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy().copy()
    plates = torch.from_numpy(fields.groupby(c.PLATE).ngroup().to_numpy("int64").copy())
    assert controls.sum() <= 16 * fields[c.PLATE].nunique(), "all controls of a plate anchor it"
    with torch.inference_mode():
        expected = network(images, plates, torch.from_numpy(controls)).embeddings
    last = len(fields) - 1
    parts = [chunk(study, 0, 10)[0], chunk(study, 11, last)[0]]
    np.testing.assert_allclose(np.concatenate(parts), expected, rtol=1e-3, atol=1e-4)


def test_bf16_is_close_and_stays_float32(sharded: Path) -> None:
    study, _ = trained(sharded, "batch")
    exact = chunk(study, 0, 9)[0]
    reduced, _ = trained(sharded, "batch", "embed.precision=bf16")
    found = chunk(reduced, 0, 9)[0]
    assert not np.array_equal(found, exact)
    np.testing.assert_allclose(found, exact, rtol=0.1, atol=0.05)


def test_a_plate_without_controls_is_named(sharded: Path) -> None:
    study, _ = trained(sharded, "control_anchored")
    embedder = _Embedder(study, "digest")
    fields = embedder._source.fields
    fields.loc[fields[c.PLATE] == fields[c.PLATE].iloc[0], "anchor"] = False
    told = embedder({"first": [0], "last": [3]})
    assert told["bad_input"] == [True]
    assert str(fields[c.PLATE].iloc[0]) in told["error"][0]
