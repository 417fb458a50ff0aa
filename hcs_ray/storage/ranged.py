"""Random access to an object by ranged reads."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

_BLOCK_BYTES = 1 << 20
_KEPT_BLOCKS = 8  # an HDF5 file's metadata lies in several places
_BUFFER_BYTES = 1 << 16


class RangedFile(io.RawIOBase):
    """A file of ``size`` bytes that ``fetch(offset, size)`` reads.

    Small reads come from the last eight blocks of 1 MiB; of a read of a block or more, only what they do not
    hold is fetched, in one request.
    """

    def __init__(self, size: int, fetch: Callable[[int, int], bytes]) -> None:
        self._size = size
        self._fetch = fetch
        self._position = 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if start + offset < 0:
            raise ValueError(f"{start + offset} is before the beginning of the file")
        self._position = start + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        wanted = min(len(buffer), self._size - self._position)
        if wanted <= 0:
            return 0
        number, offset = divmod(self._position, _BLOCK_BYTES)
        if wanted >= _BLOCK_BYTES and number not in self._blocks:
            data = self._fetch(self._position, wanted)
        else:
            data = self._block(number)[offset : offset + wanted]
        if not data:
            raise OSError(f"nothing at byte {self._position} of {self._size}")
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def _block(self, number: int) -> bytes:
        if number not in self._blocks:
            start = number * _BLOCK_BYTES
            self._blocks[number] = self._fetch(start, min(_BLOCK_BYTES, self._size - start))
            if len(self._blocks) > _KEPT_BLOCKS:
                self._blocks.popitem(last=False)
        self._blocks.move_to_end(number)
        return self._blocks[number]


def buffered(file: RangedFile) -> io.BufferedReader:
    """With a small buffer, for what reads byte by byte."""
    return io.BufferedReader(file, _BUFFER_BYTES)
