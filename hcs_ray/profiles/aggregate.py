"""Aggregation of profiles: field -> well -> treatment.

A table of profiles is a pair, as in pycytominer and copairs: metadata (one row a profile, columns named in
``hcs_ray.contracts``) and features, an array (N, F) whose row i belongs to row i of the metadata.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import (
    BATCH,
    COMPOUND,
    KEY,
    MOA,
    PERT_TYPE,
    PLATE,
    SITE,
    TREATED,
    TREATMENT,
    WELL,
    InputError,
)

Floats = npt.NDArray[np.floating[Any]]
Float64 = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]
How = Literal["mean", "median"]

FIELDS: Final = "Metadata_Fields"  # number of fields behind a well
WELLS: Final = "Metadata_Wells"  # number of wells behind a treatment
BATCHES: Final = "Metadata_Batches"  # sorted tuple of the batches that a treatment's wells lie in


def require_columns(meta: pd.DataFrame, columns: Sequence[str]) -> None:
    """InputError naming the columns that ``meta`` lacks, or the first row in which one of them is empty."""
    missing = [column for column in columns if column not in meta.columns]
    if missing:
        raise InputError(f"the table of profiles has no column {', '.join(missing)}")
    for column in columns:
        empty = np.flatnonzero(meta[column].isna().to_numpy())
        if empty.size:
            raise InputError(f"{row_name(meta, int(empty[0]))}: {column} is empty")


def check_table(meta: pd.DataFrame, features: Floats) -> None:
    """InputError where features are not (N, F) for N rows of metadata, or one is NaN or infinite."""
    if features.ndim != 2 or len(features) != len(meta):
        raise InputError(f"features of shape {features.shape} do not fit {len(meta)} rows of metadata")
    finite = np.isfinite(features)
    if not finite.all():
        row, column = (int(index) for index in np.argwhere(~finite)[0])
        raise InputError(
            f"{row_name(meta, row)}: feature {column} is {features[row, column]}; "
            "leave the row out or embed it again"
        )


def row_name(meta: pd.DataFrame, row: int) -> str:
    """A row as a person would look it up: its key, else its plate, well and site, else its treatment."""
    if KEY in meta.columns:
        return str(meta[KEY].iloc[row])
    present = [column for column in (PLATE, WELL, SITE) if column in meta.columns]
    names = present or [column for column in (TREATMENT,) if column in meta.columns]
    return " ".join(str(meta[column].iloc[row]) for column in names) or f"row {row}"


def aggregate(
    meta: pd.DataFrame,
    features: Floats,
    by: Sequence[str],
    how: How,
    minimum: int = 1,
    count: str = FIELDS,
) -> tuple[pd.DataFrame, Float64]:
    """Mean or median of the features of each group of rows that share the columns ``by``.

    Returns one row a group, sorted by ``by``: the columns ``by``, those constant within every group, and
    ``count``, the group's number of rows (int64); with float64 features (G, F). Groups of fewer than
    ``minimum`` rows are left out (``too_small`` names them). InputError: a missing or empty ``by``, a feature
    not finite.
    """
    check_table(meta, features)
    require_columns(meta, by)
    groups, sizes, first = _groups(meta, by)
    table = meta.iloc[first][_constant_columns(meta, groups, by)].reset_index(drop=True)
    table[count] = sizes
    values = _mean(features, groups, sizes) if how == "mean" else _median(features, groups)
    enough = sizes >= minimum
    return table[enough].reset_index(drop=True), values[enough]


def too_small(meta: pd.DataFrame, by: Sequence[str], minimum: int, count: str = FIELDS) -> pd.DataFrame:
    """The groups that ``aggregate`` leaves out for ``minimum``: the columns ``by`` and ``count``."""
    sizes = meta.groupby(list(by), sort=True).size().rename(count).reset_index()
    return sizes[sizes[count] < minimum].reset_index(drop=True)


def to_wells(
    meta: pd.DataFrame, features: Floats, how: How, minimum: int = 1
) -> tuple[pd.DataFrame, Float64]:
    """Fields to wells (plate x well), with ``Metadata_Fields``; as ``aggregate``."""
    return aggregate(meta, features, (PLATE, WELL), how, minimum, count=FIELDS)


def to_treatments(
    meta: pd.DataFrame, features: Floats, how: How, minimum: int = 1
) -> tuple[pd.DataFrame, Float64]:
    """Wells to treatments, with ``Metadata_Wells`` and ``Metadata_Batches``; as ``aggregate``.

    InputError where a treatment has two compounds or two MoAs.
    """
    require_columns(meta, (TREATMENT, COMPOUND, BATCH))
    table, values = aggregate(meta, features, (TREATMENT,), how, minimum, count=WELLS)
    for column in (COMPOUND, MOA):
        if column in meta.columns and column not in table.columns:
            raise InputError(f"{_inconsistent(meta, column)}: a treatment has one {column}")
    table[BATCHES] = table[TREATMENT].map(batches_of_treatments(meta))
    return table, values


def batches_of_treatments(meta: pd.DataFrame) -> pd.Series[Any]:
    """The sorted tuple of the distinct batches of each treatment, indexed by treatment."""
    pairs = meta[[TREATMENT, BATCH]].drop_duplicates().sort_values([TREATMENT, BATCH])
    return pairs.groupby(TREATMENT)[BATCH].agg(tuple)


def exclude_controls(meta: pd.DataFrame, features: Floats) -> tuple[pd.DataFrame, Floats]:
    """The rows of treated wells: neither negative nor positive controls, whatever their compound.

    A treatment that also serves as positive control on many plates (taxol 0.3 uM in BBBC021) is thereby
    scored by its own wells, as in Ljosa et al. 2013 (https://doi.org/10.1177/1087057113503553).
    """
    require_columns(meta, (PERT_TYPE,))
    treated = (meta[PERT_TYPE] == TREATED).to_numpy(dtype=bool)
    return meta[treated].reset_index(drop=True), features[treated]


def own_wells(meta: pd.DataFrame, features: Floats) -> tuple[pd.DataFrame, Floats]:
    """The wells that a treatment's profile is made of: its treated ones, or its control wells where it has
    no others. So the profile is the one that is scored (`exclude_controls`), and has one role.
    """
    require_columns(meta, (PERT_TYPE, TREATMENT))
    treated = meta[PERT_TYPE] == TREATED
    own = (treated | ~treated.groupby(meta[TREATMENT]).transform("any")).to_numpy(dtype=bool)
    return meta[own].reset_index(drop=True), features[own]


def control_wells(meta: pd.DataFrame) -> pd.DataFrame:
    """Per treatment with control rows: its number of control rows and of others (int64), sorted by treatment.

    What ``exclude_controls`` leaves out; a treatment with no other rows is not scored at all.
    """
    require_columns(meta, (PERT_TYPE, TREATMENT))
    control = (meta[PERT_TYPE] != TREATED).astype("int64")
    counts = control.groupby(meta[TREATMENT], sort=True).agg(["sum", "size"]).reset_index()
    counts["others"] = counts["size"] - counts["sum"]
    table = counts.rename(columns={"sum": "controls"})[[TREATMENT, "controls", "others"]]
    return table[table["controls"] > 0].reset_index(drop=True)


def _groups(meta: pd.DataFrame, by: Sequence[str]) -> tuple[Ints, npt.NDArray[np.int64], Ints]:
    """The group of each row (sorted by ``by``), the groups' sizes, and a first row of each."""
    groups = meta.groupby(list(by), sort=True).ngroup().to_numpy(dtype=np.intp)
    _, first, sizes = np.unique(groups, return_index=True, return_counts=True)
    return groups, sizes.astype(np.int64), first.astype(np.intp)


def _constant_columns(meta: pd.DataFrame, groups: Ints, by: Sequence[str]) -> list[str]:
    """The columns ``by``, then the others of which every group holds one value (or none but empty ones)."""
    others = [column for column in meta.columns if column not in by]
    return [*by, *(column for column in others if _distinct(meta[column], groups).max(initial=1) <= 1)]


def _distinct(column: pd.Series[Any], groups: Ints) -> npt.NDArray[np.int64]:
    """The number of distinct values of a column in each group."""
    try:
        codes, _ = pd.factorize(column, use_na_sentinel=False)
    except TypeError:  # lists and the like have no identity to compare by
        codes = np.arange(len(column), dtype=np.intp)
    pairs = np.unique(np.stack([groups, codes]), axis=1)
    return np.bincount(pairs[0]).astype(np.int64)


def _inconsistent(meta: pd.DataFrame, column: str) -> str:
    """The first treatment with two values in a column, with the values."""
    values = meta.groupby(TREATMENT, sort=True)[column].agg(lambda group: sorted(map(str, set(group))))
    name, found = next((name, found) for name, found in values.items() if len(found) > 1)
    return f"{name} has {' and '.join(found)}"


def _mean(features: Floats, groups: Ints, sizes: npt.NDArray[np.int64]) -> Float64:
    """Means of groups 0..G-1, summed in float64."""
    if not sizes.size:
        return np.empty((0, features.shape[1]))
    ordered = features[np.argsort(groups, kind="stable")]
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    sums = np.add.reduceat(ordered, starts, axis=0, dtype=np.float64)
    return np.asarray(sums / sizes[:, None], dtype=np.float64)


def _median(features: Floats, groups: Ints) -> Float64:
    """Medians of groups 0..G-1."""
    return (
        pd.DataFrame(features.astype(np.float64))
        .groupby(groups, sort=True)
        .median()
        .to_numpy(dtype=np.float64)
    )
