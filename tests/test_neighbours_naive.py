"""Neighbours where it is awkward, against a naive loop: ties, constant features, mechanisms of one member,
one batch, and a search in many blocks."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.profiles import neighbours
from hcs_ray.profiles.aggregate import BATCHES, Float64
from hcs_ray.profiles.neighbours import Guard, Metric, find_neighbours
from hcs_ray.profiles.score import Settings, evaluate, score

NEAR = 1e-9  # different distances of vectors of small whole numbers lie further apart
Table = tuple[pd.DataFrame, Float64]


def _coarse(seed: int, compounds: int, moas: int, batches: int) -> Table:
    """Treatments whose features are -1, 0 or 1, so that many lie equally near; one feature is constant."""
    random = np.random.default_rng(seed)
    compound = np.repeat(np.arange(compounds), random.integers(1, 4, compounds))
    moa = random.integers(0, moas, compounds)[compound]
    sets = [random.integers(0, batches, random.integers(1, 3)) for _ in compound]
    meta = pd.DataFrame(
        {
            c.TREATMENT: [f"c{code:02d}@{row:03d}" for row, code in enumerate(compound)],
            c.COMPOUND: [f"c{code:02d}" for code in compound],
            c.MOA: [f"m{code}" for code in moa],
            BATCHES: [tuple(sorted({f"b{code}" for code in codes})) for codes in sets],
        }
    )
    features = random.integers(-1, 2, (len(meta), 3)).astype(np.float64)
    features[:, 0] = np.where(features.any(axis=1), features[:, 0], 1.0)
    return meta, np.column_stack([features, np.full(len(meta), 2.0)])


tables = st.builds(_coarse, st.integers(0, 10**6), st.integers(2, 9), st.integers(1, 5), st.integers(1, 4))


def _naive(table: Table, guard: Guard, metric: Metric) -> pd.DataFrame:
    """Neighbour, hits, ties and batches of every query, pair by pair; the first by name of the nearest."""
    meta, features = table
    distance = cdist(features, features, metric)
    rows = c.rows_of(meta)
    found = []
    for one, row in enumerate(rows):
        others = [
            other
            for other, at in enumerate(rows)
            if at[c.COMPOUND] != row[c.COMPOUND]
            and not (guard == "NSCB" and set(at[BATCHES]) & set(row[BATCHES]))
        ]
        least = min((distance[one, other] for other in others), default=np.inf)
        near = [other for other in others if distance[one, other] <= least + NEAR]
        first = rows[near[0]] if near else None
        shared = [bool(set(rows[other][BATCHES]) & set(row[BATCHES])) for other in others]
        found.append(
            {
                c.TREATMENT: row[c.TREATMENT],
                "neighbour": first and first[c.TREATMENT],
                "correct": first is not None and first[c.MOA] == row[c.MOA],
                "tied": first is not None and any(rows[other][c.MOA] != first[c.MOA] for other in near),
                "same_batch": first is not None and bool(set(first[BATCHES]) & set(row[BATCHES])),
                "same_batch_expected": float(np.mean(shared)) if shared else 0.0,
                "candidates": len(others),
                "matchable": any(rows[other][c.MOA] == row[c.MOA] for other in others),
            }
        )
    return pd.DataFrame(found)


@settings(max_examples=80, deadline=None)
@given(tables, st.sampled_from(["NSC", "NSCB"]), st.sampled_from(["cosine", "correlation"]))
def test_ties_and_all_that_is_told_of_a_query_are_those_of_a_naive_loop(
    table: Table, guard: Guard, metric: Metric
) -> None:
    queries = find_neighbours(*table, guard, metric)
    expected = _naive(table, guard, metric)
    shares = queries["same_batch_expected"].tolist()
    assert shares == pytest.approx(expected.pop("same_batch_expected").tolist())
    for column in expected:
        told = queries[column].astype(object).where(queries[column].notna(), None)
        assert told.tolist() == expected[column].tolist(), column
    lost = expected.groupby(table[0][c.MOA])["matchable"].transform("any") & (expected["candidates"] > 0)
    assert queries["dropped"].isna().tolist() == lost.tolist()


@settings(max_examples=40, deadline=None)
@given(tables)
def test_the_gauge_and_the_hits_of_each_mechanism_add_up(table: Table) -> None:
    found = evaluate(*table, Settings(resamples=20))
    naive = _naive(table, "NSC", "cosine")
    there = naive[naive["candidates"] > 0]
    if len(there):
        assert found.gauge.share == pytest.approx(there["same_batch"].mean())
        assert found.gauge.expected == pytest.approx(there["same_batch_expected"].mean())
    else:
        assert found.gauge.share is None
    for one in (found.nsc, found.nscb):
        assert sum(moa["correct"] for moa in one.by_moa.values()) == one.overall.correct
        assert sum(moa["total"] for moa in one.by_moa.values()) == one.overall.total
        assert one.figures()["by_moa"].keys() | one.dropped_moas.keys() == set(table[0][c.MOA])


@settings(max_examples=20, deadline=None)
@given(tables, st.sampled_from(["NSC", "NSCB"]))
def test_the_search_in_small_blocks_finds_the_same(table: Table, guard: Guard) -> None:
    whole = find_neighbours(*table, guard)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_AT_ONCE", 2 * len(table[0]))  # two queries at a time
        pd.testing.assert_frame_equal(find_neighbours(*table, guard), whole)


@settings(max_examples=20, deadline=None)
@given(tables, st.integers(0, 10**6))
def test_a_missing_value_is_named_wherever_it_stands(table: Table, seed: int) -> None:
    meta, features = table
    random = np.random.default_rng(seed)
    row, column = (int(random.integers(size)) for size in features.shape)
    features[row, column] = random.choice([np.nan, np.inf])
    with pytest.raises(InputError, match=rf"^{meta[c.TREATMENT].iloc[row]}: feature {column} is (nan|inf)"):
        score(meta, features, "NSC")
