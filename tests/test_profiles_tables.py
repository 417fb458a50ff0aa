"""Tables of profiles: fields become wells and treatments, plates are normalised on their controls, held-out
probabilities become metrics."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import median_abs_deviation
from sklearn.metrics import balanced_accuracy_score, f1_score, recall_score

from hcs_ray.contracts import (
    BATCH,
    COMPOUND,
    KEY,
    MOA,
    NEGATIVE_CONTROL,
    PERT_TYPE,
    PLATE,
    POSITIVE_CONTROL,
    PROBABILITY_PREFIX,
    TREATED,
    TREATMENT,
    WELL,
    InputError,
)
from hcs_ray.profiles.aggregate import (
    BATCHES,
    FIELDS,
    WELLS,
    Float64,
    aggregate,
    to_treatments,
    to_wells,
    too_small,
)
from hcs_ray.profiles.classify import class_probabilities, classify
from hcs_ray.profiles.normalize import Method, normalize

# --- Aggregation ------------------------------------------------------------------------------------------


def _fields(seed: int) -> tuple[pd.DataFrame, Float64]:
    """Shuffled fields of 2 plates x 4 wells x 1-4 sites; wells of the same letter hold the same treatment."""
    random = np.random.default_rng(seed)
    rows = [
        {PLATE: plate, WELL: well, BATCH: f"b{plate}", KEY: f"{plate}_{well}_s{site}", "site": site}
        for plate in "PQ"
        for well in ("B02", "B03", "C02", "C03")
        for site in range(random.integers(1, 5))
    ]
    meta = pd.DataFrame(rows).sample(frac=1, random_state=seed).reset_index(drop=True)
    meta[COMPOUND] = meta[WELL].str[0]
    meta[TREATMENT] = meta[COMPOUND] + "@1"
    meta[MOA] = meta[COMPOUND].map({"B": "one"})
    meta[PERT_TYPE] = np.where(meta[WELL] == "C03", NEGATIVE_CONTROL, TREATED)
    return meta, random.normal(size=(len(meta), 3))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["mean", "median"]), st.integers(1, 3))
def test_groups_are_those_of_pandas(seed: int, how: Any, minimum: int) -> None:
    meta, features = _fields(seed)
    wells, values = aggregate(meta, features.astype(np.float32), (PLATE, WELL), how, minimum)
    grouped = pd.DataFrame(features.astype(np.float32).astype(np.float64)).groupby([meta[PLATE], meta[WELL]])
    sizes = grouped.size()
    np.testing.assert_allclose(values, grouped.agg(how)[sizes >= minimum].to_numpy(), rtol=1e-12)
    assert list(zip(wells[PLATE], wells[WELL], strict=True)) == list(sizes[sizes >= minimum].index)
    assert wells[FIELDS].tolist() == sizes[sizes >= minimum].tolist()
    assert too_small(meta, (PLATE, WELL), minimum)[FIELDS].tolist() == sizes[sizes < minimum].tolist()


def test_fields_become_wells_and_wells_treatments() -> None:
    meta, features = _fields(seed=5)
    wells, by_well = to_wells(meta, features, "mean")
    assert list(wells.columns[:2]) == [PLATE, WELL]
    assert {BATCH, COMPOUND, TREATMENT, MOA, PERT_TYPE, FIELDS} <= set(wells.columns)
    assert KEY not in wells.columns
    treatments, profiles = to_treatments(wells, by_well, "mean")
    assert treatments[TREATMENT].tolist() == ["B@1", "C@1"]
    assert treatments[MOA].isna().tolist() == [False, True]
    assert treatments[WELLS].tolist() == [4, 4]
    assert treatments[BATCHES].tolist() == [("bP", "bQ")] * 2
    assert PLATE not in treatments.columns
    is_b = (wells[COMPOUND] == "B").to_numpy()
    np.testing.assert_allclose(profiles[0], by_well[is_b].mean(axis=0))
    meta.loc[meta[WELL] == "B03", MOA] = "two"
    with pytest.raises(InputError, match="B@1 has one and two: a treatment has one Metadata_MOA"):
        to_treatments(meta, features, "mean")


def test_bad_features_are_named_by_field() -> None:
    meta, features = _fields(seed=6)
    features[3, 1] = np.inf
    with pytest.raises(InputError, match=f"{meta[KEY].iloc[3]}: feature 1 is inf"):
        to_wells(meta, features, "mean")
    with pytest.raises(InputError, match="do not fit"):
        to_wells(meta, features[1:], "mean")


# --- Normalisation ----------------------------------------------------------------------------------------


def _plates(seed: int) -> tuple[pd.DataFrame, Float64]:
    """Three plates of 10 wells, 4 of them controls."""
    meta = pd.DataFrame({PLATE: np.repeat(["P", "Q", "R"], 10), WELL: [f"w{i}" for i in range(10)] * 3})
    meta[PERT_TYPE] = np.tile([NEGATIVE_CONTROL] * 4 + [TREATED] * 5 + [POSITIVE_CONTROL], 3)
    return meta, np.random.default_rng(seed).normal(size=(30, 5))


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_controls_of_each_plate_become_the_standard(seed: int) -> None:
    meta, features = _plates(seed)
    for plate in "PQR":
        rows = (meta[PLATE] == plate).to_numpy()
        controls = rows & (meta[PERT_TYPE] == NEGATIVE_CONTROL).to_numpy()
        z = normalize(meta, features, "standardize").features[controls]
        np.testing.assert_allclose((z.mean(axis=0), z.std(axis=0)), (np.zeros(5), np.ones(5)), atol=1e-9)
        robust = normalize(meta, features, "mad_robustize").features[controls]
        spread = median_abs_deviation(robust, axis=0, scale="normal")
        np.testing.assert_allclose((np.median(robust, axis=0), spread), (np.zeros(5), np.ones(5)), atol=1e-9)
        expected = features[rows] - features[controls].mean(axis=0)
        np.testing.assert_allclose(normalize(meta, features, "center").features[rows], expected)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(["standardize", "mad_robustize"]))
def test_gain_and_offset_of_a_plate_vanish(seed: int, method: Method) -> None:
    meta, features = _plates(seed)
    random = np.random.default_rng(seed + 1)
    plate = np.repeat(np.arange(3), 10)
    shifted = features * random.uniform(0.5, 2, (3, 5))[plate] + random.normal(size=(3, 5))[plate]
    plain = normalize(meta, features, method).features
    np.testing.assert_allclose(normalize(meta, shifted, method).features, plain, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("method", ["standardize", "mad_robustize"])
def test_a_feature_without_spread_on_one_plate_is_dropped_on_all(method: Method) -> None:
    meta, features = _plates(seed=7)
    control = (meta[PERT_TYPE] == NEGATIVE_CONTROL).to_numpy()
    features[control & (meta[PLATE] == "Q").to_numpy(), 2] = 0.1
    result = normalize(meta, features, method)
    assert result.kept.tolist() == [True, True, False, True, True]
    assert result.features.shape == (30, 4)
    assert normalize(meta, features, "center").kept.all()
    np.testing.assert_array_equal(normalize(meta, features, "none").features, features)
    features[control] = 1.0
    with pytest.raises(InputError, match="no feature varies among the negative controls of every plate"):
        normalize(meta, features, method)


def test_a_plate_without_controls_is_named() -> None:
    meta, features = _plates(seed=8)
    kept = ((meta[PLATE] != "R") | (meta[PERT_TYPE] != NEGATIVE_CONTROL)).to_numpy(copy=True)
    with pytest.raises(InputError, match=r"plate R has too few negative controls .*: 0 of the 1 needed"):
        normalize(meta[kept], features[kept], "center")
    kept[20] = True
    assert normalize(meta[kept], features[kept], "center").features.shape == (27, 5)
    with pytest.raises(InputError, match=r"plate R has too few negative controls .*: 1 of the 2 needed"):
        normalize(meta[kept], features[kept], "standardize")


# --- Classification ---------------------------------------------------------------------------------------


def _held_out(
    seed: int, sharpness: float, compounds: int = 12, moas: int = 4
) -> tuple[pd.DataFrame, Float64]:
    """Fields of 2 wells x 2 sites a treatment; a compound's fields share most of their error."""
    treatment = np.repeat(np.arange(3 * compounds), 4)
    compound = treatment // 3
    truth = compound % moas
    meta = pd.DataFrame(
        {
            PLATE: np.tile(["P", "P", "Q", "Q"], 3 * compounds),
            WELL: [f"w{code}" for code in treatment],
            BATCH: "b",
            TREATMENT: [f"c{code // 3:03d}@{code % 3}" for code in treatment],
            COMPOUND: [f"c{code:03d}" for code in compound],
            MOA: [f"m{code}" for code in truth],
        }
    )
    random = np.random.default_rng(seed)
    logits = random.normal(size=(compounds, moas))[compound] + 0.3 * random.normal(size=(len(meta), moas))
    odds = np.exp(logits + sharpness * np.eye(moas)[truth])
    return meta, odds / odds.sum(axis=1, keepdims=True)


def test_classification_is_that_of_scikit_learn_at_each_level() -> None:
    meta, probabilities = _held_out(seed=1, sharpness=1.0)
    classes = [f"m{code}" for code in range(4)]
    result = classify(meta, probabilities, classes, resamples=200)
    guessed = np.array(classes)[probabilities.argmax(axis=1)]
    assert result.field.balanced_accuracy == pytest.approx(balanced_accuracy_score(meta[MOA], guessed))
    assert result.field.macro_f1 == pytest.approx(f1_score(meta[MOA], guessed, average="macro"))
    recalls = recall_score(meta[MOA], guessed, average=None)
    assert list(result.field.recall.values()) == pytest.approx(recalls)
    averaged = pd.DataFrame(probabilities).groupby(meta[TREATMENT]).mean().to_numpy()
    expected = np.array(classes)[averaged.argmax(axis=1)]
    assert result.treatments["predicted"].tolist() == expected.tolist()
    assert (result.field.count, result.well.count, result.treatment.count) == (144, 72, 36)
    assert result.treatment.accuracy == (expected == result.treatments[MOA]).mean()
    assert result.treatment.confusion.sum() == 36
    assert result.interval is not None
    assert result.interval[0] <= result.treatment.balanced_accuracy <= result.interval[1]
    json.dumps(result.to_dict(), allow_nan=False)


def test_absent_and_unknown_classes_are_stated() -> None:
    meta, probabilities = _held_out(seed=2, sharpness=9.0)
    kept = (meta[MOA] != "m2").to_numpy()
    meta, probabilities = meta[kept].reset_index(drop=True), probabilities[kept]
    meta[MOA] = meta[MOA].replace("m3", "new")
    result = classify(meta, probabilities, ["m0", "m1", "m2", "m3"], resamples=50)
    assert result.labels == ("m0", "m1", "m2", "m3", "new")
    assert (result.absent, result.unknown) == (("m2", "m3"), ("new",))
    assert result.treatment.recall == {"m0": 1.0, "m1": 1.0, "m2": None, "m3": None, "new": 0.0}
    assert result.treatment.balanced_accuracy == pytest.approx(2 / 3)
    assert result.treatment.confusion[4, 3] == 9


def test_classification_above_chance_is_said_of_signal_and_rarely_of_none() -> None:
    classes = [f"m{code}" for code in range(4)]
    assert classify(*_held_out(seed=3, sharpness=4.0), classes, resamples=200).above_chance
    random = [classify(*_held_out(seed, 0.0), classes, 400, seed).above_chance for seed in range(40)]
    assert sum(random) <= 4


def test_probabilities_that_are_none_are_named() -> None:
    meta, probabilities = _held_out(seed=4, sharpness=1.0)
    table = pd.DataFrame(probabilities, columns=[f"{PROBABILITY_PREFIX}m{code}" for code in range(4)])
    classes, values = class_probabilities(table.assign(other=1))
    assert classes == ("m0", "m1", "m2", "m3")
    np.testing.assert_array_equal(values, probabilities)
    with pytest.raises(InputError, match="has no column Probability_"):
        class_probabilities(meta)
    with pytest.raises(InputError, match=r"P w0: probabilities sum to 2\.0000, not to 1"):
        classify(meta, 2 * probabilities, classes)
    with pytest.raises(InputError, match="no held-out field"):
        classify(meta[:0], probabilities[:0], classes)
    with pytest.raises(InputError, match="P w0: Metadata_MOA is empty"):
        classify(meta.assign(**{MOA: None}), probabilities, classes)
