"""What the network is fed with: one global list of fields an epoch, shared out among the ranks.

The list follows from (seed, epoch) alone. It is cut into global batches, and each of those is shared out
in parts that differ by at most one field, so every rank makes the same steps. What a run sees does not depend
on the number of workers; what it learns does a little, since batch normalisation takes each rank's own share.
Fields are read, checked and decoded by threads.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from hcs_ray import contracts as c
from hcs_ray.config import TrainConfig
from hcs_ray.model import augment
from hcs_ray.model.augment import View
from hcs_ray.shards.illumination import FloatArray
from hcs_ray.shards.read import ShardReader

Positions = npt.NDArray[np.int64]
LABEL = "label"  # class number of a row, in a table of fields to learn from or to be judged by


class Batch(TypedDict):
    """A rank's part of a global batch."""

    images: torch.Tensor  # (B, C, H, W) float32
    labels: torch.Tensor  # (B,) int64
    rows: torch.Tensor  # (B,) int64: positions in the table of fields
    weights: torch.Tensor  # (B,) float32: 1 / size of the global batch; 0 for a rank's stand-in


def epoch_list(fields: pd.DataFrame, config: TrainConfig, epoch: int) -> Positions:
    """Positions of the fields of an epoch, in order: all, but positive controls only up to their cap."""
    rng = np.random.default_rng([config.seed, epoch])
    control = (fields[c.PERT_TYPE] == c.POSITIVE_CONTROL).to_numpy()
    controls = rng.permutation(np.flatnonzero(control))[: config.positive_controls_per_epoch]
    return rng.permutation(np.concatenate([np.flatnonzero(~control), controls])).astype(np.int64)


def parts(positions: Positions, global_batch: int, rank: int, world: int) -> list[tuple[Positions, int]]:
    """A rank's share of every global batch, with the size of the whole batch; a share may be empty."""
    batches = [positions[i : i + global_batch] for i in range(0, len(positions), global_batch)]
    # The share is dealt by stride, so sizes differ by at most one.
    return [(batch[rank::world], len(batch)) for batch in batches]


@dataclass(frozen=True)
class FieldSource:
    """Reads the fields of a table as the network sees them."""

    reader: ShardReader
    fields: pd.DataFrame
    downsample: int

    def image(self, position: int, view: View) -> FloatArray:
        """One field; an error names its shard, offset and key."""
        row = self.fields.iloc[position]
        try:
            pixels = self.reader.pixels(row[c.SHARD], int(row[c.OFFSET]), int(row[c.SIZE]), row[c.SHA256])
        except c.HcsError as error:
            raise type(error)(f"field {row[c.KEY]}: {error}") from None
        plate = self.reader.plate(row[c.PLATE], int(row[c.SITE]))
        return augment.render(pixels, plate, view, self.downsample)


class BatchLoader:
    """Iterates over a rank's batches, reading ahead by threads."""

    def __init__(
        self,
        source: FieldSource,
        shares: list[tuple[Positions, int]],
        view: Callable[[str], View],
        threads: int,
    ) -> None:
        self._source = source
        self._shares = shares
        self._view = view
        self._threads = threads

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[Batch]:
        with ThreadPoolExecutor(self._threads, thread_name_prefix="loader") as pool:
            ahead: deque[tuple[list[Future[FloatArray]], Positions, int]] = deque()
            for share, size in self._shares:
                read = share if len(share) else np.zeros(1, np.int64)  # an empty rank's stand-in, weight 0
                ahead.append(([pool.submit(self._image, int(p)) for p in read], share, size))
                if len(ahead) > 2:
                    yield self._collect(*ahead.popleft())
            while ahead:
                yield self._collect(*ahead.popleft())

    def _image(self, position: int) -> FloatArray:
        key = str(self._source.fields[c.KEY].iloc[position])
        return self._source.image(position, self._view(key))

    def _collect(self, images: list[Future[FloatArray]], share: Positions, size: int) -> Batch:
        rows = share if len(share) else np.zeros(1, np.int64)
        weight = 1 / size if len(share) else 0.0
        labels: Any = self._source.fields[LABEL].to_numpy(np.int64)[rows]
        return Batch(
            images=torch.from_numpy(np.stack([image.result() for image in images])),
            labels=torch.from_numpy(labels),
            rows=torch.from_numpy(rows),
            weights=torch.full((len(rows),), weight, dtype=torch.float32),
        )


def training_batches(
    source: FieldSource, config: TrainConfig, epoch: int, rank: int, world: int
) -> BatchLoader:
    """The augmented batches of one epoch for one rank."""
    shares = parts(epoch_list(source.fields, config, epoch), config.global_batch, rank, world)
    shape = source.reader.shape

    def view(key: str) -> View:
        return augment.draw(shape, config.crop_px, config.intensity_jitter, (config.seed, epoch, key))

    return BatchLoader(source, shares, view, config.threads)


def plain_batches(source: FieldSource, config: TrainConfig, rank: int, world: int) -> BatchLoader:
    """Every field of a table once, its middle, in order."""
    shares = parts(np.arange(len(source.fields)), config.global_batch, rank, world)
    middle = augment.centre(source.reader.shape, config.crop_px)
    return BatchLoader(source, shares, lambda _: middle, config.threads)
