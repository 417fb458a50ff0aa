"""The three tables of BBBC021 version 1 become one field table.

Files are found through the image table, never by a pattern on their names, whose prefixes vary by week;
only the site number is read from the name, where alone it stands. [Caie et al., Mol Cancer Ther 2010;
Ljosa et al., Nat Methods 2012]
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import Bbbc021Screen, PybbbcScreen
from hcs_ray.contracts import InputError
from hcs_ray.screen import file_column
from hcs_ray.screen.tables import TEXT, decimal, integer, read_table, rows_of
from hcs_ray.screen.wells import padded_well

CHANNELS: Final = ("DAPI", "Tubulin", "Actin")
TableNames = Bbbc021Screen | PybbbcScreen

_PLATE, _WELL = "Image_Metadata_Plate_DAPI", "Image_Metadata_Well_DAPI"
_COMPOUND, _CONCENTRATION = "Image_Metadata_Compound", "Image_Metadata_Concentration"
_NAMES = tuple(f"Image_FileName_{channel}" for channel in CHANNELS)
_PATHS = tuple(f"Image_PathName_{channel}" for channel in CHANNELS)
_PLATE_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_SITE_PATTERN = re.compile(r"_s([1-9]\d*)_w")


def join_tables(image: bytes, moa: bytes, compound: bytes, config: TableNames) -> pd.DataFrame:
    """The field table of three CSV files (see `hcs_ray.screen.Screen.fields`), checked and sorted by key.

    An image's location is that in the unpacked screen, ``<plate>/<file>``.

    Raises:
        InputError: names the file and row of a duplicate site, an unreadable well or concentration, a
            contradiction, or a column that is not there.
    """
    images = read_table(
        image, config.image_table, (*_NAMES, *_PATHS, _PLATE, _WELL, "Replicate", _COMPOUND, _CONCENTRATION)
    )
    moas = _moa_of_treatment(moa, config.moa_table)
    smiles = _smiles_of_compound(compound, config.compound_table)
    rows = [_field(row, line, config) for line, row in rows_of(images)]
    fields = pd.DataFrame(rows)
    _refuse_duplicates(fields, config.image_table)
    fields[c.MOA] = fields[c.TREATMENT].map(moas).astype(TEXT)
    fields.loc[fields[c.COMPOUND] == config.negative_control, c.MOA] = None
    fields[c.SMILES] = fields[c.COMPOUND].map(smiles).astype(TEXT)
    fields[c.PERT_TYPE] = perturbation_types(fields, config)
    columns = [c.KEY, *c.FIELD_COLUMNS, *(file_column(channel) for channel in CHANNELS)]
    return fields.sort_values(c.KEY, ignore_index=True)[columns]


def _field(row: dict[str, str], line: int, config: TableNames) -> dict[str, object]:
    where = f"{config.image_table} row {line}"
    place = row[_PLATE], row[_WELL], _site(row, where)
    treatment = row[_COMPOUND], decimal(row[_CONCENTRATION], where)
    replicate = integer(row["Replicate"], where, "Replicate")
    files = {file_column(channel): _file(row, channel, row[_PLATE], where) for channel in CHANNELS}
    return field_row(place, replicate, treatment, config.source, where) | files | {"line": line}


def field_row(
    place: tuple[str, str, int], replicate: int, treatment: tuple[str, Decimal], source: str, where: str
) -> dict[str, object]:
    """A row of the field table, without what other tables say of its treatment.

    Args:
        place: Plate, well as written, site.
        replicate: Of the treatment.
        treatment: Compound and its concentration in micromolar.
        source: Of the images.
        where: How messages call the row.
    """
    plate, well = place[0], padded_well(place[1], where)
    if not _PLATE_PATTERN.fullmatch(plate):
        raise InputError(f"{where}: plate {plate!r} is not a name of letters, digits, _ and -")
    compound, concentration = treatment
    if not compound:
        raise InputError(f"{where}: no compound")
    return {
        c.KEY: c.field_key(plate, well, place[2]),
        c.SOURCE: source,
        c.BATCH: plate.partition("_")[0],
        c.PLATE: plate,
        c.WELL: well,
        c.SITE: place[2],
        c.REPLICATE: replicate,
        c.COMPOUND: compound,
        c.CONCENTRATION: float(concentration),
        c.TREATMENT: c.treatment_name(compound, concentration),
    }


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


def _moa_of_treatment(data: bytes, name: str) -> dict[str, str]:
    table = read_table(data, name, ("compound", "concentration", "moa"))
    moas: dict[str, str] = {}
    for line, row in rows_of(table):
        where = f"{name} row {line}"
        treatment = c.treatment_name(row["compound"], decimal(row["concentration"], where))
        if not row["moa"]:
            raise InputError(f"{where}: no moa for {treatment}")
        if moas.setdefault(treatment, row["moa"]) != row["moa"]:
            raise InputError(f"{where}: {treatment} is {row['moa']} here and {moas[treatment]} above")
    return moas


def _smiles_of_compound(data: bytes, name: str) -> dict[str, str | None]:
    table = read_table(data, name, ("compound", "smiles"))
    return {row["compound"]: row["smiles"] or None for _, row in rows_of(table)}


def _refuse_duplicates(fields: pd.DataFrame, name: str) -> None:
    if (again := fields[c.KEY].duplicated()).any():
        row = fields[again].iloc[0]
        first = fields.loc[fields[c.KEY] == row[c.KEY], "line"].iloc[0]
        raise InputError(
            f"{name} row {row['line']}: site {row[c.SITE]} of plate {row[c.PLATE]} well {row[c.WELL]} "
            f"stands already in row {first}"
        )


def perturbation_types(fields: pd.DataFrame, config: TableNames) -> pd.Series:
    """Controls are told from treatments of the same compound by their place.

    A well is a positive control where its treatment stands at its position on at least half of the plates
    (BBBC021's taxol 0.3 uM at six positions of every plate, but not in D05 of Week1).
    """
    types = pd.Series(c.TREATED, index=fields.index)
    if (control := config.positive_control) is not None:
        name = c.treatment_name(control.compound, Decimal(str(control.concentration_um)))
        positive = fields[c.TREATMENT] == name
        plates_at = fields[positive].groupby(c.WELL)[c.PLATE].nunique()
        positions = plates_at[plates_at >= fields[c.PLATE].nunique() / 2].index
        types[positive & fields[c.WELL].isin(positions)] = c.POSITIVE_CONTROL
    types[fields[c.COMPOUND] == config.negative_control] = c.NEGATIVE_CONTROL
    return types
