"""An S3 store as a filesystem of Arrow, and so of Ray Train, Tune and Data, over our own client.

Arrow's own S3 client has another chain of credentials than boto3, and takes options of its own; this one has
both from `hcs_ray.storage.connection`. Paths are ``bucket/key``. Folders are what keys share, or empty
objects whose key ends with a slash. Attributes of objects (content types) are not kept.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileInfo, FileSelector, FileSystemHandler, FileType, PyFileSystem

from hcs_ray.storage.bucket import Bucket, Object
from hcs_ray.storage.connection import Connection
from hcs_ray.storage.multipart import Upload


def filesystem(connection: Connection) -> PyFileSystem:
    """The store behind a connection; pickled, it takes along its options and no credentials."""
    return PyFileSystem(S3Handler(connection))


class S3Handler(FileSystemHandler):  # type: ignore[misc]
    """What Arrow asks of a filesystem, answered by an S3 store."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def __reduce__(self) -> tuple[type[S3Handler], tuple[Connection]]:
        return S3Handler, (self._connection,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, S3Handler) and self._connection == other._connection

    def __ne__(self, other: object) -> bool:  # Arrow's base class has its own
        return not self == other

    def __hash__(self) -> int:
        return hash(self._connection)

    def get_type_name(self) -> str:
        return "hcs-s3"

    def normalize_path(self, path: str) -> str:
        return path.rstrip("/")

    def _at(self, path: str) -> tuple[Bucket, str]:
        name, _, key = path.strip("/").partition("/")
        return Bucket(self._connection, name), key

    def get_file_info(self, paths: list[str]) -> list[FileInfo]:
        return [self._info(path) for path in paths]

    def _info(self, path: str) -> FileInfo:
        bucket, key = self._at(path)
        found = bucket.head(key) if key else None
        if found is not None:
            return _file_info(path, found)
        if _has_folder(bucket, key):
            return FileInfo(path, FileType.Directory)
        return FileInfo(path, FileType.NotFound)

    def get_file_info_selector(self, selector: FileSelector) -> list[FileInfo]:
        bucket, key = self._at(selector.base_dir)
        below = f"{key}/" if key else ""
        listing = bucket.listing(below, "" if selector.recursive else "/")
        if not listing.objects and not listing.folders and key:
            self._require_folder(selector, self._info(selector.base_dir).type)
        folders = {name.rstrip("/") for name in listing.folders}
        for item in listing.objects:
            folders.update(_folders_of(item.key, len(below)))
        infos = [
            _file_info(f"{bucket.name}/{item.key}", item)
            for item in listing.objects
            if not item.key.endswith("/")
        ]
        return infos + [FileInfo(f"{bucket.name}/{name}", FileType.Directory) for name in sorted(folders)]

    def _require_folder(self, selector: FileSelector, kind: FileType) -> None:
        if kind == FileType.File:
            raise NotADirectoryError(selector.base_dir)
        if kind == FileType.NotFound and not selector.allow_not_found:
            raise FileNotFoundError(selector.base_dir)

    def create_dir(self, path: str, recursive: bool) -> None:
        bucket, key = self._at(path)
        if not key:
            bucket.listing("", limit=1)  # fails where there is no such bucket: we make none
            return
        if not recursive and not _has_folder(bucket, key.rpartition("/")[0]):
            raise FileNotFoundError(path.rpartition("/")[0])
        if not _has_folder(bucket, key):
            bucket.put(f"{key}/", b"")

    def delete_dir(self, path: str) -> None:
        bucket, keys = self._below(path)
        if not keys:
            raise FileNotFoundError(path)
        bucket.delete_all(keys)

    def delete_dir_contents(self, path: str, missing_dir_ok: bool = False) -> None:
        bucket, keys = self._below(path)
        if not keys and not missing_dir_ok:
            raise FileNotFoundError(path)
        if keys:
            marker = f"{self._at(path)[1]}/"
            bucket.put(marker, b"")  # the folder itself stays
            bucket.delete_all([key for key in keys if key != marker])

    def _below(self, path: str) -> tuple[Bucket, list[str]]:
        bucket, key = self._at(path)
        if not key:
            raise ValueError(f"{path}: a whole bucket is not deleted")
        return bucket, [item.key for item in bucket.listing(f"{key}/").objects]

    def delete_root_dir_contents(self) -> None:
        raise NotImplementedError("the buckets of a store are not deleted")

    def delete_file(self, path: str) -> None:
        bucket, key = self._at(path)
        if bucket.head(key) is None:
            raise FileNotFoundError(path)
        bucket.delete(key)

    def copy_file(self, src: str, dest: str) -> None:
        (bucket, key), (other, target) = self._at(src), self._at(dest)
        if bucket.head(key) is None:
            raise FileNotFoundError(src)
        bucket.copy(key, target, other)

    def move(self, src: str, dest: str) -> None:
        """A copy, then a deletion; killed between them, both are there."""
        bucket, key = self._at(src)
        if bucket.head(key) is not None:
            self.copy_file(src, dest)
            bucket.delete(key)
            return
        bucket, keys = self._below(src)
        if not keys:
            raise FileNotFoundError(src)
        other, target = self._at(dest)
        for name in keys:
            moved = f"{target}/{name[len(key) + 1 :]}"
            if name.endswith("/"):  # a folder's marker, which SeaweedFS does not copy
                other.put(moved, b"")
            else:
                bucket.copy(name, moved, other)
        bucket.delete_all(keys)

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return self.open_input_file(path)

    def open_input_file(self, path: str) -> pa.PythonFile:
        bucket, key = self._at(path)
        found = bucket.open(key) if key else None
        if found is None:
            raise FileNotFoundError(path)
        return pa.PythonFile(found, mode="r")

    def open_output_stream(self, path: str, metadata: Mapping[str, str] | None = None) -> pa.PythonFile:
        bucket, key = self._at(path)
        if not key:
            raise IsADirectoryError(path)
        return pa.PythonFile(_Output(Upload(bucket, key)), mode="w")

    def open_append_stream(self, path: str, metadata: Mapping[str, str] | None = None) -> pa.PythonFile:
        raise NotImplementedError("S3 cannot append to an object")


class _Output(io.RawIOBase):
    """An upload that ends where Arrow closes the file; one that is dropped before leaves nothing."""

    def __init__(self, upload: Upload) -> None:
        self._upload: Upload | None = upload

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        if self._upload is None:
            raise ValueError("the file is closed")
        return self._upload.write(data)

    def tell(self) -> int:
        return self._upload.tell() if self._upload else 0

    def close(self) -> None:
        upload, self._upload = self._upload, None
        if upload is not None:
            try:
                upload.finish()
            except BaseException:
                upload.abort()
                raise
        super().close()

    def __del__(self) -> None:
        if self._upload is not None:
            self._upload.abort()
            self._upload = None


def _has_folder(bucket: Bucket, key: str) -> bool:
    found = bucket.listing(f"{key}/" if key else "", limit=1)
    return not key or bool(found.objects)


def _folders_of(key: str, skipped: int) -> Iterator[str]:
    """The folders between a listing's own and an object (a marker is its own folder)."""
    end = key.find("/", skipped)
    while end >= 0:
        yield key[:end]
        end = key.find("/", end + 1)


def _file_info(path: str, found: Object) -> FileInfo:
    return FileInfo(path, FileType.File, size=found.size, mtime=found.modified)
