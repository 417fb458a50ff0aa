"""The columns of anybody's tables: which has which role, by its name, and which are no features."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Final

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError

# Role -> the names under which it is looked for, the first that is there.
ALIASES: Final[Mapping[str, tuple[str, ...]]] = {
    "plate": (
        c.PLATE, "Image_Metadata_Plate", "Image_Metadata_Plate_DAPI", "Metadata_plate", "Metadata_Barcode",
        "Metadata_Assay_Plate_Barcode", "Assay_Plate_Barcode", "Plate", "plate", "Barcode", "barcode",
    ),
    "well": (
        c.WELL, "Image_Metadata_Well", "Image_Metadata_Well_DAPI", "Metadata_well", "Metadata_well_position",
        "Metadata_Well_Position", "well_position", "Well", "well",
    ),
    "batch": (
        c.BATCH, "Image_Metadata_Batch", "Metadata_batch", "Metadata_Week", "Image_Metadata_Week", "Batch",
        "batch", "Week", "week",
    ),
    "compound": (
        c.COMPOUND, "Image_Metadata_Compound", "Metadata_compound", "Metadata_JCP2022",
        "Metadata_broad_sample", "Metadata_pert_iname", "Compound", "compound",
    ),
    "concentration": (
        c.CONCENTRATION, "Image_Metadata_Concentration", "Metadata_concentration",
        "Metadata_mmoles_per_liter", "Metadata_Dose", "Metadata_dose", "Concentration", "concentration",
        "dose",
    ),
    "treatment": (c.TREATMENT, "Metadata_treatment", "Treatment", "treatment"),
    "moa": (
        c.MOA, "Metadata_MoA", "Metadata_moa", "Image_Metadata_MoA", "Image_Metadata_MOA", "MOA", "MoA",
        "moa",
    ),
    "pert_type": (c.PERT_TYPE, "Metadata_control_type", "pert_type", "control_type"),
}  # fmt: skip
_METADATA: Final = (c.METADATA_PREFIX, "Image_Metadata_", c.QC_PREFIX, c.PROBABILITY_PREFIX)
_BOOKKEEPING: Final = frozenset(
    {
        "ImageNumber",
        "TableNumber",
        "ObjectNumber",
        "Replicate",
        "replicate",
        "site",
        "Site",
        "index",
        c.KEY,
        "row",
    }
)
_UNNAMED: Final = re.compile(r"(Unnamed: \d+)?")


def find_column(columns: Sequence[str], role: str, named: Mapping[str, str], source: str) -> str | None:
    """The column of a role: the one that is named, else the first of `ALIASES`; None where there is none.

    InputError: the named one is not there; the message names the nearest.
    """
    wanted = named.get(role)
    if wanted is None:
        return next((alias for alias in ALIASES[role] if alias in columns), None)
    if wanted in columns:
        return wanted
    folded = {name.casefold(): name for name in columns}
    close = difflib.get_close_matches(wanted.casefold(), folded, n=1, cutoff=0.4)
    hint = f"; the nearest is {folded[close[0]]}" if close else ""
    raise InputError(f"{source}: has no column {wanted} (--{role.replace('_', '-')}){hint}")


def roles_of(columns: Sequence[str], named: Mapping[str, str], source: str) -> set[str]:
    """The columns that have a role in this table."""
    found = {find_column(columns, role, named, source) for role in ALIASES}
    return {name for name in found if name is not None}


def is_metadata(name: str, roles: set[str]) -> bool:
    """Whether a column is no feature, whatever it holds; ``roles`` are the columns that have one."""
    return (
        name in roles
        or name.startswith(_METADATA)
        or name in _BOOKKEEPING
        or _UNNAMED.fullmatch(name) is not None
    )
