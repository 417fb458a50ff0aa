"""Is a zip whole, and safe to read from? Every byte of every member is read; nothing is unpacked."""

from __future__ import annotations

import lzma
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Final

from hcs_ray.contracts import HcsError
from hcs_ray.screen.archives import is_unsafe

_CHUNK_BYTES: Final = 1 << 20
_UNREADABLE: Final = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError, RuntimeError,
    ValueError,
)  # fmt: skip


class DamagedZipError(HcsError):
    """A zip that cannot be read to its end; the message says why, and names the member."""


class UnsafeZipError(HcsError):
    """A zip with a member that points out of it; fetching it again would not help."""


def check_zip(path: Path, advance: Callable[[int], None]) -> None:
    """Compare every member with its CRC-32, and refuse names that leave the folder they are unpacked to.

    Args:
        path: The zip.
        advance: Called with the compressed bytes of each member that was read; may raise to end the check.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for member in members:
                _require_safe(member)
            if len({member.filename for member in members}) < len(members):
                raise DamagedZipError("the zip holds a member twice")
            if all(member.is_dir() for member in members):
                raise DamagedZipError("the zip is empty")
            for member in members:
                _read(archive, member)
                advance(member.compress_size)
    except _UNREADABLE as error:
        raise DamagedZipError(f"not a whole zip: {error}") from None


def _require_safe(member: zipfile.ZipInfo) -> None:
    name = member.orig_filename
    if is_unsafe(name):
        raise UnsafeZipError(f"member {name!r} points out of the zip")
    if stat.S_ISLNK(member.external_attr >> 16):
        raise UnsafeZipError(f"member {name!r} is a link")


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    try:
        with archive.open(member) as stream:
            while stream.read(_CHUNK_BYTES):  # compares the CRC-32 at the end
                pass
    except _UNREADABLE as error:
        raise DamagedZipError(f"member {member.orig_filename!r} is damaged: {error}") from None
