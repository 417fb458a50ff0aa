"""A small study, complete up to its outliers, for the tests of what reads one.

Its images are noise and its network's output is drawn from a generator; split, profiles and outliers are made
by the real stages.
"""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from hcs_ray import contracts as c
from hcs_ray.config import ShardsConfig
from hcs_ray.maps import MapAbout, map_bytes
from hcs_ray.outliers import find_outliers
from hcs_ray.profiles.build import profile
from hcs_ray.screen.splits import split
from hcs_ray.shards import codec
from hcs_ray.shards.statistics import PlateStatistics
from hcs_ray.shards.tar import Sample, TarWriter
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import Study, open_study
from hcs_ray.tables import UNREADABLE_FILE, chunk_file, read_index
from tests.stored_fields import flip

EVIL = "<script>document.title='broken in'</script>"
EVIL_MOA = "B & <img src=x onerror=\"document.title='broken in'\">"
CHANNELS = ("DAPI", "Tubulin", "Actin")
FIELD_PX = (32, 40)
MOA_OF = {EVIL: "A", "a2": "A", "a3": "A", "b1": EVIL_MOA, "b2": EVIL_MOA, "b3": EVIL_MOA, "unknown": None}
WEEK_OF = {EVIL: 1, "a2": 2, "a3": 1, "b1": 1, "b2": 2, "b3": 2, "unknown": 1}


def quiet(_: int, __: int) -> None:
    """A progress that nobody watches."""


def make_study(root: Path, unreadable: slice = slice(0)) -> Study:
    """Write the study into an empty folder; ``unreadable`` rows of the index are damaged, and left out."""
    report = {"title": "Screen <1> & more", "thumbnails": 8}
    (root / "study.yaml").write_text(json.dumps({"report": report, "profile": {"resamples": 100}}))
    study = open_study(str(root))
    rng = np.random.default_rng(0)
    index = _write_shards(study, rng)
    split(study, quiet)
    write_network(study, index, rng, index.iloc[unreadable])
    profile(study, quiet)
    find_outliers(study, quiet)
    return study


def add_run(root: Path, name: str, *overrides: str, seed: int = 1) -> Study:
    """Another run of a study of `make_study`, whose network says other things."""
    study = open_study(str(root), name, overrides)
    split(study, quiet)
    write_network(study, read_index(study), np.random.default_rng(seed), pd.DataFrame())
    profile(study, quiet)
    find_outliers(study, quiet)
    return study


def _wells() -> pd.DataFrame:
    rows = []
    for week in (1, 2):
        treated = [name for name, found in WEEK_OF.items() if found == week]
        for plate in (1, 2):
            for number, compound in enumerate(["DMSO"] * 3 + treated):
                control = compound == "DMSO"
                rows.append(
                    {
                        c.SOURCE: "test", c.BATCH: f"Week{week}", c.PLATE: f"Week{week}_{week}000{plate}",
                        c.WELL: f"B{number + 2:02d}", c.REPLICATE: plate, c.COMPOUND: compound,
                        c.CONCENTRATION: 0.0 if control else 0.3, c.SMILES: None,
                        c.TREATMENT: "DMSO@0" if control else f"{compound}@0.3",
                        c.MOA: None if control else MOA_OF[compound],
                        c.PERT_TYPE: c.NEGATIVE_CONTROL if control else c.TREATED,
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def _write_shards(study: Study, rng: np.random.Generator) -> pd.DataFrame:
    plates_seen: dict[str, dict[str, Any]] = {}
    tables = []
    with study.writing("shard", study.claim("shard", {"raw/image.csv": "0" * 64})) as writer:
        for plate, wells in _wells().groupby(c.PLATE, sort=True):
            rows = []
            statistics = PlateStatistics(CHANNELS, (3, *FIELD_PX), ShardsConfig(), "DAPI", None)
            with TarWriter(study.storage, "shards", f"{plate}.tar") as tar:
                for _, well in wells.iterrows():
                    for site in (1, 2):
                        pixels = rng.integers(400, 4000, (3, *FIELD_PX), dtype=np.uint16)
                        key = c.field_key(str(plate), well[c.WELL], site)
                        image = codec.encode(pixels, "blosc2")
                        place = tar.add(Sample(key, b"{}", image, codec.member("blosc2")))
                        statistics.add(pixels, str(well[c.WELL]), site)
                        rows.append({c.KEY: key, **well, c.SITE: site, **place})
            writer.list(f"{plate}.tar", tar.output)
            tables.append(pd.concat([pd.DataFrame(rows), statistics.field_table()], axis=1))
            functions = []
            for channel in CHANNELS:
                buffer = io.BytesIO()
                np.save(buffer, np.ones(FIELD_PX, np.float32))
                functions.append(f"illumination/{plate}_Illum{channel}.npy")
                writer.write(functions[-1], buffer.getvalue())
            scale = {"low": [400.0] * 3, "high": [4000.0] * 3, "sites": None}
            plates_seen[str(plate)] = {"illumination": functions, **scale}
        index = pd.concat(tables).sort_values(c.KEY, ignore_index=True)
        writer.write("index.parquet", parquet_bytes(pa.Table.from_pandas(index, preserve_index=False)))
        manifest = {
            "format": c.MANIFEST_FORMAT,
            "member": codec.member("blosc2"),
            "channels": CHANNELS,
            "field_px": FIELD_PX,
            "plates": plates_seen,
        }
        writer.write("manifest.json", json.dumps(manifest).encode())
    return index


def write_network(
    study: Study, index: pd.DataFrame, rng: np.random.Generator, unreadable: pd.DataFrame
) -> None:
    """What training, embedding and mapping leave behind."""
    epochs = np.arange(4.0)
    columns = ("train_loss", "validation_loss", "validation_balanced_accuracy")
    history = pd.DataFrame({"epoch": epochs, **{name: rng.random(4) for name in columns}})
    history["validation_treatment_balanced_accuracy"] = 0.5
    metrics = {
        "score": "validation_balanced_accuracy",
        "selected": history.iloc[2].to_dict(),
        "train_compounds": ["a2"], "validation_compounds": ["a3"],
        "train_fields": 20, "validation_fields": 12,
    }  # fmt: skip
    with study.writing("train", study.claim("train")) as writer:
        writer.write("metrics.csv", history.to_csv(index=False).encode())
        writer.write("metrics.json", json.dumps(metrics).encode())
    last = len(index) - 1
    for _, row in unreadable.iterrows():
        flip(
            Path(study.storage.url) / "shards" / str(row[c.SHARD]), int(row[c.OFFSET]) + int(row[c.SIZE]) // 2
        )
    index = index.drop(unreadable.index).reset_index(drop=True)
    embeddings = rng.normal(size=(len(index), 6)).astype(np.float32)
    embeddings[:, 0] += index[c.MOA].eq("A").to_numpy() * 4
    chances = rng.dirichlet((1, 1, 1), len(index))
    table = index[[c.KEY, *c.FIELD_COLUMNS]].assign(**{c.EMBEDDING: list(embeddings)})
    table = table.assign(
        **{f"Probability_{name}": chances[:, i] for i, name in enumerate(["A", EVIL_MOA, "DMSO"])}
    )
    layout = pa.Table.from_pandas(table, preserve_index=False)
    column = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
    layout = layout.set_column(layout.schema.get_field_index(c.EMBEDDING), c.EMBEDDING, column)
    with study.writing("embed", study.claim("embed")) as writer:
        writer.write(chunk_file(0, last), parquet_bytes(layout))
        if len(unreadable):
            listed = unreadable[[c.KEY, c.SHARD, c.OFFSET]].assign(reason="is damaged")
            writer.write_table(UNREADABLE_FILE, listed)
    about = MapAbout.of(study.config.map, len(index), len(index), 15)
    with study.writing("map", study.claim("map")) as writer:
        places = dict(zip("xy", embeddings[:, :2].T, strict=True))
        layout = pa.Table.from_pandas(index[[c.KEY]].assign(**places), preserve_index=False)
        writer.write(f"{study.name}.parquet", map_bytes(layout, about))
