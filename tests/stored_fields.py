"""A small finished ``shards/``, of random fields, without an ingest: for tests of what reads it."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.model import augment
from hcs_ray.model import targets as t
from hcs_ray.model.augment import Crop
from hcs_ray.model.loader import FieldSource
from hcs_ray.shards import codec
from hcs_ray.shards.codec import Codec, Floats, Pixels
from hcs_ray.shards.read import MANIFEST, ShardReader, corrected
from hcs_ray.shards.tar import Sample, TarWriter
from hcs_ray.stage import OutputFile, StageRecord
from hcs_ray.storage import Storage

SHAPE = (2, 37, 41)
PLATES = ("P1", "P2")
WHOLE = augment.whole(SHAPE)


def random_field(seed: int, shape: tuple[int, int, int] = SHAPE) -> Pixels:
    """A 12-bit camera's noise, stored as multiples of 16."""
    return np.random.default_rng(seed).integers(0, 4096, shape, np.uint16) << np.uint16(4)


FIELDS = [random_field(number) for number in range(13)]


def store(
    storage: Storage, fields: Sequence[Pixels], kind: Codec = "blosc2"
) -> tuple[StageRecord, pd.DataFrame]:
    """Write the fields, by turns of two plates; the stage's record, and a table as a run's."""
    rows = []
    for number, plate in enumerate(PLATES):
        with TarWriter(storage, "shards", f"{plate}-000.tar") as tar:
            for place in range(number, len(fields), len(PLATES)):
                image = codec.encode(fields[place], kind)
                sample = Sample(c.field_key(plate, f"B{place:02d}", 1), b"{}", image, codec.member(kind))
                control = place < 2 * len(PLATES)
                about = {c.KEY: sample.key, c.PLATE: plate, c.WELL: f"B{place:02d}", c.SITE: 1}
                labels = {t.LABEL: place % 3, t.TREATMENT_LABEL: t.NONE, t.PLATE_NUMBER: number}
                flags = {
                    t.LISTED: True,
                    t.ANCHOR: control,
                    c.PERT_TYPE: c.NEGATIVE_CONTROL if control else "trt",
                }
                rows.append({"place": place, **about, **labels, **flags} | tar.add(sample))
    table = pd.DataFrame(rows).sort_values("place").drop(columns="place").reset_index(drop=True)
    return _record(storage, fields[0].shape, codec.member(kind)), table


def source_in(storage: Storage) -> FieldSource:
    """A source of `FIELDS`, stored there."""
    record, table = store(storage, FIELDS)
    return FieldSource(ShardReader(storage, record), table, 1)


def image_of(source: FieldSource, position: int, crop: Crop = WHOLE) -> Floats:
    """What a source should give of one of `FIELDS`."""
    plate = source.reader.plate(source.fields[c.PLATE].iloc[position])
    return corrected(FIELDS[position], plate, crop.rows, crop.columns)


def tar_of(source: FieldSource, position: int) -> Path:
    """The shard of a field in a folder."""
    return Path(source.reader.storage.url, "shards", source.fields[c.SHARD].iloc[position])


def flip(path: Path, offset: int) -> None:
    """Change one bit of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def _record(storage: Storage, shape: tuple[int, ...], member: str) -> StageRecord:
    outputs: dict[str, OutputFile] = {}

    def write(path: str, data: bytes) -> None:
        storage.write(path, data)
        outputs[path] = OutputFile(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    rng = np.random.default_rng(7)
    plates = {}
    for plate in PLATES:
        paths = [f"illumination/{plate}_Illum{number}.npy" for number in range(shape[0])]
        for path in paths:
            file = io.BytesIO()
            np.save(file, rng.uniform(0.5, 1.5, shape[1:]).astype(np.float32))
            write(f"shards/{path}", file.getvalue())
        low, high = rng.uniform(100, 3000, shape[0]), rng.uniform(9000, 60000, shape[0])
        plates[plate] = {"low": low.tolist(), "high": high.tolist(), "sites": None, "illumination": paths}
    manifest = {"format": c.MANIFEST_FORMAT, "member": member, "field_px": shape[1:], "plates": plates}
    channels = [f"Channel{number}" for number in range(shape[0])]
    write(MANIFEST, json.dumps(manifest | {"channels": channels}).encode())
    return StageRecord(
        format=c.STAGE_FORMAT, stage="shard", name="shards", inputs={}, config={}, study_config="", code={},
        outputs=outputs,
    )  # fmt: skip
