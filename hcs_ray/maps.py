"""`hcs-ray map`: all fields of a study laid out in the plane by UMAP (McInnes et al. 2018,
https://arxiv.org/abs/1802.03426), for the eye; nothing is measured on it.
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hcs_ray import contracts as c
from hcs_ray.config import MapConfig
from hcs_ray.contracts import InputError, Progress
from hcs_ray.study import Study
from hcs_ray.tables import Features, read_embeddings

if TYPE_CHECKING:
    import pandas as pd

X: Final = "x"
Y: Final = "y"
_FEWEST: Final = 4  # fields; below, there is no layout to speak of
_STEPS: Final = 3  # the library, the layout, the file


def make_map(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``maps/NAME.parquet``: one row a field, its key, ``Metadata_*``, ``x`` and ``y`` (float32)."""
    claim = study.claim("map")
    if force or not study.is_complete("map", claim):
        with study.writing("map", claim, force) as writer:
            writer.write_table(f"{study.name}.parquet", _draw(study, progress))
            progress(_STEPS, _STEPS)
    return report(read_map(study), study.config.map)


def read_map(study: Study) -> pd.DataFrame:
    """``maps/NAME.parquet``."""
    return study.require("map").read_table(study.storage, f"maps/{study.name}.parquet")


def report(table: pd.DataFrame, config: MapConfig) -> dict[str, Any]:
    """How many fields are on the map, and by how many neighbours it was made."""
    return {"fields": len(table), "neighbors": neighbors_used(len(table), config)}


def _draw(study: Study, progress: Progress) -> pd.DataFrame:
    progress(0, _STEPS)
    fields, features = read_embeddings(study)
    load_umap()
    progress(1, _STEPS)
    layout = umap_layout(features, study.config.map)
    progress(2, _STEPS)
    columns = [c.KEY, *(name for name in c.FIELD_COLUMNS if name in fields.columns)]
    return fields[columns].assign(**{X: layout[:, 0], Y: layout[:, 1]})


def umap_layout(features: Features, config: MapConfig) -> npt.NDArray[np.float32]:
    """UMAP of features (N, F) in the plane, (N, 2) float32; the same for the same rows, order and seed.

    Neighbours are exact; with fewer than ``config.neighbors`` + 1 rows all others are neighbours. It starts
    from the first two principal components (Kobak & Linderman 2021,
    https://doi.org/10.1038/s41587-020-00809-z), which duplicates and separate clusters do not upset.

    Raises:
        InputError: fewer than four rows, a feature that is not finite, or all rows equal.
    """
    _check(features)
    neighbors = neighbors_used(len(features), config)
    umap = load_umap()(
        n_neighbors=neighbors,
        min_dist=config.min_dist,
        metric=config.metric,
        init="pca",
        random_state=config.seed,
        n_jobs=1,  # the only order of updates that a seed determines
        precomputed_knn=_nearest(features, neighbors, config.metric),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*knn_search_index", category=UserWarning)
        return np.asarray(umap.fit_transform(features), np.float32)


def neighbors_used(rows: int, config: MapConfig) -> int:
    """The configured number of neighbours, or all others where there are fewer."""
    return min(config.neighbors, rows - 1)


def _check(features: Features) -> None:
    if len(features) < _FEWEST:
        raise InputError(f"a map needs at least {_FEWEST} fields, and there are {len(features)}")
    if not np.isfinite(features).all():
        row = int(np.flatnonzero(~np.isfinite(features).all(axis=1))[0])
        raise InputError(f"the embedding in row {row} is not finite; train and embed again")
    if (features == features[0]).all():
        raise InputError(f"all {len(features)} embeddings are equal: the network tells no field from another")


def _nearest(
    features: Features, neighbors: int, metric: str
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], None]:
    """Each row's nearest, itself included, in the form that UMAP takes."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=neighbors, metric=metric, algorithm="brute").fit(features)
    distances, indices = search.kneighbors(features)
    return indices.astype(np.int64), distances.astype(np.float32), None


@functools.cache
def load_umap() -> Any:
    """The class ``umap.UMAP``, without the 12 s that a fresh installation spends on compiling pynndescent.

    pynndescent, umap's approximate neighbour search, compiles dozens of functions when it is first imported,
    and none of them is used where neighbours are given. It is therefore imported uncompiled, unless something
    has imported it already: in this process its own search, and with it ``UMAP.transform``, would be slow.
    """
    settings: Any = importlib.import_module("numba").config
    compiled = settings.DISABLE_JIT
    settings.DISABLE_JIT = compiled or "pynndescent" not in sys.modules
    try:
        importlib.import_module("pynndescent")
    finally:
        settings.DISABLE_JIT = compiled
    from umap.umap_ import UMAP

    return UMAP
