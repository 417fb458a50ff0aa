"""Fields placed among landmarks, by us and by ``UMAP.transform``, in one and the same layout.

    python benchmarks/placing.py

Of 6,144 drawn embeddings (`benchmarks/maps.py`) 4,000 are laid out by umap-learn itself, pynndescent and all,
and the others placed. Trustworthiness is of the placed ones among themselves; recall is the share of a
field's 15 nearest landmarks that are its 15 nearest on the map. Seconds are of CPU; the first call compiles.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pynndescent  # noqa: F401  compiled, before ours imports it without
from maps import FEATURES, drawn
from sklearn.manifold import trustworthiness
from sklearn.neighbors import NearestNeighbors

from hcs_ray import contracts as c
from hcs_ray.config import MapConfig
from hcs_ray.maps.layout import Places, lay_out, load_umap
from hcs_ray.tables import Features

FIELDS, LANDMARKS, NEIGHBORS = 6144, 4000, 15


def main() -> None:
    """Prints a Markdown table."""
    warnings.filterwarnings("ignore")
    tables = [table[c.EMBEDDING].combine_chunks().flatten().to_numpy() for _, table in drawn(FIELDS)]
    rows = np.random.default_rng(0).permutation(np.concatenate(tables).reshape(FIELDS, FEATURES))
    known, others = rows[:LANDMARKS], rows[LANDMARKS:]
    config = MapConfig(threads=1)
    umap = load_umap()(n_neighbors=NEIGHBORS, metric=config.metric, init="pca", random_state=42, n_jobs=1)
    layout = replace(lay_out(known, config), places=umap.fit(known).embedding_)
    print("| | trustworthiness | recall | first call, s | second call, s |\n|---|---|---|---|---|")
    for name, place in {"ours": layout.place, "UMAP.transform": umap.transform}.items():
        found, first = timed(place, others)
        second = timed(place, others[::-1].copy())[1]
        trust = trustworthiness(others, found, n_neighbors=NEIGHBORS, metric=config.metric)
        kept = recall(known, others, layout.places, found)
        print(f"| {name} | {trust:.3f} | {kept:.3f} | {first:.1f} | {second:.1f} |")


def timed(place: Callable[[Features], Places], rows: Features) -> tuple[Places, float]:
    """What it returns, and its seconds of CPU."""
    began = time.process_time()
    return place(rows), time.process_time() - began


def recall(known: Features, others: Features, places: Places, found: Places) -> float:
    """Share of the nearest landmarks that are nearest on the map."""
    true = NearestNeighbors(n_neighbors=NEIGHBORS, metric="cosine", algorithm="brute").fit(known)
    shown = NearestNeighbors(n_neighbors=NEIGHBORS).fit(places)
    pairs = zip(
        true.kneighbors(others, return_distance=False), shown.kneighbors(found, return_distance=False),
        strict=True,
    )  # fmt: skip
    return float(np.mean([len(np.intersect1d(a, b)) for a, b in pairs])) / NEIGHBORS


if __name__ == "__main__":
    main()
