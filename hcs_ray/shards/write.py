"""`hcs-ray shard`: a raw screen into verified WebDataset tars, an index and a manifest.

One Ray task a plate reads each image once, stores its pixels lossless and, from all fields of the plate,
estimates illumination and percentiles. A plate that is whole is never written again by a resumed run, and
the bytes do not depend on the number of workers.
"""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import ray
import tifffile

from hcs_ray import contracts as c
from hcs_ray.config import ShardsConfig
from hcs_ray.contracts import InputError, Progress
from hcs_ray.screen import Screen, file_column
from hcs_ray.screen.bbbc021 import open_screen
from hcs_ray.session import ensure_session, plainly
from hcs_ray.shards import codec, quality
from hcs_ray.shards.codec import Pixels
from hcs_ray.shards.illumination import IlluminationEstimate
from hcs_ray.stage import StageWriter, parquet_bytes
from hcs_ray.storage import Storage
from hcs_ray.study import Study

_TAR_BLOCK = 512


@dataclass(frozen=True)
class PlateJob:
    """What one task needs to write one plate."""

    plate: str
    fields: pd.DataFrame
    channels: tuple[str, ...]
    raw: Storage
    study: Storage
    config: ShardsConfig


def shard(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``shards/``; does nothing where it is complete for this screen and configuration."""
    screen = open_screen(study.config.screen, study.storage)
    claim = study.claim("shard", screen.fingerprint)
    if not force and study.is_complete("shard", claim):
        return {"fields": len(screen.fields), "plates": screen.fields[c.PLATE].nunique()}
    with study.writing("shard", claim, force) as writer:
        _write_plates(screen, study, progress)
        return _finish(screen, study, writer)


def _write_plates(screen: Screen, study: Study, progress: Progress) -> None:
    jobs = [
        PlateJob(
            str(plate),
            rows,
            screen.channels,
            screen.storage,
            study.storage,
            study.config.shards,
        )
        for plate, rows in screen.fields.groupby(c.PLATE)
    ]
    sizes = study.storage.sizes("shards")
    open_jobs = [job for job in jobs if not _is_whole(job, sizes)]
    done = len(screen.fields) - sum(len(job.fields) for job in open_jobs)
    progress(done, len(screen.fields))
    if not open_jobs:
        return
    ensure_session()
    remote = ray.remote(num_cpus=1)(write_plate)
    running = {remote.remote(job): job for job in open_jobs}
    while running:
        (first,), _ = ray.wait(list(running), num_returns=1)
        job = running.pop(first)
        try:
            with plainly(f"plate {job.plate}"):
                ray.get(first)
        except BaseException:
            for reference in running:
                ray.cancel(reference, force=True)
            raise
        done += len(job.fields)
        progress(done, len(screen.fields))


def write_plate(job: PlateJob) -> None:
    """Write a plate's tars and illumination functions, and last its part of the index."""
    rows: list[dict[str, Any]] = []
    tars: list[tuple[str, int, str]] = []
    estimate: IlluminationEstimate | None = None
    shape: tuple[int, ...] = ()
    raw = hashlib.sha256()
    shard = _ShardFile(job.plate, 0)
    for _, field in job.fields.iterrows():
        pixels, hashes = _read_field(job, field)
        if estimate is None:
            shape = pixels.shape
            percents = (job.config.low_percentile, job.config.high_percentile)
            estimate = IlluminationEstimate(pixels.shape, job.config.illumination_block_px, percents)
        elif pixels.shape != shape:
            raise InputError(
                f"{job.raw.url}/{_first_file(job, field)}: {pixels.shape[1:]} px; others {shape[1:]}"
            )
        raw.update("".join(hashes.values()).encode())
        estimate.add(pixels)
        image = codec.encode(pixels, job.config.codec)
        if shard.rows and shard.size + len(image) > job.config.max_shard_mb * 1_000_000:
            tars.append(shard.close(job.study))
            shard = _ShardFile(job.plate, len(tars))
        row = {name: field[name] for name in (c.KEY, *c.FIELD_COLUMNS)}
        row |= shard.add(field[c.KEY], image, _sample_json(job, row, pixels, hashes))
        rows.append(row | quality.measure(pixels, job.channels))
        shard.rows += 1
    tars.append(shard.close(job.study))
    assert estimate is not None
    plate = _write_illumination(job, estimate) | {"raw_sha256": raw.hexdigest(), "shape": list(shape)}
    plate["tars"] = [{"shard": name, "size": size, "sha256": digest} for name, size, digest in tars]
    job.study.write(_part_path(job.plate), _part(rows, plate))


class _ShardFile:
    """One tar in memory: GNU format, no times, no owners, so its bytes follow from its samples."""

    def __init__(self, plate: str, number: int) -> None:
        self.name = f"{plate}-{number:03d}.tar"
        self.rows = 0
        self._buffer = io.BytesIO()
        self._tar = tarfile.TarFile(fileobj=self._buffer, mode="w", format=tarfile.GNU_FORMAT)

    @property
    def size(self) -> int:
        return self._tar.offset

    def add(self, key: str, image: bytes, sample: bytes) -> dict[str, Any]:
        """Add a sample; where its image member lies."""
        self._member(f"{key}.json", sample)
        self._member(f"{key}.{codec.MEMBER}", image)
        offset = self._tar.offset - -(-len(image) // _TAR_BLOCK) * _TAR_BLOCK
        return {
            c.SHARD: self.name,
            c.OFFSET: offset,
            c.SIZE: len(image),
            c.SHA256: hashlib.sha256(image).hexdigest(),
        }

    def _member(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._tar.addfile(info, io.BytesIO(data))

    def close(self, study: Storage) -> tuple[str, int, str]:
        self._tar.close()
        data = self._buffer.getvalue()
        study.write(f"shards/{self.name}", data)
        return self.name, len(data), hashlib.sha256(data).hexdigest()


def _read_field(job: PlateJob, field: pd.Series) -> tuple[Pixels, dict[str, str]]:
    planes, hashes = [], {}
    for channel in job.channels:
        path = field[file_column(channel)]
        data = job.raw.read(path)
        hashes[channel] = hashlib.sha256(data).hexdigest()
        planes.append(_decode_tiff(data, f"{job.raw.url}/{path}"))
    if len({plane.shape for plane in planes}) > 1:
        raise InputError(f"{job.raw.url}/{_first_file(job, field)}: the channels differ in size")
    return np.stack(planes), hashes


def _decode_tiff(data: bytes, source: str) -> Pixels:
    try:
        with tifffile.TiffFile(io.BytesIO(data)) as tiff:
            page = tiff.pages[0]
            expected = sum(page.databytecounts)  # tifffile fills a truncated strip with zeros
            if max(a + b for a, b in zip(page.dataoffsets, page.databytecounts, strict=True)) > len(data):
                raise InputError(
                    f"{source}: truncated, has {len(data)} bytes of at least {expected}; copy it again"
                )
            plane = page.asarray()
    except InputError:
        raise
    except Exception as error:  # tifffile raises many kinds for a damaged file
        raise InputError(f"{source}: not a readable TIFF ({error}); copy it again") from None
    if plane.dtype != np.uint16 or plane.ndim != 2:
        raise InputError(f"{source}: {plane.dtype} of shape {plane.shape}, not one uint16 plane")
    return np.asarray(plane, np.uint16)


def _first_file(job: PlateJob, field: pd.Series) -> str:
    return str(field[file_column(job.channels[0])])


def _sample_json(job: PlateJob, row: Mapping[str, Any], pixels: Pixels, hashes: Mapping[str, str]) -> bytes:
    sample = {
        "shape": list(pixels.shape),
        "dtype": "uint16",
        "channels": list(job.channels),
        "codec": job.config.codec,
        "raw_sha256": dict(hashes),
        **{name: None if pd.isna(row[name]) else row[name] for name in c.FIELD_COLUMNS},
    }
    return json.dumps(sample, sort_keys=True).encode()


def _write_illumination(job: PlateJob, estimate: IlluminationEstimate) -> dict[str, Any]:
    files = []
    for channel, function in zip(
        job.channels, estimate.functions(job.config.illumination_sigma), strict=True
    ):
        buffer = io.BytesIO()
        np.save(buffer, function, allow_pickle=False)
        path = f"illumination/{job.plate}_Illum{channel}.npy"
        job.study.write(f"shards/{path}", buffer.getvalue())
        digest = hashlib.sha256(buffer.getvalue()).hexdigest()
        files.append({"path": path, "size": len(buffer.getvalue()), "sha256": digest})
    low, high = estimate.percentiles()
    return {"illumination": files, "low": low.tolist(), "high": high.tolist()}


def _is_whole(job: PlateJob, sizes: Mapping[str, int]) -> bool:
    """Whether a plate's part is there, and every file that it lists, with its size."""
    if _part_path(job.plate) not in sizes:
        return False
    part = pq.read_schema(io.BytesIO(job.study.read(_part_path(job.plate))))
    plate = json.loads(part.metadata[b"plate"])
    files = {tar["shard"]: tar["size"] for tar in plate["tars"]}
    files |= {file["path"]: file["size"] for file in plate["illumination"]}
    return all(sizes.get(f"shards/{path}") == size for path, size in files.items())


def _part_path(plate: str) -> str:
    return f"shards/parts/{plate}.parquet"


def _part(rows: list[dict[str, Any]], plate: Mapping[str, Any]) -> bytes:
    table = pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False)
    return parquet_bytes(table.replace_schema_metadata({"plate": json.dumps(plate, sort_keys=True)}))


def _parts(screen: Screen, study: Study) -> Iterator[tuple[str, bytes, pa.Table]]:
    for plate in sorted(screen.fields[c.PLATE].unique()):
        data = study.storage.read(_part_path(plate))
        yield plate, data, pq.read_table(io.BytesIO(data))


def _finish(screen: Screen, study: Study, writer: StageWriter) -> dict[str, Any]:
    tables, plates = [], {}
    for plate, data, table in _parts(screen, study):
        entry = json.loads(table.schema.metadata[b"plate"])
        for tar in entry.pop("tars"):
            writer.add(tar["shard"], tar["size"], tar["sha256"])
        for file in entry["illumination"]:
            writer.add(file["path"], file["size"], file["sha256"])
        entry["illumination"] = [file["path"] for file in entry["illumination"]]
        writer.add(f"parts/{plate}.parquet", len(data), hashlib.sha256(data).hexdigest())
        plates[plate] = entry
        tables.append(table.replace_schema_metadata(None))
    shapes = {tuple(entry.pop("shape")) for entry in plates.values()}
    if len(shapes) > 1:
        raise InputError(f"{screen.storage.url}: plates differ in the size of their fields: {sorted(shapes)}")
    index = pa.concat_tables(tables, promote_options="permissive").sort_by(c.KEY)
    writer.write("index.parquet", parquet_bytes(index))
    manifest = {
        "format": c.MANIFEST_FORMAT,
        "fields": index.num_rows,
        "channels": list(screen.channels),
        "field_px": list(shapes.pop()[1:]),
        "member": codec.MEMBER,
        "codec": study.config.shards.codec,
        "correction": "(pixel / illumination - low) / (high - low), by plate and channel",
        "plates": plates,
        "raw": screen.fingerprint,
    }
    writer.write("manifest.json", (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode())
    return {"fields": index.num_rows, "plates": len(plates)}
