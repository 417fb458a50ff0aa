"""Normalisation of profiles on the negative controls of their plate."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import NEGATIVE_CONTROL, PERT_TYPE, PLATE, InputError
from hcs_ray.profiles.aggregate import Float64, Floats, check_table, require_columns

Method = Literal["none", "center", "standardize", "mad_robustize"]

_NORMAL_MAD: Final = 0.6744897501960817  # the MAD of the standard normal distribution


class Normalized(NamedTuple):
    """Normalised features, float64 (N, K), and the bool mask (F,) of the K input features that were kept."""

    features: Float64
    kept: npt.NDArray[np.bool_]


class _Location(NamedTuple):
    """Centre and spread (F,) of the controls of one plate; a spread of zero marks a feature to drop."""

    center: Float64
    spread: Float64


def normalize(meta: pd.DataFrame, features: Floats, method: Method) -> Normalized:
    """Normalise features (N, F) by what the negative controls of each row's plate show.

    - ``none``: as they are.
    - ``center``: minus the mean of the plate's controls.
    - ``standardize``: and divided by their standard deviation (of the population, as scikit-learn's
      StandardScaler and so pycytominer).
    - ``mad_robustize``: minus their median, divided by their median absolute deviation, scaled to equal the
      standard deviation of a normal distribution.

    A feature whose controls have no spread on **any** plate is dropped on all (``kept`` says which).
    InputError: a plate without negative controls (or with one alone where a spread is needed), a feature that
    is not finite, no feature left.
    """
    check_table(meta, features)
    if method not in _METHODS:
        raise InputError(f"normalisation {method!r} is unknown; one of {', '.join(get_args(Method))}")
    return _METHODS[method](meta, features)


def _none(meta: pd.DataFrame, features: Floats) -> Normalized:
    return Normalized(features.astype(np.float64), np.ones(features.shape[1], dtype=bool))


def _per_plate(
    locate: Callable[[Float64], _Location], needed: int, meta: pd.DataFrame, features: Floats
) -> Normalized:
    """Centre and scale each plate by its own controls, of which ``needed`` must be there."""
    require_columns(meta, (PLATE, PERT_TYPE))
    result = features.astype(np.float64)
    control = (meta[PERT_TYPE] == NEGATIVE_CONTROL).to_numpy(dtype=bool)
    kept = np.ones(features.shape[1], dtype=bool)
    for plate, rows in meta.groupby(PLATE, sort=True).indices.items():
        controls = result[rows[control[rows]]]
        _require_controls(str(plate), len(controls), needed)
        location = locate(controls)
        has_spread = location.spread > 0
        kept &= has_spread
        result[rows] -= location.center
        result[rows] /= np.where(has_spread, location.spread, 1.0)
    if not kept.any():
        raise InputError(
            "no feature varies among the negative controls of every plate; normalise by 'center'"
        )
    return Normalized(result[:, kept], kept)


def _require_controls(plate: str, found: int, needed: int) -> None:
    if found < needed:
        raise InputError(
            f"plate {plate} has too few negative controls ({PERT_TYPE} = {NEGATIVE_CONTROL}): {found} of the "
            f"{needed} needed; normalise by 'none' or leave the plate out"
        )


def _mean(controls: Float64) -> _Location:
    return _Location(controls.mean(axis=0), np.ones(controls.shape[1]))


def _mean_and_sd(controls: Float64) -> _Location:
    return _Location(controls.mean(axis=0), _without_rounding(controls.std(axis=0), controls))


def _median_and_mad(controls: Float64) -> _Location:
    center = np.median(controls, axis=0)
    mad = np.median(np.abs(controls - center), axis=0) / _NORMAL_MAD
    return _Location(center, _without_rounding(mad, controls))


def _without_rounding(spread: Float64, controls: Float64) -> Float64:
    """Zero where the spread is no more than float32's rounding, in which embeddings are computed."""
    limit = np.finfo(np.float32).eps * np.abs(controls).max(axis=0)
    return np.where(spread > limit, spread, 0.0)


_METHODS: Final[Mapping[str, Callable[[pd.DataFrame, Floats], Normalized]]] = {
    "none": _none,
    "center": partial(_per_plate, _mean, 1),
    "standardize": partial(_per_plate, _mean_and_sd, 2),
    "mad_robustize": partial(_per_plate, _median_and_mad, 2),
}
