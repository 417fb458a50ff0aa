"""What a sweep over ``map.*`` can be judged by: how well a layout keeps neighbourhoods.

Nothing else of a layout is an aim by itself, and a layout chosen by labels shows what it was chosen for: the
figures in `USES_LABELS` are there to look at, and a sweep whose metric is one of them has used every label.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.maps import umap_layout
from hcs_ray.study import Study
from hcs_ray.tables import Features, read_embeddings

TRUSTWORTHINESS: Final = "trustworthiness"
NEIGHBOR_RECALL: Final = "neighbor_recall"
NEIGHBOR_RECALL_CHANCE: Final = "neighbor_recall_chance"
UNSUPERVISED: Final = (TRUSTWORTHINESS, NEIGHBOR_RECALL, NEIGHBOR_RECALL_CHANCE)
USES_LABELS: Final = (
    "moa_neighbor_share",
    "moa_neighbor_share_chance",
    "batch_neighbor_share",
    "batch_neighbor_share_chance",
)
METRIC: Final = "cosine"  # of embeddings, whatever map.metric is, so that trials are judged alike

Layout = npt.NDArray[np.floating]
Neighbors = npt.NDArray[np.intp]
_FEWEST: Final = 4  # fields; trustworthiness of one neighbour needs as many


def evaluate(
    study: Study, seed: int = 0, *, most_fields: int = 4000, neighbors: int = 15
) -> dict[str, float]:
    """Lay out all embeddings of this run by ``map.*`` and judge the layout; `judge` has the figures.

    All fields are on the layout; ``seed`` draws those that are judged, where there are more than
    ``most_fields``.

    The first layout of a process takes some 40 s longer, in which UMAP is compiled.
    """
    fields, features = read_embeddings(study)
    layout = umap_layout(features, study.config.map)
    return judge(fields, features, layout, most_fields=most_fields, neighbors=neighbors, seed=seed)


def judge(
    fields: pd.DataFrame,
    features: Features,
    layout: Layout,
    *,
    most_fields: int = 4000,
    neighbors: int = 15,
    seed: int = 0,
) -> dict[str, float]:
    """How well a layout (N, 2) keeps the neighbourhoods of embeddings (N, F), by cosine distance.

    Of more than ``most_fields`` fields a random sample of so many is judged, the same for a ``seed``: their
    neighbours are sought among the sample, as `judged_fields` says. Of few fields, fewer than half of them
    are neighbours.

    - ``trustworthiness`` (Venna & Kaski 2001, https://doi.org/10.1007/3-540-44668-0_68): 1 where no field
      has intruders among its neighbours on the map.
    - ``neighbor_recall``: share of a field's neighbours that are its neighbours on the map; ``_chance``: of a
      layout drawn by chance.
    - ``moa_neighbor_share``: of the nearest labelled fields of **other compounds** on the map, the share with
      the field's MoA; controls are left out. Uses the labels.
    - ``batch_neighbor_share``: of the nearest negative controls of **other wells** on the map, the share of
      the field's batch. Only controls are asked, since treatments are nested in batches.
    - ``_chance`` of both: that share among all fields that could have been neighbours.

    The last two are left out where no field has both its like and another among those it is compared with.

    Raises:
        InputError: fewer than four fields.
    """
    if len(fields) < _FEWEST:
        raise InputError(f"a map is judged by at least {_FEWEST} fields, and there are {len(fields)}")
    rows = _sample(len(fields), most_fields, seed)
    figures = {"fields": float(len(fields)), "judged_fields": float(len(rows))}
    near = min(neighbors, (len(rows) - 1) // 2)
    kept = _kept(features[rows], layout[rows], near)
    return figures | kept | _shares(fields.iloc[rows], layout[rows], neighbors)


def _sample(count: int, most: int, seed: int) -> npt.NDArray[np.intp]:
    if count <= most:
        return np.arange(count, dtype=np.intp)
    return np.sort(np.random.default_rng(seed).choice(count, most, replace=False)).astype(np.intp)


def _kept(features: Features, layout: Layout, near: int) -> dict[str, float]:
    from sklearn.manifold import trustworthiness

    seen, shown = _nearest(features, near, METRIC), _nearest(layout, near, "euclidean")
    common = [len(np.intersect1d(a, b, assume_unique=True)) for a, b in zip(seen, shown, strict=True)]
    return {
        TRUSTWORTHINESS: float(trustworthiness(features, layout, n_neighbors=near, metric=METRIC)),
        NEIGHBOR_RECALL: float(np.mean(common) / near),
        NEIGHBOR_RECALL_CHANCE: near / (len(features) - 1),
    }


def _nearest(points: npt.NDArray[np.floating], near: int, metric: str) -> Neighbors:
    """Each row's nearest others (N, near)."""
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=near, metric=metric, algorithm="brute").fit(points)
    return np.asarray(search.kneighbors(return_distance=False), dtype=np.intp)


def _shares(fields: pd.DataFrame, layout: Layout, near: int) -> dict[str, float]:
    """The figures that use labels."""
    treated = ((fields[c.PERT_TYPE] == c.TREATED) & fields[c.MOA].notna()).to_numpy(dtype=bool)
    controls = (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy(dtype=bool)
    well = fields[c.PLATE].astype(str) + " " + fields[c.WELL].astype(str)
    asked = {
        "moa_neighbor_share": (treated, fields[c.MOA], fields[c.COMPOUND]),
        "batch_neighbor_share": (controls, fields[c.BATCH], well),
    }
    figures: dict[str, float] = {}
    for name, (rows, label, apart) in asked.items():
        found = _like_neighbors(layout[rows], _codes(label[rows]), _codes(apart[rows]), near)
        if found is not None:
            figures |= {name: found[0], f"{name}_chance": found[1]}
    return figures


def _codes(column: pd.Series) -> npt.NDArray[np.intp]:
    return np.asarray(pd.factorize(column)[0], dtype=np.intp)


def _like_neighbors(
    layout: Layout, label: npt.NDArray[np.intp], apart: npt.NDArray[np.intp], near: int
) -> tuple[float, float] | None:
    """Mean share of like labels among the nearest rows of another ``apart``, and among all such rows.

    Rows without both a like and an unlike row to find say nothing and are not asked; None without any other.
    """
    shares = [_like_share(layout, label, apart, near, row) for row in range(len(layout))]
    told = [share for share in shares if 0 < share[1] < 1]
    if not told:
        return None
    found, chance = np.mean(told, axis=0)
    return float(found), float(chance)


def _like_share(
    layout: Layout, label: npt.NDArray[np.intp], apart: npt.NDArray[np.intp], near: int, row: int
) -> tuple[float, float]:
    """The two shares of one row; zeros without a candidate."""
    others = np.flatnonzero(apart != apart[row])
    if not len(others):
        return 0.0, 0.0
    distance = np.square(layout[others] - layout[row]).sum(axis=1)
    nearest = others[np.argsort(distance, kind="stable")[:near]]
    return float((label[nearest] == label[row]).mean()), float((label[others] == label[row]).mean())
