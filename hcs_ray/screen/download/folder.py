"""The folder that a screen is fetched to: one writer at a time, a record of what is right, nothing lost."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

import xxhash

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.screen.download.server import Remote, Say

RECORD: Final = "download.json"
_RECORD_FORMAT: Final = 1
_LOCK: Final = ".download.lock"
_CHUNK_BYTES: Final = 1 << 20
_NO_LINKS: Final = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_NO_LOCKS: Final = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK}


@dataclass(frozen=True)
class Checked:
    """A file that was read whole and found right, as it stood then.

    Attributes:
        size: Bytes.
        mtime_ns: By which a later change is seen.
        xxh3_128: Of its bytes, hex.
        remote: The server's version.
    """

    size: int
    mtime_ns: int
    xxh3_128: str
    remote: Remote


class Folder:
    """A local folder with a record (``download.json``) of the files that were checked. Thread-safe.

    Attributes:
        path: The folder.
        renamed: The new names of files that were set aside.
    """

    def __init__(self, path: Path, say: Say) -> None:
        self.path = path
        self.renamed: list[str] = []
        self._say = say
        self._guard = threading.RLock()
        self._checked: dict[str, Checked] = {}

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder and keep other downloads out of it; `HcsError` where one is at work."""
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._lock(lock)
            self._checked = self._read_record()
            yield
        finally:
            os.close(lock)

    def checked(self, name: str) -> Checked | None:
        """What the record says of a file that is as it was when it was checked; else None."""
        found = self._checked.get(name)
        with contextlib.suppress(FileNotFoundError):
            stat = (self.path / name).stat()
            if found and (stat.st_size, stat.st_mtime_ns) == (found.size, found.mtime_ns):
                return found
        return None

    def note(self, name: str, digest: str, remote: Remote) -> None:
        """Record that a file is right."""
        stat = (self.path / name).stat()
        with self._guard:
            self._checked[name] = Checked(stat.st_size, stat.st_mtime_ns, digest, remote)
            files = {name: asdict(checked) for name, checked in sorted(self._checked.items())}
            text = json.dumps({"format": _RECORD_FORMAT, "files": files}, indent=1)
            fresh = self.path / f"{RECORD}.new"
            fresh.write_text(text + "\n")
            fresh.replace(self.path / RECORD)

    def place(self, part: Path, name: str) -> None:
        """Give a whole file its name; what stands there under that name is set aside, never replaced."""
        target = self.path / name
        with self._guard:
            if os.path.lexists(target):
                kept = self.set_aside(target, name)
                self._say(f"{name}: what was here differs; kept as {kept}")
            _rename_new(part, target)
            _sync(self.path)

    def set_aside(self, path: Path, name: str) -> str:
        """Rename a file to the first free ``<name>.corrupt-<n>``; that name."""
        with self._guard:
            for number in count(1):
                kept = f"{name}.corrupt-{number}"
                with contextlib.suppress(FileExistsError):
                    _rename_new(path, self.path / kept)
                    self.renamed.append(kept)
                    return kept
        raise AssertionError

    def _lock(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(lock, 20, 0).decode(errors="replace").strip()
            raise HcsError(
                f"{self.path}: another download (process {holder}) writes here; wait for it or stop it"
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            self._say(f"{self.path}: its file system has no locks; run no second download into it")
        os.truncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)

    def _read_record(self) -> dict[str, Checked]:
        path = self.path / RECORD
        try:
            found = json.loads(path.read_bytes())
            if found["format"] != _RECORD_FORMAT:
                raise InputError(f"{path}: format {found['format']}; this version reads {_RECORD_FORMAT}")
            return {name: _parsed(row) for name, row in found["files"].items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError):
            kept = self.set_aside(path, RECORD)
            self._say(f"{path}: not readable; kept as {kept}, and every file is checked again")
            return {}


def digest_of(path: Path) -> str:
    """XXH3-128 of a file, hex."""
    digest = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _parsed(row: dict[str, Any]) -> Checked:
    return Checked(row["size"], row["mtime_ns"], row["xxh3_128"], Remote(**row["remote"]))


def _rename_new(source: Path, target: Path) -> None:
    """Rename; `FileExistsError` where the new name is taken."""
    try:
        os.link(source, target, follow_symlinks=False)
        source.unlink()
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        # exFAT and its like have no links; our lock keeps our own kind out.
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "exists", str(target)) from None
        source.rename(target)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
