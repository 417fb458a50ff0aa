"""Normalisation: wells from a stream, whitening that the controls shrink, alignment of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycytominer import normalize as pycytominer_normalize
from scipy.linalg import sqrtm
from scipy.stats import multivariate_normal

from hcs_ray.contracts import (
    BATCH,
    COMPOUND,
    KEY,
    MOA,
    NEGATIVE_CONTROL,
    PERT_TYPE,
    PLATE,
    SITE,
    TREATED,
    TREATMENT,
    WELL,
    HcsError,
    InputError,
    field_key,
)
from hcs_ray.profiles.aggregate import Float64, How, to_wells
from hcs_ray.profiles.controls import is_control
from hcs_ray.profiles.normalize import METHODS, Method, normalize
from hcs_ray.profiles.score import Settings, evaluate_wells
from hcs_ray.profiles.stream import Chunk, wells_of
from hcs_ray.profiles.whiten import SHRINKAGES, fit, log_likelihoods, plate_folds
from tests.drawn_wells import drawn_wells
from tests.ljosa import bbbc021_wells, cellprofiler_wells

# --- Streaming --------------------------------------------------------------------------------------------


def _fields(seed: int) -> Chunk:
    """Fields sorted by key; the plates' names make the keys of one plate fall between those of another."""
    random = np.random.default_rng(seed)
    rows = [
        (plate, well, site)
        for plate in ("P", "P_B02", "P_B02_s1", "P_B02_s1_s", "Q 1")
        for well in ("B02", "B03", "C02")
        for site in random.permutation(12)[: random.integers(1, 12)] + 1
    ]
    meta = pd.DataFrame(rows, columns=[PLATE, WELL, SITE])
    meta[KEY] = [field_key(*row) for row in rows]
    meta[BATCH] = "b" + meta[PLATE].str[0]
    meta[MOA] = pd.Series([None if well == "C02" else well for well in meta[WELL]], dtype=object)
    meta = meta.sort_values(KEY, ignore_index=True)
    return meta, random.normal(size=(len(meta), 3)).astype(np.float32)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.sampled_from(["mean", "median"]),
    st.integers(1, 4),
    st.booleans(),
)
def test_streamed_wells_are_those_of_all_fields_at_once(
    seed: int, size: int, how: How, minimum: int, drop: bool
) -> None:
    meta, features = _fields(seed)
    kept = np.random.default_rng(seed).random(len(meta)) < (0.6 if drop else 2.0)
    if not kept.any():
        return
    by_key = dict(zip(meta[KEY], kept, strict=True))
    chunks = [
        (meta[start : start + size].reset_index(drop=True), features[start : start + size])
        for start in range(0, len(meta), size)
    ]
    chunks.insert(len(chunks) // 2, (meta[:0], features[:0]))  # of damaged fields alone
    asked: list[str] = []

    def keep(part: pd.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        asked.extend(part[KEY])
        return np.array([by_key[key] for key in part[KEY]], dtype=bool)

    wells, values = wells_of(chunks, how, minimum, keep if drop else None)
    expected, numbers = to_wells(meta[kept].reset_index(drop=True), features[kept], how, minimum)
    pd.testing.assert_frame_equal(wells, expected)
    np.testing.assert_array_equal(values, numbers)
    assert asked == (meta[KEY].tolist() if drop else [])


def test_fields_out_of_order_and_none_at_all_are_refused() -> None:
    meta, features = _fields(seed=3)
    rows = np.r_[len(meta) // 2 : len(meta), 0 : len(meta) // 2]
    chunks = [
        (meta.iloc[[row]].reset_index(drop=True), features[[row]])
        for row in (*rows[::2].tolist(), *rows[1::2].tolist())
    ]
    with pytest.raises(HcsError, match="not in the order of keys"):
        wells_of(chunks, "mean")
    with pytest.raises(InputError, match="no field is left"):
        wells_of([(meta, features)], "mean", 1, lambda part: np.zeros(len(part), dtype=bool))


# --- The same as pycytominer on shared ground -------------------------------------------------------------


def _pycytominer(meta: pd.DataFrame, features: Float64, method: str) -> Float64:
    names = [f"f{number}" for number in range(features.shape[1])]
    table = pd.concat([meta[[PERT_TYPE]], pd.DataFrame(features, columns=names)], axis=1)
    found = pycytominer_normalize(
        table,
        features=names,
        meta_features=[PERT_TYPE],
        samples=f"{PERT_TYPE} == '{NEGATIVE_CONTROL}'",
        method=method,
        mad_robustize_epsilon=0.0,
        spherize_epsilon=0.0,
    )
    return np.asarray(found[names], dtype=np.float64)


@pytest.mark.parametrize("method", ["standardize", "mad_robustize"])
def test_a_plate_is_normalised_as_by_pycytominer(method: Method) -> None:
    meta, features = drawn_wells(1)
    ours = normalize(meta, features, method).features
    for rows in meta.groupby(PLATE).indices.values():
        theirs = _pycytominer(meta.iloc[rows].reset_index(drop=True), features[rows], method)
        np.testing.assert_allclose(ours[rows], theirs, rtol=1e-5, atol=1e-5)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6))
def test_sphering_without_shrinkage_is_that_of_pycytominer(seed: int) -> None:
    meta, features = drawn_wells(seed)
    ours = normalize(meta, features, "sphere", shrinkage=0.0)
    np.testing.assert_allclose(ours.features, _pycytominer(meta, features, "spherize"), atol=1e-7)
    assert ours.stated == {"shrinkage": 0.0, "shrinkage_chosen": "set by configuration"}


# --- Whitening, and the shrinkage that the controls choose ------------------------------------------------


def test_whitened_controls_have_an_identity_for_their_covariance() -> None:
    meta, features = drawn_wells(2, week_effect=0.5)
    control = is_control(meta)
    for shrinkage, away in ((1e-6, 1e-4), (0.5, 10.0)):
        whitened = normalize(meta, features, "sphere", shrinkage).features[control]
        np.testing.assert_allclose(whitened.mean(axis=0), 0.0, atol=1e-9)
        found = np.abs(np.cov(whitened, rowvar=False) - np.eye(8)).max()
        assert found < away
    assert found > 0.1  # with half of it shrunk, it is no identity


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 14), st.integers(2, 9))
def test_held_out_likelihoods_are_those_of_scipy(seed: int, rows: int, features: int) -> None:
    random = np.random.default_rng(seed)
    train, test = random.normal(size=(rows, features)), random.normal(size=(4, features))
    found = log_likelihoods(train, test)
    covariance = np.atleast_2d(np.cov(train, rowvar=False))
    for number, share in enumerate(SHRINKAGES):
        mixed = (1 - share) * covariance + share * np.eye(features)
        expected = multivariate_normal(train.mean(axis=0), mixed).logpdf(test).sum()
        assert found[number] == pytest.approx(expected, rel=1e-6)


def test_the_controls_choose_by_plates_left_out_and_nothing_else_is_looked_at() -> None:
    meta, features = drawn_wells(3)
    control = is_control(meta)
    first = normalize(meta, features, "sphere")
    moved = np.where(control[:, None], features, 1e3 * np.random.default_rng(0).normal(size=features.shape))
    relabelled = meta.assign(**{MOA: "one", COMPOUND: "one", TREATMENT: "one"})
    second = normalize(relabelled, moved, "sphere")
    assert first.stated == second.stated
    np.testing.assert_allclose(first.features[control], second.features[control])
    chosen = float(first.stated["shrinkage"])
    controls, folds = features[control], plate_folds(meta[PLATE][control])
    scaled = (controls - controls.mean(axis=0)) / controls.std(axis=0)
    total = sum(log_likelihoods(scaled[folds != fold], scaled[folds == fold]) for fold in range(6))
    assert chosen == pytest.approx(SHRINKAGES[int(np.argmax(total))])


def test_few_controls_ask_for_more_shrinkage_than_many() -> None:
    chosen = [
        normalize(*drawn_wells(4, controls=controls, features=30), "sphere").stated["shrinkage"]
        for controls in (2, 40)
    ]
    assert chosen[1] < chosen[0] < 1.0


def test_a_shrinkage_of_one_only_scales() -> None:
    meta, features = drawn_wells(5)
    controls = features[is_control(meta)]
    expected = (features - controls.mean(axis=0)) / controls.std(axis=0)
    np.testing.assert_allclose(normalize(meta, features, "sphere", 1.0).features, expected, atol=1e-9)


def test_more_features_than_controls_need_shrinkage() -> None:
    meta, features = drawn_wells(6, controls=2, features=30)
    result = normalize(meta, features, "sphere")
    assert np.isfinite(result.features).all()
    assert result.features.shape == features.shape
    with pytest.raises(InputError, match="12 negative controls vary in fewer directions"):
        normalize(meta, features, "sphere", 0.0)


# --- Batches aligned --------------------------------------------------------------------------------------


def test_coral_gives_each_batch_the_covariance_of_all_as_the_paper_has_it() -> None:
    meta, features = drawn_wells(7, controls=8)
    stretched = features * np.where(meta[BATCH] == "Week1", 3.0, 1.0)[:, None]
    control, share = is_control(meta), 0.3
    scaled = normalize(meta, stretched, "center_scale").features
    whole = 0.7 * np.cov(scaled[control], rowvar=False) + share * np.eye(8)
    ours = normalize(meta, stretched, "coral", share)
    for _, rows in meta.groupby(BATCH).indices.items():
        own = np.cov(scaled[rows[control[rows]]], rowvar=False)
        transform = np.linalg.inv(sqrtm(0.7 * own + share * whole).real) @ sqrtm(whole).real
        np.testing.assert_allclose(ours.features[rows], scaled[rows] @ transform, atol=1e-6)
    chosen = normalize(meta, stretched, "coral").stated
    assert chosen["batch_shrinkage"] < 1.0  # a batch that is stretched is seen
    assert "no treatment or label" in str(chosen["batch_shrinkage_chosen"])
    alike = normalize(*drawn_wells(7, controls=3, features=20), "coral").stated
    assert alike["batch_shrinkage"] > chosen["batch_shrinkage"]


def test_tvn_leaves_the_controls_of_every_batch_centred_and_white() -> None:
    meta, features = drawn_wells(8, controls=10)
    control = is_control(meta)
    result = normalize(meta, features, "tvn", 0.0)
    for rows in meta.groupby(BATCH).indices.values():
        controls = result.features[rows[control[rows]]]
        np.testing.assert_allclose(controls.mean(axis=0), 0.0, atol=1e-9)
        np.testing.assert_allclose(np.cov(controls, rowvar=False), np.eye(8), atol=1e-7)
    chosen = normalize(meta, features, "tvn").stated
    assert {"shrinkage", "batch_shrinkage", "told"} <= set(chosen)


@pytest.mark.parametrize("method", ["combat", "harmony"])
def test_libraries_bring_batches_together_and_are_told_nothing_else(method: Method) -> None:
    meta, features = drawn_wells(9, compounds=6)
    # Half of the treatments of one week are moved: a batch effect that the controls do not show.
    features[(meta[BATCH] == "Week1") & (meta[PERT_TYPE] == TREATED)] += 5.0

    def apart(values: Float64) -> float:
        means = [values[rows].mean(axis=0) for rows in meta.groupby(BATCH).indices.values()]
        return float(np.linalg.norm(np.ptp(means, axis=0)))

    result = normalize(meta, features, method)
    assert apart(result.features) < 0.5 * apart(normalize(meta, features, "center_scale").features)
    assert result.stated["told"] == "the batch of each well; no treatment, compound or label"
    blind = meta[[BATCH, PLATE, WELL, PERT_TYPE]]
    np.testing.assert_array_equal(normalize(blind, features, method).features, result.features)


# --- Of every method --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_order_of_rows_does_not_matter(method: Method) -> None:
    meta, features = drawn_wells(10)
    shuffled = np.random.default_rng(0).permutation(len(meta))
    one = normalize(meta, features, method)
    other = normalize(meta.iloc[shuffled], features[shuffled], method)
    again = normalize(meta, features, method)
    np.testing.assert_array_equal(one.features, again.features)
    expected, found = one.features[shuffled], other.features
    if method == "tvn":  # principal components have no sign
        expected, found = expected @ expected.T, found @ found.T
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert one.stated == other.stated


@pytest.mark.parametrize("method", METHODS)
def test_a_constant_feature_is_dropped_where_a_spread_is_needed(method: Method) -> None:
    meta, features = drawn_wells(11)
    features[:, 3] = 7.0
    result = normalize(meta, features, method)
    assert np.isfinite(result.features).all()
    assert result.kept.tolist() == [method in ("none", "center") or number != 3 for number in range(8)]
    assert result.features.shape == (len(meta), result.kept.sum())


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_number_is_refused_by_name(method: Method) -> None:
    meta, features = drawn_wells(12)
    features[4, 2] = np.nan
    with pytest.raises(InputError, match="Week0_0 A05: feature 2 is nan"):
        normalize(meta, features, method)


@pytest.mark.parametrize("method", METHODS[1:])
def test_without_controls_there_is_nothing_to_normalise_by(method: Method) -> None:
    meta, features = drawn_wells(13)
    treated = ~is_control(meta)
    with pytest.raises(InputError, match="too few negative controls"):
        normalize(meta[treated].reset_index(drop=True), features[treated], method)
    with pytest.raises(InputError, match="no feature varies"):
        normalize(meta, np.where(treated[:, None], features, 1.0), method if method != "center" else "sphere")


@pytest.mark.parametrize("method", ["coral", "tvn", "combat", "harmony"])
def test_one_batch_cannot_be_aligned(method: Method) -> None:
    meta, features = drawn_wells(14, weeks=1)
    with pytest.raises(InputError, match="all rows lie in batch Week0: there is nothing to align"):
        normalize(meta, features, method)


def test_what_a_shrinkage_is_chosen_from_must_be_there() -> None:
    with pytest.raises(InputError, match=r"all negative controls lie on plate Week0_0.*profile.shrinkage"):
        normalize(*drawn_wells(15, weeks=1, plates=1), "sphere")
    with pytest.raises(InputError, match="no batch has negative controls on two plates"):
        normalize(*drawn_wells(15, plates=1), "coral")
    with pytest.raises(InputError, match=r"batch Week0 has too few negative controls.*1 of the 2 needed"):
        normalize(*drawn_wells(15, plates=1, controls=1), "tvn")
    with pytest.raises(InputError, match="too few negative controls to choose a shrinkage"):
        normalize(*drawn_wells(15, weeks=1, plates=2, controls=1), "sphere")
    with pytest.raises(InputError, match="normalisation 'zca' is unknown"):
        normalize(*drawn_wells(15), "zca")  # type: ignore[arg-type]


def test_a_whitening_says_what_it_kept() -> None:
    controls = np.random.default_rng(0).normal(size=(12, 3))
    controls[:, 1] = 2.0
    whitening = fit(controls, 0.1)
    assert whitening.kept.tolist() == [True, False, True]
    assert whitening.apply(controls, "PCA").shape == (12, 2)


# --- On the real screen -----------------------------------------------------------------------------------


def test_what_the_controls_choose_lands_well_on_the_published_profiles(shared: Path) -> None:
    """The oracle's sphering: NSC 46.6 % with next to no shrinkage, 85.4 % with much, all features
    standardised 81.6 %. Ours, of controls alone: 91.3 % (94/103) and NSCB 73.9 % (68/92)."""
    meta, features = cellprofiler_wells(shared, bbbc021_wells(shared))
    found = {}
    for method in ("center_scale", "sphere", "tvn"):
        result = normalize(meta, features, method)
        scores = evaluate_wells(meta, result.features, "mean", Settings(resamples=1))
        found[method] = (
            scores.nsc.overall.correct,
            scores.nscb.overall.correct,
            result.stated.get("shrinkage"),
        )
    assert found["sphere"] == (94, 68, pytest.approx(0.01))
    assert found["tvn"] == (93, 68, pytest.approx(0.01))
    assert found["center_scale"] == (90, 64, None)
