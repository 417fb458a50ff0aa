"""A streamed write to S3: one put where it stays small, else a multipart upload."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from hcs_ray.contracts import HcsError

PART_BYTES = 16 << 20  # of at most 10,000 parts: 156 GiB
_Part = dict[str, Any]


class Target(Protocol):
    """The object that is written; `hcs_ray.storage.bucket.Bucket` knows how."""

    def put(self, key: str, data: bytes, **conditions: str) -> bool: ...
    def begin(self, key: str) -> str: ...
    def put_part(self, key: str, upload: str, number: int, data: bytes) -> _Part: ...
    def complete(self, key: str, upload: str, parts: list[_Part]) -> None: ...
    def abort(self, key: str, upload: str) -> None: ...


class Upload:
    """Bytes on their way to an object, which is there after `finish` and never after `abort`.

    A part travels while the next one fills: two parts of 16 MiB at most are in memory.
    """

    def __init__(self, target: Target, key: str) -> None:
        self._target = target
        self._key = key
        self._buffer = bytearray()
        self._written = 0
        self._id: str | None = None
        self._pool: ThreadPoolExecutor | None = None
        self._parts: list[_Part] = []
        self._sent: Future[_Part] | None = None

    def write(self, data: bytes | bytearray | memoryview, /) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            if len(self._buffer) == PART_BYTES:
                self._send()
            taken = rest[: PART_BYTES - len(self._buffer)]
            self._buffer += taken
            rest = rest[len(taken) :]
        self._written += size
        return size

    def tell(self) -> int:
        return self._written

    def finish(self) -> None:
        """Make it an object, replacing the one of that key."""
        if self._id is None:
            self._target.put(self._key, bytes(self._buffer))
            return
        self._send()
        self._await()
        self._target.complete(self._key, self._id, self._parts)
        self._end()

    def abort(self) -> None:
        """Leave nothing; where the store does not answer, a later sweep does it."""
        self._buffer = bytearray()
        self._end()
        if self._id is not None:
            with contextlib.suppress(HcsError):
                self._target.abort(self._key, self._id)

    def _send(self) -> None:
        if self._id is None:
            self._id = self._target.begin(self._key)
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="upload")
        self._await()
        assert self._pool is not None
        data, self._buffer = bytes(self._buffer), bytearray()
        number = len(self._parts) + 1
        self._sent = self._pool.submit(self._target.put_part, self._key, self._id, number, data)

    def _await(self) -> None:
        if self._sent is not None:
            sent, self._sent = self._sent, None
            self._parts.append(sent.result())

    def _end(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
