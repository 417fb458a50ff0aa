"""What one actor does: reads, decodes and infers the fields of a chunk, batch by batch.

Batches are of one plate each, and their composition follows from the index and the configuration alone. A
control-anchored network is told each plate's statistics, which come from control fields of the plate.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import torch

from hcs_ray import contracts as c
from hcs_ray.config import ModelConfig, canonical_digest
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.embed.chunks import Unreadable, chunk_table
from hcs_ray.embed.index import IndexReader
from hcs_ray.embed.views import Pooled, cut, part_read, see
from hcs_ray.model.anchored import PlateStatistics
from hcs_ray.model.backbone import fewest_px
from hcs_ray.model.epochs import Positions, Share, with_anchors
from hcs_ray.model.loader import BatchLoader, FieldSource
from hcs_ray.model.network import Outputs
from hcs_ray.model.targets import ANCHOR
from hcs_ray.shards.read import DamagedMemberError, ShardReader
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import Study
from hcs_ray.tables import chunk_file
from hcs_ray.train import load_network

Embeddings = npt.NDArray[np.floating[Any]]
_ANCHORS_IN_USE: Final = 4  # times model.anchor_fields: what is computed once can do with less noise


class Embedder:
    """Holds the network, and makes the chunks it is asked for.

    Raises:
        InputError: the network takes no images as small as the configured tiles.
    """

    def __init__(self, study: Study, digest: str) -> None:
        self._study, self._digest = study, digest
        self._config = study.config.embed
        self._device = torch.device("cuda" if self._config.use_gpu else "cpu")
        # By itself torch rounds what convolutions of float32 read to 10 bits, on a GPU alone.
        torch.backends.cudnn.allow_tf32 = self._config.precision != "32"
        network, self._spec = load_network(study)
        self._network = network.to(self._device)
        self._index = IndexReader(study.storage)
        self._reader = ShardReader(study.storage, study.require("shard"))
        self._part = part_read(self._config, self._reader.shape)
        self._statistics: dict[str, PlateStatistics] = {}  # of the plates met so far
        self._damaged_controls: dict[str, list[str]] = {}  # of these plates
        self._check_size()

    def write(self, first: int, last: int) -> None:
        """Write the file of a chunk, by one put."""
        data = parquet_bytes(self.table(first, last))
        self._check_claim()
        self._study.storage.write(f"{self._study.place('embed').folder}/{chunk_file(first, last)}", data)

    def table(self, first: int, last: int) -> pa.Table:
        """A chunk, as its file holds it.

        Raises:
            DamagedMemberError: a field is damaged, ``embed.on_error`` is fail; names field, shard and offset.
            HcsError: the storage does not give a field.
            InputError: the network is control-anchored, and a plate has no control to anchor it; or an
                embedding is not finite as it would be written.
        """
        rows = self._index.rows(first, last)
        source = self._source(rows)
        kept: Positions = np.arange(rows.num_rows)
        unreadable: list[Unreadable] = []
        try:
            found = self._infer(source, kept)
        except DamagedMemberError:
            if self._config.on_error == "fail":
                raise
            unreadable = self._unreadable(source, kept)
            kept = np.flatnonzero(~source.fields[c.KEY].isin([row.key for row in unreadable]))
            found = self._infer(source, kept)
        meta = rows.select([c.KEY, *c.metadata_columns(rows.column_names)]).take(pa.array(kept))
        embeddings = self._stored(found, meta[c.KEY])
        probabilities = found.probabilities.numpy()
        plates = dict.fromkeys(meta[c.PLATE].to_pylist())
        lacking = [key for plate in plates for key in self._damaged_controls.get(plate, [])]
        return chunk_table(
            meta, embeddings, probabilities, self._spec, (first, last), self._digest, unreadable, lacking
        )

    def _stored(self, found: Pooled, keys: pa.ChunkedArray) -> Embeddings:
        """Embeddings as they are written; `InputError` where one is not finite then."""
        with np.errstate(over="ignore"):
            embeddings = found.embeddings.numpy().astype(self._config.dtype)
        lost = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
        if not lost.size:
            return embeddings
        key = keys[int(lost[0])].as_py()
        if found.embeddings[int(lost[0])].isfinite().all():
            raise InputError(f"embed.dtype {self._config.dtype}: too small for the embedding of field {key}")
        raise InputError(f"field {key}: the network's embedding of it is not finite; train again")

    def _source(self, rows: pa.Table) -> FieldSource:
        fields: pd.DataFrame = rows.to_pandas()
        fields[ANCHOR] = fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL
        return FieldSource(self._reader, fields, self._spec.downsample)

    def _infer(self, source: FieldSource, rows: Positions) -> Pooled:
        """Embeddings and probabilities of some fields of a source, on the CPU."""
        features, classes = self._network.backbone.features, len(self._spec.classes)
        embeddings, probabilities = torch.empty(len(rows), features), torch.empty(len(rows), classes)
        shares, done = list(self._shares(source, rows)), 0
        with torch.inference_mode():
            # Before the reading ahead begins, so that no two loaders share the threads.
            known = [self._plate_statistics(self._plate_of(source, share)) for share in shares]
            with contextlib.closing(self._loader(source, shares)) as loader:
                for batch, statistics in zip(loader, known, strict=True):
                    seen = self._see(batch["images"], statistics)
                    embeddings[done : done + len(seen.embeddings)] = seen.embeddings
                    probabilities[done : done + len(seen.embeddings)] = seen.probabilities
                    done += len(seen.embeddings)
        return Pooled(embeddings, probabilities)

    def _see(self, images: torch.Tensor, statistics: PlateStatistics | None) -> Pooled:
        def network(view: torch.Tensor) -> Outputs:
            outputs: Outputs = self._network(view, statistics=statistics)
            return outputs

        try:
            with self._autocast():
                return see(self._moved(images), self._config, self._spec.downsample, network)
        except torch.OutOfMemoryError:
            raise InputError(
                f"embed.batch {self._config.batch}: the device lacks memory for so many fields at once; "
                "take fewer, or smaller tiles"
            ) from None

    def _shares(self, source: FieldSource, rows: Positions) -> Iterator[Share]:
        """Rows in batches of one plate each, in order."""
        plates = source.fields[c.PLATE].to_numpy()[rows]
        begins = np.flatnonzero(plates[1:] != plates[:-1]) + 1
        for of_plate in np.split(rows, begins):
            for start in range(0, len(of_plate), self._config.batch):
                part = of_plate[start : start + self._config.batch]
                yield Share(part, len(part))

    def _loader(self, source: FieldSource, shares: list[Share]) -> BatchLoader:
        threads, pin = self._config.threads, self._config.use_gpu
        return BatchLoader(source, shares, lambda _: self._part, threads=threads, pin=pin)

    def _plate_of(self, source: FieldSource, share: Share) -> str:
        return str(source.fields[c.PLATE].iloc[share.rows[0]])

    def _plate_statistics(self, plate: str) -> PlateStatistics | None:
        """What a control-anchored network normalises a plate by; its controls are tiled, but not turned."""
        if not self._network.is_anchored:
            return None
        if plate not in self._statistics:
            images = self._control_images(plate)
            with self._autocast():
                tiles = torch.cat(list(cut(self._moved(images), self._config, self._spec.downsample)))
                self._statistics[plate] = self._network.anchor(tiles)
        return self._statistics[plate]

    def _control_images(self, plate: str) -> torch.Tensor:
        """Always the same controls of a plate, whatever chunk asks; damaged ones make room for others."""
        wanted = _ANCHORS_IN_USE * ModelConfig.model_validate(self._spec.model).anchor_fields
        source = self._source(self._index.controls(plate))
        if source.fields.empty:
            raise InputError(
                f"plate {plate}: no negative control can anchor it; leave such plates out, "
                "or set model.normalization: batch"
            )
        while True:
            share = Share(np.zeros(1, np.int64), 1)
            (found,) = with_anchors([share], source.fields, wanted, None)
            loader = self._loader(source, [Share(found.anchors, len(found.anchors))])
            try:
                with contextlib.closing(loader):
                    (batch,) = loader
                return batch["images"]
            except DamagedMemberError:
                if self._config.on_error == "fail":
                    raise
            damaged = [row.key for row in self._unreadable(source, found.anchors)]
            self._damaged_controls.setdefault(plate, []).extend(damaged)
            source.fields[ANCHOR] &= ~source.fields[c.KEY].isin(damaged)

    def _unreadable(self, source: FieldSource, rows: Positions) -> list[Unreadable]:
        """Those of some fields whose members are damaged; each is read by itself."""

        def look(row: int) -> Unreadable | None:
            try:
                source.image(row, self._part)
            except DamagedMemberError as error:
                about = source.fields.iloc[row]
                return Unreadable(about[c.KEY], about[c.SHARD], int(about[c.OFFSET]), str(error))
            return None

        with ThreadPoolExecutor(self._config.threads, thread_name_prefix="look") as threads:
            return [found for found in threads.map(look, rows.tolist()) if found is not None]

    def _check_size(self) -> None:
        config, backbone = self._config, ModelConfig.model_validate(self._spec.model).backbone
        if config.tiles == "full":
            return
        side = -(-min(config.tile_px, *self._reader.shape[1:]) // self._spec.downsample)
        if side < fewest_px(backbone):
            raise InputError(
                f"embed.tile_px {config.tile_px}: {backbone} takes at least {fewest_px(backbone)} px a side "
                f"after downsampling by {self._spec.downsample}"
            )

    def _check_claim(self) -> None:
        """`HcsError` where the stage has been begun anew with another claim since this actor began."""
        begun = self._study.storage.read_versioned(self._study.place("embed").begun)
        if begun is None or canonical_digest(json.loads(begun[0])) != self._digest:
            raise HcsError(f"embed {self._study.name} has been begun anew by another command meanwhile")

    def _moved(self, images: torch.Tensor) -> torch.Tensor:
        return images.to(self._device, non_blocking=True)

    def _autocast(self) -> torch.autocast:
        reduced = self._config.precision == "bf16"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=reduced)
