"""Figures of confusion matrices are scikit-learn's, calibration is a naive loop's, their intervals are over
compounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    brier_score_loss,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    recall_score,
)

from hcs_ray.contracts import BATCH, COMPOUND, MOA, PLATE, TREATMENT, WELL
from hcs_ray.profiles.aggregate import Float64, Ints
from hcs_ray.profiles.calibration import BINS, calibration
from hcs_ray.profiles.classify import classify
from hcs_ray.profiles.confusion import FIGURES, class_figures, confusion_by_group, figure_intervals, figures


def _answers(seed: int, rows: int, classes: int, compounds: int) -> tuple[Ints, Ints, Ints]:
    """True and predicted codes and compounds of some rows; classes may be absent, compounds have one row."""
    random = np.random.default_rng(seed)
    true = random.integers(0, classes, rows)
    guess = np.where(random.random(rows) < 0.5, true, random.integers(0, classes, rows))
    return true, guess, np.unique(random.integers(0, compounds, rows), return_inverse=True)[1].astype(np.intp)


tables = st.builds(_answers, st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 5), st.integers(1, 6))


@pytest.mark.filterwarnings("ignore:A single label was found")
@settings(max_examples=60, deadline=None)
@given(tables)
def test_figures_are_those_of_scikit_learn(table: tuple[Ints, Ints, Ints]) -> None:
    true, guess, compound = table
    by_compound = confusion_by_group(true, guess, compound, 5)
    whole = by_compound.sum(axis=0)
    np.testing.assert_array_equal(whole, confusion_matrix(true, guess, labels=range(5)))
    present = np.unique(true)
    found = {name: float(value) for name, value in figures(whole).items()}
    assert found == pytest.approx(
        {
            "accuracy": accuracy_score(true, guess),
            "balanced_accuracy": recall_score(true, guess, labels=present, average="macro", zero_division=0),
            "macro_f1": f1_score(true, guess, labels=present, average="macro", zero_division=0),
            "mcc": matthews_corrcoef(true, guess),
        }
    )
    stacked = figures(by_compound[by_compound.sum(axis=(1, 2)) > 0])
    for number, group in enumerate(np.unique(compound)):
        rows = compound == group
        assert stacked["mcc"][number] == pytest.approx(matthews_corrcoef(true[rows], guess[rows]))
    told = class_figures(whole.astype(int), tuple("abcde"))
    assert sum(one["correct"] for one in told.values()) == (true == guess).sum()
    assert {name for name, one in told.items() if one["total"]} == {"abcde"[code] for code in present}


@settings(max_examples=60, deadline=None)
@given(tables, st.integers(0, 10**6))
def test_calibration_is_that_of_a_naive_loop(table: tuple[Ints, Ints, Ints], seed: int) -> None:
    true, _, compound = table
    probabilities = np.random.default_rng(seed).dirichlet(
        np.full(4, 0.3), len(true)
    )  # a class 4 is not known
    found = calibration(probabilities, true, compound, resamples=20, seed=0)
    gaps, squares = 0.0, 0.0
    for low in np.arange(BINS) / BINS:
        rows = [
            (row.max(), row.argmax() == label)
            for row, label in zip(probabilities, true, strict=True)
            if low <= row.max() < low + 1 / BINS or (row.max() == 1.0 and low == (BINS - 1) / BINS)
        ]
        if rows:
            gaps += abs(sum(confidence for confidence, _ in rows) - sum(right for _, right in rows))
    for row, label in zip(probabilities, true, strict=True):
        squares += sum((np.append(row, 0.0) - np.eye(5)[label]) ** 2)
    assert found.expected_error == pytest.approx(gaps / len(true), abs=1e-9)
    assert found.brier == pytest.approx(squares / len(true))
    assert found.reliability["count"].sum() == len(true)
    assert (found.expected_error_interval is None) == (len(set(compound)) < 2)


def test_the_brier_score_of_two_classes_is_twice_scikit_learn_s() -> None:
    random = np.random.default_rng(0)
    chance = random.random(50)
    true = (random.random(50) < chance).astype(np.intp)
    found = calibration(np.stack([1 - chance, chance], axis=1), true, np.arange(50), 200, 0)
    assert found.brier == pytest.approx(2 * brier_score_loss(true, chance))
    low, high = found.brier_interval or (1.0, 0.0)
    assert low < found.brier < high


def test_intervals_are_over_compounds_not_over_rows() -> None:
    """Of 40 compounds half are always told, half never; each has six rows."""
    compound = np.repeat(np.arange(40), 6)
    true = compound % 2
    guess = np.where(compound < 20, true, 1 - true)
    found = figure_intervals(confusion_by_group(true, guess, compound, 2), 4000, 0)
    assert list(found) == list(FIGURES)
    error = 1.96 * 0.5 / 40**0.5
    assert found["accuracy"] == pytest.approx((0.5 - error, 0.5 + error), abs=0.03)
    assert found["balanced_accuracy"] == pytest.approx((0.5 - error, 0.5 + error), abs=0.04)
    assert figure_intervals(confusion_by_group(true, guess, compound * 0, 2), 10, 0) == dict.fromkeys(FIGURES)


def _held_out(sharpness: float) -> tuple[pd.DataFrame, Float64]:
    """Fields of 12 compounds in two wells each, whose probabilities are as often right as they say."""
    random = np.random.default_rng(7)
    compound = np.repeat(np.arange(12), 100)
    truth = compound % 3
    meta = pd.DataFrame(
        {
            PLATE: np.tile(["P", "Q"], 600), WELL: [f"w{code}" for code in compound], BATCH: "b",
            TREATMENT: [f"c{code}@1" for code in compound], COMPOUND: [f"c{code}" for code in compound],
            MOA: [f"m{code}" for code in truth],
        }
    )  # fmt: skip
    right = random.random(1200) < 0.7
    told = np.where(right, truth, (truth + 1) % 3)
    odds = np.full((1200, 3), (1 - sharpness) / 2)
    odds[np.arange(1200), told] = sharpness
    return meta, odds


def test_probabilities_that_are_right_as_often_as_they_say_are_calibrated() -> None:
    classes = ["m0", "m1", "m2"]
    honest = classify(*_held_out(0.7), classes, resamples=100).field.calibration
    boastful = classify(*_held_out(0.99), classes, resamples=100).field.calibration
    assert honest.expected_error < 0.04
    assert boastful.expected_error == pytest.approx(0.29, abs=0.04)
    assert boastful.brier > honest.brier
    assert boastful.reliability[["count", "low"]].to_numpy().tolist() == [[1200, 0.9]]


def test_every_level_states_its_figures_with_intervals_in_plain_json() -> None:
    meta, odds = _held_out(0.7)
    wide = np.pad(odds, ((0, 0), (0, 1)))
    told: dict[str, Any] = classify(meta, wide, ["m0", "m1", "m2", "m9"], resamples=100).to_dict()
    for level in ("field", "well", "treatment"):
        assert set(told[level]["intervals"]) == set(FIGURES)
        assert told[level]["by_moa"].keys() == {"m0", "m1", "m2"}
        assert told[level]["recall"]["m9"] is None
        assert {"expected_error", "brier", "reliability", "intervals", "bins"} == set(
            told[level]["calibration"]
        )
    assert told["treatment"]["interval"] == told["treatment"]["intervals"]["balanced_accuracy"]
