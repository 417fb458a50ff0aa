"""A pod's log files, carried to the bucket while they grow, so that they outlive the pod.

Every file goes out in numbered parts of what is new, each by one put, with secrets masked
(`hcs_ray.jobs.redact`). Where a file stands is known from memory, and after a restart from the parts that are
there: a shipped byte is a byte of the file. A killed node loses what came after the last round.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from hcs_ray.contracts import HcsError
from hcs_ray.jobs.parts import Pod, Shipped, part_path, shipped_files
from hcs_ray.jobs.redact import Redactor, same_but_masked
from hcs_ray.storage import S3Storage, Storage

PART_BYTES: Final = 4 << 20
_HEAD_BYTES = 256  # tell a file from another one with its inode
_LONGEST_PAUSE_S = 300.0
_CUT = b"\nhcs-ray ship-logs: the rest is not shipped (--longest-mb)\n"
_FILE_NAME = re.compile(r"[\w@=+.,:-]+(/[\w@=+.,:-]+)*")
# Rewritten every few seconds with the state of the moment: no log, and never the same bytes twice.
_NO_LOGS = re.compile(r"(.*/)?debug_state[^/]*\.txt")


@dataclass
class _Source:
    """A file on disk. It keeps the name by which it was first seen: a rotated log goes on under its own."""

    name: str
    offset: int = 0
    head: bytes = b""


@dataclass
class _Target:
    """What was shipped by a name."""

    number: int = 0
    size: int = 0
    cut: bool = False


@dataclass
class Shipper:
    """Ships the files below a folder; ``longest`` bounds the bytes of one name."""

    storage: Storage
    pod: Pod
    logs: Path
    redactor: Redactor
    longest: int = 1 << 30
    _sources: dict[tuple[int, int], _Source] = field(default_factory=dict, init=False)
    _targets: dict[str, _Target] = field(default_factory=dict, init=False)
    _before: dict[str, Shipped] | None = field(default=None, init=False)

    def ship(self, final: bool = False) -> int:
        """Ship what is new and return its bytes; ``final`` also sends unfinished words.

        Raises:
            HcsError: the store refuses or does not answer; the next call goes on where this one was.
        """
        if self._before is None:  # a former life of this container may have shipped
            self._before = shipped_files(self.storage, self.pod)
        there = {_identity(status): (name, path) for name, path, status in _files(self.logs)}
        self._sources = {key: source for key, source in self._sources.items() if key in there}
        # Known files first: the rest of a rotated one comes before its successor's beginning.
        order = [*self._sources, *(key for key in there if key not in self._sources)]
        return sum(self._ship_file(key, *there[key], final) for key in order)

    def _ship_file(self, key: tuple[int, int], name: str, path: Path, final: bool) -> int:
        # A file that was rotated or deleted since the folder was read, or cannot be read, waits its turn.
        with contextlib.suppress(OSError), path.open("rb", buffering=0) as file:
            status = os.fstat(file.fileno())
            if _identity(status) == key:
                source = self._source(key, name, file.fileno(), status.st_size)
                return self._ship_open(source, file.fileno(), status.st_size, final)
        return 0

    def _source(self, key: tuple[int, int], name: str, descriptor: int, size: int) -> _Source:
        """The file as it is known; where it is another by now, or was cut, from its beginning."""
        found = self._sources.get(key)
        # New to us, or another file that was given the inode of one that is gone.
        if found is None or os.pread(descriptor, len(found.head), 0) != found.head:
            found = self._sources[key] = self._resumed(name, descriptor, size)
        elif size < found.offset:
            found.offset, found.head = 0, b""
        if len(found.head) < _HEAD_BYTES:
            found.head = os.pread(descriptor, _HEAD_BYTES, 0)
        return found

    def _resumed(self, name: str, descriptor: int, size: int) -> _Source:
        """A file that is new to this process: from where the parts end, where they are made of it."""
        source = _Source(name)
        before = (self._before or {}).pop(name, None)
        if before is None:
            return source
        self._targets[name] = _Target(before.next_number, before.size)
        path, last = before.parts[-1]
        newest = self.storage.read(path)
        self._targets[name].cut = newest == _CUT
        if before.size <= size and same_but_masked(newest, os.pread(descriptor, last, before.size - last)):
            source.offset = before.size
        return source

    def _ship_open(self, source: _Source, descriptor: int, size: int, final: bool) -> int:
        target = self._targets.setdefault(source.name, _Target())
        shipped = 0
        while source.offset < size and not target.cut:
            raw = os.pread(descriptor, min(PART_BYTES, size - source.offset), source.offset)
            masked = self.redactor.take(raw, final and source.offset + len(raw) >= size)
            if not masked:
                break
            if target.size + len(masked) > self.longest:
                target.cut, masked = True, _CUT
            self.storage.write(part_path(self.pod, source.name, target.number), masked)
            target.number += 1
            target.size += len(masked)
            source.offset += len(masked)
            shipped += len(masked)
        return shipped


def keep_shipping(
    shipper: Callable[[], Shipper],
    stop: threading.Event,
    say: Callable[[str], None],
    interval: float = 30.0,
    grace: float = 20.0,
) -> None:
    """Ship every ``interval`` seconds until ``stop``, then the rest, within ``grace`` seconds.

    It ends by ``stop`` alone: a store that is away, or a study that cannot be read, is said once and tried
    again more and more slowly.
    """
    made: Shipper | None = None
    pause, away = interval, False
    while True:
        final = stop.is_set()
        deadline = time.monotonic() + grace
        try:
            made = made or shipper()
            made.ship(final)
            if away:
                say("logs are shipped again")
            if final:
                return
            pause, away = interval, False
        except HcsError as error:
            if not away:
                say(f"logs cannot be shipped, and will be tried again: {error}")
            away = True
            if final:
                _ship_rest(made, deadline, say)
                return
            pause = min(pause * 2, max(_LONGEST_PAUSE_S, interval))
        stop.wait(pause)


def _ship_rest(shipper: Shipper | None, deadline: float, say: Callable[[str], None]) -> None:
    """Try the last round again while there is time."""
    while shipper is not None and time.monotonic() < deadline:
        time.sleep(1)
        try:
            shipper.ship(final=True)
            return
        except HcsError:
            continue
    say("the last logs of this pod were not shipped")


def impatient(storage: Storage) -> Storage:
    """The same storage, which does not wait long for a store that does not answer."""
    return storage.impatient() if isinstance(storage, S3Storage) else storage


def _files(logs: Path) -> Iterator[tuple[str, Path, os.stat_result]]:
    """The log files below a folder, which may not be there yet; links are not followed below it."""
    top = Path(os.path.realpath(logs))  # session_latest is a link
    for folder, folders, names in os.walk(top):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            relative = path.relative_to(top).as_posix()
            if not _FILE_NAME.fullmatch(relative) or _NO_LOGS.fullmatch(relative):
                continue
            try:
                status = path.lstat()
            except OSError:
                continue
            if stat.S_ISREG(status.st_mode):
                yield relative, path, status


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino
