"""Members read from S3, kept on a local disk: shared by the processes of a node, within a limit of bytes.

A file is named by its content's SHA-256, so it fits any study and never goes stale. Adding goes on under the
kernel's lock on one file, which also holds the number of bytes; it goes with its process. Reading takes no
lock: a file that vanishes meanwhile is a miss, and one that is being read stays readable.

To make room, a process deletes what nobody has used since it began, the longest unused first: what earlier
runs have left. Where all that is there is in use, nothing more is added. For every epoch reads all fields in
a new order: were the oldest always to give way to the newest, a cache with room for half of the fields would
find an eighth of them again, not the half.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.shards.codec import Buffer
from hcs_ray.storage.base import TEMPORARY

_LOCK: Final = "lock"
_SPARE: Final = 0.05  # of the limit that an eviction frees, so that not every member looks through all files


class MemberCache:
    """Members by their SHA-256. Safe to share between threads, and a folder between processes."""

    def __init__(self, folder: Path, limit_bytes: int) -> None:
        """Open the folder, or make it.

        Raises:
            InputError: it cannot be written.
        """
        self.folder = folder
        self._limit = limit_bytes
        self._writable, self._full = True, False
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._locked() as lock:
                lock.write(self._sweep())
                self._opened_ns = os.stat(lock.file).st_mtime_ns  # by the same clock as the files' own times
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be a cache: {error.strerror}; set train.cache_folder"
            ) from None

    def get(self, sha256: str, size: int) -> bytes | None:
        """A member's bytes, or None; whether they are undamaged is the reader's to see."""
        path = self._path(sha256)
        try:
            data = path.read_bytes()
            os.utime(path)  # it is in use
        except OSError:
            return None
        if len(data) != size:
            self.drop(sha256)
            return None
        return data

    def put(self, sha256: str, data: Buffer) -> None:
        """Keep a member, where there is room for it.

        On a disk that is full or cannot be written to, this process adds nothing more.

        Raises:
            HcsError: the bytes are not those of this SHA-256.
        """
        if not self._writable or self._full or len(data) > self._limit:
            return
        if hashlib.sha256(data).hexdigest() != sha256:
            raise HcsError("another hash")
        try:
            with self._locked() as lock:
                self._add(lock, sha256, data)
        except OSError as error:
            self._writable = False
            message = "%s: this process caches no more members (%s)"
            logging.getLogger("hcs_ray").warning(message, self.folder, error.strerror)

    def drop(self, sha256: str) -> None:
        """Delete a member that is damaged."""
        with contextlib.suppress(OSError), self._locked() as lock:
            path = self._path(sha256)
            size = path.stat().st_size
            path.unlink()
            lock.write(self._total(lock) - size)
            self._full = False

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256

    @contextlib.contextmanager
    def _locked(self) -> Iterator[_Lock]:
        file = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield _Lock(file)
        finally:
            os.close(file)

    def _add(self, lock: _Lock, sha256: str, data: Buffer) -> None:
        path = self._path(sha256)
        if path.exists():
            return
        total = self._total(lock)
        if total + len(data) > self._limit:
            total = self._evict(len(data))
            lock.write(total)
            if (
                total + len(data) > self._limit
            ):  # all that is there is in use, for as long as this process runs
                self._full = True
                return
        lock.write(total + len(data))  # first: a killed process leaves too high a number, not too low a one
        path.parent.mkdir(exist_ok=True)
        temporary = path.with_name(f"{TEMPORARY}{sha256}")
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            temporary.unlink(missing_ok=True)
            lock.write(total)
            raise

    def _total(self, lock: _Lock) -> int:
        """Bytes that are kept, counted again where their number was lost."""
        noted = lock.read()
        return int(noted) if noted.isdigit() else self._sweep()

    def _evict(self, needed: int) -> int:
        """Delete what was not used since this process began until there is room; the bytes that stay."""
        entries = sorted(self._entries())
        total = sum(entry.size for entry in entries)
        for entry in entries:
            roomy = total + needed <= self._limit * (1 - _SPARE)
            if roomy or entry.used_ns >= self._opened_ns:
                break
            entry.path.unlink(missing_ok=True)
            total -= entry.size
        return total

    def _sweep(self) -> int:
        """Delete what killed processes have left half-written; the bytes that stay."""
        for left in self.folder.glob(f"??/{TEMPORARY}*"):  # under the lock nobody is writing
            left.unlink(missing_ok=True)
        return sum(entry.size for entry in self._entries())

    def _entries(self) -> Iterator[_Entry]:
        for path in self.folder.glob("??/*"):
            with contextlib.suppress(FileNotFoundError):
                found = path.stat()
                yield _Entry(found.st_mtime_ns, found.st_size, path)


class _Entry(NamedTuple):
    used_ns: int
    size: int
    path: Path


class _Lock:
    """The locked file, whose content is the number of bytes that are kept."""

    def __init__(self, file: int) -> None:
        self.file = file

    def read(self) -> bytes:
        return os.pread(self.file, 20, 0).strip()

    def write(self, total: int) -> None:
        os.pwrite(self.file, b"%-20d" % total, 0)


def node_cache(folder: str | None, limit_gb: float) -> MemberCache | None:
    """The cache of this node as ``train.cache_folder`` and ``train.cache_gb`` name it; None for 0 GB.

    Without a folder it lies in the node's temporary folder, one a user.

    Raises:
        InputError: the folder cannot be written, or the temporary one is another user's.
    """
    if limit_gb == 0:
        return None
    if folder is not None:
        return MemberCache(Path(folder).expanduser().absolute(), int(limit_gb * 1e9))
    own = Path(tempfile.gettempdir(), f"hcs-ray-members-{os.getuid()}")
    if own.is_symlink() or (own.exists() and own.stat().st_uid != os.getuid()):
        raise InputError(f"{own}: belongs to another user; set train.cache_folder")
    return MemberCache(own, int(limit_gb * 1e9))
