"""One small file system over a local folder or an ``s3://bucket/prefix``.

Paths are relative, with forward slashes, and cannot leave the root. Every write is whole or absent: a
temporary name and a rename locally, a single put on S3 (which takes at most 5 GB). Conditional
puts (`put_if_absent`, `put_if_match`) carry the leases of `hcs_ray.stage`.

S3 goes through boto3, whose credential chain and ``AWS_ENDPOINT_URL`` apply.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

from hcs_ray.contracts import HcsError, InputError

if TYPE_CHECKING:
    import pyarrow.fs

_TEMPORARY = ".hcs-tmp-"  # a killed writer's leftover; never listed, never read
_LEFT_SECONDS = 600.0  # after which no living writer holds it
_READ_TRIES = 4


class Storage(Protocol):
    """A root folder, local or on S3."""

    @property
    def url(self) -> str:
        """The root as the user would write it."""

    def read(self, path: str) -> bytes:
        """The whole file; `InputError` where there is none."""

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; fewer at the end of the file."""

    def read_versioned(self, path: str) -> tuple[bytes, str] | None:
        """The file and the version that `put_if_match` takes; None where there is none."""

    def size(self, path: str) -> int | None:
        """Bytes, or None where there is no such file."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Every file below a folder, as path -> bytes."""

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a whole file."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write a new file; False, with nothing done, where there is one."""

    def put_if_match(self, path: str, data: bytes, version: str) -> bool:
        """Replace a file that still has this version; False, with nothing done, where it has not."""

    def delete(self, path: str) -> None:
        """Delete a file; one that is not there is no error."""

    def sweep(self, folder: str) -> None:
        """Delete what killed writers have left half-written below a folder a while ago."""

    def child(self, folder: str) -> Storage:
        """The storage of a folder below."""

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """The same root for Arrow and Ray: a filesystem and the path of the root in it."""


def open_storage(url: str) -> Storage:
    """The storage of a local folder (made when first written) or of ``s3://bucket/prefix``."""
    if url.startswith("s3://"):
        return S3Storage(url)
    if "://" in url:
        raise InputError(f"{url}: storage is a local folder or s3://bucket/prefix")
    return LocalStorage(Path(url))


def checked(path: str) -> str:
    """A relative path that stays below its root, or `InputError`."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise InputError(f"{path!r} is not a path below the study's root")
    return "/".join(parts)


class LocalStorage:
    """A folder of this machine (or of a network file system that all nodes mount)."""

    def __init__(self, root: Path) -> None:
        self.root = root.expanduser().absolute()

    @property
    def url(self) -> str:
        return str(self.root)

    def path(self, path: str) -> Path:
        """The local path of a file of this storage."""
        return self.root / checked(path)

    def read(self, path: str) -> bytes:
        try:
            return self.path(path).read_bytes()
        except FileNotFoundError:
            raise InputError(f"{self.path(path)}: no such file") from None
        except OSError as error:
            raise HcsError(f"{self.path(path)}: cannot be read: {error.strerror}") from None

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        try:
            descriptor = os.open(self.path(path), os.O_RDONLY)
        except FileNotFoundError:
            raise InputError(f"{self.path(path)}: no such file") from None
        except OSError as error:
            raise HcsError(f"{self.path(path)}: cannot be read: {error.strerror}") from None
        try:
            return os.pread(descriptor, size, offset)
        except OSError as error:
            raise HcsError(f"{self.path(path)}: cannot be read: {error.strerror}") from None
        finally:
            os.close(descriptor)

    def read_versioned(self, path: str) -> tuple[bytes, str] | None:
        try:
            data = self.path(path).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise HcsError(f"{self.path(path)}: cannot be read: {error.strerror}") from None
        return data, hashlib.sha256(data).hexdigest()

    def size(self, path: str) -> int | None:
        try:
            return self.path(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def sizes(self, prefix: str = "") -> dict[str, int]:
        top = self.path(prefix) if prefix else self.root
        found: dict[str, int] = {}
        for folder, _, names in os.walk(top):
            for name in names:
                if not name.startswith(_TEMPORARY):
                    file = Path(folder, name)
                    with contextlib.suppress(FileNotFoundError):  # deleted since the folder was listed
                        found[file.relative_to(self.root).as_posix()] = file.stat().st_size
        return found

    @contextlib.contextmanager
    def _temporary(self, path: str, data: bytes) -> Iterator[Path]:
        target = self.path(path)
        temporary: Path | None = None
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary = target.parent / f"{_TEMPORARY}{uuid.uuid4().hex}"
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            yield temporary
        except FileExistsError:
            if temporary is None:  # not the conditional put's answer: a file stands where a folder must be
                raise InputError(f"{target.parent}: is not a folder") from None
            raise
        except OSError as error:
            raise HcsError(f"{target}: cannot be written: {error.strerror}") from None
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)

    def write(self, path: str, data: bytes) -> None:
        with self._temporary(path, data) as temporary:
            temporary.replace(self.path(path))

    def put_if_absent(self, path: str, data: bytes) -> bool:
        try:
            with self._temporary(path, data) as temporary:
                os.link(temporary, self.path(path))  # like O_EXCL, and never seen half-written
        except FileExistsError:
            return False
        return True

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
            raise HcsError(f"{self.path(path)}: cannot be deleted: {error.strerror}") from None

    def sweep(self, folder: str) -> None:
        for left in self.path(folder).rglob(f"{_TEMPORARY}*"):
            with contextlib.suppress(OSError):  # gone, or not ours to delete
                if time.time() - left.stat().st_mtime > _LEFT_SECONDS:
                    left.unlink()

    def child(self, folder: str) -> LocalStorage:
        return LocalStorage(self.path(folder))

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        import pyarrow.fs

        return pyarrow.fs.LocalFileSystem(), str(self.root)


class S3Storage:
    """A prefix of a bucket; a failure of the store is an `HcsError` that names it."""

    def __init__(self, url: str) -> None:
        self.bucket, _, prefix = url.removeprefix("s3://").partition("/")
        self.prefix = prefix.strip("/")
        if not self.bucket:
            raise InputError(f"{url}: names no bucket; write s3://bucket/prefix")
        self._connection: Any = None

    def __reduce__(self) -> tuple[type[S3Storage], tuple[str]]:
        return S3Storage, (self.url,)  # a client does not travel to other processes

    @property
    def url(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}" if self.prefix else f"s3://{self.bucket}"

    def _client(self) -> Any:
        if self._connection is None:
            import boto3
            from botocore.config import Config

            retries = {"mode": "standard", "max_attempts": 8}
            session = boto3.session.Session()
            self._connection = session.client("s3", config=Config(retries=retries, max_pool_connections=32))
        return self._connection

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{checked(path)}" if self.prefix else checked(path)

    def _call(self, operation: str, path: str, **arguments: Any) -> Any:
        """One request; None where the object is missing or its condition does not hold."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(self._client(), operation)(Bucket=self.bucket, Key=self._key(path), **arguments)
        except ClientError as error:
            code = str(error.response.get("Error", {}).get("Code", ""))
            if code in {"NoSuchKey", "404", "PreconditionFailed", "412", "ConditionalRequestConflict", "409"}:
                return None
            raise HcsError(f"{self.url}/{path}: {operation} failed: {code}") from None
        except BotoCoreError as error:
            raise HcsError(f"{self.url}/{path}: {operation} failed: {error}") from None

    def _get(self, path: str, **arguments: Any) -> tuple[bytes, str] | None:
        """A body and its version; one that breaks off is asked for again (boto3 retries only the request)."""
        from botocore.exceptions import BotoCoreError

        for tried in range(_READ_TRIES):
            response = self._call("get_object", path, **arguments)
            if response is None:
                return None
            try:
                return bytes(response["Body"].read()), str(response["ETag"])
            except BotoCoreError as error:
                broken = str(error)
                time.sleep(0.5 * 2**tried)
        raise HcsError(f"{self.url}/{path}: reading broke off {_READ_TRIES} times: {broken}")

    def _body(self, path: str, **arguments: Any) -> bytes:
        found = self._get(path, **arguments)
        if found is None:
            raise InputError(f"{self.url}/{path}: no such object")
        return found[0]

    def read(self, path: str) -> bytes:
        return self._body(path)

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        if size == 0:
            return b""
        return self._body(path, Range=f"bytes={offset}-{offset + size - 1}")

    def read_versioned(self, path: str) -> tuple[bytes, str] | None:
        return self._get(path)

    def size(self, path: str) -> int | None:
        response = self._call("head_object", path)
        return None if response is None else int(response["ContentLength"])

    def sizes(self, prefix: str = "") -> dict[str, int]:
        from botocore.exceptions import BotoCoreError, ClientError

        top = f"{self._key(prefix)}/" if prefix else (f"{self.prefix}/" if self.prefix else "")
        skip = len(self.prefix) + 1 if self.prefix else 0
        try:
            pages = self._client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=top)
            items = [item for page in pages for item in page.get("Contents", ())]
        except (BotoCoreError, ClientError) as error:
            raise HcsError(f"{self.url}/{prefix}: cannot be listed: {error}") from None
        # A key that ends with a slash is a folder's marker, as Arrow makes them.
        return {i["Key"][skip:]: int(i["Size"]) for i in items if not i["Key"].endswith("/")}

    def write(self, path: str, data: bytes) -> None:
        if self._call("put_object", path, Body=data) is None:
            raise HcsError(f"{self.url}: no such bucket, or it refused the write of {path}")

    def put_if_absent(self, path: str, data: bytes) -> bool:
        return self._call("put_object", path, Body=data, IfNoneMatch="*") is not None

    def put_if_match(self, path: str, data: bytes, version: str) -> bool:
        return self._call("put_object", path, Body=data, IfMatch=version) is not None

    def delete(self, path: str) -> None:
        self._call("delete_object", path)

    def sweep(self, folder: str) -> None:
        """Nothing: a put is whole or absent."""

    def child(self, folder: str) -> S3Storage:
        return S3Storage(f"s3://{self.bucket}/{self._key(folder)}")

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        import pyarrow.fs

        client = self._client()
        scheme, _, host = str(client.meta.endpoint_url).partition("://")
        options: dict[str, Any] = {"region": client.meta.region_name or "us-east-1"}
        if "amazonaws.com" not in host:  # some Arrow versions ignore AWS_ENDPOINT_URL
            options |= {"endpoint_override": host, "scheme": scheme}
        root = f"{self.bucket}/{self.prefix}" if self.prefix else self.bucket
        return pyarrow.fs.S3FileSystem(**options), root


def preflight(storage: Storage) -> None:
    """Prove that the root can be written and that it honours conditional puts; `HcsError` where not.

    A store that ignores ``If-None-Match`` would let two writers into one stage.
    """
    probe = f"{_TEMPORARY}preflight-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        first = storage.put_if_absent(probe, b"1")
        if not first or storage.put_if_absent(probe, b"2") or storage.read(probe) != b"1":
            raise HcsError(
                f"{storage.url}: the store ignores conditional puts (If-None-Match); leases need them"
            )
    except HcsError as error:
        raise HcsError(str(error).replace(f"/{probe}", "")) from None
    finally:
        with contextlib.suppress(HcsError, OSError):
            storage.delete(probe)
