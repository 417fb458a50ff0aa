"""A map is judged by the neighbourhoods it keeps; labels are asked only under names that say so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.manifold import trustworthiness

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.study import open_study
from hcs_ray.tables import Features
from hcs_ray.tune.map_objective import (
    NEIGHBOR_RECALL,
    TRUSTWORTHINESS,
    UNSUPERVISED,
    USES_LABELS,
    evaluate,
    judge,
)


def drawn(fields: int = 240, seed: int = 0) -> tuple[pd.DataFrame, Features]:
    """Six compounds of three MoAs, and controls, on six plates of three weeks; embeddings (N, 8)."""
    rng = np.random.default_rng(seed)
    compound = np.arange(fields) % 8  # 6 and 7: DMSO
    plate = np.arange(fields) // 8 % 6
    table = pd.DataFrame(
        {
            c.KEY: [f"P{p}_{n:05d}_s1" for n, p in enumerate(plate)],
            c.PLATE: [f"P{p}" for p in plate],
            c.WELL: [f"w{n}" for n in range(fields)],
            c.BATCH: [f"W{p // 2}" for p in plate],
            c.COMPOUND: ["DMSO" if n > 5 else f"c{n}" for n in compound],
            c.MOA: [None if n > 5 else f"m{n % 3}" for n in compound],
            c.PERT_TYPE: [c.NEGATIVE_CONTROL if n > 5 else c.TREATED for n in compound],
        }
    )
    return table, rng.normal(size=(fields, 8)).astype(np.float32)


def on_circle(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_a_map_that_keeps_all_neighbours_has_the_full_figures() -> None:
    table, _ = drawn(60)
    points = on_circle(np.sort(np.random.default_rng(1).uniform(0, 6, 60)))
    lengths = np.random.default_rng(2).uniform(0.5, 9, (60, 1))  # cosine distance does not see them
    kept = judge(table, (points * lengths).astype(np.float32), points)
    assert kept[TRUSTWORTHINESS] == pytest.approx(1)
    assert kept[NEIGHBOR_RECALL] > 0.99
    lost = judge(table, points.astype(np.float32), np.random.default_rng(0).permutation(points))
    assert lost[TRUSTWORTHINESS] < 0.65
    assert lost[NEIGHBOR_RECALL] == pytest.approx(lost["neighbor_recall_chance"], abs=0.1)


def test_shares_of_a_map_by_compound_or_by_week_are_told_apart() -> None:
    table, features = drawn()
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.normal(size=(len(table), 2))
    by_moa = judge(table, features, on_circle(pd.factorize(table[c.MOA])[0] * 2.0) + noise)
    assert by_moa["moa_neighbor_share"] == 1, "the other compound of the MoA lies there"
    assert by_moa["moa_neighbor_share_chance"] == pytest.approx(1 / 5)
    assert by_moa["batch_neighbor_share"] == pytest.approx(by_moa["batch_neighbor_share_chance"], abs=0.1)
    by_week = judge(table, features, on_circle(pd.factorize(table[c.BATCH])[0] * 2.0) + noise)
    assert by_week["batch_neighbor_share"] == 1
    assert by_week["batch_neighbor_share_chance"] == pytest.approx(1 / 3, abs=0.02)
    assert by_week["moa_neighbor_share"] == pytest.approx(1 / 5, abs=0.05)
    by_compound = judge(table, features, on_circle(pd.factorize(table[c.COMPOUND])[0] * 1.0) + noise)
    assert by_compound["moa_neighbor_share"] < 0.5, "neighbours of one's own compound prove nothing"


def test_labels_change_only_what_is_named_after_them() -> None:
    table, features = drawn()
    layout = np.random.default_rng(0).normal(size=(len(table), 2))
    figures = judge(table, features, layout)
    assert set(figures) == {*UNSUPERVISED, *USES_LABELS, "fields", "judged_fields"}
    mixed = table.assign(**{c.MOA: table[c.MOA].sample(frac=1, random_state=0).to_numpy()})
    other = judge(mixed.assign(**{c.BATCH: "one"}), features, layout)
    assert {name: other[name] for name in UNSUPERVISED} == {name: figures[name] for name in UNSUPERVISED}
    assert other["moa_neighbor_share"] != figures["moa_neighbor_share"]
    assert "batch_neighbor_share" not in other, "one batch leaves nothing to be told apart"


def test_of_a_large_table_a_sample_is_judged_the_same_for_a_seed() -> None:
    table, features = drawn(400)
    layout = features[:, :2].astype(np.float64)
    figures = judge(table, features, layout, most_fields=150, seed=4)
    assert (figures["fields"], figures["judged_fields"]) == (400, 150)
    assert figures == judge(table, features, layout, most_fields=150, seed=4)
    assert figures != judge(table, features, layout, most_fields=150, seed=5)
    rows = np.sort(np.random.default_rng(4).choice(400, 150, replace=False))
    own = trustworthiness(features[rows], layout[rows], n_neighbors=15, metric="cosine")
    assert figures[TRUSTWORTHINESS] == pytest.approx(own)


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 40), st.integers(1, 30), st.integers(0, 99))
def test_every_figure_is_a_share(fields: int, neighbors: int, seed: int) -> None:
    table, features = drawn(fields, seed)
    layout = np.random.default_rng(seed).normal(size=(fields, 2))
    figures = judge(table, features, layout, neighbors=neighbors)
    shares = [value for name, value in figures.items() if not name.endswith("fields")]
    assert all(0 <= value <= 1 for value in shares), figures


def test_three_fields_are_no_map() -> None:
    table, features = drawn(3)
    with pytest.raises(InputError, match="at least 4 fields, and there are 3"):
        judge(table, features, features[:, :2])


def test_a_trial_is_a_layout_of_the_embeddings_of_the_run(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("map: {neighbors: 5}\n")
    study = open_study(str(tmp_path))
    table, features = drawn(80)
    features += 6 * np.eye(8, dtype=np.float32)[pd.factorize(table[c.COMPOUND])[0]]
    for stage, tables in (
        ("shard", {}), ("split", {}), ("train", {}),
        ("embed", {"all.parquet": table.assign(**{c.EMBEDDING: list(features)})}),
    ):  # fmt: skip
        with study.writing(stage, study.claim(stage)) as writer:
            for name, content in tables.items():
                writer.write_table(name, content)
    figures = evaluate(study, neighbors=8)
    assert figures["judged_fields"] == 80
    assert figures[TRUSTWORTHINESS] > 0.8
    assert figures[NEIGHBOR_RECALL] > 3 * figures["neighbor_recall_chance"]
    assert figures == evaluate(study, neighbors=8)
