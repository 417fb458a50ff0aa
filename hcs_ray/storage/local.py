"""A folder as storage."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import psutil

from hcs_ray.config import StorageConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.storage.base import DEFAULTS, TEMPORARY, Writer, checked
from hcs_ray.storage.machine import boot

if TYPE_CHECKING:
    import pyarrow.fs

_LEFT_SECONDS = 600.0  # after which no living writer holds a temporary file


class LocalStorage:
    """A folder of this machine (or of a network file system that all nodes mount)."""

    def __init__(self, root: Path, options: StorageConfig = DEFAULTS) -> None:
        self.root = root.expanduser().absolute()
        self.options = options

    @property
    def url(self) -> str:
        return str(self.root)

    def path(self, path: str) -> Path:
        """The local path of a file of this storage."""
        return self.root / checked(path)

    def read(self, path: str) -> bytes:
        with self._reading(path):
            return self.path(path).read_bytes()

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        with self._reading(path):
            descriptor = os.open(self.path(path), os.O_RDONLY)
            try:
                return os.pread(descriptor, size, offset)
            finally:
                os.close(descriptor)

    def open(self, path: str) -> BinaryIO:
        with self._reading(path):
            return self.path(path).open("rb")

    @contextlib.contextmanager
    def _reading(self, path: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise InputError(f"{self.path(path)}: no such file") from None
        except OSError as error:
            raise self._failure(path, "read", error) from None

    def _failure(self, path: str, done: str, error: OSError) -> HcsError:
        return HcsError(f"{self.path(path)}: cannot be {done}: {error.strerror}")

    def read_versioned(self, path: str) -> tuple[bytes, str] | None:
        try:
            data = self.path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failure(path, "read", error) from None
        return data, hashlib.sha256(data).hexdigest()

    def size(self, path: str) -> int | None:
        try:
            return self.path(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def modified(self, path: str) -> datetime | None:
        try:
            return datetime.fromtimestamp(self.path(path).stat().st_mtime, UTC)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, prefix: str = "") -> dict[str, int]:
        top = self.path(prefix) if prefix else self.root
        found: dict[str, int] = {}
        with self._listing(prefix):
            for folder, _, names in os.walk(top, onerror=_unless_gone):
                for name in names:
                    if not name.startswith(TEMPORARY):
                        file = Path(folder, name)
                        with contextlib.suppress(FileNotFoundError):  # deleted since the folder was listed
                            found[file.relative_to(self.root).as_posix()] = file.stat().st_size
        return found

    @contextlib.contextmanager
    def _listing(self, prefix: str) -> Iterator[None]:
        """What cannot be listed is an error: it must not look as if nothing were there."""
        try:
            yield
        except OSError as error:
            there = error.filename or self.path(prefix)
            raise HcsError(f"{there}: cannot be listed: {error.strerror}") from None

    def write(self, path: str, data: bytes) -> None:
        with self.writing(path) as file:
            file.write(data)

    @contextlib.contextmanager
    def writing(self, path: str) -> Iterator[Writer]:
        with self._temporary(path) as (temporary, file):
            yield file
            file.finish()
            with self._told(path):
                temporary.replace(self.path(path))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        with self._temporary(path) as (temporary, file):
            file.write(data)
            file.finish()
            with self._told(path):
                try:
                    os.link(temporary, self.path(path))  # like O_EXCL, and never seen half-written
                except FileExistsError:
                    return False
            return True

    @contextlib.contextmanager
    def _temporary(self, path: str) -> Iterator[tuple[Path, _File]]:
        """A new file beside another; it is gone at the end, or has become the other."""
        folder = self.path(path).parent
        temporary = folder / f"{TEMPORARY}{_here()}-{os.getpid()}-{uuid.uuid4().hex}"
        with self._told(path):
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise InputError(f"{folder}: is not a folder") from None
            file = temporary.open("xb")
        try:
            with contextlib.closing(file):
                yield temporary, _File(file, lambda: self._told(path))
        finally:
            temporary.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failure(path, "written", error) from None

    def put_if_match(self, path: str, data: bytes, version: str) -> bool:
        with self._locked(self.path(path).parent):
            current = self.read_versioned(path)
            if current is None or current[1] != version:
                return False
            self.write(path, data)
            return True

    @contextlib.contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Hold the kernel's lock on a folder; it goes with the process."""
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def delete(self, path: str) -> None:
        try:
            self.path(path).unlink(missing_ok=True)
        except OSError as error:
            raise self._failure(path, "deleted", error) from None

    def sweep(self, folder: str, mine: Callable[[str], bool] | None = None) -> None:
        """As `Storage.sweep`: files whose writer on this machine is gone, and any that are old."""
        for left in self.path(folder).rglob(f"{TEMPORARY}*"):
            with contextlib.suppress(OSError):  # gone, or not ours to delete
                if _is_left(left):
                    left.unlink()

    def child(self, folder: str) -> LocalStorage:
        return LocalStorage(self.path(folder), self.options)

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem(), str(self.root)


def _unless_gone(error: OSError) -> None:
    """For a walk: a folder that is not there, or no longer, is empty."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _is_left(temporary: Path) -> bool:
    machine, _, writer = temporary.name.removeprefix(TEMPORARY).partition("-")
    process = writer.partition("-")[0]
    if machine == _here() and process.isdigit() and not psutil.pid_exists(int(process)):
        return True
    return time.time() - temporary.stat().st_mtime > _LEFT_SECONDS


@functools.cache
def _here() -> str:
    return hashlib.sha256(f"{socket.gethostname()} {boot()}".encode()).hexdigest()[:12]


class _File:
    """A temporary file whose failures name the file that it will become."""

    def __init__(self, file: BinaryIO, told: Callable[[], AbstractContextManager[None]]) -> None:
        self._file = file
        self._told = told

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        with self._told():
            return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def finish(self) -> None:
        """All of it on the disk."""
        with self._told():
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()
