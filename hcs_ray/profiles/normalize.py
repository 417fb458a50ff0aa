"""Normalisation of profiles: on the negative controls of their plate, of all plates, or of their batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Final, Literal, get_args

import numpy as np
import pandas as pd

from hcs_ray.contracts import InputError
from hcs_ray.profiles import align, whiten
from hcs_ray.profiles.aggregate import Floats, check_table
from hcs_ray.profiles.controls import (
    Normalized,
    center_scale,
    mean_alone,
    mean_and_sd,
    median_and_mad,
    per_plate,
)

# From the simplest to the most involved: what decides between equals.
Method = Literal[
    "none",
    "center",
    "center_scale",
    "standardize",
    "mad_robustize",
    "sphere",
    "coral",
    "tvn",
    "combat",
    "harmony",
]
METHODS: Final[tuple[Method, ...]] = get_args(Method)


def normalize(
    meta: pd.DataFrame, features: Floats, method: Method, shrinkage: float | None = None
) -> Normalized:
    """Normalise features (N, F) by what the negative controls show.

    - ``none``: as they are.
    - ``center``: minus the mean of the plate's controls.
    - ``center_scale``: and divided by the standard deviation of all controls so centred.
    - ``standardize``: minus the mean of the plate's controls, divided by their own standard deviation (of the
      population, as scikit-learn's StandardScaler and so pycytominer).
    - ``mad_robustize``: minus their median, divided by their median absolute deviation, scaled to equal the
      standard deviation of a normal distribution.
    - ``sphere``: ZCA whitening by all controls (``hcs_ray.profiles.whiten``).
    - ``coral``, ``tvn``: batches aligned by their controls, after ``center_scale`` or a PCA whitening by all
      controls; ``combat``, ``harmony``: by all their wells, after ``center_scale``
      (``hcs_ray.profiles.align``).

    A feature whose controls have no spread, with ``standardize`` and ``mad_robustize`` on **any** plate, is
    dropped on all (``kept`` says which). ``shrinkage`` (0 to 1) sets what ``sphere``, ``coral`` and ``tvn``
    otherwise choose from the controls; no method is told a label.

    Raises:
        InputError: a plate or batch has too few negative controls, there is one batch where batches are
            aligned or one plate where a shrinkage is chosen, a feature is not finite, or none is left.
    """
    check_table(meta, features)
    if method not in METHODS:
        raise InputError(f"normalisation {method!r} is unknown; one of {', '.join(METHODS)}")
    if method in _SHRUNK:
        return _SHRUNK[method](meta, features, shrinkage)
    return _METHODS[method](meta, features)


def _none(meta: pd.DataFrame, features: Floats) -> Normalized:
    return Normalized(features.astype(np.float64), np.ones(features.shape[1], dtype=bool), {})


_SHRUNK: Final[Mapping[str, Callable[[pd.DataFrame, Floats, float | None], Normalized]]] = {
    "sphere": whiten.sphere,
    "coral": align.coral,
    "tvn": align.tvn,
}
_METHODS: Final[Mapping[str, Callable[[pd.DataFrame, Floats], Normalized]]] = {
    "none": _none,
    "center": partial(per_plate, mean_alone, 1),
    "center_scale": center_scale,
    "standardize": partial(per_plate, mean_and_sd, 2),
    "mad_robustize": partial(per_plate, median_and_mad, 2),
    "combat": align.combat,
    "harmony": align.harmony,
}
