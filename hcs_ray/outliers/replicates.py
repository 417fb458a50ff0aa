"""Mislabelled wells and novel treatments: what the replicates of a treatment say about one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.outliers.evidence import Finding, log_ratio, robust_z
from hcs_ray.profiles.aggregate import Float64, Ints


@dataclass(frozen=True)
class Links:
    """Mean distances from each well (W) to the wells of each treatment (T), itself left out.

    Attributes:
        distance: (W, T); NaN to the own treatment where there is no replicate.
        code: (W,) the treatment of each well.
        count: (T,) wells of each treatment.
        names: (T,) treatments, sorted.
    """

    distance: Float64
    code: Ints
    count: Ints
    names: Sequence[str]

    @classmethod
    def between(cls, wells: pd.DataFrame, features: Float64) -> Links:
        """Distances (Euclidean) between the wells of a screen, in blocks of bounded memory."""
        from sklearn.metrics import pairwise_distances_chunked

        code, names = pd.factorize(wells[c.TREATMENT], sort=True)
        member = np.eye(len(names))[code]
        blocks = pairwise_distances_chunked(features, reduce_func=lambda block, _: block @ member)
        count = member.sum(axis=0).astype(np.int64)
        others = np.where(member > 0, count - 1, count)
        distance = np.vstack(list(blocks)) / np.where(others > 0, others, np.nan)
        return cls(distance, code, count, names.tolist())

    @property
    def own(self) -> Float64:
        """(W,) to the replicates."""
        return np.asarray(self.distance[np.arange(len(self.code)), self.code])

    @property
    def among_replicates(self) -> Float64:
        """(W,) the mean distance between a well's replicates without that well; 0 for fewer than two."""
        count = self.count[self.code]
        sums = self.own * (count - 1)
        pairs = np.bincount(self.code, np.nan_to_num(sums), len(self.count))[self.code] - 2 * sums
        return np.where(count > 2, pairs / np.maximum((count - 1) * (count - 2), 1), 0.0)


def find_mislabelled(links: Links) -> Finding:
    """Wells far from replicates that agree, and near to another treatment; NaN for one without a replicate.

    The score is of log(a / max(b, c)): a to the replicates, b to the nearest other treatment, c among the
    replicates. The silhouette (Rousseeuw 1987) is made of a and b alike.
    """
    elsewhere = links.distance.copy()
    elsewhere[np.arange(len(links.code)), links.code] = np.inf
    nearest = elsewhere.argmin(axis=1)
    there = elsewhere.min(axis=1)
    score = log_ratio(links.own, np.maximum(there, links.among_replicates))
    ratios = links.own / np.fmax(there, 1e-9)
    words = [
        f"{ratio:.1f} times as far from its {count - 1} replicates as from {links.names[at]}"
        for ratio, count, at in zip(ratios, links.count[links.code], nearest, strict=True)
    ]
    return Finding(robust_z(score), words)


def find_novel(treatments: pd.DataFrame, links: Links, controls: pd.Series[str]) -> Finding:
    """Treatments whose wells agree and lie far from all known ones (of other compounds), DMSO included.

    The score is of log(b / a): b to the nearest known treatment, a among the own wells; it is scaled by all
    treatments, and NaN for the known ones and those of a single well.
    """
    member = np.eye(len(links.names))[links.code]
    between = (member / links.count).T @ np.nan_to_num(links.distance)
    own = np.where(links.count > 1, np.diag(between), np.nan)
    compound = treatments[c.COMPOUND].to_numpy(dtype=str)
    known = (treatments[c.MOA].notna() | treatments[c.TREATMENT].isin(controls)).to_numpy(dtype=bool)
    candidates = np.where(known & (compound[:, None] != compound), between, np.inf)
    nearest, there = candidates.argmin(axis=1), candidates.min(axis=1)
    z = robust_z(log_ratio(there, own))
    words = [
        f"its {count} wells agree, and {links.names[at]}, the nearest known treatment, "
        f"is {ratio:.1f} times as far as they are from one another"
        for count, at, ratio in zip(links.count, nearest, there / np.fmax(own, 1e-9), strict=True)
    ]
    return Finding(np.where(known, np.nan, z), words)
