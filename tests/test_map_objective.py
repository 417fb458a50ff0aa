"""A map is judged by the neighbourhoods it keeps; labels are asked only under names that say so."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hcs_ray import contracts as c
from hcs_ray.config import parse_sweep
from hcs_ray.contracts import InputError
from hcs_ray.maps import MapAbout, make_map, read_map
from hcs_ray.stage import read_record
from hcs_ray.study import Study, open_study
from hcs_ray.tables import Features
from hcs_ray.tune.board import ENDED, Entry, leaderboard
from hcs_ray.tune.map_objective import (
    MOA_SILHOUETTE,
    NEIGHBOR_RECALL,
    SHOWN,
    TRUSTWORTHINESS,
    UNSUPERVISED,
    USES_LABELS,
    evaluate,
    judge,
)
from hcs_ray.tune.map_words import beforehand, next_map, uses_labels
from hcs_ray.tune.sheet import SmallMap, sheet
from hcs_ray.tune.space import Space
from tests.command import HCS_RAY
from tests.conftest import REPOSITORY
from tests.embedded_study import drawn_fields, embedded_study


def on_circle(angles: np.ndarray) -> np.ndarray:
    return np.stack([np.cos(angles), np.sin(angles)], axis=1)


def test_a_map_that_keeps_all_neighbours_has_the_full_figures() -> None:
    table, _ = drawn_fields(60)
    points = on_circle(np.sort(np.random.default_rng(1).uniform(0, 6, 60)))
    lengths = np.random.default_rng(2).uniform(0.5, 9, (60, 1))  # cosine distance does not see them
    kept = judge(table, (points * lengths).astype(np.float32), points)
    assert kept[TRUSTWORTHINESS] == pytest.approx(1)
    assert kept[NEIGHBOR_RECALL] > 0.99
    lost = judge(table, points.astype(np.float32), np.random.default_rng(0).permutation(points))
    assert lost[TRUSTWORTHINESS] < 0.65
    assert lost[NEIGHBOR_RECALL] == pytest.approx(lost["neighbor_recall_chance"], abs=0.1)


def test_shares_of_a_map_by_compound_or_by_week_are_told_apart() -> None:
    table, features = drawn_fields()
    rng = np.random.default_rng(0)
    noise = 0.01 * rng.normal(size=(len(table), 2))
    by_moa = judge(table, features, on_circle(pd.factorize(table[c.MOA])[0] * 2.0) + noise)
    assert by_moa["moa_neighbor_share"] == 1, "the other compound of the MoA lies there"
    assert by_moa["moa_neighbor_share_chance"] == pytest.approx(1 / 5)
    assert by_moa[MOA_SILHOUETTE] > 0.9
    assert by_moa["batch_neighbor_share"] == pytest.approx(by_moa["batch_neighbor_share_chance"], abs=0.1)
    by_week = judge(table, features, on_circle(pd.factorize(table[c.BATCH])[0] * 2.0) + noise)
    assert by_week["batch_neighbor_share"] == 1
    assert by_week["batch_neighbor_share_chance"] == pytest.approx(1 / 3, abs=0.02)
    assert by_week[MOA_SILHOUETTE] < 0.1
    assert by_week["moa_neighbor_share"] == pytest.approx(1 / 5, abs=0.05)
    by_compound = judge(table, features, on_circle(pd.factorize(table[c.COMPOUND])[0] * 1.0) + noise)
    assert by_compound["moa_neighbor_share"] < 0.5, "neighbours of one's own compound prove nothing"


def test_labels_change_only_what_is_named_after_them() -> None:
    table, features = drawn_fields()
    layout = np.random.default_rng(0).normal(size=(len(table), 2))
    figures = judge(table, features, layout)
    assert set(figures) == {*UNSUPERVISED, *USES_LABELS}
    assert set(SHOWN) <= set(figures)
    mixed = table.assign(**{c.MOA: table[c.MOA].sample(frac=1, random_state=0).to_numpy()})
    other = judge(mixed.assign(**{c.BATCH: "one"}), features, layout)
    assert {name: other[name] for name in UNSUPERVISED} == {name: figures[name] for name in UNSUPERVISED}
    assert other["moa_neighbor_share"] != figures["moa_neighbor_share"]
    assert "batch_neighbor_share" not in other, "one batch leaves nothing to be told apart"


@settings(max_examples=25, deadline=None)
@given(st.integers(4, 40), st.integers(1, 30), st.integers(0, 99))
def test_every_figure_is_a_share(fields: int, neighbors: int, seed: int) -> None:
    table, features = drawn_fields(fields, seed)
    layout = np.random.default_rng(seed).normal(size=(fields, 2))
    figures = judge(table, features, layout, neighbors=neighbors)
    assert -1 <= figures.pop(MOA_SILHOUETTE, 0) <= 1
    assert all(0 <= value <= 1 for value in figures.values()), figures


def test_three_fields_are_no_map() -> None:
    table, features = drawn_fields(3)
    with pytest.raises(InputError, match="at least 4 fields, and there are 3"):
        judge(table, features, features[:, :2])


def clustered(fields: int = 240) -> tuple[pd.DataFrame, Features]:
    """As `drawn_fields`, each compound a cluster."""
    table, noise = drawn_fields(fields)
    return table, noise + 6 * np.eye(8, dtype=np.float32)[pd.factorize(table[c.COMPOUND])[0]]


def test_a_trial_is_a_layout_of_the_embeddings_of_the_run(tmp_path: Path) -> None:
    table, features = clustered(80)
    study = embedded_study(tmp_path, table, features, "map: {neighbors: 5}")
    found = evaluate(study, neighbors=8)
    figures = found.figures
    assert (figures["fields"], figures["judged_fields"], figures["neighbors_used"]) == (80, 80, 5)
    assert figures[TRUSTWORTHINESS] > 0.8
    assert figures[NEIGHBOR_RECALL] > 3 * figures["neighbor_recall_chance"]
    assert found.table[c.KEY].tolist() == table[c.KEY].tolist()
    again = evaluate(study, neighbors=8)
    pd.testing.assert_frame_equal(found.table, again.table)
    assert {**figures, "layout_s": 0} == {**again.figures, "layout_s": 0}
    kept = SmallMap.of(found.file())
    pd.testing.assert_frame_equal(kept.table, found.table)
    assert kept.about == found.about


def test_of_a_large_table_a_sample_is_judged_where_the_map_puts_it(tmp_path: Path) -> None:
    table, features = clustered(200)
    study = embedded_study(tmp_path, table, features, "map: {landmarks: 60}")
    found = evaluate(study, seed=4, most_fields=90)
    assert (found.figures["landmarks"], found.figures["judged_fields"]) == (60, 90)
    make_map(study, lambda done, total: None)
    drawn = read_map(study).set_index(c.KEY).loc[found.table[c.KEY], ["x", "y"]]
    np.testing.assert_array_equal(found.table[["x", "y"]], drawn)
    judged = judge(found.table, features[table[c.KEY].isin(found.table[c.KEY])], drawn.to_numpy())
    assert judged.items() <= found.figures.items()
    other = evaluate(study, seed=5, most_fields=90)
    assert set(other.table[c.KEY]) != set(found.table[c.KEY])


# --- The sweep: its words and its sheet ----------------------------------------------------------------


def space_of(study: Study, text: str) -> Space:
    return Space.of(parse_sweep(f"objective: map\n{text}", "sweep.yaml"), study.config, [], "sweep.yaml")


def test_what_uses_labels_or_is_clipped_is_said_before(tmp_path: Path) -> None:
    study = embedded_study(tmp_path, *drawn_fields(60))
    quiet = beforehand(study, space_of(study, "space: {map.neighbors: {kind: grid, values: [5, 59]}}"))
    assert len(quiet) == 1
    assert quiet[0].startswith("  layouts of 60 fields; each process compiles UMAP once")
    swept = (REPOSITORY / "tune_configs/umap.yaml").read_text()
    space = Space.of(parse_sweep(swept, "umap.yaml"), study.config, [], "umap.yaml")
    assert space.trials == 32
    said = beforehand(study, space)[1:]
    assert said[0] == "  map.neighbors 100 and 500 and 1000: of 60 fields laid out, all 59 others are taken"
    assert said[1].startswith("  CAUTION: map.supervised moa")
    loud = space_of(study, "metric: moa_neighbor_share\nspace: {map.min_dist: {kind: grid, values: [0, 1]}}")
    assert "CAUTION: moa_neighbor_share uses labels" in beforehand(study, loud)[1]
    assert uses_labels(study, {}, loud.sweep)
    assert uses_labels(study, {"map.supervised": "moa"}, space.sweep)
    assert not uses_labels(study, {"map.supervised": "none"}, space.sweep)
    tight = space_of(
        study, "fixed: {map.densmap_most: 59}\nspace: {map.densmap: {kind: grid, values: [true]}}"
    )
    with pytest.raises(InputError, match=r"60 are more than map\.densmap_most 59"):
        beforehand(study, tight)


def test_the_best_map_is_handed_on_as_a_command(tmp_path: Path) -> None:
    study = embedded_study(tmp_path, *drawn_fields(60))
    space = space_of(
        study,
        "fixed: {map.min_dist: 0.5}\nspace: {map.neighbors: {kind: grid, values: [5, 9]}, "
        "map.densmap: {kind: grid, values: [true, false]}, map.supervised: {kind: grid, values: [moa]}}",
    )
    told = {"map.neighbors": [9.0, 5], "map.densmap": [True, False], "map.supervised": ["moa", "moa"]}
    best = pd.DataFrame(told).iloc[0]  # as it comes from the leaderboard
    line = next_map(study, best, space.sweep)
    command = line.removeprefix("Next (CAUTION: it uses labels): hcs-ray map ")
    assert command.endswith(
        "--force --set map.min_dist=0.5 --set map.neighbors=9 --set map.densmap=true --set map.supervised=moa"
    )
    settings_given = command.split(" --set ")[1:]
    config = open_study(study.storage.url, overrides=settings_given).config.map
    assert (config.neighbors, config.densmap, config.supervised) == (9, True, "moa")


def test_the_sheet_shows_every_trial_and_marks_those_with_labels(tmp_path: Path) -> None:
    table, _ = drawn_fields(60)
    study = embedded_study(tmp_path, table, drawn_fields(60)[1])
    space = space_of(
        study,
        "space: {map.neighbors: {kind: grid, values: [5, 500]}, "
        "map.supervised: {kind: grid, values: [none, moa]}}",
    )
    entries, maps = [], {}
    for number, draw in enumerate(space.combinations()):
        values = space.values({"grid": draw})
        config = space.study_config(values).map
        trial = f"t{number:04d}"
        scores = {TRUSTWORTHINESS: 0.9 - number / 100}
        entries.append(Entry(trial, values, ENDED, scores, figures={**scores, "moa_neighbor_share": 0.5}))
        places = table.assign(x=np.float32(np.arange(60)), y=np.float32(number))
        maps[trial] = SmallMap(places, MapAbout.of(config, 60, 60, min(59, config.neighbors)))
    board = leaderboard(entries, space.sweep)
    assert board["moa_neighbor_share"].tolist() == [0.5] * 4
    drawn = sheet(board, maps, space.sweep)
    assert drawn == sheet(board, maps, space.sweep)
    with Image.open(io.BytesIO(drawn)) as image:
        pixels = np.asarray(image.convert("RGB")).reshape(-1, 3)
    orange = (pixels == (0xD5, 0x5E, 0x00)).all(axis=1).sum()
    del maps["t0001"], maps["t0003"]
    with Image.open(io.BytesIO(sheet(board, maps, space.sweep))) as image:
        fewer = np.asarray(image.convert("RGB")).reshape(-1, 3)
    assert orange > 500 + (fewer == (0xD5, 0x5E, 0x00)).all(axis=1).sum(), "the frames"


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_the_whole_sweep_of_pytorch_hcs(tmp_path: Path) -> None:
    embedded_study(tmp_path, *drawn_fields(600))  # noise: no MoA is in it
    done = subprocess.run(
        [HCS_RAY, "tune", tmp_path, REPOSITORY / "tune_configs/umap.yaml"],
        capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "CAUTION: map.supervised moa" in done.stderr
    assert "map.neighbors 1000: of 600 fields laid out, all 599 others are taken" in done.stderr
    board = pd.read_parquet(tmp_path / "sweeps/main/leaderboard.parquet")
    assert len(board) == 32
    assert (board["status"] == ENDED).all()
    assert board["score"].is_monotonic_decreasing
    shares = board.groupby("map.supervised")["moa_neighbor_share"].mean()
    assert shares["none"] == pytest.approx(1 / 5, abs=0.03), "chance"
    assert shares["moa"] > 0.3, "what it was told"
    record = read_record(open_study(str(tmp_path)).storage, open_study(str(tmp_path)).place("tune"))
    assert record is not None
    assert sum(path.endswith("/map.parquet") for path in record.outputs) == 32
    with Image.open(tmp_path / "sweeps/main/maps.png") as image:
        assert image.width > 1000
