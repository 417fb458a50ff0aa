"""Mislabelled wells and novel treatments: what the replicates of a treatment say about one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.outliers.evidence import Finding, log_ratio, robust_z, spread_of
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
        """From the wells of a screen, by Euclidean distances; in blocks, never all pairs of wells at once."""
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
        """(W,) the mean distance between a well's replicates without that well; NaN for fewer than two."""
        count = self.count[self.code]
        sums = self.own * (count - 1)
        pairs = np.bincount(self.code, np.nan_to_num(sums), len(self.count))[self.code] - 2 * sums
        return np.where(count > 2, pairs / np.maximum((count - 1) * (count - 2), 1), np.nan)


def find_mislabelled(treatments: pd.DataFrame, links: Links) -> Finding:
    """Wells far from replicates that agree, and near to a treatment of another compound and MoA.

    The score is log(a / max(b, c)), a to the replicates, b to the nearest such treatment, c among the
    replicates (the silhouette of Rousseeuw 1987 compares a and b), in units of the robust deviation of
    log(a / c) over all wells: what is ordinary between replicates. NaN for a well with fewer than two.
    """
    related = _same(treatments[c.COMPOUND]) | _same(treatments[c.MOA])
    elsewhere = np.where(related[links.code], np.inf, links.distance)
    nearest, there = elsewhere.argmin(axis=1), elsewhere.min(axis=1)
    among = links.among_replicates
    z = log_ratio(links.own, np.maximum(there, among)) / spread_of(log_ratio(links.own, among))
    ratios = links.own / np.fmax(there, 1e-9)
    words = [
        f"{ratio:.1f} times as far from its {count - 1} replicates as from {links.names[at]}"
        for ratio, count, at in zip(ratios, links.count[links.code], nearest, strict=True)
    ]
    return Finding(z, words)


def find_novel(treatments: pd.DataFrame, links: Links, controls: pd.Series[str]) -> Finding:
    """Treatments without MoA whose wells agree and lie far from every known one, DMSO included.

    The score is of log(b / a): b to the nearest known treatment of another compound, a among the own wells,
    scaled by what it is for treatments with a MoA. NaN for those, for controls, for a single well, and where
    no treatment has a MoA; at most 0 for one that is nearer to a known treatment than to itself.
    """
    member = np.eye(len(links.names))[links.code]
    between = (member / links.count).T @ np.nan_to_num(links.distance)
    own = np.where(links.count > 1, np.diag(between), np.nan)
    control = treatments[c.TREATMENT].isin(controls).to_numpy(dtype=bool)
    labelled = treatments[c.MOA].notna().to_numpy(dtype=bool) & ~control
    candidates = np.where((labelled | control) & ~_same(treatments[c.COMPOUND]), between, np.inf)
    nearest, there = candidates.argmin(axis=1), candidates.min(axis=1)
    score = log_ratio(there, own)
    z = robust_z(score, reference=score[labelled])
    words = [
        f"its {count} wells agree, and {links.names[at]}, the nearest known treatment, "
        f"is {ratio:.1f} times as far as they are from one another"
        for count, at, ratio in zip(links.count, nearest, there / np.fmax(own, 1e-9), strict=True)
    ]
    z = np.where(score > 0, z, np.minimum(z, 0.0))
    return Finding(np.where(labelled | control, np.nan, z), words)


def _same(column: pd.Series[str]) -> npt.NDArray[np.bool_]:
    """Which rows share a value with which (N, N); a null is shared with none."""
    codes = pd.factorize(column)[0]
    return np.asarray((codes[:, None] == codes) & (codes >= 0))
