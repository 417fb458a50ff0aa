"""What each well holds, from columns of the joined tables: compound, concentration, mechanism, role."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Context, Decimal
from typing import Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import LoadDataScreen
from hcs_ray.contracts import InputError
from hcs_ray.screen.table_files import resolve
from hcs_ray.screen.tables import TEXT, decimal

# Keys of `screen.columns` -> the columns of ours that are made of them.
WELL_COLUMNS: Final[Mapping[str, str]] = {
    "compound": c.COMPOUND, "concentration": c.CONCENTRATION, "moa": c.MOA, "smiles": c.SMILES,
    "pert_type": c.PERT_TYPE,
}  # fmt: skip
_ROLES: Final = (c.TREATED, c.NEGATIVE_CONTROL, c.POSITIVE_CONTROL)
_CONTROL, _CONTROL_TYPE = "control", "Metadata_control_type"
_POWERS_OF_TEN: Final = {"nM": -3, "uM": 0, "mM": 3, "M": 6}


def describe_wells(table: pd.DataFrame, config: LoadDataScreen) -> pd.DataFrame:
    """Compound, concentration, treatment, MoA, role and SMILES of each row, as `contracts` has them.

    Args:
        table: The joined tables as text, missing where a table does not know a compound; the index says
            where a row stands.
        config: Says which columns, units and controls.

    Raises:
        InputError: names the row without compound or concentration, of an unknown role, or of a treatment
            with two mechanisms.
    """
    compounds = _compounds(table, config)
    told = _told_roles(table, config)
    doses = _concentrations(table, compounds, told, config)
    treatments = [
        compound if dose is None else c.treatment_name(compound, dose)
        for compound, dose in zip(compounds, doses, strict=True)
    ]
    wells = pd.DataFrame(
        {
            c.COMPOUND: compounds,
            c.CONCENTRATION: pd.Series(
                [float("nan") if dose is None else float(dose) for dose in doses], table.index
            ),
            c.TREATMENT: pd.Series(treatments, table.index, dtype=TEXT),
        }
    )
    wells[c.PERT_TYPE] = _roles(wells, told, config)
    wells[c.MOA] = _texts(table, config.columns.moa, c.MOA, "moa")
    wells.loc[wells[c.PERT_TYPE] == c.NEGATIVE_CONTROL, c.MOA] = None
    wells[c.SMILES] = _texts(table, config.columns.smiles, c.SMILES, "smiles")
    _refuse_two_mechanisms(wells)
    return wells


def optional(table: pd.DataFrame, column: str | None, ours: str, key: str) -> str | None:
    """The column that is named; where none is, that of our own name, if there is one."""
    if column is None:
        return ours if ours in table else None
    return resolve(table, column, key, "load_data, plate maps and treatments")


def _texts(table: pd.DataFrame, column: str | None, ours: str, key: str) -> pd.Series:
    """Text, missing where the cell is empty."""
    name = optional(table, column, ours, key)
    if name is None:
        return pd.Series(None, index=table.index, dtype=TEXT)
    return table[name].where(table[name] != "").astype(TEXT)


def _compounds(table: pd.DataFrame, config: LoadDataScreen) -> pd.Series:
    name = resolve(table, config.columns.compound, "compound", "load_data, plate maps and treatments")
    compounds = table[name]
    if (lost := compounds.isna()).any():
        row = table[lost].iloc[0]
        raise InputError(
            f"{row.name}: no table of treatments knows what plate {row[c.PLATE]!r} well {row[c.WELL]} holds "
            f"(column {name}); add it there, or name another column in screen.columns.compound"
        )
    empty = compounds == ""
    if empty.any() and config.empty_compound is None:
        row = table[empty].iloc[0]
        raise InputError(
            f"{row.name}: no compound (column {name}) in plate {row[c.PLATE]!r} well {row[c.WELL]}; "
            "screen.empty_compound can say what such wells hold, as DMSO"
        )
    return compounds.mask(empty, config.empty_compound)


def _told_roles(table: pd.DataFrame, config: LoadDataScreen) -> pd.Series:
    """The role that the tables give, "" where they give none."""
    columns = config.columns
    nothing = pd.Series("", index=table.index, dtype=TEXT)
    kind = optional(table, columns.pert_type, c.PERT_TYPE, "pert_type")
    control = optional(table, columns.control_type, _CONTROL_TYPE, "control_type")
    kinds = nothing if kind is None else table[kind].fillna("")
    controls = nothing if control is None else table[control].fillna("")
    values = kinds.where((kinds != _CONTROL) | (_CONTROL in config.pert_types), controls)
    values = values.mask((values == "") & (kinds != ""), _CONTROL)
    first = values[~values.duplicated()]
    return values.map({value: _role(value, _well_of(table, where), config) for where, value in first.items()})


def _well_of(table: pd.DataFrame, where: object) -> str:
    """A row and its well: what is wrong may stand in a table that was joined to it."""
    row = table[table.index == where].iloc[0]
    return f"{where} (plate {row[c.PLATE]} well {row[c.WELL]})"


def _role(value: str, where: str, config: LoadDataScreen) -> str:
    """A role from what JUMP writes: trt, negcon, poscon and poscon_cp, poscon_diverse ..."""
    role = config.pert_types.get(value) or (c.POSITIVE_CONTROL if value.startswith("poscon_") else value)
    if role and role not in _ROLES:
        raise InputError(
            f"{where}: pert_type {value!r} is none of {', '.join(_ROLES)}; "
            "screen.pert_types can say what it means"
        )
    return role


def _concentrations(
    table: pd.DataFrame, compounds: pd.Series, told: pd.Series, config: LoadDataScreen
) -> list[Decimal | None]:
    """Micromolar, exact; None where no column has it, and 0 for a negative control whose cell is empty."""
    name = optional(table, config.columns.concentration, c.CONCENTRATION, "concentration")
    if name is None:
        return [None] * len(table)
    texts = table[name].fillna("")
    control = (told == c.NEGATIVE_CONTROL) | ((told == "") & (compounds == config.negative_control))
    if (lost := (texts == "") & ~control).any():
        row = table[lost].iloc[0]
        raise InputError(
            f"{row.name}: no concentration (column {name}) of {compounds[lost].iloc[0]} in plate "
            f"{row[c.PLATE]!r} well {row[c.WELL]}"
        )
    first = texts[~texts.duplicated()]
    doses = {text: _micromolar(text, _well_of(table, where), config) for where, text in first.items()}
    return [doses[text] for text in texts]


def _micromolar(text: str, where: str, config: LoadDataScreen) -> Decimal:
    value = decimal(text, where) if text else Decimal(0)
    if config.concentration_digits is not None:
        value = Context(prec=config.concentration_digits).plus(value)
    return value.scaleb(_POWERS_OF_TEN[config.concentration_unit])


def _roles(wells: pd.DataFrame, told: pd.Series, config: LoadDataScreen) -> pd.Series:
    """The role that is told, else that of the compound (and dose) which the configuration calls a control."""
    roles = told.mask((told == "") & (wells[c.COMPOUND] == config.negative_control), c.NEGATIVE_CONTROL)
    if (control := config.positive_control) is not None:
        dose = Decimal(str(control.concentration_um))
        names = (control.compound, c.treatment_name(control.compound, dose))
        roles = roles.mask((roles == "") & wells[c.TREATMENT].isin(names), c.POSITIVE_CONTROL)
    return roles.mask(roles == "", c.TREATED)


def _refuse_two_mechanisms(wells: pd.DataFrame) -> None:
    known = wells[wells[c.MOA].notna()]
    pairs = known[~known.duplicated([c.TREATMENT, c.MOA])]
    if (again := pairs.duplicated(c.TREATMENT)).any():
        second = pairs[again].iloc[0]
        first = pairs[pairs[c.TREATMENT] == second[c.TREATMENT]].iloc[0]
        raise InputError(
            f"{second.name}: {second[c.TREATMENT]} is {second[c.MOA]} here and {first[c.MOA]} in {first.name}"
        )
