"""What a sweep over ``map.*`` can be judged by: how well a layout keeps neighbourhoods.

Nothing else of a layout is an aim by itself, and a layout chosen by labels shows what it was chosen for: the
figures in `USES_LABELS` are there to look at, and a sweep whose metric is one of them has used every label.
So has a trial with ``map.supervised``, whatever it is judged by.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.maps import X, Y, laid_out, map_bytes
from hcs_ray.maps.about import MapAbout
from hcs_ray.maps.layout import compile_umap
from hcs_ray.maps.reading import Embeddings
from hcs_ray.study import Study
from hcs_ray.tables import Features

TRUSTWORTHINESS: Final = "trustworthiness"
NEIGHBOR_RECALL: Final = "neighbor_recall"
NEIGHBOR_RECALL_CHANCE: Final = "neighbor_recall_chance"
MOA_SHARE: Final = "moa_neighbor_share"
MOA_SILHOUETTE: Final = "moa_silhouette"
BATCH_SHARE: Final = "batch_neighbor_share"
UNSUPERVISED: Final = (TRUSTWORTHINESS, NEIGHBOR_RECALL, NEIGHBOR_RECALL_CHANCE)
USES_LABELS: Final = (MOA_SHARE, f"{MOA_SHARE}_chance", MOA_SILHOUETTE, BATCH_SHARE, f"{BATCH_SHARE}_chance")
SHOWN: Final = (TRUSTWORTHINESS, NEIGHBOR_RECALL, MOA_SHARE, MOA_SILHOUETTE, BATCH_SHARE)
BRIEF: Final = {TRUSTWORTHINESS: "trust", NEIGHBOR_RECALL: "recall", MOA_SHARE: "MoA share"}
METRIC: Final = "cosine"  # of embeddings, whatever map.metric is, so that trials are judged alike

Layout = npt.NDArray[np.floating]
Neighbors = npt.NDArray[np.intp]
_FEWEST: Final = 4  # fields; trustworthiness of one neighbour needs as many


@dataclass(frozen=True)
class Judged:
    """A layout and what it is worth."""

    figures: dict[str, float]
    table: pd.DataFrame  # of the judged fields, by key: ``Metadata_*``, ``x`` and ``y``
    about: MapAbout

    def file(self) -> bytes:
        """The table as Parquet, with how it was laid out."""
        return map_bytes(pa.Table.from_pandas(self.table, preserve_index=False), self.about)


def evaluate(study: Study, seed: int = 0, *, most_fields: int = 4000, neighbors: int = 15) -> Judged:
    """Lay out the embeddings of this run by ``map.*`` and judge the layout; `judge` has the figures.

    Of more than ``most_fields`` fields a random sample of so many is judged, the same for a ``seed``: their
    neighbours are sought among the sample, as ``judged_fields`` says. They lie where `hcs-ray map` puts them:
    among landmarks, where there are more fields than ``map.landmarks``. ``layout_s`` is what that took,
    without compiling.
    """
    # A trial is given one core.
    config = study.config.map.model_copy(update={"threads": 1})
    embeddings = Embeddings(study)
    compile_umap(config.densmap, config.supervised != "none")
    began = time.monotonic()
    landmarks, layout = laid_out(embeddings, config)
    rows = _sample(len(embeddings), most_fields, seed)
    features = embeddings.features(rows)
    known = np.isin(rows, landmarks)
    places = np.empty((len(rows), 2), np.float32)
    places[known] = layout.places[np.searchsorted(landmarks, rows[known])]
    if not known.all():
        places[~known] = layout.place(features[~known])
    seconds = time.monotonic() - began
    table = embeddings.rows(rows).assign(**{X: places[:, 0], Y: places[:, 1]})
    figures = {
        "fields": float(len(embeddings)), "judged_fields": float(len(rows)),
        "landmarks": float(len(landmarks)), "neighbors_used": float(layout.neighbors), "layout_s": seconds,
    }  # fmt: skip
    figures |= judge(table, features, places, neighbors=neighbors)
    return Judged(figures, table, MapAbout.of(config, len(embeddings), len(landmarks), layout.neighbors))


def judge(
    fields: pd.DataFrame, features: Features, layout: Layout, *, neighbors: int = 15
) -> dict[str, float]:
    """How well a layout (N, 2) keeps the neighbourhoods of embeddings (N, F), by cosine distance.

    Of few fields, fewer than half of them are neighbours.

    - ``trustworthiness`` (Venna & Kaski 2001, https://doi.org/10.1007/3-540-44668-0_68): 1 where no field
      has intruders among its neighbours on the map.
    - ``neighbor_recall``: share of a field's neighbours that are its neighbours on the map; ``_chance``: of a
      layout drawn by chance.
    - ``moa_neighbor_share``: of the nearest labelled fields of **other compounds** on the map, the share with
      the field's MoA; controls are left out. Uses the labels.
    - ``moa_silhouette``: mean silhouette (Rousseeuw 1987, https://doi.org/10.1016/0377-0427(87)90125-7) of
      the labelled fields on the map by MoA, -1 to 1; a compound's own fields count. Uses the labels.
    - ``batch_neighbor_share``: of the nearest negative controls of **other wells** on the map, the share of
      the field's batch. Only controls are asked, since treatments are nested in batches.
    - ``_chance`` of the shares: that share among all fields that could have been neighbours.

    Those of labels are left out where there is nothing to tell apart.

    Raises:
        InputError: fewer than four fields.
    """
    if len(fields) < _FEWEST:
        raise InputError(f"a map is judged by at least {_FEWEST} fields, and there are {len(fields)}")
    near = min(neighbors, (len(fields) - 1) // 2)
    return _kept(features, layout, near) | _shares(fields, layout, neighbors) | _silhouette(fields, layout)


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
    """The shares that use labels."""
    controls = (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy(dtype=bool)
    well = fields[c.PLATE].astype(str) + " " + fields[c.WELL].astype(str)
    asked = {
        MOA_SHARE: (_labelled(fields), fields[c.MOA], fields[c.COMPOUND]),
        BATCH_SHARE: (controls, fields[c.BATCH], well),
    }
    figures: dict[str, float] = {}
    for name, (rows, label, apart) in asked.items():
        found = _like_neighbors(layout[rows], _codes(label[rows]), _codes(apart[rows]), near)
        if found is not None:
            figures |= {name: found[0], f"{name}_chance": found[1]}
    return figures


def _silhouette(fields: pd.DataFrame, layout: Layout) -> dict[str, float]:
    """Of labelled fields; none where they are of one MoA, or each of its own."""
    from sklearn.metrics import silhouette_score

    labelled = _labelled(fields)
    moas = _codes(fields[c.MOA][labelled])
    if not 2 <= len(set(moas)) < len(moas):
        return {}
    return {MOA_SILHOUETTE: float(silhouette_score(layout[labelled], moas))}


def _labelled(fields: pd.DataFrame) -> npt.NDArray[np.bool_]:
    known = (fields[c.PERT_TYPE] == c.TREATED) & fields[c.MOA].notna()
    return known.to_numpy(dtype=bool)


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
