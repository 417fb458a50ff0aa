"""What the network is fed with: a rank's shares of the epoch's list, read by threads into batches.

Threads of the process that trains fetch, check, decode, crop and correct fields straight into the batch:
nothing is passed between processes or copied on the way, and the memory of batches is reused. A store on a
network gets four times as many readers as ``train.threads``, which then limits how many decode at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple, TypedDict

import numpy as np
import pandas as pd
import torch

from hcs_ray import contracts as c
from hcs_ray.config import TrainConfig
from hcs_ray.contracts import HcsError
from hcs_ray.model import augment, epochs
from hcs_ray.model.augment import Crop
from hcs_ray.model.epochs import Positions, Share
from hcs_ray.shards.codec import Look
from hcs_ray.shards.illumination import FloatArray
from hcs_ray.shards.read import Fetched, Member, ShardReader

Draw = Callable[[str], FloatArray]  # key to (P,) float32

_REMOTE_READERS: Final = 4  # for each thread that decodes
_HELD: Final = 2  # batches that whoever iterates may still look at: the newest, and the one before it


class Batch(TypedDict):
    """A rank's part of a global batch; control fields that anchor it come last."""

    images: torch.Tensor  # (B, C, h, w) float32: cropped, corrected, downsampled
    rows: torch.Tensor  # (B,) int64: positions in the table of fields
    weights: torch.Tensor  # (B,) float32: 1 / entries of the global batch; 0 for anchors and stand-ins
    anchors: torch.Tensor  # (B,) bool
    changes: torch.Tensor  # (B, P) float32: how `augment.apply` changes each; P is 0 where it does not


@dataclass(frozen=True)
class FieldSource:
    """Reads the fields of a table as the network sees them."""

    reader: ShardReader
    fields: pd.DataFrame
    downsample: int
    corrected: bool = True  # False: the counts as they are

    def image(self, position: int, crop: Crop, out: FloatArray | None = None) -> FloatArray:
        """(C, h, w) float32 of the field at a position of the table, in ``out`` where that is given.

        Raises:
            HcsError: it cannot be read, also when tried again; names key, shard and offset.
        """
        target = np.empty(self.shape(crop), np.float32) if out is None else out
        return self.render(position, self.fetch(position), crop, target)

    def shape(self, crop: Crop) -> tuple[int, int, int]:
        """(C, h, w) of an image."""
        return self._look(crop).shape(self.reader.shape[0])

    def key(self, position: int) -> str:
        """The key of a field."""
        return self._rows[position].member.key

    def fetch(self, position: int) -> Fetched:
        """The first part of `image`, which waits for the storage."""
        with self._named(position):
            return self.reader.fetch(self._rows[position].member)

    def render(self, position: int, fetched: Fetched, crop: Crop, out: FloatArray) -> FloatArray:
        """The second part of `image`, which computes."""
        row = self._rows[position]
        with self._named(position):
            plate = self.reader.plate(row.plate, row.site) if self.corrected else None
            return self.reader.floats(fetched, self._look(crop), plate, out)

    def _look(self, crop: Crop) -> Look:
        return Look(crop.rows, crop.columns, self.downsample)

    @contextlib.contextmanager
    def _named(self, position: int) -> Iterator[None]:
        try:
            yield
        except HcsError as error:
            raise type(error)(f"field {self.key(position)}: {error}") from None

    @functools.cached_property
    def _rows(self) -> list[_Row]:
        """A row of a table of pandas takes as long to get at as a tenth of a field to read."""
        names = [c.KEY, c.SHARD, c.OFFSET, c.SIZE, c.SHA256, c.PLATE, c.SITE]
        columns = zip(*(self.fields[name].tolist() for name in names), strict=True)
        return [_Row(Member(*values[:5]), *values[5:]) for values in columns]


class _Row(NamedTuple):
    member: Member
    plate: str
    site: int


class BatchLoader:
    """Iterates over a rank's batches, reading ahead by threads.

    The memory of a batch is used again from the second batch after it on. What cannot be read raises where
    its batch would come. One iteration goes on at a time: a new one ends the one before.
    """

    def __init__(
        self,
        source: FieldSource,
        shares: list[Share],
        crop: Callable[[str], Crop],
        changes: Draw | None = None,
        *,
        threads: int,
        pin: bool = False,
    ) -> None:
        """A loader of these shares.

        Args:
            source: Where the fields come from.
            shares: Of an empty one, the first field of the table is read in its stead, with weight 0.
            crop: From a field's key; all crops have one size.
            changes: From a field's key; none: (B, 0).
            threads: How many fields are decoded at a time.
            pin: Into pinned memory, from where a GPU takes it without a copy.
        """
        self._source = source
        self._shares = shares
        self._crop = crop
        self._changes = changes
        self._threads = threads
        self._pin = pin
        self._decoding = threading.Semaphore(threads)
        self._slots: list[_Slot] = []
        self._iteration: Callable[[], Generator[Batch] | None] = lambda: None

    def __len__(self) -> int:
        return len(self._shares)

    def __iter__(self) -> Iterator[Batch]:
        self.close()
        iteration = self._batches()
        self._iteration = weakref.ref(iteration)  # so that one that nobody holds any more ends at once
        return iteration

    def close(self) -> None:
        """End an iteration that was left, and its threads, after what they are reading."""
        iteration = self._iteration()
        if iteration is not None:
            iteration.close()

    def _batches(self) -> Generator[Batch]:
        if not self._shares:
            return
        readers = self._threads * (1 if self._source.reader.is_local else _REMOTE_READERS)
        largest = max(max(len(share.rows), 1) + len(share.anchors) for share in self._shares)
        most_ahead = -(-2 * readers // largest)  # so many batches, that no reader waits for whoever iterates
        self._make_slots(most_ahead + _HELD, largest)
        pool = ThreadPoolExecutor(readers, thread_name_prefix="loader")
        ahead: deque[_Reading] = deque()
        try:
            for number, share in enumerate(self._shares):
                ahead.append(self._begin(pool, share, self._slots[number % len(self._slots)]))
                if len(ahead) > most_ahead:
                    yield from self._hand_over(ahead.popleft())
            while ahead:
                yield from self._hand_over(ahead.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _make_slots(self, count: int, largest: int) -> None:
        """Memory for batches, kept from one iteration to the next."""
        if not self._slots:
            shape = self._source.shape(self._crop(self._source.key(0)))
            slots = min(count, len(self._shares))
            self._slots = [_Slot(torch.empty((largest, *shape), pin_memory=self._pin)) for _ in range(slots)]

    def _begin(self, pool: ThreadPoolExecutor, share: Share, slot: _Slot) -> _Reading:
        slot.await_copies()
        real = share.rows if len(share.rows) else _STAND_IN
        rows = np.concatenate([real, share.anchors])
        places = slot.images.numpy()
        reads = [pool.submit(self._read, int(row), places[place]) for place, row in enumerate(rows)]
        return _Reading(share, rows, slot, reads)

    def _read(self, position: int, out: FloatArray) -> FloatArray:
        """Write one image; returns how it is changed, (P,)."""
        key = self._source.key(position)
        crop = self._crop(key)
        fetched = self._source.fetch(position)
        with self._decoding:
            self._source.render(position, fetched, crop, out)
        return np.empty(0, np.float32) if self._changes is None else self._changes(key)

    def _hand_over(self, reading: _Reading) -> Iterator[Batch]:
        changes = np.stack([read.result() for read in reading.reads])
        rows, share = reading.rows, reading.share
        anchors = np.arange(len(rows)) >= len(rows) - len(share.anchors)
        weight = 1 / share.batch if len(share.rows) else 0.0
        try:
            yield Batch(
                images=reading.slot.images[: len(rows)],
                rows=torch.from_numpy(rows),
                weights=torch.from_numpy(np.where(anchors, 0, weight).astype(np.float32)),
                anchors=torch.from_numpy(anchors),
                changes=torch.from_numpy(changes),
            )
        finally:
            reading.slot.note_copies()


_STAND_IN: Final[Positions] = np.zeros(1, np.int64)


class _Slot:
    """The memory of a batch, and when a GPU has taken it over."""

    def __init__(self, images: torch.Tensor) -> None:
        self.images = images
        self._taken: torch.cuda.Event | None = None

    def note_copies(self) -> None:
        """Whoever iterates has asked for its copy to the device, which may not have begun."""
        if self.images.is_pinned():
            self._taken = torch.cuda.current_stream().record_event()

    def await_copies(self) -> None:
        """Return when the memory may be written to again."""
        if self._taken is not None:
            self._taken.synchronize()
            self._taken = None


class _Reading(NamedTuple):
    share: Share
    rows: Positions  # of the share or its stand-in, then the anchors
    slot: _Slot
    reads: list[Future[FloatArray]]


def training_batches(
    source: FieldSource,
    config: TrainConfig,
    epoch: int,
    rank: int,
    world: int,
    start: int = 0,
    anchor_fields: int = 0,
) -> BatchLoader:
    """One epoch's batches for one rank, from the cursor ``start`` (in samples of the list) on.

    Crops and changes are drawn from (seed, epoch, key), anchors from (seed, epoch, plate, step).
    """
    shape = source.reader.shape
    side_px = augment.read_px(config, shape)
    listed = epochs.epoch_list(source.fields, config, epoch)
    shares = epochs.shares(listed, config.global_batch, rank, world, start)
    shares = _anchored(shares, source.fields, anchor_fields, (config.seed, epoch))
    return BatchLoader(
        source,
        shares,
        lambda key: augment.draw_crop(shape, side_px, (config.seed, epoch, key)),
        lambda key: augment.draw(config.augment, shape[0], (config.seed, epoch, key)),
        threads=config.threads,
        pin=config.use_gpu,
    )


def plain_batches(
    source: FieldSource,
    config: TrainConfig,
    rank: int,
    world: int,
    anchor_fields: int = 0,
    *,
    whole: bool = False,
) -> BatchLoader:
    """Every listed field once, its middle or all of it, in the order of plates, anchors always the same."""
    listed = epochs.plate_order(source.fields)
    shares = epochs.shares(listed, config.global_batch, rank, world)
    shares = _anchored(shares, source.fields, anchor_fields, None)
    shape = source.reader.shape
    part = augment.whole(shape) if whole else augment.centre(shape, config.crop_px)
    return BatchLoader(source, shares, lambda _: part, threads=config.threads, pin=config.use_gpu)


def _anchored(
    shares: list[Share], fields: pd.DataFrame, anchor_fields: int, seed: tuple[int, ...] | None
) -> list[Share]:
    """With anchors for each share, an empty one's for its stand-in."""
    if anchor_fields == 0:
        return shares
    filled = [share if len(share.rows) else dataclasses.replace(share, rows=_STAND_IN) for share in shares]
    found = epochs.with_anchors(filled, fields, anchor_fields, seed)
    return [
        dataclasses.replace(share, anchors=anchored.anchors)
        for share, anchored in zip(shares, found, strict=True)
    ]
