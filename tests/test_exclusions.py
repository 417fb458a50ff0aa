"""Leaving fields out: counted aloud, with the same denominator, and what loses all its fields is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import ProfileConfig
from hcs_ray.contracts import InputError
from hcs_ray.profiles.aggregate import Float64, to_wells
from hcs_ray.profiles.build import headline, profile, read_evaluation
from hcs_ray.profiles.exclusions import (
    LOST,
    Exclusions,
    evaluate_kept,
    flag_columns,
    flagged,
    kept_figures,
    lost_treatments,
)
from hcs_ray.profiles.score import Settings, evaluate_wells
from tests import scored_study
from tests.scored_study import quiet

CONFIG = ProfileConfig(normalization="none", resamples=30)
QUICK = Settings(resamples=30)


def _fields(seed: int) -> tuple[pd.DataFrame, Float64]:
    """Two sites in each of two wells of 14 treatments of 7 compounds, of 3 mechanisms, in 3 weeks."""
    random = np.random.default_rng(seed)
    rows = [
        {
            c.KEY: f"p{plate}_{treatment}_s{site}", c.PLATE: f"p{treatment % 3}{plate}",
            c.WELL: f"w{treatment}", c.BATCH: f"b{treatment % 3}", c.COMPOUND: f"c{treatment // 2}",
            c.TREATMENT: f"c{treatment // 2}@{treatment}",
            c.MOA: f"m{treatment // 2 % 3}", c.PERT_TYPE: c.TREATED,
        }
        for treatment in range(14)
        for plate in range(2)
        for site in range(2)
    ]  # fmt: skip
    return pd.DataFrame(rows), random.normal(size=(len(rows), 4))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.floats(0, 1), st.integers(1, 2))
def test_the_denominator_stays_and_what_is_lost_is_wrong(seed: int, share: float, minimum: int) -> None:
    meta, features = _fields(seed)
    whole = evaluate_wells(*to_wells(meta, features, "mean"), "mean", QUICK, {"c0"})
    left = np.random.default_rng(seed + 1).random(len(meta)) >= share
    wells, profiles = to_wells(meta[left], features[left], "mean", minimum)
    found = evaluate_kept(whole, wells, profiles, CONFIG, {"c0"})
    there = set(wells[c.TREATMENT])
    for before, after in ((whole.nsc, found.nsc), (whole.nscb, found.nscb)):
        assert after.overall.total == before.overall.total
        assert after.held_out.total == before.held_out.total
        assert after.dropped == before.dropped
        lost = after.queries[after.queries[LOST]]
        assert set(lost[c.TREATMENT]) == set(meta[c.TREATMENT]) - there
        assert not lost["correct"].any()
        expected = _naive_hits(wells, profiles, before.guard, set(before.scored[c.TREATMENT]))
        assert after.overall.correct == expected
    assert json.loads(json.dumps(kept_figures(found), allow_nan=False))["nsc"][
        "lost_counted_as_wrong"
    ] == len(lost_treatments(found))
    if left.all() and minimum == 1:
        assert found.nscb.overall == whole.nscb.overall
        assert found.gauge == whole.gauge


def _naive_hits(wells: pd.DataFrame, profiles: Float64, guard: str, asked: set[str]) -> int:
    """Queries whose nearest neighbour among what is left has their MoA, pair by pair."""
    groups = wells.groupby(c.TREATMENT).indices
    about = {str(row[c.TREATMENT]): row for row in c.rows_of(wells)}
    means = {str(name): profiles[rows].mean(axis=0) for name, rows in groups.items()}
    hits = 0
    for one in asked & set(means):
        nearest = None
        for other in sorted(means):
            same_batch = about[one][c.BATCH] == about[other][c.BATCH]
            if about[one][c.COMPOUND] == about[other][c.COMPOUND] or (guard == "NSCB" and same_batch):
                continue
            cosine = means[one] @ means[other] / np.linalg.norm(means[one]) / np.linalg.norm(means[other])
            if nearest is None or cosine > nearest[0]:
                nearest = (cosine, other)
        hits += nearest is not None and about[one][c.MOA] == about[nearest[1]][c.MOA]
    return hits


def test_reasons_add_up_and_flags_are_named() -> None:
    flag_x, flag_y = [True, False, True, False], [True, False, False, False]
    index = pd.DataFrame({c.KEY: list("abcd"), "QC_Flag_X": flag_x, "QC_Flag_Y": flag_y})
    flags = flagged(index, flag_columns(index.columns, "all"))
    assert flags.reasons == {"a": ("QC_Flag_X", "QC_Flag_Y"), "c": ("QC_Flag_X",)}
    labels = Exclusions({"c": ("label: artefact",), "d": ("label: artefact",)})
    joined = Exclusions.join([flags, labels])
    assert joined.reasons["c"] == ("QC_Flag_X", "label: artefact")
    assert joined.counts == {"QC_Flag_X": 2, "QC_Flag_Y": 1, "label: artefact": 2}
    assert joined.restrict("ab").counts == {"QC_Flag_X": 1, "QC_Flag_Y": 1}
    assert flag_columns(index.columns, "none") == []
    assert flag_columns(index.columns, ["QC_Flag_Y"]) == ["QC_Flag_Y"]
    with pytest.raises(InputError, match=r"no flag QC_Flag_Z; there are: QC_Flag_X, QC_Flag_Y"):
        flag_columns(index.columns, ["QC_Flag_Z"])


# --- A study ------------------------------------------------------------------------------------------------

MOAS = {"A": 4, "B": 4, "C": 4}
FLAGS = tuple(f"{c.QC_PREFIX}Flag_{name}" for name in ("Debris", "Empty"))


def drawn_index() -> pd.DataFrame:
    """Three weeks of two plates; two sites a well, two wells a treatment, four wells of DMSO a plate."""
    rows = []
    names = [(f"{moa.lower()}{number}", moa) for moa, count in MOAS.items() for number in range(count)]
    for week in range(3):
        here = [entry for place, entry in enumerate(names) if place % 3 == week]
        wells = [("DMSO", None)] * 4 + here
        for plate in range(2):
            for place, (compound, moa) in enumerate(wells):
                for site in (1, 2):
                    where = (f"W{week}P{plate}", f"B{place + 2:02d}", site)
                    rows.append(
                        {
                            c.KEY: c.field_key(*where), c.BATCH: f"W{week}", c.PLATE: where[0],
                            c.WELL: where[1], c.SITE: site, c.COMPOUND: compound, c.MOA: moa,
                            c.TREATMENT: f"{compound}@{0 if moa is None else 1}",
                            c.PERT_TYPE: c.NEGATIVE_CONTROL if moa is None else c.TREATED,
                        }
                    )  # fmt: skip
    return pd.DataFrame(rows).sort_values(c.KEY, ignore_index=True).assign(**dict.fromkeys(FLAGS, False))


def profiled(folder: Path, index: pd.DataFrame, config: dict[str, Any]) -> dict[str, Any]:
    """``evaluation.json`` of a study in which most treatments lie near their mechanism."""
    random = np.random.default_rng(0)
    settings = {"normalization": "center", "resamples": 50, **config}
    study = scored_study.make_study(folder, index, {"profile": settings})
    scored_study.train(study)
    codes = pd.factorize(index[c.MOA])[0]
    features = np.eye(5)[codes] * 2 + random.normal(size=(len(index), 5))
    chances = random.dirichlet((1, 1, 1), len(index))
    scored_study.embed(study, features, {name: chances[:, n] for n, name in enumerate(MOAS)})
    profile(study, quiet)
    return read_evaluation(study)


def test_the_two_evaluations_stand_side_by_side(tmp_path: Path) -> None:
    index = drawn_index()
    gone = index[c.COMPOUND] == "a0"
    flags = index.assign(**{FLAGS[0]: gone | (index[c.KEY] == index[c.KEY].iloc[0]), FLAGS[1]: gone})
    found = profiled(tmp_path / "flagged", flags, {})
    plain = profiled(tmp_path / "plain", index, {})
    for guard in ("nsc", "nscb"):
        assert found[guard] == plain[guard], "the scores of all fields do not know of flags"
        assert found["excluded"]["scores"][guard]["total"] == plain[guard]["total"]
    excluded = found["excluded"]
    assert (excluded["fields"], excluded["fields_of"]) == (5, len(index))
    assert excluded["by_reason"] == {FLAGS[0]: 5, FLAGS[1]: 4}
    assert excluded["treatments_lost"] == ["a0@1"]
    assert excluded["wells_lost"] == 2
    assert excluded["scores"]["nsc"]["lost_counted_as_wrong"] == 1
    assert plain["excluded"]["scores"] is None
    said = headline(found)["without excluded fields"]["text"]
    assert (
        "1 treatment lost all fields, counted as wrong; left out: 5 of 96 fields (5 Debris, 4 Empty)" in said
    )
    assert "without excluded fields" not in headline(plain)


def test_only_the_named_flags_count_and_small_wells_too(tmp_path: Path) -> None:
    index = drawn_index()
    one_site = index[index[c.COMPOUND] == "a0"].groupby(c.WELL)[c.KEY].first()
    flags = index.assign(**{FLAGS[0]: index[c.KEY].isin(one_site), FLAGS[1]: index[c.COMPOUND] == "b0"})
    found = profiled(tmp_path / "one", flags, {"exclude": [FLAGS[0]]})["excluded"]
    assert found["by_reason"] == {FLAGS[0]: len(one_site)}
    assert found["treatments_lost"] == []
    found = profiled(tmp_path / "two", flags, {"exclude": [FLAGS[0]], "minimum_fields": 2})["excluded"]
    assert found["wells_too_small"] == len(one_site)
    found = profiled(tmp_path / "none", flags, {"exclude": "none"})["excluded"]
    assert found["fields"] == 0
    with pytest.raises(InputError, match=r"no flag QC_Flag_Blur; there are: QC_Flag_Debris, QC_Flag_Empty"):
        profiled(tmp_path / "unknown", flags, {"exclude": ["QC_Flag_Blur"]})


def test_tables_and_headline_do_without_them_where_they_are_told_to(tmp_path: Path) -> None:
    index = drawn_index()
    flags = index.assign(**{FLAGS[0]: index[c.COMPOUND] == "a0"})
    found = profiled(tmp_path / "study", flags, {"drop_excluded": True})
    plain = profiled(tmp_path / "plain", flags, {})
    assert found["nscb"]["correct"] == plain["excluded"]["scores"]["nscb"]["correct"]
    assert found["all_fields"]["nscb"]["correct"] == plain["nscb"]["correct"]
    wells = pd.read_parquet(tmp_path / "study/profiles/main/well.parquet")
    assert "a0" not in set(wells[c.COMPOUND])
    assert "a0" in set(pd.read_parquet(tmp_path / "plain/profiles/main/well.parquet")[c.COMPOUND])


def test_treatments_that_were_not_embedded_are_told(tmp_path: Path) -> None:
    index = drawn_index()
    index[FLAGS[0]] = index[c.COMPOUND].isin(["b0", "b1"])
    study = scored_study.make_study(
        tmp_path, index, {"profile": {"normalization": "center", "resamples": 20}}
    )
    scored_study.train(study)
    there = (index[c.COMPOUND] != "b1") & (index[c.KEY] != index[c.KEY].iloc[0])
    random = np.random.default_rng(0)
    chances = random.dirichlet((1, 1, 1), int(there.sum()))
    says = {name: chances[:, number] for number, name in enumerate(MOAS)}
    scored_study.embed(study, random.normal(size=(len(chances), 5)), says, kept=there)
    profile(study, quiet)
    found = read_evaluation(study)
    assert found["not_embedded"] == {"fields": 5, "treatments": ["b1@1"]}
    told = headline(found)["not embedded"]
    assert told["text"] == "5 fields; labelled treatments without any, in no denominator: 1"
    excluded = found["excluded"]
    assert (excluded["fields"], excluded["fields_of"]) == (4, len(index) - 5), "only of embedded fields"
    assert (excluded["by_reason"], excluded["wells_lost"]) == ({FLAGS[0]: 4}, 2)


def test_a_plate_that_loses_its_controls_cannot_be_scored_and_says_so(tmp_path: Path) -> None:
    index = drawn_index()
    lost = (index[c.PLATE] == "W1P0") & (index[c.PERT_TYPE] == c.NEGATIVE_CONTROL)
    flags = index.assign(**{FLAGS[0]: lost})
    found = profiled(tmp_path / "study", flags, {})["excluded"]
    assert "plate W1P0 has too few negative controls" in found["impossible"]
    assert found["scores"] is None
    with pytest.raises(InputError, match=r"profile.drop_excluded: without the excluded fields: plate W1P0"):
        profiled(tmp_path / "dropped", flags, {"drop_excluded": True})
