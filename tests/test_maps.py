"""Maps: fields that are alike lie together, a seed gives one map, and what cannot be mapped says so."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from hcs_ray import contracts as c
from hcs_ray.config import MapConfig
from hcs_ray.contracts import InputError
from hcs_ray.maps import MapAbout, make_map, moa_labels, read_about, read_map
from hcs_ray.maps.landmarks import balanced_sample, choose_landmarks
from hcs_ray.maps.layout import Layout, compile_umap, lay_out
from hcs_ray.maps.nearest import Metric, Search
from hcs_ray.study import Study
from hcs_ray.tables import Features
from tests.embedded_study import drawn_fields, embedded_study

CONFIG = MapConfig()


def clusters(centres: int, each: int, features: int = 16, seed: int = 0) -> tuple[Features, np.ndarray]:
    """Rows around well-separated centres, and the centre of each row."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(centres), each)
    middle = 12 * rng.standard_normal((centres, features))
    rows = middle[labels] + rng.standard_normal((len(labels), features))
    return rows.astype(np.float32), labels


def test_a_seed_gives_one_map_and_another_seed_another() -> None:
    rows, _ = clusters(3, 30)
    first = lay_out(rows, CONFIG).places
    assert first.shape == (90, 2)
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, lay_out(rows, MapConfig(threads=1)).places)
    assert not np.allclose(first, lay_out(rows, MapConfig(seed=7)).places)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_neighbours_stay_neighbours_and_clusters_apart(metric: str) -> None:
    from sklearn.manifold import trustworthiness
    from sklearn.neighbors import NearestNeighbors

    config = MapConfig.model_validate({"metric": metric})
    rows, labels = clusters(2, 60)
    layout = lay_out(rows, config).places
    nearest = NearestNeighbors(n_neighbors=5).fit(layout).kneighbors(return_distance=False)
    assert (labels[nearest] == labels[:, None]).all()
    # The noise in a cluster has 16 dimensions and the map two: the rows' order shuffled would give 0.5.
    assert trustworthiness(rows, layout, n_neighbors=10, metric=metric) > 0.85


def test_few_fields_and_duplicates_are_mapped() -> None:
    rows, _ = clusters(2, 3)
    few = lay_out(rows, CONFIG)
    assert np.isfinite(few.places).all()
    assert few.neighbors == 5, "fewer than the 15 asked for"
    assert np.isfinite(lay_out(rows[:4], CONFIG).places).all()
    twins = np.repeat(clusters(4, 5)[0], 6, axis=0)
    assert np.isfinite(lay_out(twins, CONFIG).places).all()
    flat = rows.copy()
    flat[:, 1:] = 1.0  # constant features beside one that varies
    assert np.isfinite(lay_out(flat, MapConfig(metric="euclidean")).places).all()


def test_what_cannot_be_mapped_is_said_in_one_line() -> None:
    rows, _ = clusters(2, 10)
    with pytest.raises(InputError, match="at least 4 fields, and there are 3"):
        lay_out(rows[:3], CONFIG)
    with pytest.raises(InputError, match="all 20 embeddings are equal"):
        lay_out(np.ones_like(rows), CONFIG)
    with pytest.raises(InputError, match="needs fields of at least two MoAs"):
        lay_out(rows, MapConfig(supervised="moa"), np.repeat([0, -1], 10))
    table, _ = drawn_fields(101)
    with pytest.raises(InputError, match=r"all fields at once, and 101 are more than map\.densmap_most 100"):
        choose_landmarks(table, MapConfig(densmap=True, densmap_most=100))


# --- Neighbours and landmarks ------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 40), st.integers(1, 30), st.sampled_from(["cosine", "euclidean"]), st.integers(0, 99))
def test_neighbours_are_exact(known: int, asked: int, metric: Metric, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(known + asked, 6)).astype(np.float32) * rng.choice([0.01, 1, 100])
    rows[0] = rows[known - 1]  # a pair that are equal
    search, count = Search(rows[:known], metric), int(rng.integers(1, known + 1))
    indices, distances = search.nearest(rows, count)
    every = cdist(rows.astype(np.float64), rows[:known].astype(np.float64), metric)
    scale = max(1e-12, float(every.max()))
    np.testing.assert_allclose(distances, np.sort(every, axis=1)[:, :count], rtol=1e-4, atol=1e-6 * scale)
    np.testing.assert_allclose(np.take_along_axis(every, indices, 1), distances, rtol=1e-4, atol=1e-6 * scale)
    own = search.nearest(rows[:known], 1)[1]
    assert (own == 0).all(), "a row is at no distance from itself, rounding or not"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=80), st.data())
def test_landmarks_are_dealt_evenly_to_groups(drawn: list[int], data: st.DataObject) -> None:
    groups, seed = np.array(drawn), data.draw(st.integers(0, 9))
    count = data.draw(st.integers(1, len(groups)))
    chosen = balanced_sample(groups, count, seed)
    np.testing.assert_array_equal(chosen, balanced_sample(groups, count, seed))
    assert (np.diff(chosen) > 0).all()
    assert len(chosen) == count
    there, taken = np.bincount(groups, minlength=7), np.bincount(groups[chosen], minlength=7)
    most = taken.max()
    assert (taken >= np.minimum(there, most - 1)).all(), "none goes without while another has two more"


def test_landmarks_are_all_fields_of_a_small_table_and_of_densmap() -> None:
    table, _ = drawn_fields(120)
    assert choose_landmarks(table, MapConfig(landmarks=120)).tolist() == list(range(120))
    assert len(choose_landmarks(table, MapConfig(landmarks=30, densmap=True))) == 120
    chosen = table.iloc[choose_landmarks(table, MapConfig(landmarks=42))]
    assert chosen.groupby([c.PLATE, c.TREATMENT]).size().tolist() == [1] * 42, "six plates, seven treatments"
    other = table.iloc[choose_landmarks(table, MapConfig(landmarks=42, seed=1))]
    assert set(chosen[c.KEY]) != set(other[c.KEY])


# --- Placing others among landmarks ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def placed() -> tuple[Layout, Features, np.ndarray]:
    """300 rows of five clusters laid out, and as many others to place."""
    rows, labels = clusters(5, 120, seed=2)
    return lay_out(rows[::2], MapConfig(metric="euclidean")), rows[1::2], labels[1::2]


def test_placed_rows_lie_among_their_like(placed: tuple[Layout, Features, np.ndarray]) -> None:
    from sklearn.manifold import trustworthiness

    layout, others, labels = placed
    found = layout.place(others)
    nearest = cdist(found, layout.places).argmin(axis=1)
    assert (labels[nearest] == labels).all()  # the landmarks are of the same clusters, in the same order
    together = trustworthiness(others, found, n_neighbors=10)
    assert together > 0.9
    apart = trustworthiness(others, np.random.default_rng(0).permutation(found), n_neighbors=10)
    assert apart < 0.6


def test_landmarks_placed_again_land_near_where_they_lie() -> None:
    turn = np.sort(np.random.default_rng(0).uniform(0, 2 * np.pi, 200))
    loop = np.stack([np.cos(turn), np.sin(turn), np.cos(2 * turn), np.sin(2 * turn)], axis=1)
    rows = loop.astype(np.float32)
    layout = lay_out(rows, MapConfig(metric="euclidean"))
    moved = np.linalg.norm(layout.place(rows) - layout.places, axis=1)
    assert np.quantile(moved, 0.9) < 0.1 * np.linalg.norm(np.ptp(layout.places, axis=0))


def test_a_place_depends_on_no_other_row_that_is_placed(placed: tuple[Layout, Features, np.ndarray]) -> None:
    layout, others, _ = placed
    found = layout.place(others)
    before = layout.places.copy()
    np.testing.assert_array_equal(found, layout.place(others))
    parts = [layout.place(part) for part in np.array_split(others[::-1], 7)]
    np.testing.assert_array_equal(found, np.concatenate(parts)[::-1])
    other = replace(layout, config=MapConfig(metric="euclidean", seed=3))
    assert not np.array_equal(found, other.place(others)), "the seed draws whom a row is pushed from"
    np.testing.assert_array_equal(before, layout.places)


# --- Labels and densities ------------------------------------------------------------------------------


def test_a_supervised_layout_shows_what_it_was_told_even_of_noise() -> None:
    from sklearn.neighbors import NearestNeighbors

    table, noise = drawn_fields(240)
    labels = moa_labels(table)
    assert set(labels[table[c.MOA].isna()]) == {-1}
    assert len(set(labels)) == 4
    known = labels >= 0

    def like(config: MapConfig) -> float:
        """Share of the five nearest labelled fields that have a field's label; chance: a third."""
        places = lay_out(noise, config, labels).places[known]
        near = NearestNeighbors(n_neighbors=5).fit(places).kneighbors(return_distance=False)
        return float((labels[known][near] == labels[known][:, None]).mean())

    assert like(MapConfig(neighbors=100)) < 0.4, "labels are not asked unless they are to be"
    assert like(MapConfig(neighbors=100, supervised="moa")) > 0.6


def test_densmap_keeps_what_is_dense_denser() -> None:
    rng = np.random.default_rng(0)
    sizes = np.repeat([1.0, 6.0], 80)
    rows = 60 * np.eye(2, 12)[np.repeat([0, 1], 80)] + sizes[:, None] * rng.normal(size=(160, 12))

    def ratio(config: MapConfig) -> float:
        places = lay_out(rows.astype(np.float32), config).places
        loose, dense = (places[sizes == size].std(axis=0).mean() for size in (6.0, 1.0))
        return float(loose / dense)

    plain = ratio(MapConfig(metric="euclidean"))
    assert ratio(MapConfig(metric="euclidean", densmap=True)) > 1.3 * plain


# --- Compiling ---------------------------------------------------------------------------------------


def test_what_is_compiled_is_compiled_before_the_layout() -> None:
    from umap import layouts, umap_

    def versions() -> int:
        parts = [*vars(layouts).values(), *vars(umap_).values()]
        return sum(len(part.signatures) for part in parts if hasattr(part, "signatures"))

    table, noise = drawn_fields(120)
    for supervised in (False, True):
        compile_umap(densmap=True, supervised=supervised)
        compile_umap(densmap=False, supervised=supervised)
    compiled = versions()
    assert compiled > 0
    for densmap in (False, True):
        config = MapConfig(neighbors=9, densmap=densmap, supervised="moa")
        lay_out(noise, config, moa_labels(table)).place(noise[:5])
    assert versions() == compiled


def test_a_fresh_process_maps_without_compiling_the_neighbour_search(tmp_path: Path) -> None:
    program = (
        "import numpy as np, numba; from hcs_ray.config import MapConfig; from hcs_ray.maps import layout;"
        "rows = np.random.default_rng(0).random((30, 4), np.float32);"
        "layout.lay_out(rows, MapConfig()).place(rows);"
        "from umap.layouts import rdist; assert hasattr(rdist, 'py_func'), 'umap itself is compiled';"
        "assert not numba.config.DISABLE_JIT"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    subprocess.run([sys.executable, "-W", "ignore", "-c", program], env=environment, check=True)
    compiled = {path.parent.name.split("_")[0] for path in tmp_path.rglob("*.nbc")}
    assert compiled == {"umap"}


# --- The stage ---------------------------------------------------------------------------------------


def mapped(study: Study) -> tuple[dict[str, object], list[tuple[int, int]]]:
    seen: list[tuple[int, int]] = []
    return make_map(study, lambda *step: seen.append(step)), seen


def test_the_stage_writes_one_row_a_field_and_is_then_complete(tmp_path: Path) -> None:
    table, rows = drawn_fields(16)
    study = embedded_study(tmp_path, table, rows, "map: {seed: 3}", chunk=7)
    figures, seen = mapped(study)
    assert figures == {"fields": 16, "neighbors": 15}
    assert seen == [(0, 16), (16, 16)]
    written = (tmp_path / "maps/main.parquet").read_bytes()
    found = read_map(study)
    pd.testing.assert_frame_equal(found[list(table.columns)], table, check_like=True)
    assert list(found.columns)[-2:] == ["x", "y"]
    np.testing.assert_array_equal(found[["x", "y"]], lay_out(rows, MapConfig(seed=3)).places)
    assert read_about(study) == MapAbout.of(study.config.map, 16, 16, 15)
    assert mapped(study) == (figures, []), "it is complete"
    assert (tmp_path / "maps/main.parquet").read_bytes() == written


def test_of_a_large_table_landmarks_are_laid_out_and_the_others_placed(tmp_path: Path) -> None:
    table, noise = drawn_fields(200)
    rows = noise + 8 * np.eye(8, dtype=np.float32)[pd.factorize(table[c.COMPOUND])[0]]
    study = embedded_study(tmp_path, table, rows, "map: {landmarks: 60, supervised: moa}", chunk=30)
    figures, seen = mapped(study)
    assert figures["landmarks"] == 60
    assert "no finding" in str(figures["USES LABELS"])
    assert seen[:2] == [(0, 200), (60, 200)]
    assert seen[-1] == (200, 200)
    config = study.config.map
    chosen = choose_landmarks(table, config)
    layout = lay_out(rows[chosen], config, moa_labels(table.iloc[chosen]))
    found = read_map(study)[["x", "y"]].to_numpy()
    np.testing.assert_array_equal(found[chosen], layout.places)
    others = np.setdiff1d(np.arange(200), chosen)
    np.testing.assert_array_equal(found[others], layout.place(rows[others]))
    about = read_about(study)
    assert about.uses_labels
    assert "supervised by MoA labels" in about.settings
    assert about.sample.startswith("60 landmarks, sampled evenly over plates and treatments, laid out; 140")


def test_the_stage_refuses_in_one_line_what_it_cannot_map(tmp_path: Path) -> None:
    table, rows = drawn_fields(40)
    rows[13, 2] = np.nan
    study = embedded_study(tmp_path, table, rows)
    with pytest.raises(InputError, match=f"embedding of {table[c.KEY][13]} is not finite"):
        mapped(study)
    assert study.storage.read_versioned("maps/main_stage.json") is None
    dense = study.config.map.model_copy(update={"densmap": True, "densmap_most": 39})
    dense_study = replace(study, config=study.config.model_copy(update={"map": dense}))
    with pytest.raises(InputError, match=r"40 are more than map\.densmap_most 39"):
        make_map(dense_study, lambda done, total: None, force=True)


def test_what_takes_long_before_the_first_field_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from hcs_ray.progress import progress_bar

    table, rows = drawn_fields(40)
    study = embedded_study(tmp_path, table, rows, "map: {landmarks: 20}")
    with progress_bar("map", "fields") as progress:
        make_map(study, progress)
    said = [line.split(None, 1)[1] for line in capsys.readouterr().err.splitlines()]
    assert said[:3] == ["40 fields ...", "compiling UMAP, once a process", "laying out 20 fields"]
    assert said[3] == "placing the others among 20 landmarks"
