"""Plate maps, and tables of wells and compounds, joined to the rows of ``load_data.csv``.

The layout is that of JUMP and the Cell Painting Gallery: ``barcode_platemap.csv`` says which map a plate has,
``platemap/<map>.txt`` what its wells hold, further tables what a compound is. Joined columns are called
``Metadata_<column>``, as pycytominer calls them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Callable
from typing import Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import LoadDataColumns, LoadDataScreen
from hcs_ray.contracts import InputError
from hcs_ray.screen.table_files import TableFiles, bare, column_names, set_plates, set_wells
from hcs_ray.screen.tables import decimal

_MAP: Final = "Metadata_Plate_Map_Name"
_OWN_MAP: Final = "Metadata_plate_map_name"  # the name that a map says it has
_FOLDER: Final = "\0folder"  # of the table that names a plate's map; no table has a column of this name
_EXTENSIONS: Final = ("", ".txt", ".csv", ".tsv", ".txt.gz", ".csv.gz", ".tsv.gz")


def join_treatments(table: pd.DataFrame, files: TableFiles, config: LoadDataScreen) -> pd.DataFrame:
    """The rows of ``load_data.csv`` with the columns of the plate maps, then of each further table.

    A cell is missing (null) where a table does not know its compound, and "" where it leaves it empty.

    Args:
        table: Text, with `contracts.PLATE` and `contracts.WELL`; the index says where each row stands.
        files: The tables of the screen.
        config: Names them.

    Raises:
        InputError: a plate has no map, a well is in none, two rows say different things of the same well or
            compound, or a table shares no column with what is there; it names the table and the row.
    """
    if config.barcode_platemap is not None:
        table = _join_maps(table, files, config)
    for pattern in config.treatments:
        paths = files.find(pattern, "treatments")
        right = pd.concat([_prefixed(files.read(path), config.columns) for path in paths]).fillna("")
        table = _join_shared(table, right, pattern, config)
    return table


def _prefixed(table: pd.DataFrame, columns: LoadDataColumns) -> pd.DataFrame:
    """A table's columns under the names that they have in the joined table, its wells and plates checked."""
    own = {
        "Assay_Plate_Barcode": c.PLATE, columns.plate: c.PLATE, "well_position": c.WELL, columns.well: c.WELL,
    }  # fmt: skip
    own |= {name.removeprefix(c.METADATA_PREFIX): ours for name, ours in own.items()}
    names = {
        name: own.get(name, f"{c.METADATA_PREFIX}{name.removeprefix(c.METADATA_PREFIX)}")
        for name in column_names(table)
    }
    twice = pd.Series(names).duplicated(keep=False)
    if twice.any():
        both = " and ".join(str(name) for name in twice.index[twice])
        raise InputError(f"{table.index[0]}: the columns {both} are one and the same to us; drop one")
    table = table.rename(columns=names)
    table = set_plates(table) if c.PLATE in table else table
    return set_wells(table) if c.WELL in table else table


def _join_maps(table: pd.DataFrame, files: TableFiles, config: LoadDataScreen) -> pd.DataFrame:
    barcodes = _barcodes(files, config)
    table = _join(table, barcodes, [c.PLATE])
    if (lost := table[_MAP].isna()).any():
        plate = table.loc[lost, c.PLATE].iloc[0]
        raise InputError(f"{config.barcode_platemap}: plate {plate!r} has no row there")
    used = barcodes[barcodes[c.PLATE].isin(set(table[c.PLATE]))].drop_duplicates([_FOLDER, _MAP])
    names = zip(used.index, used[_FOLDER], used[_MAP], strict=True)
    maps = pd.concat([_map(files, config, *name) for name in names]).fillna("")
    joined = _join(table, maps, [_FOLDER, _MAP, c.WELL], lambda row: f"the plate map {row[_MAP]}")
    return joined.drop(columns=_FOLDER)


def _barcodes(files: TableFiles, config: LoadDataScreen) -> pd.DataFrame:
    """Plate -> map, and the folder where the map lies."""
    assert config.barcode_platemap is not None
    tables = []
    for path in files.find(config.barcode_platemap, "barcode_platemap"):
        table = _prefixed(files.read(path), config.columns)
        for name, written in ((c.PLATE, "Assay_Plate_Barcode"), (_MAP, "Plate_Map_Name")):
            if name not in table:
                raise InputError(f"{path}: has no column {written}")
        folder = posixpath.join(posixpath.dirname(path), config.platemaps)
        tables.append(table.assign(**{_FOLDER: folder}))
    return pd.concat(tables).fillna("")


def _map(files: TableFiles, config: LoadDataScreen, where: str, folder: str, name: str) -> pd.DataFrame:
    """A plate map, with the names under which `_barcodes` knows it."""
    there = files.names(folder)
    path = next((f"{folder}/{name}{end}" for end in _EXTENSIONS if f"{name}{end}" in there), None)
    if path is None:
        raise InputError(f"{where}: the plate map {name!r} is not in {folder}, as {name}.txt or .csv")
    table = _prefixed(files.read(path), config.columns)
    if c.WELL not in table:
        raise InputError(f"{path}: has no column well_position")
    other = table.get(_OWN_MAP, pd.Series(name, index=table.index)) != name
    if other.any():
        row = table[other].iloc[0]
        raise InputError(f"{row.name}: says that it is of plate map {row[_OWN_MAP]!r}")
    return table.drop(columns=_OWN_MAP, errors="ignore").assign(**{_FOLDER: folder, _MAP: name})


def _join_shared(table: pd.DataFrame, right: pd.DataFrame, name: str, config: LoadDataScreen) -> pd.DataFrame:
    """Join a table by all columns that it shares with what is there."""
    keys = [column for column in column_names(table) if column in right]
    if not keys:
        raise InputError(
            f"{name}: shares no column with the tables before it; it has {', '.join(column_names(right))}, "
            f"they have {', '.join(c.metadata_columns(table.columns))}"
        )
    dose = config.columns.concentration
    for column in {dose, f"{c.METADATA_PREFIX}{dose}"} & set(keys):
        table, right = _plain_numbers(table, str(column)), _plain_numbers(right, str(column))
    joined = _join(table, right, keys, (lambda row: name) if c.WELL in keys else None)
    if not _known(table, right, keys).any():
        raise InputError(f"{name}: joined by {', '.join(keys)}, it has no row for any of the screen's wells")
    return joined


def _plain_numbers(table: pd.DataFrame, column: str) -> pd.DataFrame:
    """A column of numbers written in one way, so that 0.30 meets 0.3."""
    first = table[~table[column].duplicated()]
    plain = {
        text: c.format_concentration(decimal(text, str(where))) if text else ""
        for where, text in first[column].items()
    }
    return table.assign(**{column: table[column].map(plain)})


def _known(table: pd.DataFrame, right: pd.DataFrame, keys: list[str]) -> pd.Series:
    """Which rows of ``table`` have one in ``right``."""
    marked = table[keys].merge(right[keys].drop_duplicates(), on=keys, how="left", indicator="\0known")
    return (marked["\0known"] == "both").set_axis(table.index)


def _join(
    table: pd.DataFrame,
    right: pd.DataFrame,
    keys: list[str],
    required: Callable[[pd.Series], str] | None = None,
) -> pd.DataFrame:
    """The rows of ``table``, in their order, with the other columns of ``right``.

    Where ``right`` has no row these are missing, or "" if the keys are empty too. Where it must have one for
    each well, ``required`` gives its name for the message.
    """
    right = _one_row_each(right, keys)
    known = _known(table, right, keys)
    if required is not None and not known.all():
        row = table.loc[~known].iloc[0]
        raise InputError(f"{row.name}: plate {row[c.PLATE]!r} well {row[c.WELL]} is not in {required(row)}")
    shared = [name for name in column_names(right) if name in table and name not in keys]
    joined = table.merge(right, on=keys, how="left", suffixes=("", "\0"), validate="many_to_one")
    joined = joined.set_axis(table.index)
    for name in shared:
        _require_equal(joined, name)
    joined = joined.drop(columns=[f"{name}\0" for name in shared])
    empty = ~known & (table[keys] == "").all(axis=1)
    added = [name for name in column_names(right) if name not in table]
    joined.loc[empty, added] = ""
    return joined


def _one_row_each(right: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The rows without repetitions; `InputError` where two say different things of one key."""
    right = right[~right.duplicated()]
    again = right.duplicated(keys)
    if not again.any():
        return right
    second = right[again].iloc[0]
    first = right[(right[keys] == second[list(keys)]).all(axis=1)].iloc[0]
    name = next(name for name in column_names(right) if first[name] != second[name])
    what = " ".join(str(second[key]) or "(empty)" for key in keys if key != _FOLDER)
    raise InputError(
        f"{second.name}: {what} has {bare(name)} {second[name]!r} here and {first[name]!r} in {first.name}"
    )


def _require_equal(joined: pd.DataFrame, name: str) -> None:
    """Refuse a joined column that says something else than the column of its name that is there."""
    other = joined[f"{name}\0"]
    differs = other.notna() & (other != joined[name])
    if differs.any():
        row = joined[differs].iloc[0]
        raise InputError(
            f"{row.name}: {bare(name)} of plate {row[c.PLATE]!r} well {row[c.WELL]} is {row[name]!r}, "
            f"but {row[f'{name}' + chr(0)]!r} in its plate map"
        )
