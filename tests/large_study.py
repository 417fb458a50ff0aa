"""A large drawn study, complete from its shards to its map and outliers, for what must stay quick on it.

Everything in it is drawn, nothing is computed by a stage: 100,000 fields take about half a minute. Its images
are real members of real shards, of small fields that share a few pictures of cells.
"""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hcs_ray import contracts as c
from hcs_ray.maps import MapAbout, X, Y, map_bytes
from hcs_ray.outliers.find import ARTEFACT, EVIDENCE, LEVELS, NOVEL, RANK, REASON, SCORE
from hcs_ray.screen.wells import well_name
from hcs_ray.shards import codec
from hcs_ray.shards.codec import Pixels
from hcs_ray.shards.quality import FLAG, FLAGS
from hcs_ray.shards.tar import Sample, TarWriter
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import Study, open_study
from hcs_ray.tables import chunk_file

CHANNELS = ("DAPI", "Tubulin", "Actin")
SITES = 4
WELLS = 384
MOAS = tuple(f"Mechanism {number + 1:02d}" for number in range(12))
DOSES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
_PICTURES = 24
_MEASURES = ("FocusScore", "Saturated", "Mean", "SD", "P01", "P50", "P99", "Background", "WellSpread")
_CHUNK = 8192
_PLATES_A_WEEK = 8
_OUTLYING = 0.02  # of the fields that have a reason

Floats = npt.NDArray[np.float32]


def make_large_study(
    root: Path,
    fields: int = 100_000,
    features: int = 512,
    field_px: tuple[int, int] = (64, 80),
    seed: int = 0,
) -> Study:
    """Write so many fields into an empty folder: plates of 384 wells of 4 sites, the last one not full."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "study.yaml").write_text(json.dumps({"report": {"title": f"{fields} drawn fields"}}))
    study, rng = open_study(str(root)), np.random.default_rng(seed)
    index = _fields(fields)
    index = _write_shards(study, index, [_cells(rng, field_px) for _ in range(_PICTURES)], rng)
    with study.writing("split", study.claim("split")) as writer:
        writer.write_table(f"{study.name}.parquet", _sides(index))
    with study.writing("train", study.claim("train")):
        pass
    _write_network(study, index, features, rng)
    with study.writing("outliers", study.claim("outliers")) as writer:
        for level in LEVELS:
            writer.write_table(f"{level.name}.parquet", _outliers(index, level.identity, rng))
    return study


def _fields(count: int) -> pd.DataFrame:
    number = np.arange(count)
    plate, place = np.divmod(number, WELLS * SITES)
    well, site = np.divmod(place, SITES)
    row, column = np.divmod(well, 24)
    control = column < 2
    treated = (plate // 3) * 40 + (row * 22 + column - 2) // len(DOSES)  # three replicate plates
    dose = np.where(control, 0.0, np.array(DOSES)[(row * 22 + column - 2) % len(DOSES)])
    compound = np.where(control, "DMSO", np.char.add("compound ", treated.astype(str)))
    moa = pd.Series(np.array(MOAS)[treated % len(MOAS)]).where(~control & (treated % 4 != 3), None)
    batch = [f"Week{n + 1}" for n in plate // _PLATES_A_WEEK]
    names = [f"{week}_{n:03d}" for week, n in zip(batch, plate, strict=True)]
    wells = [well_name(int(r), int(k)) for r, k in zip(row, column, strict=True)]
    keys = [c.field_key(p, w, int(s) + 1) for p, w, s in zip(names, wells, site, strict=True)]
    table = pd.DataFrame(
        {
            c.KEY: keys, c.SOURCE: "drawn", c.BATCH: batch, c.PLATE: names, c.WELL: wells, c.SITE: site + 1,
            c.REPLICATE: plate % 3 + 1, c.COMPOUND: compound, c.CONCENTRATION: dose,
            c.TREATMENT: [f"{name}@{d:g}" for name, d in zip(compound, dose, strict=True)], c.MOA: moa,
            c.PERT_TYPE: np.where(control, c.NEGATIVE_CONTROL, c.TREATED), c.SMILES: None,
        }
    )  # fmt: skip
    return table.sort_values(c.KEY, ignore_index=True)


def _cells(rng: np.random.Generator, field_px: tuple[int, int]) -> Pixels:
    """A dozen round cells in the dark, (C, H, W)."""
    rows, columns = np.mgrid[: field_px[0], : field_px[1]]
    planes = np.full((len(CHANNELS), *field_px), 400.0)
    for _ in range(12):
        y, x, size = rng.uniform(0, field_px[0]), rng.uniform(0, field_px[1]), rng.uniform(0.03, 0.07)
        away = np.hypot(rows - y, columns - x) / (size * field_px[1])
        for channel, reach in enumerate((1.0, 2.2, 1.8)):
            planes[channel] += rng.uniform(1500, 4000) * np.exp(-((away / reach) ** 2))
    planes += rng.normal(0, 20, planes.shape)
    return np.asarray(np.clip(planes, 0, 65535).astype(np.uint16) & np.uint16(0xFFF0))


def _write_shards(
    study: Study, index: pd.DataFrame, pictures: list[Pixels], rng: np.random.Generator
) -> pd.DataFrame:
    images = [codec.encode(picture, "blosc2") for picture in pictures]
    about, shape = [], pictures[0].shape[1:]
    plates: dict[str, dict[str, object]] = {}
    with study.writing("shard", study.claim("shard", {"drawn": "0" * 64})) as writer:
        for plate, rows in index.groupby(c.PLATE, sort=True):
            with TarWriter(study.storage, "shards", f"{plate}-000.tar") as tar:
                for key, picture in zip(
                    rows[c.KEY], rng.integers(0, len(images), len(rows)).tolist(), strict=True
                ):
                    about.append(tar.add(Sample(key, b"{}", images[picture], codec.member("blosc2"))))
            writer.list(f"{plate}-000.tar", tar.output)
            function = f"illumination/{plate}_Illum.npy"
            writer.write(function, _npy(_vignette(shape)))
            scale = {"low": [400.0] * len(CHANNELS), "high": [6000.0] * len(CHANNELS), "sites": None}
            plates[str(plate)] = {"illumination": [function] * len(CHANNELS), **scale}
        table = pd.concat([index, pd.DataFrame(about), _quality(len(index), rng)], axis=1)
        writer.write("index.parquet", parquet_bytes(pa.Table.from_pandas(table, preserve_index=False)))
        manifest = {"format": c.MANIFEST_FORMAT, "member": codec.member("blosc2"), "channels": CHANNELS}
        manifest |= {"field_px": shape, "plates": plates}
        writer.write("manifest.json", json.dumps(manifest).encode())
    return table


def _vignette(shape: tuple[int, ...]) -> Floats:
    """Brighter in the middle than in the corners, 1 on average."""
    away = np.hypot(*np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    light = 1.2 - 0.3 * away**2
    return np.asarray(light / light.mean(), np.float32)


def _quality(count: int, rng: np.random.Generator) -> pd.DataFrame:
    typical = {"FocusScore": 0.1, "Saturated": 0.001, "Mean": 1500, "SD": 900, "P01": 400, "P50": 1000}
    typical |= {"P99": 5000, "Background": 400, "WellSpread": 0.1}
    columns = {
        f"{c.QC_PREFIX}{measure}_{channel}": typical[measure] * np.exp(0.1 * rng.standard_normal(count))
        for channel in CHANNELS
        for measure in _MEASURES
    }
    flags = {f"{FLAG}{name}": rng.random(count) < 0.01 for name in FLAGS}
    return pd.DataFrame({**columns, f"{c.QC_PREFIX}NucleusCount": rng.poisson(60, count), **flags})


def _sides(index: pd.DataFrame) -> pd.DataFrame:
    wells = index[[c.COMPOUND, c.PLATE, c.WELL, c.MOA]].drop_duplicates([c.PLATE, c.WELL])
    side = np.where(wells[c.MOA].isna(), c.UNUSED, np.array([c.TRAIN, c.VALIDATION, c.TEST])[
        pd.factorize(wells[c.COMPOUND])[0] % 3
    ])  # fmt: skip
    return wells.drop(columns=c.MOA).assign(**{c.SIDE: side, c.FOLD: None, c.SEED: 0})


def _write_network(study: Study, index: pd.DataFrame, features: int, rng: np.random.Generator) -> None:
    """Embeddings around a centre for each MoA, the farther the higher the dose; probabilities and a map."""
    known = index[c.MOA].notna().to_numpy()
    code = np.where(known, pd.Categorical(index[c.MOA], MOAS).codes, 0)
    reach = np.where(known, 1 - np.exp(-index[c.CONCENTRATION].to_numpy()), 0).astype(np.float32)
    centres = rng.standard_normal((len(MOAS), features), dtype=np.float32)
    embeddings = rng.standard_normal((len(index), features), dtype=np.float32)
    embeddings += 2 * reach[:, None] * centres[code]
    chances = _chances(embeddings, centres)
    kept = [c.KEY, *c.FIELD_COLUMNS]
    table = index[kept].assign(
        **{f"{c.PROBABILITY_PREFIX}{moa}": chances[:, n] for n, moa in enumerate(MOAS)}
    )
    with study.writing("embed", study.claim("embed")) as writer:
        for first in range(0, len(index), _CHUNK):
            rows = slice(first, first + _CHUNK)
            part = pa.Table.from_pandas(table[rows], preserve_index=False)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings[rows].ravel()), features)
            data = parquet_bytes(part.append_column(c.EMBEDDING, vectors))
            writer.write(chunk_file(first, first + len(part) - 1), data)
    angles = 2 * np.pi * code / len(MOAS)
    places = 10 * reach[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    places = (places + rng.normal(0, 1.5, places.shape)).astype(np.float32)
    laid_out = index[kept].assign(**{X: places[:, 0], Y: places[:, 1]})
    about = MapAbout.of(study.config.map, len(index), len(index), 15)
    with study.writing("map", study.claim("map")) as writer:
        data = map_bytes(pa.Table.from_pandas(laid_out, preserve_index=False), about)
        writer.write(f"{study.name}.parquet", data)


def _chances(embeddings: Floats, centres: Floats) -> Floats:
    logits = embeddings @ centres.T / np.sqrt(centres.shape[1])
    exponents = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), np.float32)


def _outliers(index: pd.DataFrame, identity: str, rng: np.random.Generator) -> pd.DataFrame:
    names = index.get(identity, index[c.PLATE] + "_" + index[c.WELL])
    table = pd.DataFrame({identity: names.drop_duplicates().to_numpy()})
    table[SCORE] = rng.gamma(1.0, 1.0, len(table))
    table = table.sort_values(SCORE, ascending=False, ignore_index=True)
    found = table.index < _OUTLYING * len(table)
    kinds = np.where(rng.random(len(table)) < 0.5, ARTEFACT, NOVEL)
    table[RANK] = np.arange(1, len(table) + 1)
    table[REASON] = pd.Series(kinds, index=table.index).where(found)
    table[EVIDENCE] = pd.Series("drawn, not found", index=table.index).where(found)
    return table


def _npy(values: Floats) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values)
    return buffer.getvalue()
