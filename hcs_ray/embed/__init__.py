"""`hcs-ray embed`: an embedding and MoA probabilities of every field, by Ray Data batch inference.

Ray Data hands fixed chunks of the index to a pool of actors; each reads, decodes and infers, and writes its
chunk by one put. So a killed run goes on with the chunks that are missing, and no pixel travels through
Ray's object store. The driver keeps neither the index nor the embeddings.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from hcs_ray import contracts as c
from hcs_ray.config import canonical_digest
from hcs_ray.contracts import HcsError, InputError, Progress
from hcs_ray.embed.chunks import NETWORK, Chunk, ChunkFile, Unreadable, inspect_chunk
from hcs_ray.embed.distribute import Maker, distribute, make_embedder
from hcs_ray.embed.index import IndexReader, check_index
from hcs_ray.stage import StageWriter, parquet_bytes
from hcs_ray.study import Study
from hcs_ray.tables import (
    FEATURES_FILE,
    UNREADABLE_FILE,
    chunk_file,
    feature_names,
    is_chunk_file,
    read_unreadable,
)

__all__ = ["embed", "sound_chunks"]

_CHECKS: Final = 4  # chunk files that are read at a time
_QUARANTINE: Final = "quarantine"
_OWN: Final = (FEATURES_FILE, UNREADABLE_FILE)
_UNREADABLE_SCHEMA: Final = pa.schema(
    {c.KEY: pa.string(), c.SHARD: pa.string(), c.OFFSET: pa.int64(), "reason": pa.string()}
)


def embed(
    study: Study, progress: Progress, force: bool = False, make: Maker = make_embedder
) -> dict[str, Any]:
    """Write ``embeddings/NAME/``; chunks that a killed run has written are kept.

    The network is that of this run, or the one that `Study.run` names. ``make`` makes what writes chunks, in
    each actor.

    Returns:
        How many fields and files there are, and how many were left out as unreadable.

    Raises:
        InputError: a stage before is not complete, this one is stale, a tile is too small for the network, or
            no field at all can be read.
        HcsError: a member is damaged (unless ``embed.on_error`` is quarantine) or cannot be reached; names
            field, shard and offset.
    """
    claim = study.claim("embed")
    fields = IndexReader(study.storage).fields
    chunks = list(_chunks(fields, study.config.embed.chunk_fields))
    if not force and study.is_complete("embed", claim) and _lacks_nothing_wanted(study):
        return _figures(study, fields, len(chunks))
    with study.writing("embed", claim, force) as writer:
        check_index(study)
        digest = canonical_digest(claim.model_dump(mode="json"))
        found = dict(sound_chunks(study, chunks, digest))
        missing = [chunk for chunk in chunks if chunk not in found]
        done = fields - sum(last - first + 1 for first, last in missing)
        progress(done, fields)
        for first, last in distribute(study, missing, digest, make):
            done += last - first + 1
            progress(done, fields)
        found |= sound_chunks(study, missing, digest)
        if lost := [chunk for chunk in chunks if chunk not in found]:
            raise HcsError(
                f"{study.storage.url}/{writer.path(chunk_file(*lost[0]))} has changed since it was written; "
                "run it again"
            )
        _list_outputs(study, writer, {chunk: found[chunk] for chunk in chunks})
    return _figures(study, fields, len(chunks))


def _chunks(fields: int, size: int) -> Iterator[Chunk]:
    for first in range(0, fields, size):
        yield first, min(first + size, fields) - 1


def _lacks_nothing_wanted(study: Study) -> bool:
    """Whether the finished embeddings lack no field, or unreadable ones are to be left out now, too."""
    unreadable = read_unreadable(study)
    return study.config.embed.on_error == _QUARANTINE or unreadable is None or unreadable.empty


def sound_chunks(study: Study, chunks: list[Chunk], digest: str) -> Iterator[tuple[Chunk, ChunkFile]]:
    """Those chunks whose files are there, undamaged, from the same claim, and complete.

    Unless unreadable fields are to be left out, they must owe nothing to damaged members.
    """
    folder, partial = study.place("embed").folder, study.config.embed.on_error == _QUARANTINE
    there = study.storage.sizes(folder)
    present = [chunk for chunk in chunks if f"{folder}/{chunk_file(*chunk)}" in there]

    def look(chunk: Chunk) -> ChunkFile | None:
        found = study.storage.read_versioned(f"{folder}/{chunk_file(*chunk)}")
        return None if found is None else inspect_chunk(found[0], chunk, digest)

    with ThreadPoolExecutor(_CHECKS, thread_name_prefix="chunks") as pool:
        for chunk, file in zip(present, pool.map(look, present), strict=True):
            if file is not None and (partial or file.as_of_sound_shards):
                yield chunk, file


def _list_outputs(study: Study, writer: StageWriter, files: dict[Chunk, ChunkFile]) -> None:
    """Put the chunks into the record, and write what tells of all of them."""
    for chunk, file in files.items():
        writer.add(chunk_file(*chunk), file.size, file.sha256)
    unreadable = [row for file in files.values() for row in file.unreadable]
    if len(unreadable) == sum(last - first + 1 for first, last in files):
        raise InputError(f"no field of the screen can be read; the first: {unreadable[0].reason}")
    if study.config.embed.on_error == _QUARANTINE:
        writer.write(UNREADABLE_FILE, parquet_bytes(_unreadable_table(unreadable)))
    writer.write(FEATURES_FILE, _features_json(study, writer.path(chunk_file(*next(iter(files))))))
    writer.prune(lambda name: is_chunk_file(name) or name in _OWN)


def _unreadable_table(rows: list[Unreadable]) -> pa.Table:
    return pa.Table.from_pylist([row._asdict() for row in rows], _UNREADABLE_SCHEMA)


def _features_json(study: Study, path: str) -> bytes:
    """Names for the features, in their order, and what computed them; pycytominer takes names as a list."""
    schema = pq.read_schema(io.BytesIO(study.storage.read(path)))
    record, model = study.model()
    config = study.config.embed
    about = {
        "format": 1,
        "column": c.EMBEDDING,
        "features": feature_names(schema.field(c.EMBEDDING).type.list_size),
        "probabilities": [name for name in schema.names if name.startswith(c.PROBABILITY_PREFIX)],
        "dtype": config.dtype,
        "network": schema.metadata[NETWORK].decode(),
        "model": model,
        "model_sha256": record.outputs[model].sha256,
        "tiles": config.tiles,
        "tile_px": None if config.tiles == "full" else config.tile_px,
        "pool": config.pool if config.tiles == "grid" else None,
        "test_time_augmentation": config.test_time_augmentation,
    }
    return (json.dumps(about, indent=1) + "\n").encode()


def _figures(study: Study, fields: int, files: int) -> dict[str, Any]:
    unreadable = read_unreadable(study)
    left_out = 0 if unreadable is None else len(unreadable)
    figures: dict[str, Any] = {"fields": fields - left_out, "files": files}
    if left_out:
        path = f"{study.place('embed').folder}/{UNREADABLE_FILE}"
        figures["UNREADABLE"] = f"{left_out} fields left out ({path} says why)"
    return figures
