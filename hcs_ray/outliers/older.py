"""The score of pytorch-hcs, for comparison: the mean distance to the nearest fields in the map."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.profiles.aggregate import Float64

NEIGHBORS: Final = 7


def map_distance(fields: pd.DataFrame, places: pd.DataFrame | None) -> Float64:
    """The mean distance (N,) of each field to its 7 nearest in the map (key, x, y).

    NaN without a map, and of fields that are not on it. The map is made for the eye, and its distances
    depend on its settings: nothing rests on this score here.
    """
    from sklearn.neighbors import NearestNeighbors

    distance = np.full(len(fields), np.nan)
    if places is None:
        return distance
    rows = fields[[c.KEY]].merge(places, on=c.KEY, how="left")[["x", "y"]].to_numpy(dtype=np.float64)
    there = np.isfinite(rows).all(axis=1)
    k = min(NEIGHBORS, int(there.sum()) - 1)
    if k >= 1:
        near, _ = NearestNeighbors(n_neighbors=k).fit(rows[there]).kneighbors()
        distance[there] = near.mean(axis=1)
    return distance
