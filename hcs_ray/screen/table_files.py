"""The tables that describe a screen, below its folder: found, read once each, and their digests kept."""

from __future__ import annotations

import gzip
import hashlib
import posixpath
import unicodedata
import zlib
from fnmatch import fnmatchcase
from typing import Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.screen.tables import TEXT, read_table
from hcs_ray.screen.wells import padded_well
from hcs_ray.storage import Storage

_MISSING: Final = frozenset({"NA", "N/A", "nan", "NaN"})  # as R and pandas write an empty cell


class TableFiles:
    """Tables below a screen's folder; ``digests`` has the SHA-256 of each that was read.

    Args:
        storage: The screen's folder.
        folder: That folder as the configuration has it.
    """

    def __init__(self, storage: Storage, folder: str) -> None:
        self.storage, self.folder = storage, folder
        self.digests: dict[str, str] = {}

    def find(self, pattern: str, key: str) -> list[str]:
        """The tables of a path whose parts may hold ``*``, in order; `InputError` where there is none."""
        parts = pattern.split("/")
        fixed = next((number for number, part in enumerate(parts) if "*" in part), None)
        if fixed is None:
            return [pattern]
        listed = self.storage.sizes("/".join(parts[:fixed]))
        found = sorted(path for path in listed if _matches(path.split("/"), parts))
        if not found:
            raise InputError(f"screen.{key}: there is no table {pattern} below {self.storage.url}")
        return found

    def read(self, path: str) -> pd.DataFrame:
        """A table as text, gzipped or not; its index says where a row stands: ``<path> row <n>``.

        What R and pandas write for nothing (NA, nan) is an empty cell.
        """
        data = self.storage.read(path)
        self.digests[f"{self.folder}/{path}"] = hashlib.sha256(data).hexdigest()
        if path.endswith(".gz"):
            try:
                data = gzip.decompress(data)
            except (OSError, EOFError, zlib.error) as error:
                raise InputError(f"{path}: not a readable gzip file ({error}); copy it again") from None
        table = read_table(data, path)
        table = table.mask(table.isin(_MISSING), "")
        return table.set_axis(pd.Index([f"{path} row {row}" for row in table.index], dtype=TEXT))

    def names(self, folder: str) -> set[str]:
        """The names of the files in a folder."""
        return {posixpath.basename(path) for path in self.storage.sizes(folder)}


def _matches(parts: list[str], pattern: list[str]) -> bool:
    return len(parts) == len(pattern) and all(map(fnmatchcase, parts, pattern))


def resolve(table: pd.DataFrame, column: str, key: str, what: str) -> str:
    """A column's name in a table, with its ``Metadata_`` where it was written without.

    Raises:
        InputError: there is no such column; the message says in ``what``, and which key asks for it.
    """
    for name in (column, c.METADATA_PREFIX + column):
        if name in table:
            return name
    there = ", ".join(name for name in column_names(table) if "\0" not in name)
    raise InputError(f"{what}: no column {column}, which screen.columns.{key} names, but {there}")


def column_names(table: pd.DataFrame) -> list[str]:
    """The names of a table's columns, which are all text."""
    return [str(name) for name in table.columns]


def bare(name: str) -> str:
    """A column's name without ``Metadata_``."""
    return name.removeprefix(c.METADATA_PREFIX)


def set_plates(table: pd.DataFrame) -> pd.DataFrame:
    """The column of plates in one Unicode form, so that names that look the same are the same."""
    empty = table[c.PLATE] == ""
    if empty.any():
        raise InputError(f"{table.index[empty][0]}: no plate")
    names = {text: unicodedata.normalize("NFC", text) for text in table[c.PLATE].unique()}
    return table.assign(**{c.PLATE: table[c.PLATE].map(names)})


def set_wells(table: pd.DataFrame) -> pd.DataFrame:
    """The column of wells as all our tables have it: B02; `InputError` names the row of one that is none."""
    first = table[~table[c.WELL].duplicated()]
    names = {text: padded_well(text, str(where)) for where, text in first[c.WELL].items()}
    return table.assign(**{c.WELL: table[c.WELL].map(names)})
