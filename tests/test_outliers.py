"""Outliers: what is planted in a screen is found, with its reason and its evidence, and nothing else is."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hcs_ray import contracts as c
from hcs_ray.config import OutliersConfig
from hcs_ray.contracts import InputError
from hcs_ray.outliers import Screen, find_outliers, score_screen
from hcs_ray.outliers.calibrate import log, threshold, within_groups, z_above
from hcs_ray.outliers.detectors import Name, detect
from hcs_ray.outliers.expected import deviations, of_other_wells
from hcs_ray.outliers.nearest import Candidates, nearest_rows, reference_rows
from hcs_ray.outliers.older import map_distance
from hcs_ray.outliers.replicates import Treatments, doubt_labels, find_novel, treatment_means
from hcs_ray.outliers.space import Reduction, whitened
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import open_study
from tests.command import HCS_RAY
from tests.embedded_study import drawn_fields, embedded_study

CONFIG = OutliersConfig()
PLATES = ("P1", "P10", "P2")  # "P10_B02" sorts before "P1_B02", as P10 does not before P1
MOAS = ("Actin", "Eg5", "Aurora", "Tubulin")
FEATURES = 12
Tables = dict[str, pd.DataFrame]


class Planted:
    """A screen of three plates: DMSO, and two compounds of each of four MoAs, three wells of two sites each.

    Each compound has its MoA's phenotype and some of its own; fields have noise, and plates a shift.
    ``look`` says what a well shows where that is not what its label says.
    """

    def __init__(self, seed: int, novel: bool = False, look: dict[str, str] | None = None) -> None:
        self.rng = np.random.default_rng(seed)
        shapes = {moa: 8 * self._direction() for moa in MOAS}
        names = {f"{moa}{i}": moa for moa in MOAS for i in (1, 2)}
        self.shape = {name: shapes[moa] + 1.5 * self._direction() for name, moa in names.items()}
        self.shape |= {
            "DMSO": np.zeros(FEATURES),
            "HCS-1": 10 * self._direction() if novel else np.zeros(FEATURES),
        }
        moas: dict[str, str | None] = {**names, "DMSO": "DMSO", "HCS-1": None}
        wells = [(plate, *well) for plate in PLATES for well in self._layout(moas)]
        rows = [
            self._row(plate, well, site, compound, moas[compound])
            for plate, well, compound in wells
            for site in (1, 2)
        ]
        self.fields = pd.DataFrame(rows)
        shown = [(look or {}).get(f"{r[c.PLATE]}_{r[c.WELL]}", str(r[c.COMPOUND])) for r in rows]
        shift = {plate: 3 * self._direction() for plate in PLATES}
        noise = self.rng.standard_normal((len(rows), FEATURES))
        self.embeddings = np.array([self.shape[name] for name in shown]) + noise
        self.embeddings += np.array([shift[str(row[c.PLATE])] for row in rows])
        self.index = self.fields[[c.KEY]].assign(**self._quality(len(rows)))
        self.fields["trained"] = False

    def _direction(self) -> NDArray[np.float64]:
        vector = self.rng.standard_normal(FEATURES)
        return np.asarray(vector / np.linalg.norm(vector) * 2)

    @staticmethod
    def _layout(compounds: dict[str, str | None]) -> list[tuple[str, str]]:
        treated = [name for name in compounds if name != "DMSO"]
        return [(f"B{i + 2:02d}", "DMSO") for i in range(6)] + [
            (f"C{i + 2:02d}", name) for i, name in enumerate(treated)
        ]

    @staticmethod
    def _row(plate: str, well: str, site: int, compound: str, moa: str | None) -> dict[str, Any]:
        return {
            c.KEY: c.field_key(plate, well, site),
            c.BATCH: "Week1",
            c.PLATE: plate,
            c.WELL: well,
            c.SITE: site,
            c.COMPOUND: compound,
            c.CONCENTRATION: 1.0,
            c.TREATMENT: f"{compound}@1",
            c.MOA: moa,
            c.PERT_TYPE: c.NEGATIVE_CONTROL if compound == "DMSO" else c.TREATED,
        }

    def _quality(self, rows: int) -> dict[str, NDArray[np.float64]]:
        spread = self.rng.standard_normal((4, rows))
        return {
            "QC_FocusScore_DNA": np.exp(0.1 * spread[0] - 3),
            "QC_Mean_DNA": np.exp(0.2 * spread[1] + 7),
            "QC_P99_Actin": np.exp(0.1 * spread[2] + 9),
            "QC_Saturated_Actin": np.zeros(rows),
            "QC_CellArea": 0.4 * np.exp(0.1 * spread[3]),
            "QC_Flag_Saturated": np.zeros(rows, dtype=bool),
        }

    def spoil(self, key: str, column: str, factor: float = 1.0, value: float = 0.0) -> None:
        """Change a quality measure of one field."""
        at = self.index[c.KEY] == key
        self.index.loc[at, column] = self.index.loc[at, column] * factor + value

    def score(self, config: OutliersConfig = CONFIG) -> Tables:
        return score_screen(Screen(self.fields, self.embeddings, self.index), config)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("column", "factor", "value", "words"),
    [
        ("QC_FocusScore_DNA", 0.2, 0.0, "focus score of DNA"),
        ("QC_Saturated_Actin", 1.0, 0.1, "share of saturated pixels of Actin"),
        ("QC_P99_Actin", 4.0, 0.0, "99th percentile of Actin"),
        ("QC_CellArea", 0.2, 0.0, "share of the area under cells"),
    ],
)
def test_a_spoilt_image_is_the_first_artefact(
    seed: int, column: str, factor: float, value: float, words: str
) -> None:
    screen = Planted(seed)
    screen.spoil("P10_C03_s2", column, factor, value)
    field = screen.score()["field"]
    first = field.sort_values("artefact", ascending=False).iloc[0]
    assert (first[c.KEY], first["reason"]) == ("P10_C03_s2", "artefact")
    assert first["evidence"].startswith(f"{words} ")
    assert first["drivers"][0] == column
    assert first["artefact"] > 3.5
    assert (field["reason"] == "artefact").sum() <= 8  # of 90, with 36 controls to tell what is usual


def test_more_cells_than_expected_are_no_artefact() -> None:
    screen = Planted(0)
    screen.spoil("P10_C03_s2", "QC_CellArea", 2.2)
    field = screen.score()["field"].set_index(c.KEY)
    assert field["artefact"]["P10_C03_s2"] < threshold(CONFIG.false_alarms)
    screen.spoil("P10_C03_s2", "QC_CellArea", 1 / 2.2**2)
    field = screen.score()["field"].set_index(c.KEY)
    assert field.loc["P10_C03_s2", "reason"] == "artefact"


def test_a_phenotype_that_changes_the_image_is_no_artefact() -> None:
    screen = Planted(0)
    dim = (screen.fields[c.COMPOUND] == "Eg51").to_numpy()
    screen.index.loc[dim, "QC_FocusScore_DNA"] *= 0.2
    field = screen.score()["field"].set_index(c.KEY)
    assert not (field.loc[screen.fields[c.KEY][dim], "reason"] == "artefact").any()


def test_an_embedding_far_from_everything_is_an_artefact_and_says_so() -> None:
    screen = Planted(4)
    at = int(np.flatnonzero(screen.fields[c.KEY] == "P2_C06_s1")[0])
    screen.embeddings[at] += 40.0
    first = screen.score()["field"].iloc[0]
    assert (first[c.KEY], first["reason"]) == ("P2_C06_s1", "artefact")
    assert "farther than usual from its replicates and from every other field" in first["evidence"]
    assert first["drivers"][:2] == ["class_distance", "distance"]


def test_an_empty_well_is_an_artefact_by_what_its_fields_show() -> None:
    screen = Planted(1)
    for site in (1, 2):
        for column, factor in (("QC_Mean_DNA", 0.1), ("QC_P99_Actin", 0.1), ("QC_CellArea", 0.02)):
            screen.spoil(f"P1_C05_s{site}", column, factor)
    first = screen.score()["well"].sort_values("artefact", ascending=False).iloc[0]
    assert (first["well"], str(first["reason"])) == ("P1_C05", "artefact")
    assert first["evidence"].startswith("P1_C05_s")
    assert "MADs below" in first["evidence"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shows", "says"), [("Aurora1", "Aurora"), ("DMSO", "DMSO@1")])
def test_a_mislabelled_well_is_found_and_what_it_resembles(seed: int, shows: str, says: str) -> None:
    screen = Planted(seed, look={"P1_C02": shows})
    screen.fields["trained"] = screen.fields[c.PLATE] == "P1"
    tables = screen.score(OutliersConfig(false_alarms=0.02))  # of 45 wells, one
    first = tables["well"].sort_values("mislabelled", ascending=False).iloc[0]
    assert (first["well"], str(first["reason"])) == ("P1_C02", "mislabelled")
    assert f"from its 2 replicates as from {says}" in first["evidence"]
    assert first["evidence"].endswith("though the network learned its label")
    assert str(first["looks_like"]).startswith(says)
    assert (tables["well"]["reason"] == "mislabelled").sum() == 1
    fields = tables["field"].set_index("well").loc["P1_C02"]
    assert (fields["reason"] == "mislabelled").all(), "its fields are no artefacts"


def test_wells_that_all_look_like_another_treatment_are_not_mislabelled() -> None:
    screen = Planted(0, look={f"{plate}_C02": "Aurora1" for plate in PLATES})
    assert not (screen.score()["well"]["reason"] == "mislabelled").any()


@pytest.mark.parametrize("seed", range(3))
def test_a_novel_treatment_is_found_and_an_inactive_one_is_not(seed: int) -> None:
    treatment = Planted(seed, novel=True).score()["treatment"]
    first = treatment.sort_values("novel", ascending=False).iloc[0]
    assert (first[c.TREATMENT], first["reason"]) == ("HCS-1@1", "novel")
    assert "its 3 wells agree" in first["evidence"]
    assert treatment["novel"].notna().sum() == 1  # treatments with a known MoA are not judged
    inactive = Planted(seed).score()["treatment"]
    assert not (inactive["reason"] == "novel").any()


def test_a_treatment_that_leaves_few_cells_is_toxic_rather_than_novel() -> None:
    screen = Planted(0, novel=True)
    screen.index.loc[(screen.fields[c.COMPOUND] == "HCS-1").to_numpy(), "QC_CellArea"] *= 0.2
    treatment = screen.score()["treatment"].set_index(c.TREATMENT).loc["HCS-1@1"]
    assert pd.isna(treatment["reason"])
    assert treatment["novel"] < -5


def test_another_dose_of_a_known_compound_is_not_novel() -> None:
    """Its mechanism is known, though no table says it of this dose and no other compound has it."""
    names, chance = np.repeat(["A@1", "B@1", "DMSO@0", "N@1", "N@3"], 3), np.random.default_rng(0)
    places = {"A@1": (9, 0), "B@1": (0, 9), "DMSO@0": (0, 0), "N@1": (9, 9), "N@3": (9, 9)}
    features = np.array([places[name] for name in names]) + chance.standard_normal((15, 2))
    wells = pd.DataFrame({c.TREATMENT: names, c.COMPOUND: [name.split("@")[0] for name in names]})
    wells[c.PERT_TYPE] = np.where(wells[c.COMPOUND] == "DMSO", c.NEGATIVE_CONTROL, c.TREATED)
    found = {}
    for told, moas in {True: {"A@1": "a", "B@1": "b", "N@3": "n"}, False: {"A@1": "a", "B@1": "b"}}.items():
        treatments = Treatments.of(wells.assign(**{c.MOA: wells[c.TREATMENT].map(moas)}))
        means = treatment_means(treatments, features, np.ones(15, dtype=bool))
        found[told] = find_novel(treatments, means, np.ones(5))
    assert "N@3, the nearest known treatment" in found[True].words[3]
    assert "N@3" not in found[False].words[3]
    assert found[True].z[3] < 0 < found[False].z[3]
    assert "N@1" not in found[True].words[4], "a known one is compared with other compounds"


def test_distant_fields_of_a_novel_treatment_say_so() -> None:
    field = Planted(0, novel=True).score()["field"]
    heirs = field[field["reason"] == "novel"]
    assert set(heirs[c.TREATMENT]) == {"HCS-1@1"}
    assert heirs["evidence"].str.startswith("HCS-1@1: its 3 wells agree").all()


def test_a_shifted_plate_does_not_stand_out() -> None:
    screen = Planted(2)
    plain = screen.score()
    screen.embeddings[(screen.fields[c.PLATE] == "P2").to_numpy()] += 30.0
    screen.index.loc[screen.fields[c.PLATE] == "P2", "QC_FocusScore_DNA"] *= 5.0
    for name, table in screen.score().items():
        shifted = table.set_index(table.columns[0]).loc[plain[name].iloc[:, 0]]
        for column in ("artefact", "score"):
            np.testing.assert_allclose(shifted[column], plain[name][column], atol=0.05)


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), neighbors=st.integers(1, 200), share=st.floats(0.001, 0.1))
def test_ranks_are_a_permutation_and_row_order_does_not_matter(
    seed: int, neighbors: int, share: float
) -> None:
    screen = Planted(seed)
    config = OutliersConfig(neighbors=neighbors, false_alarms=share, detectors=("ecod",))
    tables = screen.score(config)
    for name, table in tables.items():
        assert table["rank"].tolist() == list(range(1, len(table) + 1))
        assert np.isfinite(table["score"]).all()
        assert table["score"].is_monotonic_decreasing
        assert (table["distance"] > 0).all()
        assert table["reason"].dropna().isin(["artefact", "mislabelled", "novel"]).all()
        assert table.loc[table["reason"].notna(), "evidence"].notna().all()
        assert (table.loc[table["reason"].notna(), "drivers"].map(len) > 0).all()
        identity = {"field": c.KEY, "well": "well", "treatment": c.TREATMENT}[name]
        for own, near in zip(table[identity], table["neighbours"], strict=True):
            assert own not in near
            assert len(set(near)) == len(near) == min(neighbors, len(table) - 1)
    order = np.random.default_rng(seed).permutation(len(screen.fields))
    shuffled = screen.fields.iloc[order].reset_index(drop=True)
    again = score_screen(Screen(shuffled, screen.embeddings[order], screen.index.iloc[::-1]), config)
    for name, table in again.items():
        pd.testing.assert_frame_equal(table, tables[name])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(3, 14))
def test_expectations_equal_a_naive_loop(seed: int, rows: int) -> None:
    chance = np.random.default_rng(seed)
    values, well = chance.standard_normal((rows, 2)), chance.integers(0, 5, rows)
    treatment = well % 2
    expected, others = of_other_wells(values, well, treatment)
    for row in range(rows):
        of = [i for i in range(rows) if treatment[i] == treatment[row] and well[i] != well[row]]
        assert others[row] == len(of)
        median = np.median(values[of], axis=0) if of else np.full(2, np.nan)
        np.testing.assert_allclose(expected[row], median)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6))
def test_doubts_equal_a_naive_loop_without_the_well_and_its_plate(seed: int) -> None:
    chance = np.random.default_rng(seed)
    moas = {"A": "x", "B": "x", "C": "y", "D": None, "N": None}
    rows = [(name, plate) for plate in range(4) for name in moas for _ in range(chance.integers(0, 3))]
    wells = pd.DataFrame(rows, columns=["name", "plate"])
    wells = wells.assign(
        **{c.TREATMENT: wells["name"] + "@1", c.COMPOUND: wells["name"], c.MOA: wells["name"].map(moas)}
    )
    wells[c.PERT_TYPE] = np.where(wells["name"] == "N", c.NEGATIVE_CONTROL, c.TREATED)
    features = chance.standard_normal((len(wells), 3))
    treatments = Treatments.of(wells)
    found = doubt_labels(treatments, wells["plate"].to_numpy(), features, np.ones(len(wells), dtype=bool))
    for row, (name, plate) in enumerate(rows):
        square = {}
        for other in sorted(set(wells["name"])):
            of = [i for i, (n, p) in enumerate(rows) if n == other and p != plate]
            if other == name and len(of) < 2:
                of = [i for i, (n, _) in enumerate(rows) if n == other and i != row]
            if of:
                distance = ((features[row] - features[of].mean(axis=0)) ** 2).sum()
                square[other] = distance / (1 + 1 / len(of))
        kin = {n for n in square if n == name or (moas[n] and moas[n] == moas[name])}
        rest = {n: d for n, d in square.items() if n not in kin and (moas[n] or n == "N")}
        replicates = sum(n == name for n, _ in rows) - 1
        if replicates < 2 or not rest:
            assert np.isnan(found.own[row])
            continue
        np.testing.assert_allclose(found.own[row], min(square[n] for n in kin), atol=1e-9)
        np.testing.assert_allclose(found.other[row], min(rest.values()), atol=1e-9)
        assert treatments.names[found.looks_like[row]] == f"{min(rest, key=lambda n: rest[n])}@1"


def test_what_cannot_be_compared_is_not_judged() -> None:
    wells = pd.DataFrame({c.TREATMENT: ["A@1", "B@1", "B@1", "C@1", "C@1", "C@1", "C@3", "C@3", "DMSO@0"]})
    wells[c.COMPOUND] = wells[c.TREATMENT].str.split("@").str[0]
    wells[c.MOA] = wells[c.COMPOUND].map({"C": "Eg5"})
    wells[c.PERT_TYPE] = np.where(wells[c.COMPOUND] == "DMSO", c.NEGATIVE_CONTROL, c.TREATED)
    features = np.array([[0.0], [9.0], [9.5], [4.0], [4.2], [4.3], [4.1], [4.4], [0.1]])
    treatments, trusted = Treatments.of(wells), np.ones(9, dtype=bool)
    doubts = doubt_labels(treatments, np.zeros(9, dtype=int), features, trusted)
    judged = np.isfinite(doubts.own)
    assert not judged.any()  # all on one plate: there is no treatment on another to resemble
    doubts = doubt_labels(treatments, np.arange(9), features, trusted)
    assert wells[c.TREATMENT][np.isfinite(doubts.own)].tolist() == ["C@1"] * 3
    novel = find_novel(treatments, treatment_means(treatments, features, trusted), np.ones(5))
    assert np.isnan(novel.z).tolist() == [True, False, True, True, True]  # one well; judged; known; a control
    treatments = Treatments.of(wells.assign(**{c.MOA: None}))
    unlabelled = find_novel(treatments, treatment_means(treatments, features, trusted), np.ones(5))
    assert np.isnan(unlabelled.z).all()  # nothing says how far is far


def test_a_tenth_of_outliers_among_the_controls_hardly_moves_the_scale() -> None:
    chance = np.random.default_rng(0)
    sample = chance.normal(5, 3, 20_000)
    everything = np.ones(len(sample), dtype=bool)
    np.testing.assert_allclose(z_above(sample, everything), (sample - 5) / 3, atol=0.2)
    above = (z_above(sample, everything) > threshold(0.01)).mean()
    assert 0.006 < above < 0.014
    spoilt = sample.copy()
    spoilt[:1000] += 100
    moved = z_above(spoilt, everything)[1000:]
    assert 0.001 < (moved > threshold(0.01)).mean() < 0.01
    few = z_above(np.array([0.0, 1.0, np.nan]), np.array([True, False, True]))
    assert np.isfinite(few).tolist() == [True, True, False]
    assert np.isnan(z_above(np.full(3, np.nan), np.ones(3, dtype=bool))).all()


def test_a_small_plates_scale_is_mostly_that_of_the_screen() -> None:
    chance = np.random.default_rng(0)
    groups = np.repeat([0, 1, 2], [500, 500, 3])
    values = chance.standard_normal(1003) * np.where(groups == 1, 10, 1) + 50 * groups
    z = within_groups(values, groups)
    assert abs(np.median(z[groups == 1])) < 0.1
    assert 0.8 < z[groups == 0].std() < 1.2
    assert np.abs(z[groups == 2]).max() < 3
    assert np.isfinite(log(np.array([0.0, 1.0, 2.0]))).all()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 30), st.integers(1, 8))
def test_nearest_rows_equal_a_naive_search(seed: int, rows: int, neighbors: int) -> None:
    chance = np.random.default_rng(seed)
    features, groups = chance.standard_normal((rows, 3)), chance.integers(0, 3, rows)
    found = nearest_rows(features, neighbors, Candidates(groups, groups, reference_rows(rows, 1000)))
    square = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.fill_diagonal(square, np.inf)
    k = min(neighbors, rows - 1)
    expected = np.sort(square, axis=1)[:, :k]
    np.testing.assert_allclose(found.distance, expected.mean(axis=1) if k else 0, atol=1e-6)
    assert all(row not in near for row, near in enumerate(found.rows.tolist()))


def test_with_a_reference_distances_are_those_to_plate_replicates_and_reference() -> None:
    chance = np.random.default_rng(1)
    features, groups = chance.standard_normal((300, 4)), np.repeat(np.arange(10), 30)
    reference = reference_rows(300, 60)
    treatments = np.where(np.arange(300) % 3 == 0, 29, np.arange(300) % 29)  # 29: too many
    found = nearest_rows(features, 5, Candidates(groups, treatments, reference))
    for row in range(300):
        kin = set(treatments[groups == groups[row]]) - {29}
        near = [groups[i] == groups[row] or i in set(reference) or treatments[i] in kin for i in range(300)]
        there = [i for i in np.flatnonzero(near) if i != row]
        expected = np.sort(np.linalg.norm(features[there] - features[row], axis=1))[:5]
        np.testing.assert_allclose(found.distance[row], expected.mean(), atol=1e-6)


def test_equal_and_single_rows_have_neighbours() -> None:
    zero = np.zeros(5, dtype=int)
    one = nearest_rows(np.ones((1, 4)), 7, Candidates(zero[:1], zero[:1], zero[:1]))
    assert (one.distance.tolist(), one.rows.shape) == ([0.0], (1, 0))
    same = nearest_rows(np.ones((5, 4)), 2, Candidates(zero, zero, np.arange(5)))
    assert all(row not in near for row, near in enumerate(same.rows.tolist()))
    screen = Planted(0)
    treated = (screen.fields[c.COMPOUND] != "DMSO").to_numpy()
    screen.embeddings[treated] = screen.embeddings[treated][0]
    assert all(np.isfinite(table["score"]).all() for table in screen.score().values())
    screen.embeddings[~treated] = 1.0
    with pytest.raises(InputError, match="negative controls' embeddings are all equal"):
        screen.score()


def test_detectors_are_pyods_and_agree_when_the_rest_is_scored_in_chunks() -> None:
    from pyod.models.lof import LOF

    chance = np.random.default_rng(0)
    features = chance.standard_normal((400, 6)).astype(np.float32)
    features[7] += 8
    one = np.zeros(400, dtype=int)
    names: tuple[Name, ...] = ("knn", "lof", "ecod", "iforest")
    whole = detect(features, one, names, 7, np.arange(400))
    assert all(scores.argmax() == 7 for scores in whole.values())
    lof = LOF(n_neighbors=20, algorithm="brute").fit(features).decision_scores_
    assert (np.argsort(lof) == np.argsort(whole["lof"])).all()
    part = detect(features, one, names, 7, reference_rows(400, 200))
    for name in names:
        assert part[name].argmax() == 7
        assert np.corrcoef(part[name], whole[name])[0, 1] > 0.4
    assert not any(scores.any() for scores in detect(features[:5], one[:5], names, 7, np.arange(5)).values())


def test_long_embeddings_keep_their_distances_in_few_components() -> None:
    chance = np.random.default_rng(0)
    low = chance.standard_normal((600, 10))
    long = (low @ chance.standard_normal((10, 200)) + 0.01 * chance.standard_normal((600, 200))).astype("f4")
    reduction = Reduction(16)
    reduction.fit(long[start : start + 100] for start in range(0, 600, 100))
    short = np.concatenate([reduction.apply(long[:250]), reduction.apply(long[250:])])
    assert short.shape == (600, 16)
    before = np.linalg.norm(long[:50, None] - long[None, 50:100], axis=2)
    after = np.linalg.norm(short[:50, None] - short[None, 50:100], axis=2)
    np.testing.assert_allclose(after, before, rtol=0.01)
    whole = Reduction(256)
    whole.fit([long])
    np.testing.assert_array_equal(whole.apply(long), long)


def test_replicates_deviate_by_one_in_every_direction() -> None:
    chance = np.random.default_rng(0)
    groups = np.repeat(np.arange(400), 5)
    features = 30 * chance.standard_normal((400, 4))[groups] + chance.standard_normal((2000, 4)) * [
        1,
        2,
        4,
        3,
    ]
    white = whitened(features, groups, [3, 1])
    means = np.stack([white[groups == group].mean(axis=0) for group in range(400)])
    spread = (white - means[groups]).std(axis=0) * np.sqrt(5 / 4)
    assert spread.shape == (4,)
    assert (np.abs(np.log(spread)) < 0.35).all()


def test_a_field_of_few_cells_may_differ_more() -> None:
    chance = np.random.default_rng(0)
    plates = [f"P{i}" for i in range(6)]
    rows = [(p, f"W{t}", f"T{t}", s) for p in plates for t in range(40) for s in range(4)]
    fields = pd.DataFrame(rows, columns=[c.PLATE, c.WELL, c.TREATMENT, c.SITE])
    cells = np.where(fields[c.TREATMENT].isin([f"T{t}" for t in range(10)]), 5, 100)
    quality = pd.DataFrame({"QC_NucleusCount": cells, "QC_Mean_DNA": 1000.0})
    quality["QC_Mean_DNA"] *= np.exp(chance.standard_normal(len(fields)) / np.sqrt(cells))
    z = deviations(fields, quality).z[:, 1]
    assert z[cells == 5].std() < 1.4
    assert 0.7 < z[cells == 100].std() < 1.3


def test_the_older_score_is_the_mean_distance_in_the_map() -> None:
    fields = pd.DataFrame({c.KEY: list("abcdefghij")})
    places = pd.DataFrame({c.KEY: list("jihgfedcb"), "x": np.arange(9.0), "y": 0.0})
    found = map_distance(fields, places)
    assert np.isnan(found[0])
    assert found[9] == pytest.approx(np.mean(np.arange(1, 8)))
    assert np.isnan(map_distance(fields, None)).all()


def test_a_field_without_quality_is_named() -> None:
    screen = Planted(0)
    screen.index = screen.index[screen.index[c.KEY] != "P2_C04_s1"]
    with pytest.raises(InputError, match="P2_C04_s1 is not in the index"):
        screen.score()
    screen.index = Planted(0).fields[[c.KEY]]  # no QC columns at all: the embedding alone is judged
    assert screen.score()["field"]["artefact"].notna().all()
    screen.fields = screen.fields[(screen.fields[c.PLATE] != "P2") | (screen.fields[c.COMPOUND] != "DMSO")]
    screen.embeddings = screen.embeddings[: len(screen.fields)]
    with pytest.raises(InputError, match="plate P2 has no negative control"):
        screen.score()


def test_the_stage_writes_three_tables_and_is_then_complete(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("outliers: {neighbors: 5}\n")
    study, screen = open_study(str(tmp_path)), Planted(3, novel=True, look={"P1_C02": "Aurora1"})
    screen.spoil("P2_C03_s1", "QC_FocusScore_DNA", 0.01)
    fields = screen.fields.drop(columns="trained")
    embedded = fields.assign(**{c.EMBEDDING: list(screen.embeddings.astype(np.float32))})
    sides = fields[[c.PLATE, c.WELL]].drop_duplicates().assign(**{c.SIDE: c.TRAIN})
    for stage, tables in {
        "shard": {"index.parquet": screen.index},
        "split": {"main.parquet": sides},
        "train": {},
        "embed": {"00000000-00000089.parquet": fixed_size(embedded)},
    }.items():
        with study.writing(stage, study.claim(stage)) as writer:
            for name, table in tables.items():
                writer.write(name, parquet_bytes(table)) if stage == "embed" else writer.write_table(
                    name, table
                )
    seen: list[tuple[int, int]] = []
    figures = find_outliers(study, lambda *step: seen.append(step))
    assert figures["mislabelled wells"] == figures["novel treatments"] == 1
    assert figures["artefact fields"] >= 1
    assert figures["most outlying"].startswith("P2_C03_s1, ")
    assert seen[-1] == (4, 4)
    files = {path.name: path.read_bytes() for path in (tmp_path / "outliers/main").glob("*.parquet")}
    assert sorted(files) == ["field.parquet", "treatment.parquet", "well.parquet"]
    field = pd.read_parquet(tmp_path / "outliers/main/field.parquet")
    assert len(field) == len(screen.fields)
    assert field.loc[0, c.KEY] == "P2_C03_s1"
    assert field["map_distance"].isna().all()
    seen.clear()
    assert find_outliers(study, lambda *step: seen.append(step)) == figures
    assert not seen
    find_outliers(study, lambda *step: None, force=True)
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "outliers/main").glob("*.parquet")}
    with study.writing("map", study.claim("map")) as writer:
        places = {"x": screen.embeddings[:, 0], "y": screen.embeddings[:, 1]}
        writer.write_table("main.parquet", screen.fields[[c.KEY]].assign(**places))
    with pytest.raises(InputError, match=r"maps/main_stage\.json is new"):
        find_outliers(study, lambda *step: None)
    assert study.downstream("map")[0] == "outliers"
    find_outliers(study, lambda *step: None, force=True)
    assert pd.read_parquet(tmp_path / "outliers/main/field.parquet")["map_distance"].notna().all()
    study.require("outliers")


def test_an_embedding_that_is_not_finite_is_named(tmp_path: Path) -> None:
    table, _ = drawn_fields(60)
    rows = np.random.default_rng(0).standard_normal((60, 80)).astype(np.float32)  # more than the components
    rows[13, 2] = np.nan
    study = embedded_study(tmp_path, table, rows)
    with pytest.raises(InputError, match=f"{table[c.KEY][13]}: its embedding is not finite"):
        find_outliers(study, lambda *step: None)


def fixed_size(table: pd.DataFrame) -> pa.Table:
    """A table with its embeddings as `hcs-ray embed` stores them."""
    values = np.stack(table[c.EMBEDDING].to_list())
    column = pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), values.shape[1])
    return pa.Table.from_pandas(table.drop(columns=c.EMBEDDING), preserve_index=False).append_column(
        c.EMBEDDING, column
    )


def test_detail_that_all_channels_share_is_on_the_glass() -> None:
    screen = Planted(0)
    chance = np.random.default_rng(3)
    for channel in ("DNA", "Actin"):
        likeness = 0.2 + 0.02 * chance.standard_normal(len(screen.index))
        screen.index[f"QC_DetailCorrelation_{channel}"] = likeness
    for channel in ("DNA", "Actin"):
        screen.spoil("P10_C03_s2", f"QC_DetailCorrelation_{channel}", value=0.4)
        screen.spoil("P10_C04_s1", f"QC_DetailCorrelation_{channel}", value=-0.1)
    field = screen.score()["field"].set_index(c.KEY)
    assert str(field["reason"]["P10_C03_s2"]) == "artefact"
    assert field["drivers"]["P10_C03_s2"][0].startswith("QC_DetailCorrelation_")
    assert field["artefact"]["P10_C04_s1"] < field["artefact"]["P10_C03_s2"] / 2


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_what_is_planted_in_five_drawn_screens_is_found(tmp_path: Path) -> None:
    """Each screen with its own network; the tables of docs/outliers.md are printed without ``--json``."""
    studies = [tmp_path / str(seed) for seed in range(10, 15)]
    for study in studies:
        subprocess.run([HCS_RAY, "demo", study, "--seed", study.name], check=True, capture_output=True)
    script = Path(__file__).parents[1] / "benchmarks/outliers.py"
    command = [sys.executable, str(script), "truth", "--json", *map(str, studies)]
    figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert min(figures["artefact_auroc"][1:]) >= 0.95  # from severity 0.4 on
    assert figures["false_alarms"] <= 0.02
    assert figures["recall"] >= 0.8  # from severity 0.5 on
    assert figures["mislabelled_auroc"] >= 0.9
    assert figures["novel_average_precision"] >= 0.8
