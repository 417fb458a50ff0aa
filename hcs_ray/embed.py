"""`hcs-ray embed`: an embedding and MoA probabilities of every field, by Ray Data batch inference.

Ray Data hands fixed chunks of the index to a pool of actors; each reads, decodes and infers, and writes its
chunk by one put. So a killed run goes on with the chunks that are missing, and no pixel travels through
Ray's object store. A control-anchored network is told each plate's statistics, which an actor computes once
from control fields of the plate.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from hcs_ray import contracts as c
from hcs_ray.config import ModelConfig, canonical_digest
from hcs_ray.contracts import HcsError, InputError, Progress
from hcs_ray.model import augment
from hcs_ray.model.anchored import PlateStatistics
from hcs_ray.model.epochs import Share, with_anchors
from hcs_ray.model.loader import BatchLoader, FieldSource
from hcs_ray.model.network import Outputs
from hcs_ray.model.targets import ANCHOR
from hcs_ray.session import ensure_session, hush, plainly, require_capacity
from hcs_ray.shards.read import ShardReader
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import Study
from hcs_ray.tables import read_index
from hcs_ray.train import load_network

_CLAIM = b"hcs_ray_claim"  # of a chunk's Parquet metadata: what it was made from
_ANCHORS_IN_USE: Final = 4  # times model.anchor_fields: what is computed once can do with less noise


def embed(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``embeddings/NAME/``; chunks that a killed run has written are kept.

    The network is that of this run, or the one that `Study.run` names.
    """
    claim = study.claim("embed")
    fields = len(read_index(study, [c.KEY]))
    chunks = list(_chunks(fields, study.config.embed.chunk_fields))
    if not force and study.is_complete("embed", claim):
        return {"fields": fields, "files": len(chunks)}
    with study.writing("embed", claim, force) as writer:
        digest = canonical_digest(claim.model_dump(mode="json"))
        missing = [chunk for chunk in chunks if not _is_whole(study, chunk, digest)]
        done = fields - sum(last - first + 1 for first, last in missing)
        progress(done, fields)
        for first, last in _run(study, missing, digest):
            done += last - first + 1
            progress(done, fields)
        for chunk in chunks:
            data = study.storage.read(writer.path(chunk_file(*chunk)))
            writer.add(chunk_file(*chunk), len(data), hashlib.sha256(data).hexdigest())
    return {"fields": fields, "files": len(chunks)}


def chunk_file(first: int, last: int) -> str:
    """The file of the fields ``first`` to ``last`` (both in it) of the index."""
    return f"{first:08d}-{last:08d}.parquet"


def _chunks(fields: int, size: int) -> Iterator[tuple[int, int]]:
    for first in range(0, fields, size):
        yield first, min(first + size, fields) - 1


def _is_whole(study: Study, chunk: tuple[int, int], digest: str) -> bool:
    """Whether a chunk is there, undamaged, and made from the same claim."""
    found = study.storage.read_versioned(f"{study.place('embed').folder}/{chunk_file(*chunk)}")
    if found is None:
        return False
    try:
        table = pq.read_table(io.BytesIO(found[0]), page_checksum_verification=True)
    except (pa.ArrowException, OSError):
        return False
    return bool((table.schema.metadata or {}).get(_CLAIM) == digest.encode())


def _run(study: Study, chunks: list[tuple[int, int]], digest: str) -> Iterator[tuple[int, int]]:
    """Embed chunks, yielding each as it is written."""
    if not chunks:
        return
    ensure_session()
    import ray.data

    hush("ray.data")
    ray.data.DataContext.get_current().enable_progress_bars = False
    config = study.config.embed
    work = ray.data.from_items(
        [{"first": first, "last": last} for first, last in chunks], override_num_blocks=len(chunks)
    )
    actors = min(config.workers, len(chunks))
    require_capacity(
        f"embed.workers {actors}", actors * config.cpus_per_worker, actors if config.use_gpu else 0
    )
    written = work.map_batches(
        _Embedder,
        fn_constructor_args=(study, digest),
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=config.cpus_per_worker,
        num_gpus=1 if config.use_gpu else 0,
    )
    with plainly("embedding"):
        for row in written.iter_rows():
            if row["error"]:
                raise (InputError if row["bad_input"] else HcsError)(row["error"])
            yield int(row["first"]), int(row["last"])


class _Embedder:
    """One actor: holds the network and writes the chunks it is handed."""

    def __init__(self, study: Study, digest: str) -> None:
        self._study, self._digest = study, digest
        self._config = study.config.embed
        self._device = torch.device("cuda" if self._config.use_gpu else "cpu")
        network, self._spec = load_network(study)
        self._network = network.to(self._device)
        reader = ShardReader(study.storage, study.require("shard"))
        fields = read_index(study)
        fields[ANCHOR] = fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL
        self._source = FieldSource(reader, fields, self._spec.downsample)
        self._statistics: dict[str, PlateStatistics] = {}  # of the plates met so far

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        first, last = int(batch["first"][0]), int(batch["last"][0])
        error: HcsError | None = None
        try:
            data = parquet_bytes(self._chunk(first, last))
            self._study.storage.write(f"{self._study.place('embed').folder}/{chunk_file(first, last)}", data)
        except HcsError as found:  # as a row: Ray Data does not carry the cause of an exception
            error = found
        told = {"error": [str(error or "")], "bad_input": [isinstance(error, InputError)]}
        return {"first": [first], "last": [last], **told}

    def _chunk(self, first: int, last: int) -> pa.Table:
        shares = list(self._shares(first, last))
        embeddings, probabilities = [], []
        with torch.inference_mode():
            # Before the reading ahead begins, so that no two loaders share the threads.
            known = [self._plate_statistics(share) for share in shares]
            with contextlib.closing(self._loader(shares)) as loader:
                for batch, statistics in zip(loader, known, strict=True):
                    outputs = self._infer(batch["images"], statistics)
                    embeddings.append(outputs.embeddings.cpu().numpy())
                    probabilities.append(outputs.moa.softmax(1).cpu().numpy())
        fields = self._source.fields.iloc[first : last + 1]
        return self._table(fields, np.concatenate(embeddings), np.concatenate(probabilities))

    def _shares(self, first: int, last: int) -> Iterator[Share]:
        """The fields of a chunk in batches of one plate each, in order."""
        plates = self._source.fields[c.PLATE].to_numpy()[first : last + 1]
        begins = np.flatnonzero(np.append(True, plates[1:] != plates[:-1]))
        for rows in np.split(np.arange(first, last + 1), begins[1:]):
            for start in range(0, len(rows), self._config.batch):
                part = rows[start : start + self._config.batch]
                yield Share(part, len(part))

    def _loader(self, shares: list[Share]) -> BatchLoader:
        whole = augment.whole(self._source.reader.shape)
        threads, pin = self._config.threads, self._config.use_gpu
        return BatchLoader(self._source, shares, lambda _: whole, threads=threads, pin=pin)

    def _plate_statistics(self, share: Share) -> PlateStatistics | None:
        """What a control-anchored network normalises the plate of a share by."""
        if not self._network.is_anchored:
            return None
        plate = str(self._source.fields[c.PLATE].iloc[share.rows[0]])
        if plate not in self._statistics:
            anchor_fields = ModelConfig.model_validate(self._spec.model).anchor_fields
            (found,) = with_anchors([share], self._source.fields, _ANCHORS_IN_USE * anchor_fields, None)
            with contextlib.closing(self._loader([Share(found.anchors, len(found.anchors))])) as loader:
                (controls,) = loader
                with self._autocast():
                    self._statistics[plate] = self._network.anchor(self._moved(controls["images"]))
        return self._statistics[plate]

    def _infer(self, images: torch.Tensor, statistics: PlateStatistics | None) -> Outputs:
        with self._autocast():
            outputs: Outputs = self._network(self._moved(images), statistics=statistics)
        return outputs

    def _moved(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self._device, non_blocking=True)

    def _autocast(self) -> torch.autocast:
        reduced = self._config.precision == "bf16"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=reduced)

    def _table(
        self, fields: pd.DataFrame, embeddings: np.ndarray[Any, Any], probabilities: np.ndarray[Any, Any]
    ) -> pa.Table:
        table = pa.Table.from_pandas(fields[[c.KEY, *c.metadata_columns(fields)]], preserve_index=False)
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(embeddings.ravel()), embeddings.shape[1])
        table = table.append_column(c.EMBEDDING, vectors)
        for number, name in enumerate(self._spec.classes):
            table = table.append_column(f"{c.PROBABILITY_PREFIX}{name}", pa.array(probabilities[:, number]))
        return table.replace_schema_metadata({_CLAIM: self._digest})
