"""One plate from raw images to tars, illumination functions and its part of the index.

Each image is read once; memory does not grow with the plate. What is written follows from the images, the
plate's rows and the configuration alone, byte for byte.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from hcs_ray import contracts as c
from hcs_ray.config import ShardsConfig
from hcs_ray.contracts import HcsError
from hcs_ray.screen import BadImageError, ImageSource, RawField
from hcs_ray.shards import codec
from hcs_ray.shards.statistics import PlateStatistics
from hcs_ray.shards.tar import Sample, TarWriter, other_than_written
from hcs_ray.stage import OutputFile, parquet_bytes
from hcs_ray.storage import Storage

FOLDER = "shards"
_SHAPE_VOTES = 5
_REPORT_SECONDS = 0.5

Row = dict[str, Any]


@dataclass(frozen=True)
class PlateJob:
    """What one task needs to write one plate.

    Attributes:
        claim: Digest of all that the plate's shards follow from.
        absent: Key -> reason, for fields whose images the listing lacks.
        expected: File below ``shards/`` -> what it must become, or nothing is written of it; none: anything.
    """

    plate: str
    fields: pd.DataFrame
    channels: tuple[str, ...]
    source: ImageSource
    study: Storage
    config: ShardsConfig
    claim: str
    absent: Mapping[str, str] = field(default_factory=dict)
    expected: Mapping[str, OutputFile] | None = None
    nuclear_channel: str | None = None
    camera_maximum: int | None = None

    @property
    def file_name(self) -> str:
        """The plate's name as it stands in file names."""
        return c.safe_name(self.plate)

    @property
    def part_path(self) -> str:
        """The plate's part of the index, written last."""
        return f"{FOLDER}/parts/{self.file_name}.parquet"


@dataclass(frozen=True)
class Part:
    """A plate's part of the index, as read back."""

    rows: pa.Table
    about: dict[str, Any]  # claim, shape, illumination, percentiles, files, quality, quarantine
    output: OutputFile


def write_plate(job: PlateJob, report: Callable[[int], None] = lambda fields: None) -> None:
    """Write a plate's tars and illumination functions, and last its part of the index.

    ``report`` is told now and then how many fields are done.

    Raises:
        BadImageError: a field cannot be read, unless the configuration says quarantine.
        HcsError: a file would not be as the job expects it.
    """
    if job.expected is None:
        job.study.delete(job.part_path)  # it must not vouch for files that are written over
    statistics: PlateStatistics | None = None
    tars, quarantine = _Tars(job), list[Row]()
    members: list[Row] = []
    raw_digest = xxhash.xxh3_128()
    told = time.monotonic()
    with tars:
        for row, raw in _raw_fields(job, quarantine):
            statistics = statistics or _statistics(job, raw.pixels.shape)
            statistics.add(raw.pixels, row[c.WELL], row[c.SITE])
            members.append({c.KEY: row[c.KEY], **tars.add(sample_of(job, row, raw))})
            raw_digest.update("".join(raw.digests).encode())
            if time.monotonic() - told > _REPORT_SECONDS:
                report(len(members))
                told = time.monotonic()
    about = {"claim": job.claim, "quarantine": quarantine, "raw_xxh3_128": raw_digest.hexdigest()}
    files = dict(tars.outputs)
    table = job.fields[[c.KEY, *c.metadata_columns(job.fields)]]
    if statistics is not None:
        table = table.merge(pd.DataFrame(members), on=c.KEY)  # keeps the order, drops the quarantined
        quality = statistics.field_table()
        table = pd.concat([table, quality], axis=1)
        about |= _plate_figures(job, statistics) | {"quality": statistics.plate_row(quality)}
        files |= _write_illumination(job, statistics)
    part = _part_bytes(table if members else table.iloc[:0], about, files)
    _put(job, job.part_path.removeprefix(f"{FOLDER}/"), part)


def _put(job: PlateJob, name: str, data: bytes) -> OutputFile:
    """Write a small file below ``shards/``, if it is as the job expects it."""
    output = OutputFile(size=len(data), sha256=hashlib.sha256(data).hexdigest())
    if (expected := _expected(job, name)) is not None and output != expected:
        raise HcsError(other_than_written(f"{job.study.url}/{FOLDER}/{name}"))
    job.study.write(f"{FOLDER}/{name}", data)
    return output


def _expected(job: PlateJob, name: str) -> OutputFile | None:
    if job.expected is None:
        return None
    if name not in job.expected:
        raise HcsError(other_than_written(f"{job.study.url}/{FOLDER}/{name}"))
    return job.expected[name]


def _part_bytes(table: pd.DataFrame, about: Mapping[str, Any], files: Mapping[str, OutputFile]) -> bytes:
    plain = {path: file.model_dump(exclude_none=True) for path, file in files.items()}
    metadata = {"plate": json.dumps({**about, "files": plain}, sort_keys=True)}
    return parquet_bytes(pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(metadata))


def rewrite_tar(job: PlateJob, name: str, expected: OutputFile) -> None:
    """Write one tar again, of all ``job.fields``; `HcsError`, and nothing written, where it would differ."""
    with TarWriter(job.study, FOLDER, name, expected) as tar:
        for row, raw in _raw_fields(job, []):
            tar.add(sample_of(job, row, raw))


def read_part(job: PlateJob) -> Part | None:
    """The plate's part of the index, where there is a readable one."""
    found = job.study.read_versioned(job.part_path)
    if found is None:
        return None
    try:
        table = pq.read_table(io.BytesIO(found[0]), page_checksum_verification=True)
        about = json.loads(table.schema.metadata[b"plate"])
    except (pa.ArrowException, OSError, KeyError, TypeError, ValueError):
        return None
    about["files"] = {name: OutputFile.model_validate(file) for name, file in about["files"].items()}
    output = OutputFile(size=len(found[0]), sha256=hashlib.sha256(found[0]).hexdigest())
    return Part(table.replace_schema_metadata(None), about, output)


def is_whole(job: PlateJob, sizes: Mapping[str, int]) -> bool:
    """Whether a plate's part is there, of the same claim, and every file that it lists, with its size."""
    if job.part_path not in sizes:
        return False
    part = read_part(job)
    if part is None or part.about["claim"] != job.claim:
        return False
    if part.about["quarantine"] and job.config.on_error == "fail":
        return False
    return all(sizes.get(f"{FOLDER}/{path}") == file.size for path, file in part.about["files"].items())


class _Tars:
    """The tars of a plate, one after the other; each is closed before it grows too large."""

    def __init__(self, job: PlateJob) -> None:
        self._job = job
        self._limit = job.config.max_shard_mb * 1_000_000
        self._open = contextlib.ExitStack()
        self._tar: TarWriter | None = None
        self.outputs: dict[str, OutputFile] = {}

    def add(self, sample: Sample) -> Row:
        """Append a sample to the open tar, or to the next."""
        if self._tar is not None and not self._tar.fits(sample, self._limit):
            self._close()
        if self._tar is None:
            name = f"{self._job.file_name}-{len(self.outputs):03d}.tar"
            expected = _expected(self._job, name)
            self._tar = self._open.enter_context(TarWriter(self._job.study, FOLDER, name, expected))
        return self._tar.add(sample)

    def _close(self) -> None:
        self._open.close()
        if self._tar is not None:
            self.outputs[self._tar.name] = self._tar.output
        self._tar = None

    def __enter__(self) -> _Tars:
        return self

    def __exit__(self, *failure: Any) -> None:
        if failure[0] is None:
            self._close()
        else:
            self._open.__exit__(*failure)


def _statistics(job: PlateJob, shape: tuple[int, ...]) -> PlateStatistics:
    channels, height, width = shape
    return PlateStatistics(
        job.channels, (channels, height, width), job.config, job.nuclear_channel, job.camera_maximum
    )


def _raw_fields(job: PlateJob, quarantine: list[Row]) -> Iterator[tuple[Row, RawField]]:
    """The plate's readable fields in order, read ahead by threads; the others go to the quarantine."""
    rows = c.rows_of(job.fields)
    shape: tuple[int, ...] | None = None
    with ThreadPoolExecutor(job.config.readers, thread_name_prefix="raw") as pool:
        read = _Ahead(job, rows, pool)
        if job.config.on_error == "quarantine":
            shape = read.usual_shape()
        for row in rows:
            try:
                raw = read.next()
                shape = shape or raw.pixels.shape
                if raw.pixels.shape != shape:
                    raise BadImageError(
                        f"field {row[c.KEY]}: {_size(raw.pixels.shape)}; "
                        f"others of plate {job.plate} have {_size(shape)}"
                    )
            except BadImageError as error:
                if job.config.on_error == "fail":
                    hint = "or set shards.on_error to quarantine to leave such fields out"
                    raise BadImageError(f"{error}; {hint}") from None
                told = {name: row[name] for name in (c.KEY, c.PLATE, c.WELL, c.SITE)}
                quarantine.append(told | {"reason": str(error)})
                continue
            yield row, raw


class _Ahead:
    """Reads the fields of a plate in order, a few ahead of the one that is wanted."""

    def __init__(self, job: PlateJob, rows: list[Row], pool: ThreadPoolExecutor) -> None:
        self._job = job
        self._pool = pool
        self._left = iter(rows)
        self._first: list[Row] = rows[:_SHAPE_VOTES]
        self._running: collections.deque[Future[RawField]] = collections.deque()

    def next(self) -> RawField:
        while len(self._running) <= self._job.config.readers:
            row = next(self._left, None)
            if row is None:
                break
            self._running.append(self._pool.submit(self._read, row))
        return self._running.popleft().result()

    def _read(self, row: Row) -> RawField:
        if (reason := self._job.absent.get(row[c.KEY])) is not None:
            raise BadImageError(reason)
        return self._job.source.read(row)

    def usual_shape(self) -> tuple[int, ...] | None:
        """The commonest shape of the first fields, so that an odd first one does not outlaw all others."""
        shapes: collections.Counter[tuple[int, ...]] = collections.Counter()
        for row in self._first:
            with contextlib.suppress(BadImageError):
                shapes[self._read(row).pixels.shape] += 1
        return shapes.most_common(1)[0][0] if shapes else None


def sample_of(job: PlateJob, row: Row, raw: RawField) -> Sample:
    """A field as the members of a tar."""
    about = {
        "shape": list(raw.pixels.shape),
        "dtype": "uint16",
        "channels": list(job.channels),
        "codec": job.config.codec,
        "raw_xxh3_128": dict(zip(job.channels, raw.digests, strict=True)),
        **{name: _json_value(row[name]) for name in c.metadata_columns(row)},
    }
    image = codec.encode(raw.pixels, job.config.codec)
    text = json.dumps(about, sort_keys=True).encode()
    return Sample(row[c.KEY], text, image, codec.member(job.config.codec))


def _json_value(value: Any) -> Any:
    if pd.isna(value):
        return None
    return value.item() if isinstance(value, np.generic) else value


def _size(shape: tuple[int, ...]) -> str:
    return f"{shape[-2]} x {shape[-1]} px"


def _plate_figures(job: PlateJob, statistics: PlateStatistics) -> dict[str, Any]:
    low, high = statistics.percentiles()
    return {
        "shape": list(statistics.shape),
        "low": low.tolist(),
        "high": high.tolist(),
        "sites": statistics.sites if job.config.illumination_by_site else None,
        "illumination": [illumination_path(job, channel) for channel in job.channels],
    }


def illumination_path(job: PlateJob, channel: str) -> str:
    """Where a channel's function lies, below ``shards/``."""
    return f"illumination/{job.file_name}_Illum{c.safe_name(channel)}.npy"


def _write_illumination(job: PlateJob, statistics: PlateStatistics) -> dict[str, OutputFile]:
    """A file a channel: (H, W) float32, or (S, H, W) where there is a function for each site."""
    outputs = {}
    for number, channel in enumerate(job.channels):
        buffer = io.BytesIO()
        np.save(buffer, statistics.illumination_of(number), allow_pickle=False)
        path = illumination_path(job, channel)
        outputs[path] = _put(job, path, buffer.getvalue())
    return outputs
