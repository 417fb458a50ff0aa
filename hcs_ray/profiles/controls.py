"""What the negative controls show: where each plate's profiles lie, and how far they scatter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import BATCH, NEGATIVE_CONTROL, PERT_TYPE, PLATE, InputError
from hcs_ray.profiles.aggregate import Float64, Floats, require_columns

_NORMAL_MAD: Final = 0.6744897501960817  # the MAD of the standard normal distribution


class Normalized(NamedTuple):
    """Normalised features.

    Attributes:
        features: Float64 (N, K).
        kept: The bool mask (F,) of the K input features that were used; column k is the k-th of them, but of
            ``tvn`` their k-th principal component.
        stated: What must be told beside it, in plain JSON types: a shrinkage and how it was chosen, what a
            library was told.
    """

    features: Float64
    kept: npt.NDArray[np.bool_]
    stated: Mapping[str, Any]


class Location(NamedTuple):
    """Centre and spread (F,) of some controls; a spread of zero marks a feature to drop."""

    center: Float64
    spread: Float64


def is_control(meta: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Which rows are negative controls."""
    require_columns(meta, (PERT_TYPE,))
    return (meta[PERT_TYPE] == NEGATIVE_CONTROL).to_numpy(dtype=bool)


def per_plate(
    locate: Callable[[Float64], Location], needed: int, meta: pd.DataFrame, features: Floats
) -> Normalized:
    """Centre and scale each plate by its own controls, of which ``needed`` must be there."""
    require_columns(meta, (PLATE, PERT_TYPE))
    require_own_batch(meta)
    result = features.astype(np.float64)
    control = is_control(meta)
    kept = np.ones(features.shape[1], dtype=bool)
    for plate, rows in meta.groupby(PLATE, sort=True).indices.items():
        controls = result[rows[control[rows]]]
        require_controls(f"plate {plate}", len(controls), needed)
        location = locate(controls)
        has_spread = location.spread > 0
        kept &= has_spread
        result[rows] -= location.center
        result[rows] /= np.where(has_spread, location.spread, 1.0)
    if not kept.any():
        raise InputError(
            "no feature varies among the negative controls of every plate; normalise by 'center'"
        )
    return Normalized(result[:, kept], kept, {})


def center_scale(meta: pd.DataFrame, features: Floats) -> Normalized:
    """Centre each plate on its controls; one scale a feature, the deviation of all controls so centred.

    A plate's own scale, from a handful of controls, would pull the replicates of a strong phenotype apart.
    """
    centered = per_plate(mean_alone, 1, meta, features).features
    control = is_control(meta)
    largest = np.abs(features[control]).max(axis=0)
    spread = without_rounding(centered[control].std(axis=0), largest)
    kept = require_spread(spread)
    return Normalized(centered[:, kept] / spread[kept], kept, {})


def require_own_batch(meta: pd.DataFrame) -> None:
    """InputError where two batches have a plate of one name: their controls would be mixed."""
    if BATCH not in meta.columns:
        return
    pairs = meta[[PLATE, BATCH]].drop_duplicates()
    if (again := pairs.duplicated(PLATE)).any():
        plate = pairs[PLATE][again].iloc[0]
        batches = " and ".join(sorted(str(name) for name in pairs.loc[pairs[PLATE] == plate, BATCH])[:2])
        raise InputError(
            f"plate {plate} lies in {batches}: controls of two batches would be mixed; give plates names of "
            f"their own, as {batches.partition(' ')[0]}_{plate}"
        )


def require_spread(spread: Float64) -> npt.NDArray[np.bool_]:
    """Which features vary among the controls; InputError where none does."""
    kept = spread > 0
    if not kept.any():
        raise InputError("no feature varies among the negative controls; normalise by 'center'")
    return kept


def require_controls(place: str, found: int, needed: int) -> None:
    """InputError where a plate or batch has too few controls."""
    if found < needed:
        raise InputError(
            f"{place} has too few negative controls ({PERT_TYPE} = {NEGATIVE_CONTROL}): {found} of the "
            f"{needed} needed; normalise by 'none' or leave the {place.partition(' ')[0]} out"
        )


def mean_alone(controls: Float64) -> Location:
    """The mean; no scale."""
    return Location(controls.mean(axis=0), np.ones(controls.shape[1]))


def mean_and_sd(controls: Float64) -> Location:
    """The mean and the standard deviation of the population."""
    spread = without_rounding(controls.std(axis=0), np.abs(controls).max(axis=0))
    return Location(controls.mean(axis=0), spread)


def median_and_mad(controls: Float64) -> Location:
    """The median and the median absolute deviation, scaled to a normal distribution's deviation."""
    center = np.median(controls, axis=0)
    mad = np.median(np.abs(controls - center), axis=0) / _NORMAL_MAD
    return Location(center, without_rounding(mad, np.abs(controls).max(axis=0)))


def without_rounding(spread: Float64, largest: Float64) -> Float64:
    """Zero where the spread is no more than float32's rounding of the ``largest``, as embeddings have it."""
    return np.where(spread > np.finfo(np.float32).eps * largest, spread, 0.0)
