"""Do the replicates of a treatment find one another? Mean average precision, guarded by plates and weeks.

Kalinin et al. 2025 (https://doi.org/10.1038/s41467-025-60306-2), computed by copairs. Every treatment lies at
one well position on some plates of a week, so replicates are alike by their week and their position alone.
Hence positives are wells of the same treatment on **other plates**, negatives wells of other treatments of
the **same week**; and the null of position takes as positives different treatments at the same position in
other weeks, as negatives those at other positions in other weeks. Labels are no part of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import BATCH, PLATE, TREATMENT, WELL, InputError
from hcs_ray.profiles.aggregate import Float64, Floats, require_columns
from hcs_ray.profiles.neighbours import Metric

Pairs = npt.NDArray[np.uint32]

POSITIVES: Final = "wells of the same treatment on other plates"
NEGATIVES: Final = "wells of other treatments of the same week"
NULL_POSITIVES: Final = "wells of other treatments at the same position in other weeks"
NULL_NEGATIVES: Final = "wells of other treatments at other positions in other weeks"

_MOST_OF_NULL: Final = 2_000  # wells that the null of position is taken of: its pairs grow with their square
_SIGNIFICANT: Final = 0.05
_AT_ONCE: Final = 4_000_000  # similarities computed at once


@dataclass(frozen=True)
class Design:
    """Which wells of a screen are compared; the same for every normalisation.

    Attributes:
        meta: One row a treated well: treatment, plate, well, batch.
        positives, negatives: Pairs of its rows (P, 2), the first below the second, in order.
        null_positives, null_negatives: Those of the null of position; empty where no two treatments share
            a position.
    """

    meta: pd.DataFrame
    positives: Pairs
    negatives: Pairs
    null_positives: Pairs
    null_negatives: Pairs

    @classmethod
    def of(cls, meta: pd.DataFrame, seed: int) -> Design:
        """Of treated wells; of very many, the null is taken of some, drawn by the seed.

        InputError: no treatment has wells on two plates, or no week has two treatments.
        """
        columns = [TREATMENT, PLATE, WELL, BATCH]
        require_columns(meta, columns)
        table = meta[columns].astype(str).reset_index(drop=True)
        codes = table.apply(lambda column: pd.factorize(column)[0])  # quicker to compare than names
        positives = _pairs(codes, [TREATMENT], [PLATE])
        negatives = _pairs(codes, [BATCH], [TREATMENT])
        if not len(positives) or not len(negatives):
            lack = "treatment has wells on two plates" if not len(positives) else "week has two treatments"
            raise InputError(f"no {lack}: whether replicates find one another cannot be told")
        random = np.random.default_rng(seed)
        drawn = np.sort(random.permutation(len(table))[:_MOST_OF_NULL])
        some = codes.iloc[drawn]
        return cls(
            table,
            positives,
            negatives,
            _pairs(some, [WELL], [BATCH, TREATMENT]),
            _pairs(some, [], [BATCH, TREATMENT, WELL]),
        )


@dataclass(frozen=True)
class Replicates:
    """What a normalisation makes of the replicates.

    Attributes:
        mean_average_precision: Mean over treatments of the mean over their wells.
        normalized: The same of normalised average precisions: 0 is a random order, 1 a perfect one.
        position_normalized: Of the null of position; None where no two treatments share a position.
        retrieved: Share of treatments above a random order (Benjamini-Hochberg, 5 %).
        treatments: How many have a positive pair.
    """

    mean_average_precision: float
    normalized: float
    position_normalized: float | None
    retrieved: float
    treatments: int


def replicates(design: Design, features: Floats, metric: Metric, null_size: int, seed: int) -> Replicates:
    """How well the replicates among the rows of ``design.meta``, with features (N, F), find one another."""
    from copairs.map.map import mean_average_precision

    unit = directions(features, metric)
    table = average_precisions(design.meta, unit, design.positives, design.negatives)
    found = mean_average_precision(
        table, [TREATMENT], null_size, _SIGNIFICANT, seed, progress_bar=False, max_workers=1
    )
    position = None
    if len(design.null_positives) and len(design.null_negatives):
        null = average_precisions(design.meta, unit, design.null_positives, design.null_negatives)
        position = float(null["normalized_average_precision"].mean())
    return Replicates(
        float(found["mean_average_precision"].mean()),
        float(found["mean_normalized_average_precision"].mean()),
        position,
        float(found["below_corrected_p"].mean()),
        len(found),
    )


def average_precisions(meta: pd.DataFrame, unit: Floats, positives: Pairs, negatives: Pairs) -> pd.DataFrame:
    """The table of ``copairs.map.average_precision``, for rows of unit length (N, F) and known pairs.

    copairs would look for the pairs anew for every normalisation, and return them in any order.
    """
    from copairs.compute import ap_contiguous
    from copairs.map.average_precision import build_rank_lists
    from copairs.map.normalization import normalize_ap

    rows, relevant, counts = build_rank_lists(
        positives, negatives, _similarities(unit, positives), _similarities(unit, negatives)
    )
    scores, sizes = ap_contiguous(relevant, counts)
    table: pd.DataFrame = meta.iloc[rows].reset_index(drop=True)
    table["n_pos_pairs"], table["n_total_pairs"] = sizes[:, 0], sizes[:, 1]
    table["average_precision"] = scores
    table["normalized_average_precision"] = normalize_ap(scores, sizes[:, 0], sizes[:, 1] - sizes[:, 0])
    return table.loc[(table["n_pos_pairs"] > 0) & (table["n_pos_pairs"] < table["n_total_pairs"])]


def directions(features: Floats, metric: Metric) -> Float64:
    """Rows of unit length (N, F), whose products are the similarities; a row of zeros is like no other."""
    values = features.astype(np.float64)
    if metric == "correlation":
        values -= values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values / np.where(length > 0, length, 1.0))


def _pairs(table: pd.DataFrame, same: list[str], different: list[str]) -> Pairs:
    """Pairs of rows, by index, that share some columns and differ in all others that are named; in order."""
    from copairs.matching import find_pairs

    found: Any = find_pairs(table, same, different)
    return np.asarray(found[np.lexsort((found[:, 1], found[:, 0]))], dtype=np.uint32)


def _similarities(unit: Floats, pairs: Pairs) -> npt.NDArray[np.float32]:
    """Products of the rows of each pair (P,); pairs are in order of their first row."""
    similarities = np.empty(len(pairs), dtype=np.float32)
    step = max(1, _AT_ONCE // len(unit))
    for start in range(0, len(unit), step):
        first, last = np.searchsorted(pairs[:, 0], [start, start + step])
        block = unit[start : start + step] @ unit.T
        own = pairs[first:last]
        similarities[first:last] = block[own[:, 0].astype(np.intp) - start, own[:, 1]]
    return similarities
