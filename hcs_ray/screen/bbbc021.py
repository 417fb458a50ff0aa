"""A screen in the layout of BBBC021v1: three tables and a folder of TIFFs a plate.

Files are found through the image table, never by a pattern on their names, whose prefixes vary by week;
only the site number is read from the name, where alone it stands. [Caie et al., Mol Cancer Ther 2010;
Ljosa et al., Nat Methods 2012]
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import Bbbc021Screen
from hcs_ray.contracts import InputError
from hcs_ray.screen import Screen, file_column
from hcs_ray.storage import Storage, open_storage

CHANNELS: Final = ("DAPI", "Tubulin", "Actin")

_PLATE, _WELL = "Image_Metadata_Plate_DAPI", "Image_Metadata_Well_DAPI"
_COMPOUND, _CONCENTRATION = "Image_Metadata_Compound", "Image_Metadata_Concentration"
_NAMES = tuple(f"Image_FileName_{channel}" for channel in CHANNELS)
_PATHS = tuple(f"Image_PathName_{channel}" for channel in CHANNELS)
_WELL_PATTERN = re.compile(r"([A-Pa-p])0*([1-9]\d?)")
_PLATE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SITE_PATTERN = re.compile(r"_s([1-9]\d*)_w")


def open_screen(config: Bbbc021Screen, study: Storage) -> Screen:
    """Read, join and check the tables, and find every image.

    Raises:
        InputError: names the file and row of a duplicate site, a missing file, an unknown plate, an
            unreadable concentration, or a column that is not there.
    """
    remote = "://" in config.folder or config.folder.startswith("/")
    storage = open_storage(config.folder) if remote else study.child(config.folder)
    names = (config.image_table, config.moa_table, config.compound_table)
    contents = {name: storage.read(name) for name in names}
    image, moa, compound = (contents[name] for name in names)
    fields = join_tables(image, moa, compound, config)
    sizes = storage.sizes()
    _require_files(fields, sizes, config.image_table)
    fingerprint = {
        f"{config.folder}/{name}": hashlib.sha256(data).hexdigest() for name, data in contents.items()
    }
    fingerprint[f"{config.folder} images"] = _listing_digest(fields, sizes)
    return Screen(fields, CHANNELS, storage, fingerprint)


def join_tables(image: bytes, moa: bytes, compound: bytes, config: Bbbc021Screen) -> pd.DataFrame:
    """The field table of three CSV files (see `hcs_ray.screen.Screen.fields`), checked and sorted by key."""
    images = _read_table(
        image, config.image_table, (*_NAMES, *_PATHS, _PLATE, _WELL, "Replicate", _COMPOUND, _CONCENTRATION)
    )
    moas = _moa_of_treatment(moa, config.moa_table)
    smiles = _smiles_of_compound(compound, config.compound_table)
    rows = [_field(row, line, config) for line, row in _rows(images)]
    fields = pd.DataFrame(rows)
    _refuse_duplicates(fields, config.image_table)
    fields[c.MOA] = fields[c.TREATMENT].map(moas).astype("str")
    fields.loc[fields[c.COMPOUND] == config.negative_control, c.MOA] = None
    fields[c.SMILES] = fields[c.COMPOUND].map(smiles).astype("str")
    fields[c.PERT_TYPE] = _perturbation_types(fields, config)
    columns = [c.KEY, *c.FIELD_COLUMNS, *(file_column(channel) for channel in CHANNELS)]
    return fields.sort_values(c.KEY, ignore_index=True)[columns]


def _rows(table: pd.DataFrame) -> Iterator[tuple[int, dict[str, str]]]:
    """Rows with their line numbers in the file."""
    for line, values in enumerate(table.itertuples(index=False, name=None), start=2):
        yield line, dict(zip(table.columns, values, strict=True))


def _read_table(data: bytes, name: str, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: not a readable CSV table: {str(error).splitlines()[0]}") from None
    if missing := [column for column in columns if column not in table]:
        raise InputError(f"{name}: has no column {missing[0]}")
    if table.empty:
        raise InputError(f"{name}: has no rows")
    return table


def _field(row: dict[str, str], line: int, config: Bbbc021Screen) -> dict[str, object]:
    where = f"{config.image_table} row {line}"
    plate, well = row[_PLATE], _padded_well(row[_WELL], where)
    if not _PLATE_PATTERN.fullmatch(plate):
        raise InputError(f"{where}: plate {plate!r} is not a name of letters, digits, _ and -")
    concentration = _decimal(row[_CONCENTRATION], where)
    site = _site(row, where)
    compound = row[_COMPOUND]
    if not compound:
        raise InputError(f"{where}: no compound")
    return {
        c.KEY: c.field_key(plate, well, site),
        c.SOURCE: config.source,
        c.BATCH: plate.partition("_")[0],
        c.PLATE: plate,
        c.WELL: well,
        c.SITE: site,
        c.REPLICATE: _integer(row["Replicate"], "Replicate", where),
        c.COMPOUND: compound,
        c.CONCENTRATION: float(concentration),
        c.TREATMENT: c.treatment_name(compound, concentration),
        "line": line,
    } | {file_column(channel): _file(row, channel, plate, where) for channel in CHANNELS}


def _file(row: dict[str, str], channel: str, plate: str, where: str) -> str:
    name, folder = row[f"Image_FileName_{channel}"], row[f"Image_PathName_{channel}"]
    if not name or "/" in name or "\\" in name or name.startswith("."):
        raise InputError(f"{where}: {name!r} is not a file name for {channel}")
    # The table says Week4/Week4_27481, the zips unpack to Week4_27481.
    if folder.rstrip("/").rpartition("/")[2] != plate:
        raise InputError(f"{where}: the folder {folder!r} of {channel} is not that of plate {plate}")
    return f"{plate}/{name}"


def _site(row: dict[str, str], where: str) -> int:
    sites = {match.group(1) if (match := _SITE_PATTERN.search(row[name])) else None for name in _NAMES}
    site = sites.pop()
    if sites or site is None:
        raise InputError(f"{where}: the file names give no single site (_s1_ .. _s4_)")
    return int(site)


def _padded_well(text: str, where: str) -> str:
    match = _WELL_PATTERN.fullmatch(text)
    if match is None:
        raise InputError(f"{where}: {text!r} is not a well such as B02")
    return f"{match.group(1).upper()}{int(match.group(2)):02d}"


def _integer(text: str, column: str, where: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise InputError(f"{where}: {column} {text!r} is not a whole number") from None


def _decimal(text: str, where: str) -> Decimal:
    try:
        value = Decimal(text)
    except InvalidOperation:
        value = Decimal("NaN")
    if not value.is_finite() or value < 0:
        raise InputError(f"{where}: concentration {text!r} is not a number of micromolar")
    return value


def _moa_of_treatment(data: bytes, name: str) -> dict[str, str]:
    table = _read_table(data, name, ("compound", "concentration", "moa"))
    moas: dict[str, str] = {}
    for line, row in _rows(table):
        where = f"{name} row {line}"
        treatment = c.treatment_name(row["compound"], _decimal(row["concentration"], where))
        if not row["moa"]:
            raise InputError(f"{where}: no moa for {treatment}")
        if moas.setdefault(treatment, row["moa"]) != row["moa"]:
            raise InputError(f"{where}: {treatment} is {row['moa']} here and {moas[treatment]} above")
    return moas


def _smiles_of_compound(data: bytes, name: str) -> dict[str, str | None]:
    table = _read_table(data, name, ("compound", "smiles"))
    return {row["compound"]: row["smiles"] or None for _, row in _rows(table)}


def _refuse_duplicates(fields: pd.DataFrame, name: str) -> None:
    if (again := fields[c.KEY].duplicated()).any():
        row = fields[again].iloc[0]
        first = fields.loc[fields[c.KEY] == row[c.KEY], "line"].iloc[0]
        raise InputError(
            f"{name} row {row['line']}: site {row[c.SITE]} of plate {row[c.PLATE]} well {row[c.WELL]} "
            f"stands already in row {first}"
        )


def _perturbation_types(fields: pd.DataFrame, config: Bbbc021Screen) -> pd.Series:
    """Controls are told from treatments of the same compound by their place.

    A well is a positive control where its treatment stands at its position on at least half of the plates
    (BBBC021's taxol 0.3 uM at six positions of every plate, but not in D05 of Week1).
    """
    control = c.treatment_name(
        config.positive_control.compound, Decimal(str(config.positive_control.concentration_um))
    )
    positive = fields[c.TREATMENT] == control
    plates_at = fields[positive].groupby(c.WELL)[c.PLATE].nunique()
    positions = plates_at[plates_at >= fields[c.PLATE].nunique() / 2].index
    types = pd.Series(c.TREATED, index=fields.index)
    types[positive & fields[c.WELL].isin(positions)] = c.POSITIVE_CONTROL
    types[fields[c.COMPOUND] == config.negative_control] = c.NEGATIVE_CONTROL
    return types


def _require_files(fields: pd.DataFrame, sizes: dict[str, int], table: str) -> None:
    folders = {path.partition("/")[0] for path in sizes}
    if unknown := sorted(set(fields[c.PLATE]) - folders):
        raise InputError(
            f"{table}: plate {unknown[0]} has no folder among the images ({len(unknown)} such plates)"
        )
    for channel in CHANNELS:
        missing = fields[~fields[file_column(channel)].isin(sizes.keys())]
        if len(missing):
            row = missing.iloc[0]
            raise InputError(
                f"{table}: {row[file_column(channel)]} ({channel} of {row[c.KEY]}) is not there "
                f"({len(missing)} {channel} images are missing)"
            )


def _listing_digest(fields: pd.DataFrame, sizes: dict[str, int]) -> str:
    digest = hashlib.sha256()
    for channel in CHANNELS:
        for path in fields[file_column(channel)]:
            digest.update(f"{path} {sizes[path]}\n".encode())
    return digest.hexdigest()
