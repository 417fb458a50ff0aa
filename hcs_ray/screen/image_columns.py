"""The image columns of a ``load_data.csv``: which channels there are, and where here their images lie.

CellProfiler's names: ``FileName_<Image>`` with ``PathName_<Image>``, or ``URL_<Image>``, which wins where
both are there; ``Frame_<Image>`` and ``Series_<Image>`` count from 0. [CellProfiler, module LoadData]
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final
from urllib.parse import unquote

import pandas as pd

from hcs_ray.contracts import InputError
from hcs_ray.screen import file_column
from hcs_ray.screen.images import parse_location
from hcs_ray.screen.tables import TEXT, integer
from hcs_ray.storage import Storage, open_storage

_IMAGE: Final = re.compile(r"(?:FileName|URL)_((?:Orig(?!inal))?(?!Illum)(.+))")
_EXPORTED: Final = re.compile(r"Image_(?=(?:FileName|PathName|URL|Frame|Series|Metadata)_)")
_DRIVE: Final = re.compile(r"[A-Za-z]:/")
_NUCLEAR: Final = frozenset({"dna", "dapi", "hoechst", "nuclei", "nucleus"})
_READ: Final = ("s3://", "http://", "https://")


def plain_header(table: pd.DataFrame) -> pd.DataFrame:
    """The columns without the ``Image_`` that CellProfiler's exported tables put before them."""
    return table.rename(columns=lambda name: _EXPORTED.sub("", name, count=1))


def find_channels(columns: Iterable[str], wanted: Sequence[str] | None) -> dict[str, str]:
    """The channels of a screen, in the columns' order or as wanted: name -> what its columns end with.

    ``FileName_OrigDNA`` and ``URL_DNA`` are both of channel DNA; illumination functions are none.

    Raises:
        InputError: there is none, one is not there, or two columns claim the same channel.
    """
    found: dict[str, str] = {}
    for column in columns:
        if (match := _IMAGE.fullmatch(column)) and found.setdefault(match[2], match[1]) != match[1]:
            raise InputError(f"load_data has both {found[match[2]]} and {match[1]} as channel {match[2]}")
    if not found:
        raise InputError("load_data has no image column: FileName_<Channel> or URL_<Channel>")
    if unknown := [channel for channel in wanted or () if channel not in found]:
        raise InputError(f"screen.channels: there is no {unknown[0]}; load_data has {', '.join(found)}")
    return {channel: found[channel] for channel in wanted or found}


def nuclear_channel(channels: Sequence[str], wanted: str | None) -> str | None:
    """The channel that shows nuclei: the one that is named, or one whose name says so."""
    if wanted is not None and wanted not in channels:
        raise InputError(f"screen.nuclear_channel: there is no {wanted} among {', '.join(channels)}")
    guessed = (name for name in channels if _NUCLEAR & set(re.split(r"[^a-z]+", name.casefold())))
    return wanted or next(guessed, None)


class Places:
    """Where the folders that a table names lie here.

    Nothing leaves the screen's folder but what a prefix maps elsewhere, or a URL names.

    Args:
        storage: The screen's folder.
        prefixes: How a folder or URL begins -> where that lies here; the longest that fits holds.
    """

    def __init__(self, storage: Storage, prefixes: Mapping[str, str]) -> None:
        self.storage = storage
        self._prefixes = {
            _plain(prefix, "screen.path_prefixes"): _plain(place, "screen.path_prefixes")
            for prefix, place in sorted(prefixes.items(), key=lambda item: -len(item[0]))
        }
        self._known: dict[str, str] = {}

    def find(self, folder: str, where: str) -> str:
        """Where a folder lies: a path below the screen's folder ("" is itself), an absolute one, or a URL.

        Raises:
            InputError: it goes up, or is a folder of another machine; ``where`` begins the message.
        """
        if folder not in self._known:
            self._known[folder] = self._find(folder, where)
        return self._known[folder]

    def _find(self, folder: str, where: str) -> str:
        plain = _plain(folder, where)
        explicit = folder.startswith("file:")
        place = plain
        for prefix, target in self._prefixes.items():
            if plain == prefix or plain.startswith(f"{prefix}/"):
                rest = plain[len(prefix) :].lstrip("/")
                place, explicit = (
                    "/".join(filter(None, (target, rest))) if target != "/" else f"/{rest}",
                    True,
                )
                break
        own = self.storage.url.rstrip("/")
        if place == own or place.startswith(f"{own}/"):
            return place[len(own) + 1 :]
        if "://" in place and not place.startswith(_READ):
            raise InputError(
                f"{where} is at {folder!r}; images are read from folders, s3://, http:// and https://"
            )
        foreign = bool(_DRIVE.match(place)) or place.startswith("//") or (place[:1] == "/" and not explicit)
        if foreign:
            raise InputError(
                f"{where} is in {folder!r}, not below {own}; say where that lies here, as in "
                f"screen.path_prefixes: {{{folder!r}: images}}"
            )
        return place

    def roots(self) -> list[str]:
        """The local folders outside of the screen's that prefixes map to."""
        return [place for place in self._prefixes.values() if place.startswith("/")]


def _plain(folder: str, where: str) -> str:
    """A folder with forward slashes, without empty parts or ``file://``; `InputError` where it goes up."""
    if folder.startswith("file:"):
        folder = unquote(re.sub(r"^file:(//(localhost)?(?=/))?", "", folder))
        folder = folder[1:] if _DRIVE.match(folder[1:]) else folder
    head, scheme, rest = folder.rpartition("://")
    slashed = rest if scheme else rest.replace("\\", "/")
    if ".." in slashed.split("/"):
        raise InputError(f"{where} is in {folder!r}; a path with .. is not followed")
    if scheme:
        return f"{head}://{rest.rstrip('/')}"
    parts = "/".join(part for part in slashed.split("/") if part not in ("", "."))
    return f"{re.match('/{0,2}', slashed)[0]}{parts}"  # type: ignore[index]  # matches always


def locate(
    table: pd.DataFrame, channels: Mapping[str, str], places: Places
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Where each channel's image lies, as `hcs_ray.screen.images` reads it, and the file that holds it.

    Args:
        table: Rows of ``load_data.csv`` as text; the index says where each stands.
        channels: Of `find_channels`.
        places: Where the tables' folders lie.

    Returns:
        Two tables with the index of ``table`` and a column `file_column` for each channel.

    Raises:
        InputError: names the row and column of an empty cell, a bad path or a bad page.
    """
    texts = {
        file_column(channel): list(_located(table, suffix, places)) for channel, suffix in channels.items()
    }
    files = {name: [parse_location(text).path for text in column] for name, column in texts.items()}
    return (
        pd.DataFrame(texts, index=table.index, dtype=TEXT),
        pd.DataFrame(files, index=table.index, dtype=TEXT),
    )


def _located(table: pd.DataFrame, suffix: str, places: Places) -> Iterable[str]:
    """The location of one channel's image, row by row."""
    nothing = pd.Series("", index=table.index, dtype=TEXT)
    columns = [
        table.get(f"{kind}_{suffix}", nothing) for kind in ("URL", "FileName", "PathName", "Frame", "Series")
    ]
    for where, url, name, path, frame, series in zip(table.index, *columns, strict=True):
        what = f"{where}: {'URL' if url else 'FileName'}_{suffix}"
        folder, file = _split(url, name, path, what)
        place = places.find(folder, what)
        page = _page(frame, series, str(where), suffix) if frame or series else ""
        yield f"{place}{'/' if place.strip('/') else ''}{file}{page}"


def _split(url: str, name: str, path: str, what: str) -> tuple[str, str]:
    """Folder and file name of an image."""
    if not url and not name:
        raise InputError(f"{what} is empty")
    below, _, file = url.rpartition("/") if url else name.replace("\\", "/").rpartition("/")
    if url.startswith("file:"):
        file = unquote(file)
    if file in ("", ".", "..") or "/" in file:
        raise InputError(f"{what} {url or name!r} is not a file")
    if url or not path or below.startswith("/") or _DRIVE.match(below):
        return below, file
    return f"{path}/{below}" if below else path, file


def _page(frame: str, series: str, where: str, suffix: str) -> str:
    """A page as a location has it.

    A series of one plane is a page of its own; which page a frame of a later series is, no table tells.
    """
    number = integer(frame or series, where, f"Frame_{suffix}" if frame else f"Series_{suffix}")
    if number < 0 or (frame and integer(series or "0", where, f"Series_{suffix}")):
        raise InputError(
            f"{where}: Frame_{suffix} {frame!r} of Series_{suffix} {series!r}: count pages from 0 in Frame_"
        )
    return f"#{number}"


class Listing:
    """The sizes of image files, from one listing of the folder that holds them all; URLs are not listed.

    Args:
        places: Where the folders lie.
        files: Paths and URLs, of `locate`.
    """

    def __init__(self, places: Places, files: Iterable[str]) -> None:
        self._sizes: dict[str, int] = {}
        self._roots = places.roots()
        local = [file for file in files if "://" not in file]
        self._add(places.storage, "", [file for file in local if not file.startswith("/")])
        for root in self._roots:
            below = [file[len(root) + 1 :] for file in local if file.startswith(f"{root}/")]
            self._add(open_storage(root, places.storage.options), f"{root}/", below)

    def _add(self, storage: Storage, prefix: str, files: list[str]) -> None:
        if files:
            folder = posixpath.commonpath({posixpath.dirname(file) for file in files})
            self._sizes |= {f"{prefix}{path}": size for path, size in storage.sizes(folder).items()}

    def size(self, file: str) -> int | None:
        """Bytes, where the file was listed."""
        return self._sizes.get(file)

    def lacks(self, file: str) -> bool:
        """Whether the file is not there, so far as its folder was listed."""
        if "://" in file or file in self._sizes:
            return False
        return not file.startswith("/") or any(file.startswith(f"{root}/") for root in self._roots)
