"""Figures of confusion matrices, for many matrices at once, and their intervals over compounds.

The figures are scikit-learn's, which takes one pair of label lists at a time: too slow for a bootstrap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hcs_ray.profiles.aggregate import Float64, Ints
from hcs_ray.profiles.chance import bootstrap_weights, percentile_interval

Interval = tuple[float, float]

FIGURES: Final = ("accuracy", "balanced_accuracy", "macro_f1", "mcc")
_CELLS_AT_ONCE: Final = 8_000_000


def confusion_by_group(true: Ints, predicted: Ints, group: Ints, classes: int) -> Float64:
    """A confusion matrix a group: float64 (G, K, K), rows true, columns predicted, for codes (N,) each."""
    groups = int(group.max(initial=-1)) + 1
    cells = (group * classes + true) * classes + predicted
    counts = np.bincount(cells, minlength=groups * classes**2)
    return counts.reshape(groups, classes, classes).astype(np.float64)


def figures(confusion: npt.NDArray[Any]) -> dict[str, Float64]:
    """`FIGURES` of confusion matrices (..., K, K), each of the leading shape; no matrix may be all zero.

    Balanced accuracy and macro-F1 are means over the classes with a true member: a prediction of another
    class is a miss of the true one. MCC is the multi-class one (Gorodkin 2004), 0 where it is not defined.
    """
    counts = np.asarray(confusion, dtype=np.float64)
    hits = np.einsum("...kk->...k", counts)
    true, predicted = counts.sum(axis=-1), counts.sum(axis=-2)
    total, correct = true.sum(axis=-1), hits.sum(axis=-1)
    present = true > 0
    recall, f1 = _share(hits, true), _share(2 * hits, true + predicted)
    spread = (total**2 - (predicted**2).sum(axis=-1)) * (total**2 - (true**2).sum(axis=-1))
    together = correct * total - (true * predicted).sum(axis=-1)
    return {
        "accuracy": correct / total,
        "balanced_accuracy": _mean_of(recall, present),
        "macro_f1": _mean_of(f1, present),
        "mcc": _share(together, np.sqrt(np.maximum(spread, 0.0))),
    }


def figure_intervals(by_compound: Float64, resamples: int, seed: int) -> dict[str, Interval | None]:
    """95 % bootstrap intervals of `FIGURES` over compounds, from a confusion matrix each (C, K, K).

    None for fewer than two compounds.
    """
    compounds, classes = by_compound.shape[:2]
    if compounds < 2:
        return dict.fromkeys(FIGURES)
    flat = by_compound.reshape(compounds, -1)
    step = max(1, _CELLS_AT_ONCE // flat.shape[1])
    draws: dict[str, list[Float64]] = {name: [] for name in FIGURES}
    for weights in bootstrap_weights(compounds, resamples, seed):
        for start in range(0, len(weights), step):
            drawn = (weights[start : start + step] @ flat).reshape(-1, classes, classes)
            for name, values in figures(drawn).items():
                draws[name].append(values)
    return {name: percentile_interval(np.concatenate(parts)) for name, parts in draws.items()}


def class_figures(confusion: npt.NDArray[Any], labels: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """Of each class with a true member or a prediction: both counts, the hits, recall, precision and F1.

    A share of nothing is None.
    """
    found: dict[str, dict[str, Any]] = {}
    for number, label in enumerate(labels):
        true, predicted = int(confusion[number].sum()), int(confusion[:, number].sum())
        hits = int(confusion[number, number])
        if true + predicted:
            found[label] = {
                "correct": hits,
                "total": true,
                "predicted": predicted,
                "recall": hits / true if true else None,
                "precision": hits / predicted if predicted else None,
                "f1": 2 * hits / (true + predicted),
            }
    return found


def plain_intervals(intervals: Mapping[str, Interval | None]) -> dict[str, list[float] | None]:
    """As JSON has them."""
    return {name: list(interval) if interval else None for name, interval in intervals.items()}


def _share(part: Float64, whole: Float64) -> Float64:
    """Part of whole, 0 where that is 0."""
    return np.divide(part, whole, out=np.zeros(np.shape(part)), where=whole > 0)


def _mean_of(values: Float64, present: npt.NDArray[np.bool_]) -> Float64:
    """Mean over the last axis of what is present."""
    return np.asarray(np.where(present, values, 0.0).sum(axis=-1) / present.sum(axis=-1), dtype=np.float64)
