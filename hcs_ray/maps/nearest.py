"""Exact nearest neighbours, block by block, so that no matrix of all distances is ever held."""

from __future__ import annotations

from typing import Final, Literal

import numpy as np
import numpy.typing as npt

from hcs_ray.tables import Features

Metric = Literal["cosine", "euclidean"]
Indices = npt.NDArray[np.int64]
Distances = npt.NDArray[np.float32]

# Of a vector's length. Float32 tells no more apart, and equal rows get 0, not what rounding leaves.
_SAME: Final = 1e-6


class Search:
    """Nearest rows among ``features`` (N, F).

    Cosine distances are found as Euclidean ones between vectors of unit length, which scikit-learn does in
    blocks on all threads; a vector of zeros, which has no direction, is at 0.5 from all but its like.
    """

    def __init__(self, features: Features, metric: Metric, threads: int = 1) -> None:
        from sklearn.neighbors import NearestNeighbors

        self._metric, self._threads = metric, threads
        known = self._scaled(features)
        self._same = _SAME * float(np.sqrt(np.square(known, dtype=np.float64).sum(axis=1).max()))
        self._search = NearestNeighbors(metric="euclidean", algorithm="brute").fit(known)

    def nearest(self, rows: Features, count: int) -> tuple[Indices, Distances]:
        """Of each of ``rows`` (M, F) the ``count`` nearest, nearest first: (M, count) each."""
        from threadpoolctl import threadpool_limits

        with threadpool_limits(self._threads):
            distances, indices = self._search.kneighbors(self._scaled(rows), n_neighbors=count)
        distances[distances < self._same] = 0
        if self._metric == "cosine":
            distances = np.square(distances) / 2
        return indices.astype(np.int64), distances.astype(np.float32)

    def _scaled(self, features: Features) -> Features:
        if self._metric == "euclidean":
            return features
        from sklearn.preprocessing import normalize

        return np.asarray(normalize(features), np.float32)
