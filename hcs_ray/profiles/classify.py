"""How well held-out fields, wells and treatments are classified, from the probabilities of a checkpoint.

Metrics are scikit-learn's; ``present`` classes are those that occur among the true labels of the rows given.
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
from hcs_ray.profiles.chance import Null, bootstrap_weights, percentile_interval, permuted_labels

PREDICTED: Final = "predicted"

_SUM_TOLERANCE: Final = 1e-2  # of probabilities to 1: they may have been stored as float16


@dataclass(frozen=True)
class LevelMetrics:
    """Metrics of ``count`` fields, wells or treatments.

    ``balanced_accuracy`` and ``macro_f1`` are means over the present classes (a prediction of an absent class
    is a miss of the true one). ``confusion`` is int64 (K, K), rows true, columns predicted, in the order of
    the labels of ``Classification``; ``recall`` is null for absent classes.
    """

    count: int
    accuracy: float
    balanced_accuracy: float
    macro_f1: float
    mcc: float
    recall: dict[str, float | None]
    confusion: npt.NDArray[np.int64]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**self.__dict__, "confusion": self.confusion.tolist()}


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
    field, well, treatment = (
        _metrics(table[MOA], [known[index] for index in values.argmax(axis=1)], labels)
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
        interval=chance.interval(),
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


def _metrics(truth: pd.Series[Any], predicted: Sequence[str], labels: Sequence[str]) -> LevelMetrics:
    from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef

    true = truth.to_numpy(dtype=object)
    guessed = np.asarray(predicted, dtype=object)
    confusion = confusion_matrix(true, guessed, labels=list(labels)).astype(np.int64)
    support = confusion.sum(axis=1)
    present = support > 0
    recall = np.divide(np.diag(confusion), support, out=np.full(len(labels), np.nan), where=present)
    f1 = f1_score(
        true,
        guessed,
        labels=np.asarray(labels, dtype=object)[present].tolist(),
        average="macro",
        zero_division=0,
    )
    return LevelMetrics(
        count=len(true),
        accuracy=float(np.diag(confusion).sum() / len(true)),
        balanced_accuracy=float(recall[present].mean()),
        macro_f1=float(f1),
        mcc=float(matthews_corrcoef(true, guessed)),
        recall={label: float(value) if there else None
                for label, value, there in zip(labels, recall, present, strict=True)},
        confusion=confusion,
    )  # fmt: skip


@dataclass(frozen=True)
class _Chance:
    """Predictions of treatments as codes, and the group (compound and MoA) that carries each one's label."""

    predicted: Ints
    group: Ints
    compound: Ints
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
            compound=pd.factorize(treatments[COMPOUND])[0],
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

    def interval(self) -> tuple[float, float] | None:
        """95 % of balanced accuracies when compounds are drawn with replacement (of the classes drawn)."""
        compounds = int(self.compound.max()) + 1
        if compounds < 2:
            return None
        true = self.group_label[self.group]
        totals, hits = np.zeros((2, compounds, self.classes))
        np.add.at(totals, (self.compound, true), 1)
        np.add.at(hits, (self.compound, true), true == self.predicted)
        blocks = bootstrap_weights(compounds, self.resamples, self.seed)
        return percentile_interval(np.concatenate([_mean_recall(w @ hits, w @ totals) for w in blocks]))


def _mean_recall(hits: npt.NDArray[Any], totals: npt.NDArray[Any]) -> Float64:
    """Mean over the classes with a member, of hits of totals (P, classes) -> (P,)."""
    recall = np.divide(hits, totals, out=np.zeros(hits.shape), where=totals > 0)
    return np.asarray(recall.sum(axis=1) / (totals > 0).sum(axis=1), dtype=np.float64)
