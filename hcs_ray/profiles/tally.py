"""Hits among queries, with the interval over compounds and the null of permuted labels."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray.contracts import COMPOUND, MOA
from hcs_ray.profiles.aggregate import Float64, Ints
from hcs_ray.profiles.chance import (
    Null,
    bootstrap_weights,
    exact_interval,
    percentile_interval,
    permuted_labels,
)
from hcs_ray.profiles.neighbours import CORRECT, DROPPED, NEIGHBOUR_COMPOUND, NEIGHBOUR_MOA, Metric

_PAIRS_AT_ONCE: Final = 4_000_000  # labels compared at once


@dataclass(frozen=True)
class Settings:
    """How neighbours are found and intervals drawn (from ``resamples`` draws for a seed)."""

    metric: Metric = "cosine"
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Tally:
    """Hits among the scored queries, which are of ``compounds`` compounds.

    ``interval`` is the 95 % bootstrap interval of the accuracy over compounds (None for fewer than two; see
    `share_interval` where all or none are correct),
    ``null`` the number of correct queries when labels are permuted among compounds (None without a query).
    """

    correct: int
    total: int
    compounds: int
    interval: tuple[float, float] | None
    null: Null | None

    @property
    def accuracy(self) -> float | None:
        """Correct of total; None without a query."""
        return self.correct / self.total if self.total else None

    @property
    def above_chance(self) -> bool:
        """Whether more are correct than the 97.5 percentile under permuted labels."""
        return self.null is not None and self.null.exceeded_by(self.correct)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "interval": list(self.interval) if self.interval else None,
            "compounds": self.compounds,
            "null_correct": self.null.to_dict() if self.null else None,
            "above_chance": self.above_chance,
        }


def tally(queries: pd.DataFrame, fixed: Collection[str], settings: Settings) -> Tally:
    """The hits of some queries; ``fixed`` compounds keep their labels in the null."""
    scored = queries[queries[DROPPED].isna()]
    correct = int(scored[CORRECT].sum())
    return Tally(
        correct,
        len(scored),
        scored[COMPOUND].nunique(),
        share_interval(scored, CORRECT, settings),
        Null.of(correct, _permuted_hits(queries, fixed, settings)) if len(scored) else None,
    )


def share_interval(queries: pd.DataFrame, column: str, settings: Settings) -> tuple[float, float] | None:
    """95 % of the shares of true cells of a column, when compounds are drawn with all their queries.

    None for fewer than two compounds. Where all cells are alike every draw is, too, though a few compounds
    prove little: there the interval is the exact one of as many compounds (`chance.exact_interval`).
    """
    sums = queries.groupby(COMPOUND)[column].agg(["sum", "size"]).to_numpy(dtype=np.float64)
    if len(sums) < 2:
        return None
    hits, total = sums.sum(axis=0)
    if hits in (0, total):
        return exact_interval(len(sums), bool(hits))
    draws = [weights @ sums for weights in bootstrap_weights(len(sums), settings.resamples, settings.seed)]
    hits, totals = np.concatenate(draws).T
    return percentile_interval(hits / totals)


def _permuted_hits(queries: pd.DataFrame, fixed: Collection[str], settings: Settings) -> Float64:
    """How many queries have their neighbour's label, for each permutation of labels among compounds."""
    found = queries[queries["candidates"] > 0]
    pairs, times, groups = _label_pairs(found)
    labels = pd.factorize(groups[MOA])[0]
    movable = ~groups[COMPOUND].isin(list(fixed)).to_numpy(dtype=bool)
    blocks = permuted_labels(labels, movable, settings.resamples, settings.seed)
    hits = [_hits(block, pairs, times) for block in blocks]
    return np.concatenate(hits).astype(np.float64)


def _hits(labels: Ints, pairs: Ints, times: Ints) -> Float64:
    """For each row of labels (P, groups): how often the labels of pairs (2, Q) agree, each ``times`` (Q,)."""
    rows = max(1, _PAIRS_AT_ONCE // max(pairs.shape[1], 1))
    parts = [labels[start : start + rows] for start in range(0, len(labels), rows)]
    return np.concatenate(
        [(part[:, pairs[0]] == part[:, pairs[1]]) @ times.astype(np.float64) for part in parts]
    )


def _label_pairs(found: pd.DataFrame) -> tuple[Ints, Ints, pd.DataFrame]:
    """The groups that carry the labels of queries and of their neighbours, as distinct pairs (2, Q).

    With them, how many queries have each pair (Q,), and the groups. A group is a compound, or one compound's
    treatments of one MoA where its MoA depends on the dose.
    """
    neighbours = found[[NEIGHBOUR_COMPOUND, NEIGHBOUR_MOA]].set_axis([COMPOUND, MOA], axis=1)
    both = pd.concat([found[[COMPOUND, MOA]], neighbours], ignore_index=True)
    codes = both.groupby([COMPOUND, MOA], sort=True).ngroup().to_numpy(dtype=np.intp)
    groups = both.drop_duplicates().sort_values([COMPOUND, MOA]).reset_index(drop=True)
    pairs, times = np.unique(np.stack([codes[: len(found)], codes[len(found) :]]), axis=1, return_counts=True)
    return pairs.astype(np.intp), times, groups
