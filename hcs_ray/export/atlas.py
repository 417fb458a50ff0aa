"""One table of all embedded fields for programs that show embeddings, with their pictures.

``fields.parquet`` has what embedding-atlas takes (https://apple.github.io/embedding-atlas/tool.html): ``x``
and ``y``; ``neighbors``, whose ids are row numbers from 0; ``image``, the bytes of a JPEG and its name. The
column ``filepath`` names the same picture as a file below the export, as FiftyOne wants its samples.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from hcs_ray import contracts as c
from hcs_ray.config import StudyConfig
from hcs_ray.contracts import Progress
from hcs_ray.export.sources import Sources
from hcs_ray.joined import join
from hcs_ray.maps import X
from hcs_ray.pictures.composite import plate_contrasts
from hcs_ray.pictures.thumbnail import Thumbnail
from hcs_ray.progress import tell
from hcs_ray.shards.read import ShardReader
from hcs_ray.stage import StageWriter
from hcs_ray.tables import Features

FILE: Final = "fields.parquet"
NEIGHBORS: Final = "neighbors"
IMAGE: Final = "image"
PATH: Final = "filepath"
_NEIGHBORS: Final = 15
_BLOCK: Final = 4096  # fields whose neighbours are sought, and rows of the table that are written, at once
_DRAWERS: Final = 8
_PLACE: Final = (c.SHARD, c.OFFSET, c.SIZE, c.SHA256, c.SAMPLE_SHA256)

Ids = npt.NDArray[np.int64]


def config_of(config: StudyConfig) -> dict[str, Any]:
    """What the files depend on, beside the stages they are made from."""
    return {"thumbnail_px": config.export.thumbnail_px}


def write(sources: Sources, writer: StageWriter, progress: Progress) -> None:
    """Write the pictures and the table, some thousand rows at a time; fields without a place are left out."""
    joined = join(sources.study, {"embed", *sources.whole})
    there = np.flatnonzero(joined.fields[X].notna().to_numpy() & np.isfinite(joined.embeddings).all(axis=1))
    fields = joined.fields.iloc[there].reset_index(drop=True)
    reader = ShardReader(sources.study.storage, sources.study.require("shard"))
    contrasts = plate_contrasts(joined.fields, reader.channels)
    thumbnail = Thumbnail(reader, contrasts, sources.study.config.export.thumbnail_px, correct=True)
    tell(progress, "neighbours and pictures")
    found = nearest(joined.embeddings[there], _NEIGHBORS)
    writer.write_parts(FILE, _parts(fields, found, thumbnail, writer, progress))


def nearest(features: Features, count: int) -> Iterator[tuple[Ids, Features]]:
    """Of each field the rows of the others nearest by cosine, and 1 minus it, block by block: (B, k), (B, k).

    Exact; k is ``count``, or all others where there are fewer. A field that is all zeros is near to none.
    """
    from sklearn.neighbors import NearestNeighbors

    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    unit = np.asarray(features / np.where(lengths > 0, lengths, 1), np.float32)
    k = min(count, len(unit) - 1)
    index = NearestNeighbors(n_neighbors=k + 1, algorithm="brute").fit(unit)
    for first in range(0, len(unit), _BLOCK):
        distances, ids = index.kneighbors(unit[first : first + _BLOCK])
        own = np.arange(first, first + len(ids))[:, None]
        # Of fields that are all alike one may have so many before itself that it is not among them.
        drop = np.where((ids == own).any(axis=1), (ids == own).argmax(axis=1), k)
        kept = np.arange(k + 1)[None, :] != drop[:, None]
        cosine_distances = (distances[kept].reshape(-1, k) ** 2 / 2).astype(np.float32)
        yield ids[kept].reshape(-1, k).astype(np.int64), cosine_distances


def _parts(
    fields: pd.DataFrame,
    found: Iterator[tuple[Ids, Features]],
    thumbnail: Thumbnail,
    writer: StageWriter,
    progress: Progress,
) -> Iterator[bytes]:
    """The bytes of the table; its pictures are written on the way."""
    progress(0, len(fields))
    rows = c.rows_of(fields[[c.KEY, c.PLATE, c.SITE, *_PLACE]])
    columns = _columns(fields)
    schema = _with_pictures(columns[:0], np.empty((0, 1), np.int64), np.empty((0, 1), np.float32), [], [])
    done, sink = 0, io.BytesIO()
    with (
        ThreadPoolExecutor(_DRAWERS, thread_name_prefix="export") as pool,
        pq.ParquetWriter(sink, schema.schema, compression="zstd", write_page_checksum=True) as table,
    ):
        for ids, distances in found:
            part = rows[done : done + len(ids)]
            paths, images = [_path(row) for row in part], []
            for image in pool.map(thumbnail.draw, part):
                images.append(image)
                progress(done + len(images), len(fields))
            list(pool.map(writer.write, paths, images))
            block = columns.slice(done, len(ids))
            table.write_table(_with_pictures(block, ids, distances, images, paths))
            done += len(ids)
            yield sink.getvalue()
            sink.seek(0)
            sink.truncate()
    yield sink.getvalue()


def _columns(fields: pd.DataFrame) -> pa.Table:
    """What is known of the fields; a column without any value is one of text."""
    table = pa.Table.from_pandas(fields.drop(columns=list(_PLACE)), preserve_index=False)
    types = [
        field.with_type(pa.string()) if pa.types.is_null(field.type) else field for field in table.schema
    ]
    return table.cast(pa.schema(types, table.schema.metadata))


def _with_pictures(
    block: pa.Table, ids: Ids, distances: Features, images: list[bytes], paths: list[str]
) -> pa.Table:
    near = pa.StructArray.from_arrays(
        [pa.array(list(ids), pa.list_(pa.int64())), pa.array(list(distances), pa.list_(pa.float32()))],
        ["ids", "distances"],
    )
    names = [path.rpartition("/")[2] for path in paths]
    pictures = pa.StructArray.from_arrays(
        [pa.array(images, pa.binary()), pa.array(names, pa.string())], ["bytes", "path"]
    )
    block = block.append_column(NEIGHBORS, near).append_column(IMAGE, pictures)
    return block.append_column(PATH, pa.array(paths, pa.string()))


def _path(row: dict[str, Any]) -> str:
    """Of a field's picture, below the export: a folder a plate."""
    return f"images/{c.safe_name(str(row[c.PLATE]))}/{row[c.KEY]}.jpg"
