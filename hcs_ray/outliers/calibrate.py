"""One scale for all evidence: standard deviations of what the controls, or other ordinary rows, show.

The upper side of the reference is taken as that of a normal distribution through its median and its 90th
percentile. So up to a tenth of the reference may be outliers themselves, which its 99th percentile as such
could not stand, and one threshold, a quantile of the normal distribution, serves all evidence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from hcs_ray.profiles.aggregate import Float64, Floats, Ints

NORMAL_MAD: Final = 0.6744897501960817  # the MAD of the standard normal distribution
_NORMAL_90: Final = 1.2815515655446004  # its 90th percentile
FEWEST: Final = 20  # rows of a reference; with fewer, all rows are it
_LEAST_SCALE: Final = 1e-3  # of logarithms, so that rounding among equals is no outlier
PRIOR_ROWS: Final = 30  # a plate's own spread counts as much as the screen's from so many rows on

Bools = npt.NDArray[np.bool_]


class Finding(NamedTuple):
    """What speaks for a reason: a z-score a row (N,), NaN where not judged; it in words; what drove it.

    ``holds`` (N,) is whether what the words say is so at all, however unusual; None: of all rows.
    """

    z: Float64
    words: Sequence[str]
    drivers: Sequence[Sequence[str]]  # columns, the strongest first
    holds: Bools | None = None


def threshold(false_alarms: float) -> float:
    """The z-score that a share ``false_alarms`` of ordinary rows exceeds."""
    from statistics import NormalDist

    return NormalDist().inv_cdf(1.0 - false_alarms)


def z_above(values: Float64, reference: Bools) -> Float64:
    """Deviations (N,) above the median of the reference rows, in standard deviations of their upper side.

    NaN stays NaN and is no reference. With fewer than ``FEWEST`` known reference rows, all rows are it.
    """
    known = np.isfinite(values)
    rows = known & reference
    if rows.sum() < FEWEST:
        rows = known
    if not rows.any():
        return np.full(values.shape, np.nan)
    middle, high = np.quantile(values[rows], (0.5, 0.9))
    return np.asarray((values - middle) / max((high - middle) / _NORMAL_90, _LEAST_SCALE))


def within_groups(values: Float64, groups: Ints) -> Float64:
    """Deviations (N,) from the median of the own group, in its MADs, shrunk to those of all groups.

    A group is a plate, numbered from 0; a small one's spread is mostly that of the screen.
    """
    import pandas as pd

    deviation = values - pd.Series(values).groupby(groups).transform("median").to_numpy()
    whole = max(float(np.nanmedian(np.abs(deviation))), _LEAST_SCALE)
    own = pd.Series(np.abs(deviation)).groupby(groups)
    rows = own.transform("size").to_numpy(dtype=np.float64)
    square = (rows * own.transform("median").to_numpy() ** 2 + PRIOR_ROWS * whole**2) / (rows + PRIOR_ROWS)
    return np.asarray(deviation * NORMAL_MAD / np.sqrt(square))


def log(values: Floats) -> Float64:
    """The logarithm of values that are not negative; 0 becomes that of a very small part of the largest."""
    largest = float(np.max(values[np.isfinite(values)], initial=0.0))
    logarithm = np.log(np.maximum(values, 1e-9 * largest + np.finfo(np.float64).tiny))
    return np.asarray(logarithm, dtype=np.float64)
