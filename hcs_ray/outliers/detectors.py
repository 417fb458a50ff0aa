"""Detectors of pyod (Zhao et al. 2019) on normalised embeddings, calibrated within plate.

Each is fitted to reference rows and scores the others chunk by chunk, so that memory does not grow with the
screen. With all rows as reference it is the detector as published.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import numpy as np

from hcs_ray.outliers.calibrate import log, within_groups
from hcs_ray.profiles.aggregate import Float64, Floats, Ints

Name = Literal["knn", "lof", "ecod", "iforest"]
PREFIX: Final = "detector_"
_CHUNK: Final = 20_000
_FEWEST: Final = 8  # rows; below, no detector says anything
_LOF_NEIGHBORS: Final = 20  # as Breunig et al. 2000 advise, and pyod does


def detect(
    features: Floats, groups: Ints, names: Sequence[Name], neighbors: int, reference: Ints
) -> Mapping[str, Float64]:
    """The score (N,) of each detector, in MADs above the median of the row's group (its plate).

    ``knn`` is the mean distance to the ``neighbors`` nearest (Ramaswamy et al. 2000), ``lof`` the local
    outlier factor (Breunig et al. 2000), ``ecod`` of empirical tails (Li et al. 2022), ``iforest`` the
    isolation forest (Liu et al. 2008, seed 0). With fewer than eight rows all are 0.
    """
    features = np.ascontiguousarray(features, dtype=np.float32)
    if len(features) < _FEWEST:
        return {name: np.zeros(len(features)) for name in names}
    return {
        name: within_groups(_scores(_MAKERS[name], features, neighbors, reference), groups) for name in names
    }


def _scores(make: Callable[[int, int], Any], features: Floats, neighbors: int, reference: Ints) -> Float64:
    """A detector's own score (N,), on a logarithmic scale."""
    detector = make(min(neighbors, len(reference) - 1), len(reference))
    detector.fit(features[reference])
    scores = np.empty(len(features))
    scores[reference] = detector.decision_scores_
    others = np.setdiff1d(np.arange(len(features)), reference, assume_unique=True)
    for start in range(0, len(others), _CHUNK):
        rows = others[start : start + _CHUNK]
        scores[rows] = detector.decision_function(features[rows])
    lowest = float(scores.min())
    return log(scores - min(lowest, 0.0))


def _knn(neighbors: int, rows: int) -> Any:
    from pyod.models.knn import KNN

    return KNN(n_neighbors=neighbors, method="mean")


def _lof(neighbors: int, rows: int) -> Any:
    from pyod.models.lof import LOF

    return LOF(n_neighbors=min(max(neighbors, _LOF_NEIGHBORS), rows - 1), algorithm="brute")


def _ecod(neighbors: int, rows: int) -> Any:
    from pyod.models.ecod import ECOD

    return ECOD()


def _iforest(neighbors: int, rows: int) -> Any:
    from pyod.models.iforest import IForest

    return IForest(random_state=0)


_MAKERS: Final[Mapping[Name, Callable[[int, int], Any]]] = {
    "knn": _knn,
    "lof": _lof,
    "ecod": _ecod,
    "iforest": _iforest,
}
