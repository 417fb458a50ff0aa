"""What every storage can do, and which paths it takes."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Final, Protocol

from hcs_ray.config import StorageConfig
from hcs_ray.contracts import InputError

if TYPE_CHECKING:
    import pyarrow.fs

TEMPORARY: Final = ".hcs-tmp-"  # a killed writer's leftover; never listed, never read
DEFAULTS: Final = StorageConfig()


class Writer(Protocol):
    """A file that is being written, from its beginning to its end."""

    def write(self, data: bytes | bytearray | memoryview, /) -> int | None:
        """Append all of ``data``."""

    def tell(self) -> int:
        """Bytes written so far."""


class Storage(Protocol):
    """A root folder, local or on S3."""

    options: StorageConfig  # for what lies beside it, such as the raw images

    @property
    def url(self) -> str:
        """The root as the user would write it."""

    def read(self, path: str) -> bytes:
        """The whole file; `InputError` where there is none."""

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        """``size`` bytes from ``offset``; fewer at the end of the file."""

    def read_versioned(self, path: str) -> tuple[bytes, str] | None:
        """The file and the version that `put_if_match` takes; None where there is none."""

    def open(self, path: str) -> BinaryIO:
        """A buffered, seekable reader, as `zipfile` and `h5py` want; `InputError` where there is no file."""

    def size(self, path: str) -> int | None:
        """Bytes, or None where there is no such file."""

    def modified(self, path: str) -> datetime | None:
        """When it was last written, by the store's own clock; None where there is no such file."""

    def sizes(self, prefix: str = "") -> dict[str, int]:
        """Every file below a folder, as path -> bytes."""

    def write(self, path: str, data: bytes) -> None:
        """Write or replace a whole file."""

    def writing(self, path: str) -> AbstractContextManager[Writer]:
        """Write or replace a file bit by bit: whole when the block ends, not there if it raises."""

    def put_if_absent(self, path: str, data: bytes) -> bool:
        """Write a new file; False, with nothing done, where there is one."""

    def put_if_match(self, path: str, data: bytes, version: str) -> bool:
        """Replace a file that still has this version; False, with nothing done, where it has not."""

    def delete(self, path: str) -> None:
        """Delete a file; one that is not there is no error."""

    def sweep(self, folder: str, mine: Callable[[str], bool] | None = None) -> None:
        """Delete what killed writers have left half-written below a folder.

        Locally, temporary files whose writer on this machine is gone, and any of ten minutes ago. On S3 every
        unfinished multipart upload, however young, to a path that is ``mine`` (none: every path): call it
        where a lease makes the caller the only writer of those paths. One who has lost that lease, and still
        writes, fails.
        """

    def child(self, folder: str) -> Storage:
        """The storage of a folder below."""

    def arrow(self) -> tuple[pyarrow.fs.FileSystem, str]:
        """The same root for Arrow and Ray: a filesystem and the path of the root in it."""


def checked(path: str) -> str:
    """A relative path that stays below its root, or `InputError`."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path:
        raise InputError(f"{path!r} is not a path below the study's root")
    return "/".join(parts)
