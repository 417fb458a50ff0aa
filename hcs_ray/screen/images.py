"""From a field's row to its pixels: TIFFs in folders, in zips, on S3 and on the web.

Where an image lies is one text (a location):

- ``<path>``: a TIFF of one page;
- ``<path>#<page>``: a page, from 0, of a TIFF with several (OME-TIFF too);
- ``<archive.zip>::<member>``, ``<archive.zip>::<member>#<page>``: the same in a zip that nobody unpacked.

A path is relative to the screen's folder, absolute, or a URL (``s3://bucket/key``, ``http://``, ``https://``).
"""

from __future__ import annotations

import re
import threading
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.screen import BadImageError, Field, RawField, file_column, tiff
from hcs_ray.screen.archives import Archives
from hcs_ray.storage import Storage, open_storage

_PAGE: Final = re.compile(r"(.+)#([0-9]{1,9})", re.DOTALL)
_MEMBER: Final = re.compile(r"(.+?\.zip)::(.+)", re.DOTALL | re.IGNORECASE)
_WEB: Final = ("http://", "https://")
Pixels = npt.NDArray[np.uint16]


class Location(NamedTuple):
    """Where an image lies; ``str()`` writes what `parse_location` reads."""

    path: str
    member: str | None = None
    page: int | None = None

    def __str__(self) -> str:
        file = self.path if self.member is None else f"{self.path}::{self.member}"
        return file if self.page is None else f"{file}#{self.page}"


def parse_location(text: str) -> Location:
    """Read a location; a file name that itself ends like a page (``a#1``) wants its page: ``a#1#0``."""
    page = _PAGE.fullmatch(text)
    file, number = (page.group(1), int(page.group(2))) if page else (text, None)
    if member := _MEMBER.fullmatch(file):
        return Location(member.group(1), member.group(2), number)
    return Location(file, None, number)


class TiffSource:
    """Reads fields from TIFFs, one file a channel or several pages a file. Picklable, shared between threads.

    Args:
        storage: The screen's folder.
        channels: Channel names in the order of the planes.
        anonymous: Read ``s3://`` locations without credentials, as from a public bucket.
    """

    def __init__(self, storage: Storage, channels: tuple[str, ...], anonymous: bool = False) -> None:
        self.storage, self.channels, self.anonymous = storage, channels, anonymous
        self._files = Files(storage, anonymous)

    def __reduce__(self) -> tuple[type[TiffSource], tuple[Storage, tuple[str, ...], bool]]:
        return TiffSource, (self.storage, self.channels, self.anonymous)

    def read(self, row: Field) -> RawField:
        """All channels of one field; a file that several channels share is read once.

        Raises:
            BadImageError: names the file and why it is not read, or the channels that differ in size.
        """
        locations = [self._location(row, channel) for channel in self.channels]
        planes: dict[Location, list[int]] = {}
        for number, location in enumerate(locations):
            planes.setdefault(location._replace(page=None), []).append(number)
        pixels = None
        digests = [""] * len(locations)
        for file, numbers in planes.items():  # one file in memory at a time
            data = self._files.read(file)
            digest = xxhash.xxh3_128_hexdigest(data)
            for number in numbers:
                pixels = self._decode(data, locations[number], number, pixels)
                digests[number] = digest
            del data  # not only when the next file is there
        assert pixels is not None, "a screen has channels"
        return RawField(pixels, tuple(digests))

    def _location(self, row: Field, channel: str) -> Location:
        text = row[file_column(channel)]
        if not isinstance(text, str) or not text:
            raise BadImageError(f"{row[c.KEY]}: has no image of {channel}")
        return parse_location(text)

    def _decode(self, data: bytes, location: Location, number: int, pixels: Pixels | None) -> Pixels:
        """Decode a channel into its plane of ``pixels``, which the first one makes."""
        try:
            page = tiff.read_page(data, location.page)
            if pixels is None:
                pixels = np.empty((len(self.channels), page.height, page.width), np.uint16)
            if (page.height, page.width) == pixels.shape[1:]:
                tiff.decode(data, page, pixels[number])
                return pixels
        except tiff.TiffError as error:
            raise BadImageError(f"{self._files.name(location)}: {error}") from None
        raise BadImageError(
            f"{self._files.name(location)}: {self.channels[number]} has {page.height} x {page.width} px, "
            f"{self.channels[0]} of the same field {pixels.shape[1]} x {pixels.shape[2]}"
        )


class Files:
    """Whole files by location: below the screen's folder, absolute, in zips, on S3 or on the web."""

    def __init__(self, storage: Storage, anonymous: bool = False) -> None:
        self.storage, self.anonymous = storage, anonymous
        self._lock = threading.Lock()
        self._archives = {"": Archives(storage)}

    def name(self, location: Location) -> str:
        """A location as messages call it."""
        absolute = location.path.startswith("/") or "://" in location.path
        return str(location) if absolute else f"{self.storage.url}/{location}"

    def read(self, location: Location) -> bytes:
        """The bytes of a file or of a zip's member; `BadImageError` where there is none."""
        try:
            if location.path.startswith(_WEB):
                return _fetch(location)
            root, path = _root(location.path)
            archives = self._of(root)
            if location.member is not None:
                return archives.read(path, location.member)
            return archives.storage.read(path)
        except InputError as error:  # no such file, a path that leaves the folder
            raise BadImageError(str(error)) from None

    def _of(self, root: str) -> Archives:
        with self._lock:
            if root not in self._archives:
                options, anonymous = self.storage.options, self.anonymous
                self._archives[root] = Archives(open_storage(root, options, anonymous=anonymous))
            return self._archives[root]


def _root(path: str) -> tuple[str, str]:
    """The root of a location's storage ("" for the screen's own) and the path below it."""
    if path.startswith("s3://"):
        bucket, _, key = path.removeprefix("s3://").partition("/")
        return f"s3://{bucket}", key
    if "://" in path:
        raise InputError(f"{path}: images are read from folders, s3://, http:// and https://")
    return ("/", path.lstrip("/")) if path.startswith("/") else ("", path)


def _fetch(location: Location) -> bytes:
    """A file from the web, with retries; one that is not there is a bad image, a server that fails is not."""
    import urllib3

    if location.member is not None:
        raise InputError(f"{location}: a zip on the web is not read in place; download it")
    retries = urllib3.Retry(5, backoff_factor=0.5, status_forcelist=(429, 500, 502, 503, 504))
    try:
        response = urllib3.request("GET", location.path, retries=retries, timeout=60.0)
    except urllib3.exceptions.HTTPError as error:
        raise HcsError(f"{location.path}: cannot be read: {error}") from None
    if response.status != 200:
        raise InputError(f"{location.path}: the server answers {response.status}")
    return response.data
