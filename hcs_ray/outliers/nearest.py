"""The nearest rows of each row, exact where the table is small, and in bounded memory where it is not."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from hcs_ray.outliers.expected import rows_by
from hcs_ray.profiles.aggregate import Floats, Ints

_ROWS_AT_ONCE: Final = 4096  # of queries; sklearn cuts the distances to them into blocks of its own


class Nearest(NamedTuple):
    """The mean distance (N,) to the nearest other rows, and which they are (N, k), nearest first."""

    distance: Floats
    rows: Ints


def reference_rows(count: int, most: int) -> Ints:
    """The rows that stand for all: all of up to ``most``, otherwise so many evenly spaced ones."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


def nearest_rows(features: Floats, groups: Ints, neighbors: int, reference: Ints) -> Nearest:
    """The ``neighbors`` nearest of each row's own group and of the reference rows, by Euclidean distance.

    ``groups`` (N,) are plates. Where the reference is all rows the search is exact. Otherwise a row's nearest
    may be missed where it is neither on its plate nor in the reference; what is found has its exact distance.
    Fewer rows than neighbours give all the others. One group's distances are in memory at a time.
    """
    from sklearn.neighbors import NearestNeighbors

    count = len(features)
    k = min(neighbors, count - 1)
    rows, distance = np.empty((count, max(k, 0)), dtype=np.int64), np.zeros(count)
    if k < 1:
        return Nearest(distance, rows)
    whole = len(reference) == count
    parts = [np.arange(count)] if whole else rows_by(groups)
    for part in parts:
        candidates = reference if whole else np.union1d(reference, part)
        at_most = min(k + 1, len(candidates))
        search = NearestNeighbors(n_neighbors=at_most, algorithm="brute").fit(features[candidates])
        for start in range(0, len(part), _ROWS_AT_ONCE):
            asked = part[start : start + _ROWS_AT_ONCE]
            near, found = search.kneighbors(features[asked])
            near, found = _without_self(near, candidates[found], asked, k)
            rows[asked], distance[asked] = found, near.mean(axis=1)
    return Nearest(distance, rows)


def _without_self(near: Floats, found: Ints, asked: Ints, k: int) -> tuple[Floats, Ints]:
    """The first ``k`` of each row that are not the row itself; among equals it need not come first."""
    own = found == asked[:, None]
    own[~own.any(axis=1), -1] = True
    kept = ~own
    shape = (len(asked), found.shape[1] - 1)
    return near[kept].reshape(shape)[:, :k], found[kept].reshape(shape)[:, :k]
