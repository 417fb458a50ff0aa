"""Outliers: what is planted in a screen is found, with its reason and its evidence, and nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hcs_ray import contracts as c
from hcs_ray.config import OutliersConfig
from hcs_ray.contracts import InputError
from hcs_ray.outliers import find_outliers, score_screen
from hcs_ray.outliers.evidence import robust_z
from hcs_ray.outliers.find import nearest_rows
from hcs_ray.outliers.replicates import Links, find_mislabelled, find_novel
from hcs_ray.study import open_study

CONFIG = OutliersConfig(top_fraction=0.1)
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
            "QC_Flag_Saturated": np.zeros(rows, dtype=bool),
        }

    def spoil(self, key: str, column: str, factor: float = 1.0, value: float = 0.0) -> None:
        """Change a quality measure of one field."""
        at = self.index[c.KEY] == key
        self.index.loc[at, column] = self.index.loc[at, column] * factor + value

    def score(self, config: OutliersConfig = CONFIG) -> Tables:
        return score_screen(self.fields, self.embeddings, self.index, config)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("column", "factor", "value", "words"),
    [
        ("QC_FocusScore_DNA", 0.2, 0.0, "focus score of DNA"),
        ("QC_Saturated_Actin", 1.0, 0.1, "share of saturated pixels of Actin"),
        ("QC_P99_Actin", 4.0, 0.0, "99th percentile of Actin"),
    ],
)
def test_a_spoilt_image_is_the_first_artefact(
    seed: int, column: str, factor: float, value: float, words: str
) -> None:
    screen = Planted(seed)
    screen.spoil("P10_C03_s2", column, factor, value)
    field = screen.score()["field"]
    first = field.iloc[0]
    assert (first[c.KEY], first["rank"], first["reason"]) == ("P10_C03_s2", 1, "artefact")
    assert first["evidence"].startswith(f"{words} ")
    assert first["score"] == first["artefact"] > 5
    assert (field["reason"] == "artefact").sum() <= 4  # of 90 clean ones


def test_a_phenotype_that_changes_the_image_is_no_artefact() -> None:
    screen = Planted(0)
    dim = (screen.fields[c.COMPOUND] == "Eg51").to_numpy()
    screen.index.loc[dim, "QC_FocusScore_DNA"] *= 0.2
    field = screen.score()["field"].set_index(c.KEY)
    assert not (field.loc[screen.fields[c.KEY][dim], "reason"] == "artefact").any()


def test_an_empty_well_is_an_artefact_by_what_its_fields_show() -> None:
    screen = Planted(1)
    for site in (1, 2):
        screen.spoil(f"P1_C05_s{site}", "QC_Mean_DNA", 0.1)
    first = screen.score()["well"].iloc[0]
    assert (first["well"], first["reason"]) == ("P1_C05", "artefact")
    assert "P1_C05_s" in first["evidence"]
    assert "mean intensity of DNA" in first["evidence"]
    assert "below" in first["evidence"]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("shows", "says"), [("Aurora1", "Aurora"), ("DMSO", "DMSO@1")])
def test_a_mislabelled_well_is_found_and_what_it_resembles(seed: int, shows: str, says: str) -> None:
    well = Planted(seed, look={"P1_C02": shows}).score()["well"]
    first = well.sort_values("mislabelled", ascending=False).iloc[0]
    assert (first["well"], first["reason"], first["rank"]) == ("P1_C02", "mislabelled", 1)
    assert f"from its 2 replicates as from {says}" in first["evidence"]
    assert (well["reason"] == "mislabelled").sum() == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_novel_treatment_is_found_and_an_inactive_one_is_not(seed: int) -> None:
    treatment = Planted(seed, novel=True).score()["treatment"]
    first = treatment.iloc[0]
    assert (first[c.TREATMENT], first["reason"]) == ("HCS-1@1", "novel")
    assert "its 3 wells agree" in first["evidence"]
    assert treatment["novel"].notna().sum() == 1  # treatments with a known MoA are not judged
    inactive = Planted(seed).score()["treatment"]
    assert inactive["reason"].isna().all()


def test_distant_fields_of_a_novel_treatment_say_so() -> None:
    screen = Planted(0, novel=True)
    field = screen.score(OutliersConfig(top_fraction=0.5))["field"]
    heirs = field[field["reason"] == "novel"]
    assert set(heirs[c.TREATMENT]) == {"HCS-1@1"}
    assert heirs["evidence"].str.startswith("HCS-1@1: its 3 wells agree").all()


def test_a_shifted_plate_does_not_stand_out() -> None:
    screen = Planted(2)
    plain = screen.score()
    screen.embeddings[(screen.fields[c.PLATE] == "P2").to_numpy()] += 30.0
    screen.index.loc[screen.fields[c.PLATE] == "P2", "QC_FocusScore_DNA"] *= 5.0
    for name, table in screen.score().items():
        pd.testing.assert_frame_equal(table, plain[name], rtol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), neighbors=st.integers(1, 200), fraction=st.floats(0.01, 1.0))
def test_ranks_are_a_permutation_and_row_order_does_not_matter(
    seed: int, neighbors: int, fraction: float
) -> None:
    screen, config = Planted(seed), OutliersConfig(neighbors=neighbors, top_fraction=fraction)
    tables = screen.score(config)
    for name, table in tables.items():
        assert table["rank"].tolist() == list(range(1, len(table) + 1))
        assert np.isfinite(table["score"]).all()
        assert table["score"].is_monotonic_decreasing
        assert (table["distance"] > 0).all()
        assert table["reason"].dropna().isin(["artefact", "mislabelled", "novel"]).all()
        assert table.loc[table["reason"].notna(), "evidence"].notna().all()
        identity = {"field": c.KEY, "well": "well", "treatment": c.TREATMENT}[name]
        for own, near in zip(table[identity], table["neighbours"], strict=True):
            assert own not in near
            assert len(set(near)) == len(near) == min(neighbors, len(table) - 1)
    order = np.random.default_rng(seed).permutation(len(screen.fields))
    shuffled = screen.fields.iloc[order].reset_index(drop=True)
    again = score_screen(shuffled, screen.embeddings[order], screen.index.iloc[::-1], config)
    for name, table in again.items():
        pd.testing.assert_frame_equal(table, tables[name])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 3), min_size=3, max_size=14))
def test_links_equal_a_naive_loop(seed: int, codes: list[int]) -> None:
    features = np.random.default_rng(seed).standard_normal((len(codes), 3))
    wells = pd.DataFrame({c.TREATMENT: [f"T{code}" for code in codes]})
    links = Links.between(wells, features)
    for i, own in enumerate(codes):
        others = {
            code: [j for j in range(len(codes)) if j != i and codes[j] == code] for code in sorted(set(codes))
        }
        distances = [
            np.mean([np.linalg.norm(features[i] - features[j]) for j in rows]) if rows else np.nan
            for rows in others.values()
        ]
        np.testing.assert_allclose(links.distance[i], distances, rtol=1e-6, atol=1e-6)
        rest = others[own]
        pairs = [np.linalg.norm(features[j] - features[k]) for j in rest for k in rest if j < k]
        expected = np.mean(pairs) if pairs else np.nan
        np.testing.assert_allclose(links.among_replicates[i], expected, atol=1e-6)


def test_what_cannot_be_compared_is_not_judged() -> None:
    treatments = pd.DataFrame(
        {
            c.TREATMENT: ["A@1", "B@1", "C@1", "C@3", "DMSO@0"],
            c.COMPOUND: ["A", "B", "C", "C", "DMSO"],
            c.MOA: [None, None, "Eg5", "Eg5", None],
        }
    )
    wells = pd.DataFrame({c.TREATMENT: ["A@1", "B@1", "B@1", "C@1", "C@1", "C@1", "C@3", "C@3", "DMSO@0"]})
    links = Links.between(wells, np.array([[0.0], [9.0], [9.5], [4.0], [4.2], [4.3], [4.1], [4.4], [0.1]]))
    judged = ~np.isnan(find_mislabelled(treatments, links).z)
    assert wells[c.TREATMENT][judged].tolist() == ["C@1"] * 3  # two replicates tell which of three is wrong
    novel = find_novel(treatments, links, pd.Series(["DMSO@0"]))
    assert np.isnan(novel.z).tolist() == [True, False, True, True, True]  # one well; judged; known; a control
    unlabelled = find_novel(treatments.assign(**{c.MOA: None}), links, pd.Series(["DMSO@0"]))
    assert np.isnan(unlabelled.z).all()  # nothing says how far is far


def test_robust_z_is_in_standard_deviations_of_a_normal_sample() -> None:
    sample = np.random.default_rng(0).normal(5, 3, 20_001)
    np.testing.assert_allclose(robust_z(sample), (sample - 5) / 3, atol=0.15)
    np.testing.assert_array_equal(robust_z(np.array([1.0, np.nan, 1.0])), [0.0, np.nan, 0.0])
    assert np.isnan(robust_z(np.full(3, np.nan))).all()


def test_equal_and_single_rows_have_a_score() -> None:
    distance, nearest = nearest_rows(np.ones((1, 4)), 7)
    assert (distance.tolist(), nearest.shape) == ([0.0], (1, 0))
    screen = Planted(0)
    treated = (screen.fields[c.COMPOUND] != "DMSO").to_numpy()
    screen.embeddings[treated] = screen.embeddings[treated][0]
    assert all(np.isfinite(table["score"]).all() for table in screen.score().values())
    screen.embeddings[~treated] = 1.0
    with pytest.raises(InputError, match="negative controls' embeddings are all equal"):
        screen.score()


def test_a_field_without_quality_is_named() -> None:
    screen = Planted(0)
    screen.index = screen.index[screen.index[c.KEY] != "P2_C04_s1"]
    with pytest.raises(InputError, match="P2_C04_s1 is not in the index"):
        screen.score()
    screen.index = Planted(0).fields[[c.KEY]]  # no QC columns at all: artefacts are not judged
    assert screen.score()["field"]["artefact"].isna().all()


def test_the_stage_writes_three_tables_and_is_then_complete(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text("outliers: {top_fraction: 0.1}\n")
    study, screen = open_study(str(tmp_path)), Planted(3, novel=True, look={"P1_C02": "Aurora1"})
    screen.spoil("P2_C03_s1", "QC_FocusScore_DNA", 0.1)
    embedded = screen.fields.assign(**{c.EMBEDDING: list(screen.embeddings.astype(np.float32))})
    upstream = {
        "shard": {"index.parquet": screen.index},
        "split": {},
        "train": {},
        "embed": {"0.parquet": embedded},
    }
    for stage, tables in upstream.items():
        with study.writing(stage, study.claim(stage)) as writer:
            for name, table in tables.items():
                writer.write_table(name, table)
    seen: list[tuple[int, int]] = []
    figures = find_outliers(study, lambda *step: seen.append(step))
    assert figures["mislabelled wells"] == figures["novel treatments"] == 1
    assert figures["artefact fields"] >= 1
    assert figures["most outlying"].startswith("P2_C03_s1, ")
    assert seen[-1] == (2, 2)
    files = {path.name: path.read_bytes() for path in (tmp_path / "outliers/main").glob("*.parquet")}
    assert sorted(files) == ["field.parquet", "treatment.parquet", "well.parquet"]
    field = pd.read_parquet(tmp_path / "outliers/main/field.parquet")
    assert len(field) == len(screen.fields)
    assert field.loc[0, c.KEY] == "P2_C03_s1"
    seen.clear()
    assert find_outliers(study, lambda *step: seen.append(step)) == figures
    assert not seen
    find_outliers(study, lambda *step: None, force=True)
    assert files == {path.name: path.read_bytes() for path in (tmp_path / "outliers/main").glob("*.parquet")}
