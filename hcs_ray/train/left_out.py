"""What labels leave out of a training: told, refused where a MoA would have nothing left, and noted."""

from __future__ import annotations

import logging
from typing import Any

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.labels import ExcludedFields
from hcs_ray.model.targets import EXCLUDED

_NAMED = 5


def check_left_out(fields: pd.DataFrame, classes: tuple[str, ...], excluded: ExcludedFields) -> None:
    """Warn of compounds that lose all their fields of a side.

    Args:
        fields: The table of `hcs_ray.model.targets`.
        classes: What the MoA head learns.
        excluded: What was left out.

    Raises:
        InputError: a MoA loses all its training fields, so that its treatments would be asked of a network
            that has no name for them.
    """
    trains = fields[
        (fields[c.SIDE] == c.TRAIN) & fields[EXCLUDED] & (fields[c.PERT_TYPE] != c.NEGATIVE_CONTROL)
    ]
    gone = sorted(set(trains[c.MOA].dropna()) - set(classes))
    if gone:
        raise InputError(
            f"labels.exclude {', '.join(excluded.rules)} leaves {gone[0]} no training field "
            f"({len(gone)} MoAs have lost all): take labels back, or leave out less"
        )
    for side, names in lost_compounds(fields).items():
        if names:
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            logging.getLogger("hcs_ray").warning(
                "labels leave these compounds no field of the %s side: %s%s",
                side, ", ".join(names[:_NAMED]), more,
            )  # fmt: skip


def lost_compounds(fields: pd.DataFrame) -> dict[str, list[str]]:
    """Compounds of which no field is left to learn from, and to choose an epoch by, by side."""
    labelled = fields[fields[c.MOA].notna()]
    found: dict[str, list[str]] = {}
    for side in (c.TRAIN, c.VALIDATION):
        rows = labelled[labelled[c.SIDE] == side]
        left = rows.loc[~rows[EXCLUDED], c.COMPOUND]
        found[side] = sorted(map(str, set(rows[c.COMPOUND]) - set(left)))
    return found


def left_out(fields: pd.DataFrame) -> dict[str, Any]:
    """What ``metrics.json`` says of it; those of the test side count in the test all the same."""
    rows = fields[fields[EXCLUDED]]
    wells = fields.groupby([c.SIDE, c.PLATE, c.WELL])[EXCLUDED].all()
    lost = wells[wells].groupby(level=0).size()
    return {
        "fields": {side: int((rows[c.SIDE] == side).sum()) for side in (c.TRAIN, c.VALIDATION, c.TEST)},
        "wells_lost": {side: int(lost.get(side, 0)) for side in (c.TRAIN, c.VALIDATION)},
        "compounds_lost": lost_compounds(fields),
    }
