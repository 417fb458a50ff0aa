"""What each profile of a foreign table is of: plate, well, batch, treatment, MoA and role.

It is told by the table's own columns, by a table of images (plate and well -> compound and concentration, as
BBBC021 publishes it), by a table of mechanisms, and by the names of the controls.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import Bbbc021Screen
from hcs_ray.config.screens import PositiveControl
from hcs_ray.contracts import InputError
from hcs_ray.profiles.aggregate import BATCHES
from hcs_ray.profiles.foreign import ForeignTable, read_file
from hcs_ray.profiles.foreign_columns import ALIASES, find_column
from hcs_ray.screen.bbbc021_tables import perturbation_types
from hcs_ray.screen.tables import decimal, read_table
from hcs_ray.screen.wells import padded_well

_OURS: Final[Mapping[str, str]] = {
    "plate": c.PLATE, "well": c.WELL, "batch": c.BATCH, "compound": c.COMPOUND,
    "concentration": c.CONCENTRATION, "treatment": c.TREATMENT, "moa": c.MOA, "pert_type": c.PERT_TYPE,
}  # fmt: skip
_FOLDERS: Final = ("Image_PathName_DAPI", "PathName_DAPI", "Image_PathName_OrigDNA", "PathName_OrigDNA")
_ROLES: Final = (c.TREATED, c.NEGATIVE_CONTROL, c.POSITIVE_CONTROL)


@dataclass(frozen=True)
class Description:
    """How a table is to be read.

    Attributes:
        columns: Role -> the column that the user names.
        moa_table: Of compound, concentration (or none) and mechanism.
        image_table: Of plate, well, compound and concentration.
        negative_controls: Compounds that are negative controls, where no column says so.
        positive_control: Treatment that is a positive control at the positions where it stands on at least
            half of the plates, as ``taxol@0.3``.
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    moa_table: str | None = None
    image_table: str | None = None
    negative_controls: tuple[str, ...] = ()
    positive_control: str | None = None


@dataclass(frozen=True)
class Described:
    """Metadata with our columns, and where each came from (our column -> words)."""

    meta: pd.DataFrame
    sources: dict[str, str]

    def has(self, column: str) -> bool:
        """Whether anything says what stands in a column."""
        return column in self.sources


def describe(table: ForeignTable, asked: Description) -> Described:
    """Our columns for each row of a table; what nothing tells is left out.

    Raises:
        InputError: a column, plate or well is missing, two rows contradict each other, no compound is told,
            or the mechanisms' table knows none of the treatments.
    """
    meta, sources = _own_columns(table, asked.columns)
    if asked.image_table is not None:
        meta, sources = _with_images(table, meta, sources, asked)
    if BATCHES in table.meta and "batch" not in asked.columns:
        meta[BATCHES] = _lists(table)
        sources[BATCHES] = f"column {BATCHES}"
    _require(table, meta, c.COMPOUND, "--compound")
    doses = _doses(table, meta)
    if doses is not None:
        meta[c.TREATMENT] = [
            name if dose is None else c.treatment_name(name, dose)
            for name, dose in zip(meta[c.COMPOUND], doses, strict=True)
        ]
        sources[c.TREATMENT] = "compound and concentration"
    elif c.TREATMENT not in meta:
        meta[c.TREATMENT] = meta[c.COMPOUND]
        sources[c.TREATMENT] = "compound alone: no concentration is told"
    meta[c.PERT_TYPE], sources[c.PERT_TYPE] = _roles(table, meta, asked, sources)
    if asked.moa_table is not None:
        meta[c.MOA] = _moas(table, meta, asked.moa_table)
        sources[c.MOA] = asked.moa_table
    if c.MOA not in meta:
        raise InputError(
            f"{table.name}: nothing tells the mechanisms; name a column in --moa, or a --moa-table"
        )
    meta.loc[meta[c.PERT_TYPE] == c.NEGATIVE_CONTROL, c.MOA] = None
    return Described(meta, sources)


def _lists(table: ForeignTable) -> pd.Series[Any]:
    """The batches of each treatment; one name is a batch, and a list that became text is none."""
    cells = table.meta[BATCHES]
    for cell, where in zip(cells, table.where, strict=True):
        if isinstance(cell, str) and cell.startswith(("[", "(", "{")):
            raise InputError(
                f"{table.name} {where}: {BATCHES} {cell} is a list written as text; score the Parquet table, "
                "or name a column of one batch a row in --batch"
            )
    return cells


def _own_columns(table: ForeignTable, named: Mapping[str, str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """What the table itself tells."""
    columns = [str(name) for name in table.meta.columns]
    found = {role: find_column(columns, role, named, table.name) for role in ALIASES}
    meta = pd.DataFrame({_OURS[role]: table.meta[name] for role, name in found.items() if name is not None})
    meta.index = table.meta.index
    if c.WELL in meta:
        _require(table, meta, c.WELL, "--well")
        wells = zip(meta[c.WELL], table.where, strict=True)
        meta[c.WELL] = [padded_well(text, f"{table.name} {where}") for text, where in wells]
    if c.PLATE in meta:
        _require(table, meta, c.PLATE, "--plate")
    return meta, {_OURS[role]: f"column {name}" for role, name in found.items() if name is not None}


def _require(table: ForeignTable, meta: pd.DataFrame, column: str, option: str) -> None:
    if column not in meta:
        raise InputError(
            f"{table.name}: nothing tells the {column.removeprefix(c.METADATA_PREFIX).lower()} of a row; "
            f"name its column in {option}"
        )
    if (empty := meta[column].isna()).any():
        raise InputError(f"{table.name} {table.where[int(empty.to_numpy().argmax())]}: {column} is empty")


def _with_images(
    table: ForeignTable, meta: pd.DataFrame, sources: dict[str, str], asked: Description
) -> tuple[pd.DataFrame, dict[str, str]]:
    """With what the table of images tells of each plate and well, but for columns that the user has named."""
    assert asked.image_table is not None
    for column, option in ((c.PLATE, "--plate"), (c.WELL, "--well")):
        _require(table, meta, column, option)
    images = image_wells(asked.image_table, asked)
    keys = [c.PLATE, c.WELL]
    known = pd.MultiIndex.from_frame(meta[keys]).isin(pd.MultiIndex.from_frame(images[keys]))
    if not known.all():
        row = int((~known).argmax())
        plate, well = meta[keys].iloc[row]
        raise InputError(
            f"{table.name} {table.where[row]}: plate {plate} well {well} is not in {asked.image_table}"
        )
    named = {_OURS[role] for role in asked.columns}
    taken = [str(name) for name in images if name not in (*keys, *named)]
    joined = meta.drop(columns=taken, errors="ignore").merge(
        images[[*keys, *taken]], on=keys, how="left", validate="many_to_one"
    )
    return joined, {**sources, **dict.fromkeys(taken, asked.image_table)}


def image_wells(path: str, asked: Description) -> pd.DataFrame:
    """One row a well of a table of images: plate, well, compound, concentration, and batch and role if told.

    The batch is the first folder of the images' path (``Week4/Week4_27481``), else the plate's name up to its
    first underscore. InputError: a column is missing, or two images of a well say different things of it.
    """
    images = read_table(read_file(path), path)
    columns = [str(name) for name in images.columns]
    found = {role: find_column(columns, role, {}, path) for role in ALIASES}
    for role in ("plate", "well", "compound"):
        if found[role] is None:
            raise InputError(
                f"{path}: has no column {ALIASES[role][0]} (or {', '.join(ALIASES[role][1:4])} ...)"
            )
    wells = pd.DataFrame({_OURS[role]: images[name] for role, name in found.items() if name is not None})
    folder = next((name for name in _FOLDERS if name in columns), None)
    if c.BATCH not in wells and folder is not None:
        batches = zip(images[folder], wells[c.PLATE], strict=True)
        wells[c.BATCH] = [_batch(str(text), str(plate)) for text, plate in batches]
    wells = wells.mask(wells == "")
    wells = wells.drop_duplicates()
    wells[c.WELL] = [padded_well(str(text), f"{path} row {row}") for row, text in wells[c.WELL].items()]
    wells = wells.drop_duplicates()
    if (again := wells.duplicated([c.PLATE, c.WELL])).any():
        second = wells[again].iloc[0]
        raise InputError(
            f"{path} row {second.name}: plate {second[c.PLATE]} well {second[c.WELL]} holds two things"
        )
    if c.PERT_TYPE not in wells and c.CONCENTRATION in wells:
        wells[c.PERT_TYPE] = _placed_roles(wells, asked, path)
    return wells.astype(object).where(wells.notna(), None).reset_index(drop=True)


def _batch(folder: str, plate: str) -> str:
    first, slash, _ = folder.strip("/").partition("/")
    return first if slash else plate.partition("_")[0]


def _placed_roles(wells: pd.DataFrame, asked: Description, path: str) -> pd.Series[Any]:
    """Roles by name and place, as the reader of BBBC021 tells them."""
    doses = [
        decimal(str(text), f"{path} row {row}") if isinstance(text, str) else Decimal(0)
        for row, text in wells[c.CONCENTRATION].items()
    ]
    names = [c.treatment_name(str(name), dose) for name, dose in zip(wells[c.COMPOUND], doses, strict=True)]
    screen = Bbbc021Screen()
    control = screen.positive_control
    if asked.positive_control is not None:
        control = _positive(asked.positive_control)
    negative = (asked.negative_controls or (screen.negative_control,))[0]
    config = screen.model_copy(update={"positive_control": control, "negative_control": negative})
    return perturbation_types(wells.assign(**{c.TREATMENT: names}), config)


def _positive(text: str) -> PositiveControl | None:
    if text == "none":
        return None
    compound, at, dose = text.rpartition("@")
    if not at:
        raise InputError(f"--positive-control {text}: write compound@concentration, as taxol@0.3, or none")
    return PositiveControl(compound=compound, concentration_um=float(decimal(dose, "--positive-control")))


def _doses(table: ForeignTable, meta: pd.DataFrame) -> list[Decimal | None] | None:
    """Of each row, exact; None where a control has none. None at all where nothing tells them."""
    if c.CONCENTRATION not in meta:
        return None
    cells = zip(meta[c.CONCENTRATION], table.where, strict=True)
    return [
        None if text is None or text != text else decimal(str(text), f"{table.name} {where}")
        for text, where in cells
    ]


def _roles(
    table: ForeignTable, meta: pd.DataFrame, asked: Description, sources: Mapping[str, str]
) -> tuple[list[str], str]:
    """The role of each row, and what tells it: named controls, a column, or the name DMSO."""
    negative = asked.negative_controls or (() if c.PERT_TYPE in meta else ("DMSO",))
    told = [None] * len(meta) if c.PERT_TYPE not in meta else meta[c.PERT_TYPE].tolist()
    roles = []
    for compound, text, where in zip(meta[c.COMPOUND], told, table.where, strict=True):
        roles.append(c.NEGATIVE_CONTROL if compound in negative else _role(text, f"{table.name} {where}"))
    if asked.negative_controls and c.NEGATIVE_CONTROL not in roles:
        raise InputError(
            f"{table.name}: no row is of the negative control {', '.join(asked.negative_controls)}"
        )
    words = [f"compound {' or '.join(negative)} is the negative control"] if negative else []
    if c.PERT_TYPE in sources:
        words.append(sources[c.PERT_TYPE])
    return roles, "; ".join(words)


def _role(text: Any, where: str) -> str:
    """A role as JUMP writes them; nothing is a treatment."""
    if text is None or text != text:
        return c.TREATED
    role = c.POSITIVE_CONTROL if str(text).startswith("poscon") else str(text)
    if role not in _ROLES:
        raise InputError(
            f"{where}: {text!r} is none of {', '.join(_ROLES)}; name the column that says so in --pert-type "
            "(JUMP's Metadata_control_type)"
        )
    return role


def _moas(table: ForeignTable, meta: pd.DataFrame, path: str) -> list[str | None]:
    """The mechanism of each row by a table of treatments, or of compounds where it has no concentration."""
    rows = read_table(read_file(path), path)
    columns = [str(name) for name in rows.columns]
    compound, dose, moa = (
        find_column(columns, role, {}, path) for role in ("compound", "concentration", "moa")
    )
    if compound is None or moa is None:
        raise InputError(f"{path}: needs the columns compound and moa; it has {', '.join(columns[:12])}")
    by_treatment = dose is not None and c.CONCENTRATION in meta
    doses = [] if dose is None else rows[dose].tolist()
    known: dict[str, str] = {}
    for place, (number, row) in enumerate(rows.iterrows()):
        where = f"{path} row {number}"
        name = str(row[compound])
        name = c.treatment_name(name, decimal(str(doses[place]), where)) if by_treatment else name
        if not row[moa]:
            raise InputError(f"{where}: no moa for {name}")
        if known.setdefault(name, str(row[moa])) != row[moa]:
            raise InputError(f"{where}: {name} is {row[moa]} here and {known[name]} above")
    names = meta[c.TREATMENT if by_treatment else c.COMPOUND].tolist()
    treated = [name for name, role in zip(names, meta[c.PERT_TYPE], strict=True) if role == c.TREATED]
    if treated and not known.keys() & set(treated):
        raise InputError(f"{path}: knows none of the treatments of {table.name}, {_mismatch(treated, known)}")
    return [known.get(name) for name in names]


def _mismatch(treated: Sequence[str], known: Mapping[str, str]) -> str:
    close = difflib.get_close_matches(treated[0], list(known), n=1, cutoff=0.0)
    return f"as {treated[0]}; the nearest there is {close[0]}" if close else f"as {treated[0]}; it is empty"
