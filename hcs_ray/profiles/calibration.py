"""Whether probabilities can be taken at their word: expected calibration error, Brier score, reliability.

Guo et al. 2017 (https://proceedings.mlr.press/v70/guo17a.html) for the error of the most probable class's
probability in bins of equal width, Brier 1950 for the mean squared error over all classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray.profiles.aggregate import Float64, Floats, Ints
from hcs_ray.profiles.chance import bootstrap_weights, percentile_interval

BINS: Final = 10


@dataclass(frozen=True)
class Calibration:
    """How far confidence and accuracy agree, of fields, wells or treatments.

    ``expected_error`` is the mean over rows of the distance between the accuracy of a row's bin and its mean
    confidence, 0 to 1. ``brier`` is the mean over rows of the squared distance between probabilities and
    truth, summed over the classes: 0 is perfect, 2 the worst. Their intervals are 95 % bootstrap intervals
    over compounds (None for fewer than two). ``reliability`` has a row a bin with a member: its bounds
    ``low`` and ``high``, ``count``, mean ``confidence``, ``accuracy``.
    """

    expected_error: float
    brier: float
    expected_error_interval: tuple[float, float] | None
    brier_interval: tuple[float, float] | None
    reliability: pd.DataFrame

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        intervals = {"expected_error": self.expected_error_interval, "brier": self.brier_interval}
        return {
            "expected_error": self.expected_error,
            "brier": self.brier,
            "intervals": {name: list(pair) if pair else None for name, pair in intervals.items()},
            "reliability": self.reliability.to_dict(orient="records"),
            "bins": BINS,
        }


def calibration(probabilities: Floats, true: Ints, compound: Ints, resamples: int, seed: int) -> Calibration:
    """Of probabilities (N, C) and codes (N,) of true classes and of compounds.

    A true class beyond the C columns is one that the network does not know: it had probability 0.
    """
    values = np.asarray(probabilities, dtype=np.float64)
    confidence = values.max(axis=1)
    right = values.argmax(axis=1) == true
    known = true < values.shape[1]
    squared = (values**2).sum(axis=1) + 1.0
    squared[known] -= 2 * values[np.flatnonzero(known), true[known]]
    bins = np.minimum((confidence * BINS).astype(np.intp), BINS - 1)
    sums = _sums(bins, compound, np.stack([np.ones(len(values)), confidence, right.astype(np.float64)]))
    brier = np.stack(
        [np.bincount(compound, weights=squared), np.bincount(compound).astype(np.float64)], axis=1
    )
    errors = _intervals(sums, brier, resamples, seed)
    whole = sums.sum(axis=0)
    return Calibration(
        expected_error=float(_expected_error(whole)),
        brier=float(squared.mean()),
        expected_error_interval=errors[0],
        brier_interval=errors[1],
        reliability=_reliability(whole),
    )


def _sums(bins: Ints, compound: Ints, values: Float64) -> Float64:
    """Sums of values (3, N) by compound and bin: (compounds, BINS, 3)."""
    compounds = int(compound.max()) + 1
    cells = compound * BINS + bins
    summed = [np.bincount(cells, weights=row, minlength=compounds * BINS) for row in values]
    stacked = np.stack(summed, axis=-1).astype(np.float64)
    return stacked.reshape(compounds, BINS, len(values))


def _expected_error(sums: Float64) -> Float64:
    """Of sums (..., BINS, 3): count, confidence, hits."""
    gaps = np.abs(sums[..., 1] - sums[..., 2]).sum(axis=-1)
    return np.asarray(gaps / sums[..., 0].sum(axis=-1), dtype=np.float64)


def _intervals(
    sums: Float64, brier: Float64, resamples: int, seed: int
) -> tuple[tuple[float, float] | None, tuple[float, float] | None]:
    """Over compounds, of the expected error and of the Brier score."""
    compounds = len(sums)
    if compounds < 2:
        return None, None
    errors, scores = [], []
    for weights in bootstrap_weights(compounds, resamples, seed):
        errors.append(_expected_error((weights @ sums.reshape(compounds, -1)).reshape(-1, *sums.shape[1:])))
        squared, count = (weights @ brier).T
        scores.append(squared / count)
    return percentile_interval(np.concatenate(errors)), percentile_interval(np.concatenate(scores))


def _reliability(sums: Float64) -> pd.DataFrame:
    number = np.flatnonzero(sums[:, 0] > 0)
    count, confidence, hits = sums[number].T
    return pd.DataFrame(
        {
            "low": number / BINS,
            "high": (number + 1) / BINS,
            "count": count.astype(np.int64),
            "confidence": confidence / count,
            "accuracy": hits / count,
        }
    )
