"""The nearest rows of each row, exact where the table is small, and in bounded memory where it is not."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from hcs_ray.outliers.expected import rows_by
from hcs_ray.profiles.aggregate import Floats, Ints

MOST_REPLICATES: Final = 64  # rows of a treatment that are looked at on other plates, too
_ROWS_AT_ONCE: Final = 4096  # of queries; sklearn cuts the distances to them into blocks of its own


class Nearest(NamedTuple):
    """The mean distance (N,) to the nearest other rows, and which they are (N, k), nearest first."""

    distance: Floats
    rows: Ints


def reference_rows(count: int, most: int) -> Ints:
    """The rows that stand for all: all of up to ``most``, otherwise so many evenly spaced ones."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(np.int64))


class Candidates:
    """Among which rows a group's nearest are looked for: its own, the reference, and its treatments' others.

    ``treatments`` (N,) are numbers; of one with more rows than ``MOST_REPLICATES``, controls above all, the
    other rows are left out. Where the reference is all rows, that is all.
    """

    def __init__(self, groups: Ints, treatments: Ints, reference: Ints) -> None:
        self._reference = reference
        self._whole = len(reference) == len(groups)
        self._treatments = treatments
        self._replicates = rows_by(treatments)
        self.parts = [np.arange(len(groups))] if self._whole else rows_by(groups)

    def of(self, part: Ints) -> Ints:
        """The rows for those of a group, sorted."""
        if self._whole:
            return self._reference
        own = [self._replicates[number] for number in np.unique(self._treatments[part])]
        few = [rows for rows in own if len(rows) <= MOST_REPLICATES]
        return np.unique(np.concatenate([self._reference, part, *few]))


def nearest_rows(features: Floats, neighbors: int, candidates: Candidates) -> Nearest:
    """The ``neighbors`` nearest of each row (N, K) among its group's candidates, by Euclidean distance.

    Where the reference is all rows the search is exact. Otherwise a row's nearest may be missed; what is
    found has its exact distance. Fewer rows than neighbours give all the others. One group's distances are in
    memory at a time.
    """
    from sklearn.neighbors import NearestNeighbors

    count = len(features)
    k = min(neighbors, count - 1)
    rows, distance = np.empty((count, max(k, 0)), dtype=np.int64), np.zeros(count)
    if k < 1:
        return Nearest(distance, rows)
    for part in candidates.parts:
        there = candidates.of(part)
        search = NearestNeighbors(n_neighbors=min(k + 1, len(there)), algorithm="brute").fit(features[there])
        for start in range(0, len(part), _ROWS_AT_ONCE):
            asked = part[start : start + _ROWS_AT_ONCE]
            near, found = search.kneighbors(features[asked])
            near, found = _without_self(near, there[found], asked, k)
            rows[asked], distance[asked] = found, near.mean(axis=1)
    return Nearest(distance, rows)


def _without_self(near: Floats, found: Ints, asked: Ints, k: int) -> tuple[Floats, Ints]:
    """The first ``k`` of each row that are not the row itself; among equals it need not come first."""
    own = found == asked[:, None]
    own[~own.any(axis=1), -1] = True
    kept = ~own
    shape = (len(asked), found.shape[1] - 1)
    return near[kept].reshape(shape)[:, :k], found[kept].reshape(shape)[:, :k]
