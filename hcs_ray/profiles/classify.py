"""How well held-out fields, wells and treatments are classified, from the probabilities of a checkpoint.

``present`` classes are those that occur among the true labels of the rows given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import COMPOUND, MOA, PROBABILITY_PREFIX, TREATMENT, InputError
from hcs_ray.profiles.aggregate import (
    Float64,
    Floats,
    Ints,
    check_table,
    require_columns,
    row_name,
    to_treatments,
    to_wells,
)
from hcs_ray.profiles.calibration import Calibration, calibration
from hcs_ray.profiles.chance import Null, permuted_labels
from hcs_ray.profiles.confusion import (
    Interval,
    class_figures,
    confusion_by_group,
    figure_intervals,
    figures,
    plain_intervals,
)

PREDICTED: Final = "predicted"

_SUM_TOLERANCE: Final = 1e-2  # of probabilities to 1: they may have been stored as float16


@dataclass(frozen=True)
class LevelMetrics:
    """Metrics of ``count`` fields, wells or treatments.

    ``balanced_accuracy`` and ``macro_f1`` are means over the present classes (a prediction of an absent class
    is a miss of the true one). ``intervals`` are 95 % bootstrap intervals over compounds by figure (None for
    one compound). ``confusion`` is int64 (K, K), rows true, columns predicted, in the order of the labels of
    ``Classification``; ``recall`` is null for absent classes, ``by_moa`` has what else there is to say.
    """

    count: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    mcc: float
    intervals: dict[str, Interval | None]
    recall: dict[str, float | None]
    by_moa: dict[str, dict[str, Any]]
    calibration: Calibration
    confusion: npt.NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            **self.__dict__,
            "intervals": plain_intervals(self.intervals),
            "calibration": self.calibration.to_dict(),
            "confusion": self.confusion.tolist(),
        }


@dataclass(frozen=True)
class Classification:
    """Held-out classification at three levels, and how far that of treatments can be trusted.

    ``labels`` are the classes of the checkpoint, then true labels it does not know (``unknown``, always
    wrong). ``absent`` classes have no true row. ``interval`` is the 95 % bootstrap interval over compounds of
    the treatments' balanced accuracy (None for one compound), ``null`` that figure when labels are permuted
    among compounds. ``treatments`` holds one row a treatment with its ``predicted`` MoA.
    """

    labels: tuple[str, ...]
    absent: tuple[str, ...]
    unknown: tuple[str, ...]
    field: LevelMetrics
    well: LevelMetrics
    treatment: LevelMetrics
    compounds: int
    interval: tuple[float, float] | None
    null: Null
    treatments: pd.DataFrame

    @property
    def above_chance(self) -> bool:
        """Whether the treatments' balanced accuracy exceeds the 97.5 percentile under permuted labels."""
        return self.null.exceeded_by(self.treatment.balanced_accuracy)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "labels": list(self.labels),
            "absent": list(self.absent),
            "unknown": list(self.unknown),
            "field": self.field.to_dict(),
            "well": self.well.to_dict(),
            "treatment": {
                **self.treatment.to_dict(),
                "compounds": self.compounds,
                "interval": list(self.interval) if self.interval else None,
                "null_balanced_accuracy": self.null.to_dict(),
                "above_chance": self.above_chance,
            },
            "from_fields": "mean of probabilities, fields to wells and wells to treatments",
            "predictions": self.treatments.to_dict(orient="records"),
        }


def class_probabilities(table: pd.DataFrame) -> tuple[tuple[str, ...], Float64]:
    """The classes named by a table's ``Probability_<MoA>`` columns, and those columns as float64 (N, C)."""
    columns = [str(column) for column in table.columns if str(column).startswith(PROBABILITY_PREFIX)]
    if not columns:
        raise InputError(
            f"the table has no column {PROBABILITY_PREFIX}<MoA>; embed with a trained checkpoint"
        )
    return tuple(column.removeprefix(PROBABILITY_PREFIX) for column in columns), table[columns].to_numpy(
        dtype=np.float64
    )


def classify(
    meta: pd.DataFrame,
    probabilities: Floats,
    classes: Sequence[str],
    resamples: int = 2000,
    seed: int = 0,
) -> Classification:
    """Metrics of held-out fields: N rows, all labelled and of the side to judge; probabilities (N, C).

    The prediction is the most probable class (of equal ones the first). Labels are permuted among compounds,
    each keeping its treatments together, while the predictions stay. InputError: no row, a row without label,
    rows that are no probabilities, a treatment with two MoAs.
    """
    _check(meta, probabilities, classes)
    known = tuple(classes)
    unknown = tuple(sorted(set(meta[MOA]) - set(known)))
    labels = known + unknown
    wells, by_well = to_wells(meta, probabilities, "mean")
    treatments, by_treatment = to_treatments(wells, by_well, "mean")
    treatments[PREDICTED] = [known[index] for index in by_treatment.argmax(axis=1)]
    draws = (resamples, seed)
    field, well, treatment = (
        _metrics(table, values, known, labels, draws)
        for table, values in ((meta, probabilities), (wells, by_well), (treatments, by_treatment))
    )
    chance = _Chance.of(treatments, labels, resamples, seed)
    return Classification(
        labels=labels,
        absent=tuple(label for label in labels if label not in set(meta[MOA])),
        unknown=unknown,
        field=field,
        well=well,
        treatment=treatment,
        compounds=treatments[COMPOUND].nunique(),
        interval=treatment.intervals["balanced_accuracy"],
        null=Null.of(treatment.balanced_accuracy, chance.permuted()),
        treatments=treatments[[TREATMENT, COMPOUND, MOA, PREDICTED]],
    )


def _check(meta: pd.DataFrame, probabilities: Floats, classes: Sequence[str]) -> None:
    check_table(meta, probabilities)
    require_columns(meta, (TREATMENT, COMPOUND, MOA))
    if meta.empty:
        raise InputError("no held-out field to classify: the split has no labelled compound on this side")
    if probabilities.shape[1] != len(classes):
        raise InputError(f"{probabilities.shape[1]} columns of probabilities for {len(classes)} classes")
    wrong = np.flatnonzero(
        (probabilities < 0).any(axis=1) | (np.abs(probabilities.sum(axis=1) - 1) > _SUM_TOLERANCE)
    )
    if wrong.size:
        row = int(wrong[0])
        raise InputError(
            f"{row_name(meta, row)}: probabilities sum to {probabilities[row].sum():.4f}, not to 1"
        )


def _metrics(
    table: pd.DataFrame, values: Floats, known: Sequence[str], labels: tuple[str, ...], draws: tuple[int, int]
) -> LevelMetrics:
    """Of the rows of a table with probabilities (N, C) of the known classes."""
    code = {label: number for number, label in enumerate(labels)}
    true = table[MOA].map(code).to_numpy(dtype=np.intp)
    compound = pd.factorize(table[COMPOUND])[0].astype(np.intp)
    by_compound = confusion_by_group(true, values.argmax(axis=1), compound, len(labels))
    confusion = by_compound.sum(axis=0).astype(np.int64)
    by_moa = class_figures(confusion, labels)
    found = {name: float(value) for name, value in figures(confusion).items()}
    return LevelMetrics(
        count=len(table),
        **found,
        intervals=figure_intervals(by_compound, *draws),
        recall={label: by_moa.get(label, {}).get("recall") for label in labels},
        by_moa=by_moa,
        calibration=calibration(values, true, compound, *draws),
        confusion=confusion,
    )


@dataclass(frozen=True)
class _Chance:
    """Predictions of treatments as codes, and the group (compound and MoA) that carries each one's label."""

    predicted: Ints
    group: Ints
    group_label: Ints
    classes: int
    resamples: int
    seed: int

    @classmethod
    def of(cls, treatments: pd.DataFrame, labels: Sequence[str], resamples: int, seed: int) -> _Chance:
        code = {label: index for index, label in enumerate(labels)}
        groups = treatments.groupby([COMPOUND, MOA], sort=True)
        return cls(
            predicted=treatments[PREDICTED].map(code).to_numpy(dtype=np.intp),
            group=groups.ngroup().to_numpy(dtype=np.intp),
            group_label=np.array([code[moa] for _, moa in groups.size().index], dtype=np.intp),
            classes=len(labels),
            resamples=resamples,
            seed=seed,
        )

    def permuted(self) -> Float64:
        """The balanced accuracy for each permutation of labels among groups."""
        movable = np.ones(len(self.group_label), dtype=bool)
        blocks = permuted_labels(self.group_label, movable, self.resamples, self.seed)
        return np.concatenate([self._balanced(block[:, self.group]) for block in blocks])

    def _balanced(self, true: Ints) -> Float64:
        """Mean recall over the classes present in each row of true labels (P, treatments)."""
        cells = (np.arange(len(true))[:, None] * self.classes + true).ravel()
        size = len(true) * self.classes
        totals = np.bincount(cells, minlength=size).reshape(-1, self.classes)
        hits = np.bincount(cells, weights=(true == self.predicted).ravel(), minlength=size)
        return _mean_recall(hits.reshape(-1, self.classes), totals)


def _mean_recall(hits: npt.NDArray[Any], totals: npt.NDArray[Any]) -> Float64:
    """Mean over the classes with a member, of hits of totals (P, classes) -> (P,)."""
    recall = np.divide(hits, totals, out=np.zeros(hits.shape), where=totals > 0)
    return np.asarray(recall.sum(axis=1) / (totals > 0).sum(axis=1), dtype=np.float64)
