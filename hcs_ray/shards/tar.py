"""Writing a WebDataset tar as a stream: bounded memory, and the same bytes for the same samples."""

from __future__ import annotations

import contextlib
import hashlib
import tarfile
from dataclasses import dataclass
from typing import Any

import xxhash

from hcs_ray import contracts as c
from hcs_ray.stage import OutputFile
from hcs_ray.storage import Storage

_BLOCK = tarfile.BLOCKSIZE


@dataclass(frozen=True)
class Sample:
    """One field as its members."""

    key: str
    about: bytes  # <key>.json
    image: bytes  # <key>.<extension>
    extension: str

    @property
    def members(self) -> tuple[tuple[str, bytes], ...]:
        return (f"{self.key}.json", self.about), (f"{self.key}.{self.extension}", self.image)


class TarWriter(contextlib.AbstractContextManager["TarWriter"]):
    """One tar of GNU format, no times and no owners. It is there when the block ends, whole, or not at all.

    ``expected`` makes the block fail, with nothing written, where the tar is not that one.
    """

    def __init__(self, storage: Storage, folder: str, name: str, expected: OutputFile | None = None) -> None:
        self.name = name
        self.size = 0
        self.samples = 0
        self._expected = expected
        self._path = f"{folder}/{name}"
        self._storage = storage
        self._digest = xxhash.xxh3_128()
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> TarWriter:
        self._sink = self._stack.enter_context(self._storage.writing(self._path))
        return self

    def add(self, sample: Sample) -> dict[str, Any]:
        """Append a sample; the columns of the index that say where its image member lies."""
        for name, data in sample.members:
            header = tarfile.TarInfo(name)
            header.size = len(data)
            self._write(header.tobuf(tarfile.GNU_FORMAT, "utf-8"))
            offset = self.size  # of the image member, which is the last
            self._write(data)
            self._write(bytes(-len(data) % _BLOCK))
        self.samples += 1
        return {
            c.SHARD: self.name,
            c.OFFSET: offset,
            c.SIZE: len(sample.image),
            c.SHA256: hashlib.sha256(sample.image).hexdigest(),
            c.SAMPLE_SHA256: hashlib.sha256(sample.about).hexdigest(),
        }

    def fits(self, sample: Sample, limit: int) -> bool:
        """Whether a sample still has room below ``limit`` bytes; the first always has."""
        added = sum(3 * _BLOCK + len(name) + len(data) + -len(data) % _BLOCK for name, data in sample.members)
        return self.samples == 0 or self.size + added + 2 * _BLOCK + tarfile.RECORDSIZE <= limit

    def _write(self, data: bytes) -> None:
        self._sink.write(data)
        self._digest.update(data)
        self.size += len(data)

    @property
    def output(self) -> OutputFile:
        """The finished tar's size and hash."""
        return OutputFile(size=self.size, xxh3_128=self._digest.hexdigest())

    def __exit__(self, *failure: Any) -> None:
        if failure[0] is not None:
            self._stack.__exit__(*failure)
            return
        with self._stack:
            self._write(bytes(2 * _BLOCK))
            self._write(bytes(-self.size % tarfile.RECORDSIZE))
            if self._expected is not None and self.output != self._expected:
                raise c.HcsError(other_than_written(f"{self._storage.url}/{self._path}"))


def other_than_written(path: str) -> str:
    """The line for a file that is made again and is not the one that a record lists."""
    return (
        f"{path}: made again, it differs from the one written: "
        "raw images, libraries or this version have changed; run hcs-ray shard --force"
    )
