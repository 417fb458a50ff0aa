"""A study whose index is drawn, and what its trainings, sweeps and embeddings leave behind: real records, and
networks that are a few bytes of their own."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from hcs_ray import contracts as c
from hcs_ray.config import SweepConfig
from hcs_ray.model.weights import weights_digest
from hcs_ray.profiles.aggregate import Float64
from hcs_ray.screen.splits import split
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import SWEEP_FILE, Study, open_study

NETWORK = b'a network of ours has the key "dmso_class" in its configuration: '


def quiet(_: int, __: int) -> None:
    """A progress that nobody watches."""


def make_study(folder: Path, index: pd.DataFrame, config: Mapping[str, Any] | None = None) -> Study:
    """Shards (an index and a manifest) and the split of the run ``main``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "study.yaml").write_text(json.dumps(dict(config or {})))
    study = open_study(str(folder))
    manifest = {"format": c.MANIFEST_FORMAT, "channels": ["DAPI"], "field_px": [64, 80], "plates": {}}
    with study.writing("shard", study.claim("shard")) as writer:
        writer.write_table("index.parquet", index)
        writer.write("manifest.json", json.dumps(manifest).encode())
    split(study, quiet)
    return study


def train(study: Study) -> str:
    """A training that has ended; returns the path of its network."""
    weights = study.config.model.weights
    digest = weights_digest(weights)
    claim = study.claim("train", {f"weights {weights}": digest} if digest else None)
    with study.writing("train", claim) as writer:
        writer.write("model.pt", NETWORK + study.name.encode() + study.storage.url.encode())
    return f"{study.storage.url}/runs/{study.name}/model.pt"


def sweep(study: Study, told: Mapping[str, Any]) -> str:
    """A sweep of one trial that has ended; returns the path of that trial's network."""
    config = SweepConfig.model_validate(
        {"space": {"train.lr": {"kind": "uniform", "low": 0.1, "high": 0.2}}, **told}
    )
    base = study.claim("tune")
    weights = study.config.model.weights
    digest = weights_digest(weights)
    inputs = base.inputs | ({f"weights {weights}": digest} if digest else {})
    claim = base.model_copy(
        update={"inputs": inputs, "config": base.config | {"sweep": config.model_dump(mode="json")}}
    )
    summary = {"best": "t0000", "trials": {"t0000": {"score": 1.0, "model": "trials/t0000/model.pt"}}}
    with study.writing("tune", claim) as writer:
        writer.write("trials/t0000/model.pt", NETWORK + b"sweep " + study.name.encode())
        writer.write(SWEEP_FILE, json.dumps(summary).encode())
    return f"{study.storage.url}/sweeps/{study.name}/trials/t0000/model.pt"


def embed(
    study: Study,
    features: Float64,
    probabilities: Mapping[str, Float64],
    run: str | None = None,
    kept: pd.Series[bool] | None = None,
) -> Study:
    """Embeddings (N, F) of the index's rows, or of those ``kept``, and what the MoA head says of them."""
    source = replace(study, run=run)
    index = study.require("shard").read_table(study.storage, "shards/index.parquet")
    index = index if kept is None else index[kept]
    table = pa.Table.from_pandas(index[[c.KEY, *c.metadata_columns(index)]], preserve_index=False)
    flat = pa.array(features.astype(np.float32).ravel())
    table = table.append_column(c.EMBEDDING, pa.FixedSizeListArray.from_arrays(flat, features.shape[1]))
    for name, values in probabilities.items():
        table = table.append_column(f"{c.PROBABILITY_PREFIX}{name}", pa.array(values))
    with source.writing("embed", source.claim("embed")) as writer:
        writer.write(f"{0:08d}-{len(index) - 1:08d}.parquet", parquet_bytes(table))
    return source
