"""What a reason rests on: robust z-scores, with words for a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from hcs_ray.profiles.aggregate import Float64

NORMAL_MAD: Final = 0.6744897501960817  # the MAD of the standard normal distribution
LEAST_SPREAD: Final = 0.02  # of logarithms: 2 %, so that rounding among equals is no outlier


class Finding(NamedTuple):
    """What speaks for a reason: a robust z-score a row (N,), NaN where not judged, and it in words."""

    z: Float64
    words: Sequence[str]


def robust_z(values: Float64, reference: Float64 | None = None) -> Float64:
    """Deviations (N,) from the median in robust standard deviations; NaN stays NaN.

    Median and spread are those of ``reference``, by default of the values. NaN where it is empty. Source:
    Iglewicz and Hoaglin 1993, "How to detect and handle outliers".
    """
    known = values if reference is None else reference
    known = known[np.isfinite(known)]
    if not known.size:
        return np.full(values.shape, np.nan)
    return np.asarray((values - np.median(known)) / spread_of(known), dtype=np.float64)


def spread_of(values: Float64) -> float:
    """The MAD of values on a logarithmic scale, scaled to a standard deviation, and at least `LEAST_SPREAD`.

    NaN where no value is known.
    """
    known = values[np.isfinite(values)]
    if not known.size:
        return float("nan")
    return max(float(np.median(np.abs(known - np.median(known)))) / NORMAL_MAD, LEAST_SPREAD)


def log_ratio(above: Float64, below: Float64) -> Float64:
    """log(above / below); NaN where either is missing or infinite."""
    floor = np.finfo(np.float32).tiny
    ratio = np.log(np.maximum(above, floor)) - np.log(np.maximum(below, floor))
    return np.where(np.isfinite(ratio), ratio, np.nan)
