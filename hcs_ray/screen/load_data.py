"""Any screen that a CellProfiler or JUMP ``load_data.csv`` describes, one row a site.

``docs/screens.md`` describes the tables and every key.
"""

from __future__ import annotations

from typing import Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import LoadDataScreen
from hcs_ray.contracts import InputError
from hcs_ray.screen import Screen, file_column
from hcs_ray.screen.image_columns import Listing, Places, find_channels, locate, nuclear_channel, plain_header
from hcs_ray.screen.images import TiffSource
from hcs_ray.screen.listing import plate_digests, select_plates
from hcs_ray.screen.table_files import TableFiles, bare, column_names, resolve, set_plates, set_wells
from hcs_ray.screen.tables import TEXT, integer
from hcs_ray.screen.treatments import join_treatments
from hcs_ray.screen.well_contents import WELL_COLUMNS, describe_wells, optional
from hcs_ray.storage import Storage, open_storage

_COLUMNS: Final = {"batch": c.BATCH, "replicate": c.REPLICATE, **WELL_COLUMNS}
_OURS: Final = frozenset(name.casefold() for name in c.FIELD_COLUMNS)


def open_load_data(config: LoadDataScreen, storage: Storage) -> Screen:
    """Read, join and check the tables of a screen, choose its plates, and find every image below its folder.

    An image counts in its plate's digest with its path or URL, and with its size where its folder was listed.

    Args:
        config: Names the tables and columns.
        storage: The screen's folder.

    Raises:
        InputError: one line with the table, row and column that is wrong, and the key to set.
    """
    if config.anonymous and config.folder.startswith("s3://"):
        storage = open_storage(config.folder, storage.options, anonymous=True)
    files = TableFiles(storage, config.folder)
    table = _read_rows(files, config)
    channels = find_channels(table.columns, config.channels)
    places = Places(storage, config.path_prefixes)
    locations, paths = locate(table, channels, places)
    table = join_treatments(table, files, config)
    fields = _fields(table, config).join(locations)
    paths = paths.set_axis(fields[c.KEY])
    listing = Listing(places, pd.unique(paths.to_numpy().ravel()))
    fields = fields.sort_values(c.KEY, ignore_index=True)
    return Screen(
        fields=fields,
        channels=tuple(channels),
        source=TiffSource(storage, tuple(channels), config.anonymous),
        plates=_digests(fields, paths, tuple(channels), listing),
        tables=files.digests,
        absent=_absent(paths, listing, storage.url),
        nuclear_channel=nuclear_channel(tuple(channels), config.nuclear_channel),
        camera_maximum=config.camera_maximum,
    )


def _read_rows(files: TableFiles, config: LoadDataScreen) -> pd.DataFrame:
    """The rows of every ``load_data.csv`` of the chosen plates, with plate, well and site as ours are."""
    paths = dict.fromkeys(path for pattern in config.load_data for path in files.find(pattern, "load_data"))
    tables = [_own_columns(plain_header(files.read(path)), config) for path in paths]
    table = set_plates(pd.concat(tables).fillna(""))
    chosen = select_plates(table, config.plates, "load_data")[c.PLATE].unique()
    table = set_wells(table[table[c.PLATE].isin(set(chosen))])
    table[c.SITE] = [_site(text, str(where)) for where, text in table[c.SITE].items()]
    _refuse_repeated(table)
    table[c.SITE] = table[c.SITE].astype(TEXT)
    return table


def _own_columns(table: pd.DataFrame, config: LoadDataScreen) -> pd.DataFrame:
    """A table with plate, well and site under our names."""
    wanted = {"plate": (c.PLATE, config.columns.plate), "well": (c.WELL, config.columns.well)}
    if config.columns.site is not None:
        wanted["site"] = (c.SITE, config.columns.site)
    what = str(table.index[0]).rpartition(" row ")[0]
    theirs = {ours: resolve(table, name, key, what) for key, (ours, name) in wanted.items()}
    values = {ours: table[name] for ours, name in theirs.items()}
    values.setdefault(c.SITE, pd.Series("1", index=table.index, dtype=TEXT))
    original = {ours: _original(ours) for ours in {*values} - {*theirs.values()}}
    return table.rename(columns=original).assign(**values)


def _original(name: str) -> str:
    """What a column is called that has a name of ours but says something else."""
    return f"{c.METADATA_PREFIX}Original{bare(name)}"


def _refuse_repeated(table: pd.DataFrame) -> None:
    place = [c.PLATE, c.WELL, c.SITE]
    if (again := table.duplicated(place)).any():
        row = table[again].iloc[0]
        first = table.index[(table[place] == row[place]).all(axis=1)][0]
        raise InputError(
            f"{row.name}: site {row[c.SITE]} of plate {row[c.PLATE]!r} well {row[c.WELL]} "
            f"stands already in {first}"
        )


def _fields(table: pd.DataFrame, config: LoadDataScreen) -> pd.DataFrame:
    """The field table without its images, in the order of the rows."""
    columns = config.columns
    wells = describe_wells(table, config)
    ours: dict[str, object] = {
        c.SOURCE: _constant_or_column(table, None, c.SOURCE, config.source),
        c.BATCH: _constant_or_column(table, columns.batch, c.BATCH, config.batch),
        c.PLATE: table[c.PLATE],
        c.WELL: table[c.WELL],
        c.SITE: table[c.SITE].astype("int64"),
        c.REPLICATE: _replicates(table, columns.replicate),
        **{name: wells[name] for name in column_names(wells)},
    }
    keys = map(c.field_key, table[c.PLATE], table[c.WELL], table[c.SITE])
    fields = pd.DataFrame({c.KEY: pd.Series(list(keys), index=table.index, dtype=TEXT), **ours})
    return fields[[c.KEY, *c.FIELD_COLUMNS]].join(_further_columns(table, config))


def _further_columns(table: pd.DataFrame, config: LoadDataScreen) -> pd.DataFrame:
    """All other metadata; names that differ from ours in case alone are the same to many readers."""
    named = config.columns.model_dump()
    sources = {optional(table, named[key], ours, key) for key, ours in _COLUMNS.items()}
    sources |= {c.SOURCE, c.PLATE, c.WELL, c.SITE} | {
        name for key in ("plate", "well", "site") for name in (named[key], f"{c.METADATA_PREFIX}{named[key]}")
    }
    further = {}
    for name in c.metadata_columns(table.columns):
        ours = name.casefold() in _OURS
        if not ours or name not in sources:
            further[_original(name) if ours else name] = table[name].astype(TEXT).where(table[name] != "")
    return pd.DataFrame(further, index=table.index)


def _site(text: str, where: str) -> int:
    site = integer(text, where, "site")
    if site < 0:
        raise InputError(f"{where}: site {text!r} is negative")
    return site


def _constant_or_column(table: pd.DataFrame, column: str | None, ours: str, constant: str) -> pd.Series:
    name = optional(table, column, ours, "batch")
    if name is None:
        return pd.Series(constant, index=table.index, dtype=TEXT)
    values = table[name].fillna("")
    if (empty := values == "").any():
        raise InputError(f"{table.index[empty][0]}: {name} is empty")
    return values


def _replicates(table: pd.DataFrame, column: str | None) -> pd.Series:
    name = optional(table, column, c.REPLICATE, "replicate")
    if name is None:
        return pd.Series(pd.NA, index=table.index, dtype="Int64")
    cells = table[name].fillna("")
    values = [integer(text, str(where), name) if text else pd.NA for where, text in cells.items()]
    return pd.Series(values, index=table.index, dtype="Int64")


def _digests(
    fields: pd.DataFrame, paths: pd.DataFrame, channels: tuple[str, ...], listing: Listing
) -> dict[str, str]:
    """Plate -> digest; columns that only other plates fill are no part of it."""
    names = [file_column(channel) for channel in channels]
    in_order = paths.loc[fields[c.KEY]]
    listed = {
        text: [text, listing.size(path)]
        for name in names
        for text, path in zip(fields[name], in_order[name], strict=True)
    }
    digests: dict[str, str] = {}
    for _, rows in fields.groupby(c.PLATE):
        digests |= plate_digests(rows.dropna(axis=1, how="all"), channels, listed)
    return digests


def _absent(paths: pd.DataFrame, listing: Listing, url: str) -> dict[str, str]:
    """Key -> one line that names the first image that is not there."""
    absent: dict[str, str] = {}
    for name in column_names(paths):
        for key, path in paths[name].items():
            if listing.lacks(path) and key not in absent:
                place = path if path.startswith("/") else f"{url}/{path}"
                absent[str(key)] = f"{place} ({name.removeprefix(file_column(''))} of {key}) is not there"
    return absent
