"""The requests to a bucket, by key."""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from botocore.exceptions import BotoCoreError, ClientError

from hcs_ray.contracts import HcsError
from hcs_ray.storage.connection import Connection, code_of
from hcs_ray.storage.multipart import Upload
from hcs_ray.storage.ranged import RangedFile, buffered

_MISSING: Final = frozenset({"NoSuchKey", "404"})
_LOST: Final = frozenset({"PreconditionFailed", "412", "ConditionalRequestConflict", "409"})
_BEYOND: Final = frozenset({"InvalidRange", "416"})
_PAUSES: Final = (0.5, 1.0, 2.0, None)  # between tries to read a body that breaks off
_AT_ONCE: Final = 1000  # keys in one request to delete


@dataclass(frozen=True)
class Object:
    """What a bucket says of a key."""

    key: str
    size: int
    modified: datetime
    etag: str


@dataclass(frozen=True)
class Listing:
    """Objects, and the folders that a delimiter has folded."""

    objects: list[Object]
    folders: list[str]


@dataclass(frozen=True)
class Bucket:
    """A bucket of a store; a failure of the store is an `HcsError` that names the object."""

    connection: Connection
    name: str

    def _call(
        self, operation: str, done: str, key: str, *, none: frozenset[str] = frozenset(), **arguments: Any
    ) -> Any:
        """The answer to one request; None where its refusal has one of these codes."""

        def action(client: Any) -> Any:
            try:
                return getattr(client, operation)(Bucket=self.name, Key=key, **arguments)
            except ClientError as error:
                if code_of(error) in none:
                    return None
                raise

        return self.connection.attempt(self._where(key), done, action)

    def _where(self, key: str) -> str:
        return f"s3://{self.name}/{key}"

    def get(self, key: str, **arguments: str) -> tuple[bytes, str] | None:
        """A body and its version; None where there is no object, b"" for a range behind its end."""

        def action(client: Any) -> tuple[bytes, str] | None:
            try:
                return self._body(client, Key=key, **arguments)
            except ClientError as error:
                if code_of(error) in _BEYOND:
                    return b"", ""
                if code_of(error) in _MISSING:
                    return None
                raise

        return self.connection.attempt(self._where(key), "read", action)

    def _body(self, client: Any, **arguments: str) -> tuple[bytes, str]:
        """One that breaks off is asked for again: boto3 repeats only the request."""
        for pause in _PAUSES:
            response = client.get_object(Bucket=self.name, **arguments)
            try:
                return bytes(response["Body"].read()), str(response["ETag"])
            except BotoCoreError:
                if pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError

    def head(self, key: str) -> Object | None:
        """What there is of this key; None where there is nothing."""
        found = self._call("head_object", "read", key, none=_MISSING)
        if found is None:
            return None
        return Object(key, int(found["ContentLength"]), found["LastModified"], str(found["ETag"]))

    def open(self, key: str) -> io.BufferedReader | None:
        """A reader by ranges, of one version only; None where there is no object."""
        found = self.head(key)
        if found is None:
            return None

        def fetch(offset: int, size: int) -> bytes:
            data = self.get(key, Range=f"bytes={offset}-{offset + size - 1}", IfMatch=found.etag)
            if data is None or len(data[0]) != size:
                raise HcsError(f"{self._where(key)}: was deleted or cut while it was read")
            return data[0]

        return buffered(RangedFile(found.size, fetch))

    def put(self, key: str, data: bytes, **conditions: str) -> bool:
        """One put; False where its conditions do not hold."""
        none = frozenset[str]()
        if conditions:
            none = _LOST | _MISSING if "IfMatch" in conditions else _LOST
        return self._call("put_object", "written", key, none=none, Body=data, **conditions) is not None

    @contextlib.contextmanager
    def writing(self, key: str) -> Iterator[Upload]:
        """A streamed write that is whole at the end of the block and leaves nothing where that raises."""
        upload = Upload(self, key)
        try:
            yield upload
            upload.finish()
        except BaseException:
            upload.abort()
            raise

    def begin(self, key: str) -> str:
        """Begin a multipart upload and return its id."""
        return str(self._call("create_multipart_upload", "written", key)["UploadId"])

    def put_part(self, key: str, upload: str, number: int, data: bytes) -> dict[str, Any]:
        """Send a part; returns what the end of the upload must name."""
        sent = self._call("upload_part", "written", key, UploadId=upload, PartNumber=number, Body=data)
        kept = {name: value for name, value in sent.items() if name == "ETag" or name.startswith("Checksum")}
        kept.pop("ChecksumType", None)
        return {"PartNumber": number, **kept}

    def complete(self, key: str, upload: str, parts: list[dict[str, Any]]) -> None:
        """Make the parts an object."""
        whole = {"Parts": parts}
        self._call("complete_multipart_upload", "written", key, UploadId=upload, MultipartUpload=whole)

    def abort(self, key: str, upload: str) -> None:
        """Delete the parts of an upload; one that is gone is no error."""
        gone = frozenset({"NoSuchUpload", "404"})
        self._call("abort_multipart_upload", "aborted", key, none=gone, UploadId=upload)

    def uploads(self, prefix: str) -> list[tuple[str, str]]:
        """Key and id of the unfinished multipart uploads below a prefix."""
        pages = self._pages("list_multipart_uploads", prefix)
        return [
            (str(item["Key"]), str(item["UploadId"])) for page in pages for item in page.get("Uploads", ())
        ]

    def copy(self, source: str, key: str, bucket: Bucket) -> None:
        """Copy an object of this bucket to a key of another, in parts where it is large."""
        origin = {"Bucket": self.name, "Key": source}
        bucket.connection.attempt(
            bucket._where(key), "copied", lambda client: client.copy(origin, bucket.name, key)
        )

    def delete(self, key: str) -> None:
        """Delete an object; one that is not there is no error."""
        self._call("delete_object", "deleted", key, none=_MISSING)

    def delete_all(self, keys: list[str]) -> None:
        """Delete many objects, a thousand a request."""
        for first in range(0, len(keys), _AT_ONCE):
            self._delete_batch(keys[first : first + _AT_ONCE])

    def _delete_batch(self, keys: list[str]) -> None:
        batch = {"Objects": [{"Key": key} for key in keys], "Quiet": True}

        def action(client: Any) -> Any:
            return client.delete_objects(Bucket=self.name, Delete=batch)

        answer = self.connection.attempt(self._where(keys[0]), "deleted", action)
        for failed in answer.get("Errors", ()):
            raise HcsError(f"{self._where(failed['Key'])}: cannot be deleted: {failed.get('Code')}")

    def listing(self, prefix: str, delimiter: str = "", limit: int | None = None) -> Listing:
        """Every object below a prefix; with a delimiter, folders stand for what lies below them."""
        pages = self._pages("list_objects_v2", prefix, Delimiter=delimiter, limit=limit)
        objects = [
            Object(str(item["Key"]), int(item["Size"]), item["LastModified"], str(item["ETag"]))
            for page in pages
            for item in page.get("Contents", ())
        ]
        folders = [str(item["Prefix"]) for page in pages for item in page.get("CommonPrefixes", ())]
        return Listing(objects, folders)

    def _pages(self, operation: str, prefix: str, limit: int | None = None, **arguments: Any) -> Any:
        def action(client: Any) -> Any:
            pages = client.get_paginator(operation).paginate(
                Bucket=self.name,
                Prefix=prefix,
                PaginationConfig={"MaxItems": limit, "PageSize": limit},
                **arguments,
            )
            return list(pages)

        return self.connection.attempt(self._where(prefix), "listed", action)
