"""The benchmark's scores: the published CellProfiler profiles give the known counts, a naive loop gives the
same neighbours, and what is called above chance is so."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import binomtest

from hcs_ray.contracts import (
    BATCH,
    COMPOUND,
    MOA,
    NEGATIVE_CONTROL,
    PERT_TYPE,
    TREATMENT,
    WELL,
    InputError,
)
from hcs_ray.profiles.aggregate import (
    BATCHES,
    Float64,
    control_wells,
    exclude_controls,
    to_treatments,
)
from hcs_ray.profiles.neighbours import CORRECT, Guard, Metric, find_neighbours
from hcs_ray.profiles.normalize import normalize
from hcs_ray.profiles.score import Settings, evaluate, evaluate_wells, score
from hcs_ray.profiles.tally import share_interval
from tests.ljosa import bbbc021_wells, cellprofiler_wells

QUICK = Settings(resamples=200)

# --- The real screen --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bbbc021(shared: Path) -> pd.DataFrame:
    return bbbc021_wells(shared)


@pytest.fixture(scope="module")
def cellprofiler(shared: Path, bbbc021: pd.DataFrame) -> tuple[pd.DataFrame, Float64]:
    return cellprofiler_wells(shared, bbbc021)


@pytest.mark.parametrize(
    ("how", "metric", "nsc", "nscb"),
    [
        ("mean", "correlation", 85, 68),
        ("mean", "cosine", 84, 67),
        ("median", "correlation", 80, 64),
        ("median", "cosine", 79, 63),
    ],
)
def test_published_profiles_give_the_known_counts(
    cellprofiler: tuple[pd.DataFrame, Float64], how: Any, metric: Metric, nsc: int, nscb: int
) -> None:
    meta, features = cellprofiler
    normalized = normalize(meta, features, "standardize")
    assert (features.shape[1], normalized.kept.sum()) == (516, 513)
    result = evaluate_wells(meta, normalized.features, how, Settings(metric=metric))
    assert (result.nsc.overall.correct, result.nsc.overall.total) == (nsc, 103)
    assert (result.nscb.overall.correct, result.nscb.overall.total) == (nscb, 92)
    assert set(result.nscb.dropped_moas) == {"Cholesterol-lowering", "Kinase inhibitors"}
    assert len(result.nscb.dropped) == 11
    assert result.same_batch_expected == pytest.approx(0.129, abs=5e-4)
    assert result.same_batch_share is not None
    assert result.same_batch_share > 0.42
    assert result.nsc.overall.above_chance
    assert result.nscb.overall.above_chance
    low, high = result.nsc.overall.interval or (1.0, 0.0)
    assert low < nsc / 103 < high


def test_a_positive_control_is_scored_by_its_other_wells(bbbc021: pd.DataFrame) -> None:
    rows = np.arange(len(bbbc021), dtype=np.float64)[:, None]
    assert (bbbc021[TREATMENT] == "taxol@0.3").sum() == 333
    meta, left = exclude_controls(bbbc021, rows)
    taxol = meta[meta[TREATMENT] == "taxol@0.3"]
    assert taxol[WELL].tolist() == ["D05"] * 3
    assert taxol[BATCH].tolist() == ["Week1"] * 3
    assert (bbbc021[TREATMENT].iloc[left[:, 0].astype(int)].to_numpy() == meta[TREATMENT].to_numpy()).all()
    controls = control_wells(bbbc021).set_index(TREATMENT)
    assert list(controls.loc["taxol@0.3"]) == [330, 3]
    assert list(controls.loc["DMSO@0"]) == [330, 0]


def test_a_treatment_in_every_batch_has_no_candidate_left_for_nscb(
    cellprofiler: tuple[pd.DataFrame, Float64],
) -> None:
    meta, profiles = to_treatments(*exclude_controls(*cellprofiler), "mean")
    weeks = tuple(f"Week{number}" for number in range(1, 11))
    meta[BATCHES] = [
        weeks if name == "taxol@0.3" else own
        for name, own in zip(meta[TREATMENT], meta[BATCHES], strict=True)
    ]
    result = evaluate(meta, profiles, QUICK)
    assert (result.nsc.overall.total, result.nscb.overall.total) == (103, 91)
    assert result.nscb.dropped["taxol@0.3"] == "no candidate is left"
    assert result.rules["in_several_batches"] == ["taxol@0.3"]


# --- Scores against a naive loop --------------------------------------------------------------------------


def _treatments(seed: int, compounds: int, moas: int, batches: int) -> tuple[pd.DataFrame, Float64]:
    """Random treatments, 1-4 a compound, each in 1-2 batches; compound 0 has no MoA; no ties."""
    random = np.random.default_rng(seed)
    compound = np.repeat(np.arange(compounds), random.integers(1, 5, compounds))
    moa = random.integers(0, moas, compounds)[compound]
    sets = [random.integers(0, batches, random.integers(1, 3)) for _ in compound]
    meta = pd.DataFrame(
        {
            TREATMENT: [f"c{code}@{row}" for row, code in enumerate(compound)],
            COMPOUND: [f"c{code}" for code in compound],
            MOA: [f"m{code}" if owner else None for owner, code in zip(compound, moa, strict=True)],
            BATCHES: [tuple(sorted({f"b{code}" for code in codes})) for codes in sets],
        }
    )
    return meta, random.normal(size=(len(meta), 4))


tables = st.builds(
    _treatments, st.integers(0, 10**6), st.integers(3, 9), st.integers(1, 4), st.integers(1, 4)
)


def _naive(
    meta: pd.DataFrame, features: Float64, guard: Guard, metric: Metric
) -> dict[str, tuple[str, bool]]:
    """The scored queries with neighbour and correctness, pair by pair."""
    distance = cdist(features, features, metric)
    rows = [row for row in meta.reset_index(drop=True).to_dict("records") if isinstance(row[MOA], str)]
    place = {name: index for index, name in enumerate(meta[TREATMENT])}
    found: dict[str, tuple[str, bool]] = {}
    live = set()
    for one in rows:
        best = None
        for other in rows:
            apart = not set(one[BATCHES]) & set(other[BATCHES])
            if one[COMPOUND] == other[COMPOUND] or (guard == "NSCB" and not apart):
                continue
            if one[MOA] == other[MOA]:
                live.add(one[MOA])
            gap = distance[place[one[TREATMENT]], place[other[TREATMENT]]]
            if best is None or gap < best[0]:
                best = (gap, other)
        if best is not None:
            found[one[TREATMENT]] = (best[1][TREATMENT], best[1][MOA] == one[MOA])
    moa = dict(zip(meta[TREATMENT], meta[MOA], strict=True))
    return {name: hit for name, hit in found.items() if moa[name] in live}


@settings(max_examples=60, deadline=None)
@given(tables, st.sampled_from(["NSC", "NSCB"]), st.sampled_from(["cosine", "correlation"]))
def test_scores_are_those_of_a_naive_loop(
    table: tuple[pd.DataFrame, Float64], guard: Guard, metric: Metric
) -> None:
    meta, features = table
    result = score(meta, features, guard, Settings(metric=metric, resamples=20))
    expected = _naive(meta, features, guard, metric)
    scored = result.queries[result.queries["dropped"].isna()]
    rows = zip(scored[TREATMENT], scored["neighbour"], scored["correct"], strict=True)
    assert {name: (near, hit) for name, near, hit in rows} == expected
    assert (result.overall.correct, result.overall.total) == (
        sum(hit for _, hit in expected.values()),
        len(expected),
    )
    json.dumps(result.to_dict(), allow_nan=False)


@settings(max_examples=20, deadline=None)
@given(tables, st.integers(0, 10**6))
def test_the_order_of_rows_does_not_matter(table: tuple[pd.DataFrame, Float64], seed: int) -> None:
    meta, features = table
    order = np.random.default_rng(seed).permutation(len(meta))
    shuffled = evaluate(meta.iloc[order].reset_index(drop=True), features[order], Settings(resamples=20))
    plain = evaluate(meta, features, Settings(resamples=20))
    assert shuffled.nscb.overall == plain.nscb.overall
    assert shuffled.same_batch_share == plain.same_batch_share
    assert shuffled.nsc.queries["neighbour"].tolist() == plain.nsc.queries["neighbour"].tolist()


def test_relabelling_a_treatment_changes_its_own_hit_only_where_it_is_no_neighbour() -> None:
    meta, features = _planted(seed=0, compounds=9, moas=3, spread=0.01)
    before = score(meta, features, "NSC", QUICK)
    assert before.overall.accuracy == 1.0
    lonely = next(name for name in meta[TREATMENT] if name not in set(before.queries["neighbour"]))
    wrong = meta.assign(**{MOA: meta[MOA].where(meta[TREATMENT] != lonely, "m9")})
    after = score(wrong, features, "NSC", QUICK)
    assert (after.overall.correct, after.overall.total) == (
        before.overall.correct - 1,
        before.overall.total - 1,
    )
    assert after.dropped_moas == {"m9": "only one compound"}


def test_of_equally_near_neighbours_the_first_by_name_is_taken_and_told() -> None:
    meta = pd.DataFrame(
        {
            TREATMENT: ["z@1", "b@1", "a@1", "y@1"],
            COMPOUND: ["z", "b", "a", "y"],
            MOA: ["p", "p", "q", "q"],
            BATCH: ["1", "2", "3", "4"],
        }
    )
    features = np.array([[1.0, 0.1], [2.0, 1.0], [4.0, 2.0], [0.0, -1.0]])
    queries = find_neighbours(meta, features, "NSC").set_index(TREATMENT)
    assert queries.loc["z@1", "neighbour"] == "a@1"
    assert queries["tied"].to_dict() == {"a@1": False, "b@1": False, "y@1": False, "z@1": True}


# --- How far a score can be trusted -----------------------------------------------------------------------


def _planted(seed: int, compounds: int, moas: int, spread: float) -> tuple[pd.DataFrame, Float64]:
    """Compounds of 3 treatments near their compound's centre, which lies ``spread`` around its MoA's."""
    random = np.random.default_rng(seed)
    compound = np.repeat(np.arange(compounds), 3)
    centers = random.normal(size=(moas, 16))[np.arange(compounds) % moas]
    centers = centers + spread * random.normal(size=centers.shape)
    meta = pd.DataFrame(
        {
            TREATMENT: [f"c{code:03d}@{row % 3}" for row, code in enumerate(compound)],
            COMPOUND: [f"c{code:03d}" for code in compound],
            MOA: [f"m{code % moas}" for code in compound],
            BATCH: [f"b{code // moas}" for code in compound],
        }
    )
    return meta, centers[compound] + 0.1 * random.normal(size=(len(meta), 16))


def test_above_chance_is_rarely_said_of_random_profiles_even_where_doses_agree() -> None:
    verdicts = []
    for seed in range(60):
        meta, features = _planted(seed, compounds=18, moas=6, spread=0.0)
        random = np.random.default_rng(1000 + seed)
        features = random.normal(size=(18, 16))[np.arange(54) // 3] + 0.1 * features
        result = evaluate(meta, features, Settings(resamples=400, seed=seed))
        verdicts += [result.nsc.overall.above_chance, result.nscb.overall.above_chance]
    assert sum(verdicts) <= 8  # 2.5 % of 120 are 3; permuting single treatments would give tens


def test_above_chance_is_said_where_mechanisms_differ() -> None:
    result = evaluate(*_planted(seed=1, compounds=18, moas=6, spread=0.5), QUICK)
    assert result.nsc.overall.above_chance
    assert result.nscb.overall.above_chance
    assert result.nsc.overall.null is not None
    assert result.nsc.overall.null.p_value == pytest.approx(1 / 201)


@pytest.mark.parametrize("leak", [False, True])
def test_the_null_is_that_of_all_permutations_of_the_compounds_not_trained_on(leak: bool) -> None:
    meta, features = _planted(seed=3, compounds=7, moas=3, spread=3.0)
    plain = score(meta, features, "NSC", Settings(resamples=4000))
    sought = plain.queries["neighbour_moa"].value_counts().index[0]
    trained = set(meta[COMPOUND][meta[MOA] == sought]) if leak else set()
    result = score(meta, features, "NSC", Settings(resamples=4000), trained)
    assert result.overall == plain.overall
    label = meta.groupby(COMPOUND)[MOA].first()
    free = [compound for compound in label.index if compound not in trained]
    pairs = result.queries.loc[~result.queries["leaked"], [COMPOUND, "neighbour_compound"]].to_numpy()
    hits = []
    for order in itertools.permutations(label[free]):
        new = {**label, **dict(zip(free, order, strict=True))}
        hits.append(sum(new[own] == new[other] for own, other in pairs))
    null = result.held_out.null
    assert null is not None
    assert null.mean == pytest.approx(np.mean(hits), abs=4 * np.std(hits) / 4000**0.5)
    assert null.interval[1] == np.quantile(hits, 0.975, method="higher")


@pytest.mark.parametrize("hit", [True, False])
def test_a_few_compounds_that_are_all_right_do_not_make_certain(hit: bool) -> None:
    """Drawn anew they are all right again, but Clopper and Pearson's interval of 7 of 7 begins at 59 %."""
    queries = pd.DataFrame({COMPOUND: list("aabbcddefg"), CORRECT: hit})
    exact = binomtest(7 * hit, 7).proportion_ci(0.95)
    assert share_interval(queries, CORRECT, Settings(resamples=20)) == pytest.approx((exact.low, exact.high))
    queries.loc[0, CORRECT] = not hit
    low, high = share_interval(queries, CORRECT, Settings(resamples=200)) or (0.0, 0.0)
    assert (high == 1.0) if hit else (low == 0.0)
    assert 0 < high - low < 0.5


def test_the_interval_is_that_of_compounds_not_of_their_treatments() -> None:
    """Pairs of compounds find each other: of 10 pairs both have one MoA, of 10 others never."""
    compound = np.repeat(np.arange(40), 3)
    pair = compound // 2
    wrong = (pair >= 10) & (compound % 2 == 1)
    meta = pd.DataFrame(
        {
            TREATMENT: [f"c{code:02d}@{row % 3}" for row, code in enumerate(compound)],
            COMPOUND: [f"c{code:02d}" for code in compound],
            MOA: [f"m{code}" for code in np.where(wrong, 10 + (pair + 1) % 10, pair)],
            BATCH: "b",
        }
    )
    features = np.eye(20)[pair] + 0.01 * np.random.default_rng(0).normal(size=(120, 20))
    tally = score(meta, features, "NSC", Settings(resamples=4000)).overall
    assert (tally.correct, tally.total, tally.compounds) == (60, 120, 40)
    error = 1.96 * 0.5 / 40**0.5  # were treatments drawn, it would be smaller by the square root of 3
    assert tally.interval == pytest.approx((0.5 - error, 0.5 + error), abs=0.03)


def test_trained_compounds_are_marked_and_keep_their_labels_in_the_null() -> None:
    meta, features = _planted(seed=4, compounds=12, moas=4, spread=0.3)
    trained = {f"c{code:03d}" for code in range(8)}
    result = score(meta, features, "NSC", QUICK, trained)
    assert set(result.queries[COMPOUND][result.queries["leaked"]]) == trained
    assert (result.overall.total, result.held_out.total, result.to_dict()["leaked"]) == (36, 12, 24)
    everything = score(meta, features, "NSC", QUICK, set(meta[COMPOUND]))
    assert (everything.held_out.total, everything.held_out.null, everything.held_out.above_chance) == (
        0,
        None,
        False,
    )
    only_one = score(meta, features, "NSC", QUICK, set(meta[COMPOUND]) - {"c011"}).held_out
    assert only_one.interval is None
    assert only_one.null is not None
    assert only_one.null.mean == only_one.correct  # nothing left to permute: never above chance
    assert not only_one.above_chance


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({MOA: None}, "no treatment has a Metadata_MOA"),
        ({PERT_TYPE: NEGATIVE_CONTROL}, "negative controls are no treatments"),
        ({TREATMENT: "same"}, "treatment same has several rows"),
        ({BATCHES: [()]}, "treatment c000@0 lies in no batch"),
        ({COMPOUND: None}, "c000@0: Metadata_Compound is empty"),
    ],
)
def test_tables_that_cannot_be_scored_are_named(change: dict[str, Any], message: str) -> None:
    meta, features = _planted(seed=0, compounds=4, moas=2, spread=1.0)
    for column, value in change.items():
        meta[column] = value * len(meta) if isinstance(value, list) else value
    with pytest.raises(InputError, match=message):
        find_neighbours(meta, features, "NSCB")


@pytest.mark.parametrize(("metric", "fill"), [("cosine", 0.0), ("correlation", 7.3)])
def test_a_profile_without_direction_is_named(metric: Metric, fill: float) -> None:
    meta, features = _planted(seed=0, compounds=4, moas=2, spread=1.0)
    features[4] = fill
    with pytest.raises(InputError, match=f"treatment c001@1: .* no {metric} distance"):
        find_neighbours(meta, features, "NSC", metric)
    features[4, 2] = np.nan
    with pytest.raises(InputError, match="c001@1: feature 2 is nan"):
        find_neighbours(meta, features, "NSC", metric)
