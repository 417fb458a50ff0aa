"""Zips that are read where they lie: the directory once, then one ranged read a member, by any thread."""

from __future__ import annotations

import re
import struct
import threading
import zipfile
from typing import Final, NamedTuple

from hcs_ray.contracts import InputError
from hcs_ray.screen import BadImageError
from hcs_ray.storage import Storage

_LOCAL: Final = struct.Struct("<4s22xHH")  # a member's own header: signature ... lengths of name and extra
_SLACK: Final = 512  # of the local extra field, whose length only the member itself tells
_STORED, _DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
_UNSAFE: Final = re.compile(r"^/|^[^/]*:|(^|/)\.\.(/|$)|[\\\x00-\x1f\x7f]")
_DEFLATE_RATIO: Final = 1032  # deflate cannot pack tighter


class Member(NamedTuple):
    """A file in a zip, as its directory lists it."""

    name: str
    offset: int  # of its local header
    packed: int  # bytes in the zip
    size: int  # bytes unpacked
    crc: int
    method: int
    encrypted: bool


def read_directory(storage: Storage, path: str) -> dict[str, Member]:
    """The files in a zip by name.

    Raises:
        InputError: it is no zip, is cut short, or has members that lie outside of it (``../``, absolute) or
            twice; the message names the zip and the member.
    """
    where = f"{storage.url.rstrip('/')}/{path}"
    try:
        with storage.open(path) as file, zipfile.ZipFile(file) as archive:
            listed = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise InputError(f"{where}: not a readable zip ({error}); download it again") from None
    members: dict[str, Member] = {}
    for info in listed:
        _check_name(info, where)
        if info.filename in members:
            raise InputError(f"{where}: holds the member {info.filename!r} twice; download it again")
        if not info.is_dir():
            members[info.filename] = Member(
                info.filename, info.header_offset, info.compress_size, info.file_size, info.CRC,
                info.compress_type, bool(info.flag_bits & 1),
            )  # fmt: skip
    return members


def is_unsafe(name: str) -> bool:
    """Whether a member's name is absolute, has a drive or a step up, or holds what no name needs."""
    return _UNSAFE.search(name) is not None


def _check_name(info: zipfile.ZipInfo, where: str) -> None:
    name = info.orig_filename  # before zipfile cuts it at a NUL
    if is_unsafe(name):
        raise InputError(f"{where}: its member {name!r} lies outside of the zip; do not trust it")


def read_member(storage: Storage, path: str, member: Member) -> bytes:
    """The unpacked bytes of a member, held against its CRC.

    Raises:
        BadImageError: it is encrypted, compressed in a way that is not read, cut short or damaged.
    """
    where = f"{storage.url.rstrip('/')}/{path}::{member.name}"
    if member.encrypted:
        raise BadImageError(f"{where}: is encrypted; unpack the zip with its password")
    if member.method not in (_STORED, _DEFLATED):
        raise BadImageError(f"{where}: zip compression {member.method} is not read; unpack the zip")
    most = member.packed if member.method == _STORED else member.packed * _DEFLATE_RATIO
    if member.size > most or (member.method == _STORED and member.size != member.packed):
        raise BadImageError(f"{where}: {member.packed} bytes do not hold {member.size}; download it again")
    data = _unpacked(_packed(storage, path, member, where), member, where)
    if len(data) != member.size or _crc32(data) != member.crc:
        raise BadImageError(f"{where}: its CRC does not match; download the zip again")
    return data


def _packed(storage: Storage, path: str, member: Member, where: str) -> bytes:
    wanted = _LOCAL.size + len(member.name.encode()) + _SLACK + member.packed
    data = storage.read_range(path, member.offset, wanted)
    if len(data) < _LOCAL.size or data[:4] != b"PK\3\4":
        raise BadImageError(f"{where}: is not where the zip says; download the zip again")
    _, name, extra = _LOCAL.unpack_from(data)
    start = _LOCAL.size + name + extra
    if start + member.packed > wanted:
        data, start = storage.read_range(path, member.offset + start, member.packed), 0
    if len(data) < start + member.packed:
        raise BadImageError(f"{where}: is cut short; download the zip again")
    return data[start : start + member.packed]


def _unpacked(packed: bytes, member: Member, where: str) -> bytes:
    if member.method == _STORED or member.size == 0:
        return packed
    import imagecodecs

    try:
        return bytes(imagecodecs.deflate_decode(packed, raw=True, out=member.size))
    except imagecodecs.DeflateError as error:
        raise BadImageError(f"{where}: cannot be unpacked ({error}); download the zip again") from None


def _crc32(data: bytes) -> int:
    import imagecodecs

    return int(imagecodecs.deflate_crc32(data))


class Archives:
    """The directories of a storage's zips, each read once by a process that needs it; for many threads."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self._lock = threading.Lock()
        self._directories: dict[str, dict[str, Member]] = {}

    def __reduce__(self) -> tuple[type[Archives], tuple[Storage]]:
        return Archives, (self.storage,)

    def members(self, path: str) -> dict[str, Member]:
        """The files in a zip by name; `InputError` as `read_directory`."""
        with self._lock:
            if path not in self._directories:
                self._directories[path] = read_directory(self.storage, path)
            return self._directories[path]

    def read(self, path: str, name: str) -> bytes:
        """The bytes of a member; `BadImageError` where there is none, or as `read_member`."""
        member = self.members(path).get(name)
        if member is None:
            raise BadImageError(f"{self.storage.url.rstrip('/')}/{path}: has no member {name}")
        return read_member(self.storage, path, member)
