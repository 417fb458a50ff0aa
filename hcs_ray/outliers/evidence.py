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


def robust_z(values: Float64, least_spread: float = LEAST_SPREAD) -> Float64:
    """Deviations (N,) from the median in MADs scaled to standard deviations; NaN stays NaN.

    Source: Iglewicz and Hoaglin 1993, "How to detect and handle outliers". The scaled MAD is taken to be no
    less than ``least_spread``.
    """
    known = values[np.isfinite(values)]
    if not known.size:
        return np.full(values.shape, np.nan)
    center = np.median(known)
    spread = np.median(np.abs(known - center)) / NORMAL_MAD
    return np.asarray((values - center) / max(spread, least_spread), dtype=np.float64)


def log_ratio(above: Float64, below: Float64) -> Float64:
    """log(above / below); NaN where either is missing or infinite."""
    floor = np.finfo(np.float32).tiny
    ratio = np.log(np.maximum(above, floor)) - np.log(np.maximum(below, floor))
    return np.where(np.isfinite(ratio), ratio, np.nan)
