"""A chunk: the unit of work, of resuming and of exactly-once. One file, made from one claim by one put."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from hcs_ray import contracts as c

if TYPE_CHECKING:
    from hcs_ray.model.network import ModelSpec

Chunk = tuple[int, int]  # first and last row of the index, both in it

_CLAIM: Final = b"hcs_ray_claim"  # of a file's metadata: the digest of what it was made from
NETWORK: Final = b"hcs_ray_network"  # of a file's metadata: the backbone
_ROWS: Final = b"hcs_ray_rows"  # of a file's metadata: the chunk, so that none passes for another
_CONTENT: Final = b"hcs_ray_content"  # of a file's metadata: the digest of all else in the table
_UNREADABLE: Final = b"hcs_ray_unreadable"  # of a file's metadata: the fields that were left out, as JSON
# Of a file's metadata, as JSON: keys of damaged controls that would have anchored the chunk's plates.
_NOT_ANCHORED_BY: Final = b"hcs_ray_not_anchored_by"


class Unreadable(NamedTuple):
    """A field that was left out."""

    key: str
    shard: str
    offset: int
    reason: str


class ChunkFile(NamedTuple):
    """A whole chunk's file."""

    size: int
    sha256: str
    unreadable: tuple[Unreadable, ...]
    not_anchored_by: tuple[str, ...] = ()

    @property
    def as_of_sound_shards(self) -> bool:
        """Whether no damaged member had to do with it: neither a field of its own, nor a control."""
        return not (self.unreadable or self.not_anchored_by)


def chunk_table(
    meta: pa.Table,
    embeddings: npt.NDArray[Any],
    probabilities: npt.NDArray[np.float32],
    spec: ModelSpec,
    chunk: Chunk,
    digest: str,
    unreadable: Sequence[Unreadable] = (),
    not_anchored_by: Sequence[str] = (),
) -> pa.Table:
    """A chunk as it is written.

    Args:
        meta: The key and ``Metadata_*`` columns of the N fields that were read.
        embeddings: (N, F) float32 or float16.
        probabilities: (N, K) float32.
        spec: Of the network; names the K classes.
        chunk: Which rows of the index it holds, but for the unreadable ones.
        digest: Of the claim that the chunk follows from.
        unreadable: The fields of the chunk that were left out.
        not_anchored_by: Keys of damaged controls, whose place others took in its plates' statistics.
    """
    values = pa.array(np.ascontiguousarray(embeddings).reshape(-1))
    table = meta.append_column(c.EMBEDDING, pa.FixedSizeListArray.from_arrays(values, embeddings.shape[1]))
    for number, name in enumerate(spec.classes):
        column = pa.array(np.ascontiguousarray(probabilities[:, number]))
        table = table.append_column(f"{c.PROBABILITY_PREFIX}{name}", column)
    about = {
        _CLAIM: digest.encode(),
        _ROWS: json.dumps(chunk).encode(),
        NETWORK: str(spec.model["backbone"]).encode(),
    }
    if unreadable:
        about[_UNREADABLE] = json.dumps(unreadable).encode()
    if not_anchored_by:
        about[_NOT_ANCHORED_BY] = json.dumps(not_anchored_by).encode()
    return table.replace_schema_metadata({**about, _CONTENT: _content(table, about)})


def inspect_chunk(data: bytes, chunk: Chunk, digest: str) -> ChunkFile | None:
    """What a file's bytes hold, or None where they are damaged, of another claim or not of this chunk."""
    try:
        table = pq.read_table(io.BytesIO(data), page_checksum_verification=True)
    except (pa.ArrowException, OSError):
        return None
    about = dict(table.schema.metadata or {})
    content = about.pop(_CONTENT, None)
    claimed = about.get(_CLAIM), about.get(_ROWS)
    if claimed != (digest.encode(), json.dumps(chunk).encode()) or content != _content(table, about):
        return None
    unreadable = tuple(Unreadable(*row) for row in json.loads(about.get(_UNREADABLE, b"[]")))
    if table.num_rows + len(unreadable) != chunk[1] - chunk[0] + 1:
        return None
    not_anchored_by = tuple(json.loads(about.get(_NOT_ANCHORED_BY, b"[]")))
    return ChunkFile(len(data), hashlib.sha256(data).hexdigest(), unreadable, not_anchored_by)


def _content(table: pa.Table, about: Mapping[bytes, bytes]) -> bytes:
    """A digest of names and values; the checksums in a Parquet file cover the values' pages alone."""
    digest = hashlib.sha256(repr(sorted(about.items())).encode())
    for name in table.column_names:
        column = table[name]
        if name == c.EMBEDDING:
            values = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
            digest.update(f"{name} {values.dtype} {column.type.list_size}".encode())
            digest.update(values.tobytes())
        else:
            digest.update(f"{name} {column.to_pylist()}".encode())
    return digest.hexdigest().encode()
