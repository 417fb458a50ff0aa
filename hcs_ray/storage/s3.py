"""A prefix of an S3 bucket as storage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from typing import TYPE_CHECKING, BinaryIO, TypeVar

from hcs_ray.config import StorageConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.storage.base import DEFAULTS, Writer, checked
from hcs_ray.storage.bucket import Bucket
from hcs_ray.storage.connection import Connection

if TYPE_CHECKING:
    import pyarrow.fs

T = TypeVar("T")

_SINGLE_PUT_BYTES = 64 << 20  # above it in parts, which are sent again one by one; S3 refuses 5 GiB
_SWEEPS = 3  # a part in flight can outlive the abort of its upload


class S3Storage:
    """A prefix of a bucket; a failure of the store is an `HcsError` that names it."""

    def __init__(
        self,
        url: str,
        options: StorageConfig = DEFAULTS,
        *,
        anonymous: bool = False,
        connection: Connection | None = None,
    ) -> None:
        bucket, _, prefix = url.removeprefix("s3://").partition("/")
        if not bucket:
            raise InputError(f"{url}: names no bucket; write s3://bucket/prefix")
        self.options = options
        self.prefix = prefix.strip("/")
        self._bucket = Bucket(connection or Connection(options, anonymous=anonymous), bucket)

    @property
    def url(self) -> str:
        return f"s3://{self._bucket.name}/{self.prefix}".rstrip("/")

    def impatient(self) -> S3Storage:
        """The same, for a first look: it does not wait long for a store that does not answer."""
        return S3Storage(self.url, self.options, connection=self._bucket.connection.impatient())

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{checked(path)}" if self.prefix else checked(path)

    def _below(self, folder: str) -> str:
        """What the keys below a folder begin with."""
        top = self._key(folder) if folder else self.prefix
        return f"{top}/" if top else ""

    def read(self, path: str) -> bytes:
        return self._present(path, self._bucket.get(self._key(path)))[0]

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        part = f"bytes={offset}-{offset + size - 1}"
        return self._present(path, self._bucket.get(self._key(path), Range=part))[0]

    def _present(self, path: str, found: T | None) -> T:
        if found is None:
            raise InputError(f"{self.url}/{path}: no such object")
        return found

    def read_versioned(self, path: str) -> tuple[bytes, str] | None:
        return self._bucket.get(self._key(path))

    def open(self, path: str) -> BinaryIO:
        return self._present(path, self._bucket.open(self._key(path)))

    def size(self, path: str) -> int | None:
        found = self._bucket.head(self._key(path))
        return None if found is None else found.size

    def modified(self, path: str) -> datetime | None:
        found = self._bucket.head(self._key(path))
        return None if found is None else found.modified

    def sizes(self, prefix: str = "") -> dict[str, int]:
        skipped = len(self._below(""))
        found = self._bucket.listing(self._below(prefix)).objects
        # A key that ends with a slash is a folder's marker, as Arrow makes them.
        return {item.key[skipped:]: item.size for item in found if not item.key.endswith("/")}

    def write(self, path: str, data: bytes) -> None:
        if len(data) <= _SINGLE_PUT_BYTES:
            self._bucket.put(self._key(path), data)
        else:
            with self.writing(path) as file:
                file.write(data)

    def writing(self, path: str) -> AbstractContextManager[Writer]:
        return self._bucket.writing(self._key(path))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        return self._bucket.put(self._key(path), data, IfNoneMatch="*")

    def put_if_match(self, path: str, data: bytes, version: str) -> bool:
        return self._bucket.put(self._key(path), data, IfMatch=version)

    def delete(self, path: str) -> None:
        self._bucket.delete(self._key(path))

    def sweep(self, folder: str, mine: Callable[[str], bool] | None = None) -> None:
        """As `Storage.sweep`; where the credentials may not list uploads, it warns and leaves them."""
        try:
            for _ in range(_SWEEPS):
                if not self._abort_uploads(self._below(folder), mine):
                    return
        except HcsError as error:
            message = "%s (multipart uploads of killed writers, if any, cost storage until they are aborted)"
            logging.getLogger("hcs_ray").warning(message, error)

    def _abort_uploads(self, below: str, mine: Callable[[str], bool] | None) -> int:
        skipped = len(self._below(""))
        left = [
            (key, upload) for key, upload in self._bucket.uploads(below) if not mine or mine(key[skipped:])
        ]
        for key, upload in left:
            self._bucket.abort(key, upload)
        return len(left)

    def child(self, folder: str) -> S3Storage:
        url = f"s3://{self._bucket.name}/{self._key(folder)}"
        return S3Storage(url, self.options, connection=self._bucket.connection)

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        from hcs_ray.storage.arrow import filesystem

        return filesystem(self._bucket.connection), self.url.removeprefix("s3://")
