"""UMAP in the plane (McInnes et al. 2018, https://arxiv.org/abs/1802.03426): a layout, and rows placed in it.

The library finds neighbours with pynndescent, approximately, and compiles it for that. Here neighbours are
given, exact, to fit and to place; what places rows is made of the library's own parts (see `Layout.place`).
"""

from __future__ import annotations

import functools
import importlib
import sys
import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hcs_ray.config import MapConfig
from hcs_ray.contracts import InputError
from hcs_ray.maps.landmarks import FEWEST
from hcs_ray.maps.nearest import Search
from hcs_ray.tables import Features

Places = npt.NDArray[np.float32]  # (N, 2)
Labels = npt.NDArray[np.int64]  # (N,): a class, or `NO_LABEL`

NO_LABEL: Final = -1  # as UMAP has it
_PLACING_EPOCHS: Final = 30  # as UMAP.transform has it for many rows
_PLACING_RATE: Final = 0.25  # of a layout's learning rate, as UMAP.transform has it
_NEGATIVE_RATE: Final = 5  # rows pushed away for each that pulls: the library's own
_DRAWN: Final = (16, 4)  # rows and features of the layout that is compiled by


@dataclass(frozen=True)
class Layout:
    """Rows laid out, among which others can be placed."""

    places: Places  # of the rows that were laid out
    neighbors: int
    config: MapConfig
    search: Search

    def place(self, rows: Features) -> Places:
        """Place other rows (M, F) among those laid out, which stay where they are.

        As in ``UMAP.transform`` each begins at the mean place of its neighbours, weighted by membership, and
        is pulled and pushed for 30 epochs. But neighbours are exact, and memberships are relative to a row's
        own strongest one, not to that of all rows placed together: a row's place depends on no other of them.
        """
        from umap import umap_
        from umap.layouts import optimize_layout_euclidean

        indices, distances = self.search.nearest(rows, self.neighbors)
        sigmas, rhos = umap_.smooth_knn_dist(distances, float(self.neighbors), local_connectivity=0.0)
        heads, tails, weights, _ = umap_.compute_membership_strengths(
            indices, distances, sigmas, rhos, None, True
        )
        strengths = weights.reshape(indices.shape)
        strengths = strengths / strengths.max(axis=1, keepdims=True)
        shares = strengths / strengths.sum(axis=1, keepdims=True)
        begin = np.einsum("nk,nkd->nd", shares, self.places[indices]).astype(np.float32)
        kept = strengths.ravel() >= 1 / _PLACING_EPOCHS
        a, b = umap_.find_ab_params(1.0, self.config.min_dist)
        found = optimize_layout_euclidean(
            begin, self.places.copy(), heads[kept], tails[kept], _PLACING_EPOCHS, len(self.places),
            (1.0 / strengths.ravel()[kept]).astype(np.float64), a, b, _random_state(self.config.seed),
            1.0, _PLACING_RATE, _NEGATIVE_RATE, parallel=False, tqdm_kwds={"disable": True},
        )  # fmt: skip
        return np.asarray(found, np.float32)


def lay_out(features: Features, config: MapConfig, labels: Labels | None = None) -> Layout:
    """UMAP of features (N, F), or densMAP (Narayan et al. 2021, https://doi.org/10.1038/s41587-020-00801-7).

    The same for the same rows, order and seed on one kind of machine. Neighbours are exact; with fewer than
    ``config.neighbors`` + 1 rows all others are neighbours. It starts from the first two principal components
    (Kobak & Linderman 2021, https://doi.org/10.1038/s41587-020-00809-z), which duplicates and separate
    clusters do not upset.

    Args:
        labels: what a supervised layout is told; asked only with ``config.supervised``.

    Raises:
        InputError: fewer than four rows, all rows equal, or fewer than two labels to be supervised by.
    """
    _check(features, config, labels)
    neighbors = neighbors_used(len(features), config)
    search = Search(features, config.metric, config.threads)
    umap = load_umap()(
        n_neighbors=neighbors,
        min_dist=config.min_dist,
        metric=config.metric,
        init="pca",
        random_state=config.seed,
        n_jobs=1,  # the only order of updates that a seed determines
        densmap=config.densmap,
        disconnection_distance=np.inf,
        precomputed_knn=(*search.nearest(features, neighbors), None),
    )
    told = labels if config.supervised == "moa" else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*knn_search_index", category=UserWarning)
        places = np.asarray(umap.fit_transform(features, told), np.float32)
    return Layout(places, neighbors, config, search)


def neighbors_used(rows: int, config: MapConfig) -> int:
    """The configured number of neighbours, or all others where there are fewer."""
    return min(config.neighbors, rows - 1)


def _check(features: Features, config: MapConfig, labels: Labels | None) -> None:
    if len(features) < FEWEST:
        raise InputError(f"a map needs at least {FEWEST} fields, and there are {len(features)}")
    if (features == features[0]).all():
        raise InputError(f"all {len(features)} embeddings are equal: the network tells no field from another")
    if config.supervised == "moa" and len(set(() if labels is None else labels) - {NO_LABEL}) < 2:
        raise InputError("map.supervised moa needs fields of at least two MoAs; write none")


def _random_state(seed: int) -> npt.NDArray[np.int64]:
    """The state of UMAP's own generator."""
    limits = np.iinfo(np.int32)
    return np.random.default_rng(seed).integers(limits.min + 1, limits.max, 3).astype(np.int64)


@functools.cache
def compile_umap(densmap: bool, supervised: bool) -> None:
    """Lay out and place a few rows, so that what numba compiles is compiled: some seconds, once a process."""
    rows, features = _DRAWN
    drawn = np.random.default_rng(0).random((rows, features), np.float32)
    config = MapConfig(neighbors=3, densmap=densmap, supervised="moa" if supervised else "none")
    lay_out(drawn, config, np.arange(rows) % 2).place(drawn)


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
