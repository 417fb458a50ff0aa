"""Reading fields back by the index: a ranged read, a check, a decode, and the recorded corrections.

numpy only; reading and decoding release the GIL, so a pool of threads is enough. What may pass, a store that
does not answer or bytes that were damaged on their way, is tried again.
"""

from __future__ import annotations

import functools
import hashlib
import io
import logging
import tarfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.shards import codec
from hcs_ray.shards.cache import MemberCache
from hcs_ray.shards.codec import Look, Opened, Pixels
from hcs_ray.shards.illumination import FloatArray
from hcs_ray.stage import StageRecord
from hcs_ray.storage import LocalStorage, Storage

T = TypeVar("T")

MANIFEST = "shards/manifest.json"
_CORRECTIONS_BYTES = 2**30  # of plates whose corrections are kept in memory
_PAUSES: Final = (0.1, 0.5, 2.0)  # seconds; the client of a store makes tries of its own in each
_HEADER: Final = tarfile.BLOCKSIZE
_NAME: Final = slice(0, 100)  # of a tar's header; a longer name is cut there
_SIZE: Final = slice(124, 136)


class DamagedMemberError(HcsError):
    """A member's bytes are not those that were written, also when read again."""


@dataclass(frozen=True)
class Member:
    """A field's image in a shard, as its row of the index says."""

    key: str
    shard: str
    offset: int
    size: int
    sha256: str


@dataclass(frozen=True)
class Fetched:
    """A member whose bytes are here and whole."""

    member: Member
    opened: Opened


@dataclass(frozen=True)
class Plate:
    """What the pixels of a plate are corrected with: ``(x / illumination - low) / (high - low)``."""

    gain: FloatArray  # (C, H, W): 1 / illumination / (high - low)
    bias: FloatArray  # (C, 1, 1): -low / (high - low)


class ShardReader:
    """The shards of a study. Safe to share between threads.

    ``cache`` keeps members of a store on local disk; a local study needs none and takes none. ``pauses`` are
    the seconds between tries.
    """

    def __init__(
        self,
        storage: Storage,
        record: StageRecord,
        cache: MemberCache | None = None,
        pauses: Sequence[float] = _PAUSES,
    ) -> None:
        self.storage = storage
        self._pauses = pauses
        self._record = record
        self._cache = None if self.is_local else cache
        self.manifest: dict[str, Any] = read_manifest(storage, record)
        self.channels: tuple[str, ...] = tuple(self.manifest["channels"])
        self.shape: tuple[int, int, int] = (len(self.channels), *self.manifest["field_px"])
        plate_bytes = 4 * int(np.prod(self.shape))
        self._plate = functools.lru_cache(max(1, _CORRECTIONS_BYTES // plate_bytes))(self._load_plate)
        self._loading = threading.Lock()

    @property
    def is_local(self) -> bool:
        """Whether reading waits for a disk at most, not for a network."""
        return isinstance(self.storage, LocalStorage)

    def fetch(self, member: Member) -> Fetched:
        """A member's bytes, not yet decoded.

        It is seen each time that they are there in full, that they match the checksum they end with, that
        this tells of a field of the study's shape, and that the tar's header before them names this field and
        this size. So damage is noticed, and an offset that leads to another place or another field. The
        SHA-256 of the index, which takes half the time of decoding, is compared where a member enters the
        cache, and by ``hcs-ray verify``: without either, a member that another run of ingest wrote for the
        same field, with the same size and at the same place, would pass.

        Raises:
            InputError: there is no such shard.
            DamagedMemberError: the bytes are damaged, also when asked again; names shard and offset.
            HcsError: the storage does not give them, also when asked again; names shard and offset.
        """
        return Fetched(member, self._retried(lambda: self._open(member)))

    def floats(self, fetched: Fetched, look: Look, plate: Plate | None, out: FloatArray) -> FloatArray:
        """What ``look`` wants of a member, corrected (none: the counts), into ``out``, C-contiguous.

        Equal to `corrected` and the means of its blocks, without the arrays between.

        Raises:
            DamagedMemberError: the member is forged; names shard and offset.
        """
        scale = None if plate is None else (plate.gain, plate.bias.reshape(-1))
        try:
            return codec.decode_floats(fetched.opened, look, scale, out)
        except HcsError as error:
            raise self._damaged(fetched.member.shard, fetched.member.offset, str(error)) from None

    def pixels(self, shard: str, offset: int, size: int, sha256: str, out: Pixels | None = None) -> Pixels:
        """The raw pixels of one member, (C, H, W) uint16, compared with the index by their SHA-256.

        Raises:
            HcsError: the bytes are not those that were written; names shard and offset.
        """

        def read() -> bytes:
            data = self._bytes(shard, offset, size)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise self._damaged(shard, offset, f"{len(data)} of {size} bytes, another hash")
            return data

        return codec.decode(self._retried(read), np.empty(self.shape, np.uint16) if out is None else out)

    def _open(self, member: Member) -> Opened:
        """From the cache where an undamaged copy lies there, or else from the shard."""
        cached = self._cache.get(member.sha256, member.size) if self._cache else None
        if self._cache and cached is not None:
            try:
                return codec.open_member(cached, self.shape)
            except HcsError:
                self._cache.drop(member.sha256)
        data = memoryview(self._bytes(member.shard, member.offset, member.size, before=_HEADER))
        try:
            self._check_header(member, data)
            opened = codec.open_member(data[_HEADER:], self.shape)
            if self._cache:
                self._cache.put(member.sha256, data[_HEADER:])
        except HcsError as error:
            raise self._damaged(member.shard, member.offset, str(error)) from None
        return opened

    def _check_header(self, member: Member, data: memoryview) -> None:
        """The header is compared with what a tar says of a member of this name and size, not parsed."""
        if len(data) != _HEADER + member.size:
            raise HcsError(f"{max(len(data) - _HEADER, 0)} of {member.size} bytes")
        name = f"{member.key}.{self.manifest['member']}".encode()[:100]
        if bytes(data[_NAME]).rstrip(b"\0") != name:
            raise HcsError("the tar's header before it names another member, or none")
        if bytes(data[_SIZE]) != b"%011o\0" % member.size:
            raise HcsError("the tar's header before it names another size")

    def _bytes(self, shard: str, offset: int, size: int, before: int = 0) -> bytes:
        """A member and so many bytes before it; a failure of the storage names the place, too."""
        if offset < before:
            raise self._damaged(shard, offset, "no tar has a member there")
        try:
            return self.storage.read_range(f"shards/{shard}", offset - before, before + size)
        except HcsError as error:
            raise type(error)(f"the member at byte {offset} of {error}") from None

    def _damaged(self, shard: str, offset: int, why: str) -> DamagedMemberError:
        return DamagedMemberError(
            f"{self.storage.url}/shards/{shard}: the member at byte {offset} is damaged ({why}); "
            "copy the shard again, or make it again with hcs-ray verify --repair"
        )

    def _retried(self, read: Callable[[], T]) -> T:
        """The result of reading, tried again after each of a few pauses; bad input is not."""
        for pause in self._pauses:
            try:
                return read()
            except InputError:
                raise
            except HcsError as error:
                logging.getLogger("hcs_ray").warning("%s; trying again", error)
                time.sleep(pause)
        return read()

    def plate(self, name: str, site: int | None = None) -> Plate:
        """The corrections of a plate, for a site where they differ by site; the last few plates are kept."""
        if name not in self.manifest["plates"]:
            raise InputError(f"{self.storage.url}/{MANIFEST}: has no plate {name}")
        sites = self.manifest["plates"][name]["sites"]
        with self._loading:  # the threads that want a plate wait for the one that reads it
            return self._plate(name, None if sites is None else sites.index(site))

    def _load_plate(self, name: str, number: int | None) -> Plate:
        plate = self.manifest["plates"][name]
        low, high = (np.asarray(plate[key], np.float32)[:, None, None] for key in ("low", "high"))
        spread = np.maximum(high - low, 1)
        functions = [self._illumination(f"shards/{path}") for path in plate["illumination"]]
        if number is not None:
            functions = [function[number] for function in functions]
        return Plate(gain=(1 / (np.stack(functions) * spread)).astype(np.float32), bias=-low / spread)

    def _illumination(self, path: str) -> FloatArray:
        data = self._retried(lambda: self._record.read(self.storage, path))
        return np.asarray(np.load(io.BytesIO(data), allow_pickle=False))


def read_manifest(storage: Storage, record: StageRecord) -> dict[str, Any]:
    """``manifest.json``, of a format that this version reads."""
    manifest: dict[str, Any] = record.read_json(storage, MANIFEST)
    if manifest.get("format") != c.MANIFEST_FORMAT:
        raise InputError(
            f"{storage.url}/{MANIFEST}: format {manifest.get('format')}; "
            f"this version reads {c.MANIFEST_FORMAT}"
        )
    return manifest


def corrected(pixels: Pixels, plate: Plate, rows: slice, columns: slice) -> npt.NDArray[np.float32]:
    """A crop of a field with illumination and scale corrected: about 0 (background) to 1 (bright)."""
    crop = pixels[:, rows, columns] * plate.gain[:, rows, columns]
    crop += plate.bias
    return crop
