"""The bake-off of normalisations: its gauges against naive ones, and a choice that no MoA label can sway."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from copairs.map import average_precision
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import balanced_accuracy_score

from hcs_ray.config import ProfileConfig
from hcs_ray.contracts import (
    BATCH,
    MOA,
    NEGATIVE_CONTROL,
    PERT_TYPE,
    PLATE,
    TREATMENT,
    WELL,
    InputError,
    rows_of,
)
from hcs_ray.profiles.aggregate import Float64, exclude_controls
from hcs_ray.profiles.bake_off import (
    CANDIDATE,
    CHOSEN,
    METHOD,
    REPLICATE_MAP,
    RULE,
    SKIPPED,
    WEEK_EXCESS,
    Comparison,
    bake_off,
    biology,
    choose,
    gauge,
)
from hcs_ray.profiles.batch_gauges import (
    halves,
    hidden,
    lisi,
    plate_predictability,
    predictability,
    week_predictability,
)
from hcs_ray.profiles.build import profile
from hcs_ray.profiles.compare import compare, read_comparison, show_comparison
from hcs_ray.profiles.compare_picture import picture
from hcs_ray.profiles.controls import is_control
from hcs_ray.profiles.normalize import METHODS, normalize
from hcs_ray.profiles.retrieval import Design, average_precisions, directions, replicates
from hcs_ray.study import open_study
from tests import scored_study
from tests.command import hcs_ray, refused
from tests.drawn_wells import drawn_wells
from tests.ljosa import bbbc021_wells, cellprofiler_wells
from tests.report_study import make_study, quiet
from tests.test_exclusions import drawn_index

QUICK = ProfileConfig(resamples=200)

# --- Replicates -------------------------------------------------------------------------------------------


def _treated(seed: int, **kwargs: Any) -> tuple[pd.DataFrame, Float64]:
    meta, features = exclude_controls(*drawn_wells(seed, **kwargs))
    return meta, np.asarray(features, dtype=np.float64)


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
def test_average_precisions_are_those_of_copairs(metric: Any) -> None:
    meta, features = _treated(1, plates=3)
    design = Design.of(meta, seed=0)
    unit = directions(features, metric)
    for positives, negatives, pairs in (
        (([TREATMENT], [PLATE]), ([BATCH], [TREATMENT]), (design.positives, design.negatives)),
        (
            ([WELL], [BATCH, TREATMENT]),
            ([], [BATCH, TREATMENT, WELL]),
            (design.null_positives, design.null_negatives),
        ),
    ):
        ours = average_precisions(design.meta, unit, *pairs)
        theirs = average_precision(
            meta, features, *positives, *negatives, distance=metric, progress_bar=False
        )
        for column in ("average_precision", "normalized_average_precision", "n_pos_pairs", "n_total_pairs"):
            np.testing.assert_allclose(ours[column], theirs[column], atol=1e-6)


def test_mean_average_precision_is_that_of_a_naive_loop() -> None:
    meta, features = _treated(2, plates=3, moa_effect=1.0)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    rows = meta.to_dict("records")
    by_treatment: dict[str, list[float]] = {}
    for one, query in enumerate(rows):
        ranked = []
        for other, found in enumerate(rows):
            replicate = found[TREATMENT] == query[TREATMENT] and found[PLATE] != query[PLATE]
            if replicate or (found[TREATMENT] != query[TREATMENT] and found[BATCH] == query[BATCH]):
                ranked.append((float(unit[one] @ unit[other]), replicate))
        relevant = [replicate for _, replicate in sorted(ranked, key=lambda pair: -pair[0])]
        hits = np.cumsum(relevant)
        precisions = [hits[place] / (place + 1) for place in np.flatnonzero(relevant)]
        by_treatment.setdefault(str(query[TREATMENT]), []).append(float(np.mean(precisions)))
    expected = np.mean([np.mean(found) for found in by_treatment.values()])
    result = replicates(Design.of(meta, 0), features, "cosine", 200, 0)
    assert result.mean_average_precision == pytest.approx(expected, abs=1e-6)
    assert result.treatments == len(by_treatment) == 24
    assert 0.0 < result.normalized < result.mean_average_precision


def test_replicates_that_agree_are_retrieved_and_a_position_alone_is_seen_in_its_null() -> None:
    meta, features = _treated(3, plates=3, week_effect=0.0, plate_effect=0.0, moa_effect=0.0)
    noise = replicates(Design.of(meta, 0), features, "cosine", 1000, 0)
    assert noise.retrieved <= 0.1
    assert abs(noise.normalized) < 0.15
    codes = pd.factorize(meta[TREATMENT])[0]
    own = np.random.default_rng(0).normal(size=(24, 8))[codes]
    strong = replicates(Design.of(meta, 0), 10 * own + features, "cosine", 1000, 0)
    assert (round(strong.normalized, 9), strong.retrieved) == (1.0, 1.0)
    assert abs(strong.position_normalized or 1.0) < 0.3
    place = np.random.default_rng(0).normal(size=(8, 8))[pd.factorize(meta[WELL])[0]]
    alone = replicates(Design.of(meta, 0), 10 * place + features, "cosine", 1000, 0)
    assert alone.normalized == pytest.approx(1.0)
    assert alone.position_normalized == pytest.approx(1.0)


def test_without_replicates_on_other_plates_nothing_can_be_said() -> None:
    with pytest.raises(InputError, match="no treatment has wells on two plates"):
        Design.of(_treated(4, plates=1)[0], 0)
    meta, features = _treated(4, weeks=1)
    design = Design.of(meta, 0)  # one week: no two treatments share a position
    assert replicates(design, features, "cosine", 100, 0).position_normalized is None


# --- What is left of batches ------------------------------------------------------------------------------


def test_a_probe_tells_what_is_there_and_guesses_where_nothing_is() -> None:
    meta, features = drawn_wells(5, plates=4, controls=12, week_effect=4.0)
    control = is_control(meta)
    told = week_predictability(meta[control], features[control])
    assert told is not None
    assert (told.accuracy, told.labels) == (1.0, 3)
    assert told.chance == pytest.approx(1 / 3)
    random = np.random.default_rng(0).normal(size=features.shape)
    found = [week_predictability(meta[control], random[control] + shift) for shift in (0.0, 1.0)]
    assert all(one is not None and abs(one.excess) < 0.15 for one in found)


def test_the_week_is_not_told_by_plates_that_the_probe_has_seen() -> None:
    """Plates far apart, weeks not: a probe that had seen other wells of the plate would be right."""
    excess = []
    for seed in range(6):
        meta, features = drawn_wells(seed, plates=4, week_effect=0.0, plate_effect=5.0, features=20)
        control = is_control(meta)
        week = week_predictability(meta[control], features[control])
        plate = plate_predictability(meta[control], features[control])
        assert week is not None
        assert plate is not None
        assert plate.accuracy > 0.9
        excess.append(week.excess)
    assert abs(float(np.mean(excess))) < 0.15


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 7))
def test_the_probe_is_that_of_a_naive_loop_over_left_out_groups(seed: int, groups: int) -> None:
    random = np.random.default_rng(seed)
    labels = pd.Series(np.repeat(["a", "b", "c"], 3 * groups))
    names = pd.Series([f"{label}{number % groups}" for number, label in enumerate(labels)])
    features = random.normal(size=(len(labels), 5)) + (labels == "b").to_numpy()[:, None]
    found = predictability(features, labels, names)
    guessed = np.empty(len(labels), dtype=object)
    fold = names.str[1:].astype(int) % 5
    for one in sorted(set(fold)):
        train = (fold != one).to_numpy()
        center, spread = features[train].mean(axis=0), features[train].std(axis=0)
        x = (features - center) / spread
        weights = np.array([1 / (3 * (labels[train] == name).mean()) for name in labels[train]])
        for_each = []
        for name in ("a", "b", "c"):
            target = np.where(labels[train] == name, 1.0, -1.0)
            middle = (weights[:, None] * x[train]).sum(axis=0) / weights.sum()
            level = (weights * target).sum() / weights.sum()
            a = x[train] - middle
            slope = np.linalg.solve(
                a.T @ (weights[:, None] * a) + 5 * np.eye(5), a.T @ (weights * (target - level))
            )
            for_each.append((x[~train] - middle) @ slope + level)
        guessed[~train] = np.array(["a", "b", "c"], dtype=object)[np.argmax(for_each, axis=0)]
    assert found is not None
    assert found.accuracy == pytest.approx(balanced_accuracy_score(labels, guessed.astype(str)))


def test_a_label_in_one_group_cannot_be_told() -> None:
    meta, features = drawn_wells(6, plates=1)
    assert week_predictability(meta, features) is None
    assert plate_predictability(meta, features) is not None


def test_lisi_counts_the_weeks_around() -> None:
    meta, features = drawn_wells(7, controls=40, week_effect=50.0, plate_effect=0.0)
    control = is_control(meta)
    apart, at_random = lisi(meta[control], features[control])
    assert apart == pytest.approx(1.0, abs=1e-6)
    assert at_random == pytest.approx(3.0)
    mixed, _ = lisi(meta[control], np.random.default_rng(0).normal(size=(240, 8)))
    assert 2.6 < mixed <= 3.0


def test_controls_are_gauged_by_what_was_not_fitted_to_them() -> None:
    meta, features = drawn_wells(8, plates=4, controls=7, plate_effect=0.0, week_effect=0.0)
    first, second = halves(meta)
    assert not (first & second).any()
    np.testing.assert_array_equal(first | second, is_control(meta))
    counts = pd.DataFrame({PLATE: meta[PLATE], "first": first, "second": second}).groupby(PLATE).sum()
    assert (counts["first"].unique().tolist(), counts["second"].unique().tolist()) == ([4], [3])
    masked = hidden(meta, first)
    assert ((masked[PERT_TYPE] == NEGATIVE_CONTROL).to_numpy() == second).all()
    assert (meta[PERT_TYPE] == NEGATIVE_CONTROL).sum() == 84
    shuffled = meta.sample(frac=1.0, random_state=0)
    assert set(shuffled[halves(shuffled)[0]].index) == set(np.flatnonzero(first))
    # Centred by themselves, plates cannot be told; centred by others, the noise of that shows.
    seen = plate_predictability(meta[first], normalize(meta, features, "center").features[first])
    unseen = plate_predictability(meta[first], normalize(masked, features, "center").features[first])
    assert seen is not None
    assert unseen is not None
    assert unseen.excess > seen.excess + 0.05


def test_a_plate_of_few_controls_cannot_be_halved() -> None:
    meta, _ = drawn_wells(9, controls=3)
    (both,) = halves(meta)
    np.testing.assert_array_equal(both, is_control(meta))


# --- The choice -------------------------------------------------------------------------------------------


def _by_method(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {row[METHOD]: row for row in rows_of(table)}


def _gauges(*rows: tuple[str, float, float]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=[METHOD, REPLICATE_MAP, WEEK_EXCESS])


def test_the_rule_takes_the_best_replicates_that_leave_no_more_of_the_week() -> None:
    assert choose(_gauges(("none", 0.3, 0.5), ("center", 0.4, 0.2), ("tvn", 0.6, 0.6))) == "center"
    assert choose(_gauges(("none", 0.3, 0.5), ("center", 0.4, 0.2), ("tvn", 0.6, 0.5))) == "tvn"
    assert choose(_gauges(("none", 0.7, 0.5), ("center", 0.4, 0.2), ("tvn", 0.6, 0.1))) == "none"
    assert choose(_gauges(("tvn", 0.6, 0.1), ("sphere", 0.5995, 0.1), ("none", 0.3, 0.5))) == "sphere"
    assert choose(_gauges(("none", 0.3, np.nan), ("tvn", 0.6, np.nan), ("harmony", np.nan, np.nan))) == "tvn"


@pytest.fixture(scope="module")
def drawn() -> tuple[pd.DataFrame, Float64]:
    return drawn_wells(20, weeks=4, plates=3, controls=6, compounds=6, features=12, week_effect=1.5)


@pytest.fixture(scope="module")
def compared(drawn: tuple[pd.DataFrame, Float64]) -> Comparison:
    return bake_off(*drawn, QUICK)


def test_the_choice_is_the_same_whatever_the_labels_say(
    drawn: tuple[pd.DataFrame, Float64], compared: Comparison
) -> None:
    meta, features = drawn
    treatments = meta.loc[meta[MOA].notna(), [TREATMENT, MOA]].drop_duplicates()
    shuffled = np.random.default_rng(1).permutation(treatments[MOA])
    labels = dict(zip(treatments[TREATMENT], shuffled, strict=True))
    permuted = meta.assign(**{MOA: meta[TREATMENT].map(labels)})
    other = bake_off(permuted, features, QUICK)
    scores = [name for name in compared.table.columns if name.startswith(("nsc", "same_week"))]
    pd.testing.assert_frame_equal(compared.table.drop(columns=scores), other.table.drop(columns=scores))
    assert compared.chosen == other.chosen
    best = compared.table["nscb_correct"].to_numpy()
    assert (best > 2 * other.table["nscb_correct"].to_numpy()).all()


def test_what_chooses_never_sees_a_label(drawn: tuple[pd.DataFrame, Float64], compared: Comparison) -> None:
    meta, features = drawn
    gauges, profiles, _, _ = gauge(meta.drop(columns=MOA), features, QUICK, lambda done, total: None)
    assert choose(gauges) == compared.chosen
    assert not [name for name in map(str, gauges.columns) if "nsc" in name or "moa" in name.lower()]
    assert set(profiles) == set(METHODS)
    assert biology(meta.assign(**{MOA: None}), profiles, QUICK, ()).columns.tolist() == [METHOD]
    scores = biology(meta, profiles, QUICK, leaked={"w0c0", "w1c1"})
    assert (scores["nsc_total"] - scores["nsc_held_out_total"]).tolist() == [4] * len(METHODS)
    pd.testing.assert_series_equal(scores["nscb_correct"], compared.table["nscb_correct"])


def test_the_comparison_holds_every_normalisation_and_says_what_it_did(compared: Comparison) -> None:
    table = compared.table
    assert table[METHOD].tolist() == list(METHODS)
    assert table[CHOSEN].sum() == 1
    assert table.loc[table[METHOD] == "none", CANDIDATE].all()
    assert (table["nscb_total"] > 0).all()
    assert (table["nsc_low"] <= table["nsc_correct"] / table["nsc_total"]).all()
    document = json.loads(json.dumps(compared.to_dict(), allow_nan=False))
    assert document["rule"] == RULE
    assert document["chosen"] == compared.chosen
    assert list(document["methods"]) == list(METHODS)
    assert "no treatment or label" in document["methods"]["tvn"]["stated"]["shrinkage_chosen"]
    assert "as the other half normalises it" in document["batch_effects"]["measured_on"]
    rows = _by_method(table)
    assert rows["none"][WEEK_EXCESS] > 0.5
    assert rows["center"][WEEK_EXCESS] < rows["none"][WEEK_EXCESS] - 0.3
    assert rows["center"]["lisi_weeks"] > rows["none"]["lisi_weeks"] + 0.5


def test_the_picture_is_the_same_for_the_same_table(compared: Comparison) -> None:
    drawn = picture(compared.table)
    assert drawn.startswith(b"<?xml")
    assert drawn == picture(compared.table)
    scored = [name for name in compared.table.columns if name.startswith(("nsc", "same_week"))]
    assert len(picture(compared.table.drop(columns=scored))) < len(drawn)


def test_what_cannot_be_made_stands_in_the_table_with_the_reason() -> None:
    result = bake_off(*drawn_wells(21, weeks=1, plates=3), QUICK)
    rows = _by_method(result.table)
    why = {name: row[SKIPPED] for name, row in rows.items() if row[SKIPPED]}
    assert list(why) == ["coral", "tvn", "combat", "harmony"]
    assert all("nothing to align" in reason for reason in why.values())
    assert not rows["coral"][CANDIDATE]
    assert np.isnan(result.table[WEEK_EXCESS]).all()  # one week cannot be told from another
    assert len(picture(result.table)) > 1000
    json.dumps(result.to_dict(), allow_nan=False)


def test_without_controls_nothing_tells_what_is_left_of_batches() -> None:
    meta, features = drawn_wells(22)
    treated = ~is_control(meta)
    with pytest.raises(InputError, match="no well is a negative control"):
        bake_off(meta[treated].reset_index(drop=True), features[treated], QUICK)


# --- The command ------------------------------------------------------------------------------------------


def test_the_table_has_all_that_were_made_where_others_could_not_be(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """pandas 3, or 2 when told so, reads a missing text of a Parquet file as NaN, which is true."""
    index = drawn_index()
    index = index[index[BATCH] == "W0"].reset_index(drop=True)
    study = scored_study.make_study(tmp_path, index, {"profile": {"resamples": 20}})
    scored_study.train(study)
    random = np.random.default_rng(0)
    chances = random.dirichlet((1, 1, 1), len(index))
    says = {name: chances[:, number] for number, name in enumerate("ABC")}
    scored_study.embed(study, random.normal(size=(len(index), 5)), says)
    compare(study, quiet)
    with pd.option_context("future.infer_string", True):
        show_comparison(study)
    printed = capsys.readouterr().err
    lines = {line.strip(" *").partition(" ")[0]: line for line in printed.splitlines()}
    assert "nothing to align" in lines["tvn:"]
    assert all(name in lines for name in ("none", "center_scale", "sphere"))
    assert "nan" not in printed


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared") / "study"
    folder.mkdir()
    make_study(folder)
    done = hcs_ray("profile", folder, "--compare", "--json")
    (folder.parent / "printed").write_text(done.stderr)
    (folder.parent / "figures").write_text(done.stdout)
    return folder


def test_the_command_prints_a_table_and_the_next_step(study: Path) -> None:
    printed = (study.parent / "printed").read_text()
    table, document = read_comparison(open_study(str(study)))
    assert all(name in printed for name in METHODS)
    assert f"* {document['chosen']}" in printed
    assert json.loads((study.parent / "figures").read_text()) == {
        "chosen": document["chosen"],
        "configured": "center_scale",
    }
    assert f"--set profile.normalization={document['chosen']} --force" in printed
    assert "some plate has fewer than four" in document["batch_effects"]["measured_on"]
    assert table[METHOD].tolist() == list(METHODS)
    assert (study / "profiles/main/comparison.svg").read_bytes().startswith(b"<?xml")


def test_it_is_complete_whatever_normalisation_is_configured(study: Path) -> None:
    again = hcs_ray("profile", study, "--compare", "--set", "profile.normalization=tvn")
    assert "compare   complete" in again.stderr
    stale = refused("profile", study, "--compare", "--set", "profile.metric=correlation")
    assert "profile.metric changed from cosine to correlation" in stale
    assert "one at a time" in refused("profile", study, "--compare", "--folds", "loco")


def test_its_files_are_verified_and_survive_new_profiles(study: Path, tmp_path: Path) -> None:
    shutil.copytree(study, tmp_path / "study")
    before = (tmp_path / "study/profiles/main/comparison.json").read_bytes()
    profile(open_study(str(tmp_path / "study")), quiet, force=True)
    assert (tmp_path / "study/profiles/main/comparison.json").read_bytes() == before
    compare(open_study(str(tmp_path / "study")), quiet, force=True)
    assert (tmp_path / "study/profiles/main/comparison.json").read_bytes() == before
    assert (tmp_path / "study/profiles/main/well.parquet").exists()
    (tmp_path / "study/profiles/main/comparison.svg").write_text("drawn by somebody else")
    found = hcs_ray("verify", tmp_path / "study")
    assert found.returncode == 1
    assert "profiles/main/comparison.svg: damaged" in found.stdout
    assert "hcs-ray profile STUDY --compare --force" in found.stderr


# --- On the real screen -----------------------------------------------------------------------------------


@pytest.mark.soak
def test_the_rule_chooses_well_on_the_published_profiles(shared: Path) -> None:
    """Of controls and replicates alone: sphering, with the most NSC (94/103) and NSCB (68/92) of all.

    Prints the table of docs/profiles.md (``-s``).
    """
    meta, features = cellprofiler_wells(shared, bbbc021_wells(shared))
    result = bake_off(meta, features, ProfileConfig())
    print("\n| | mAP | null | week | plate | LISI | same week | NSC | NSCB |\n" + "|---" * 9 + "|")
    for row in rows_of(result.table):
        gauges = f"{row[REPLICATE_MAP]:.3f} | {row['position_map_normalized']:.3f} | {row[WEEK_EXCESS]:+.2f}"
        rest = f"{row['plate_excess']:+.2f} | {row['lisi_weeks']:.1f} | {row['same_week_share']:.0%}"
        hits = f"{row['nsc_correct']} | {row['nscb_correct']}"
        print(f"| {row[METHOD]} | {gauges} | {rest} | {hits} |")
    assert result.chosen == "sphere"
    chosen = _by_method(result.table)["sphere"]
    assert (chosen["nsc_correct"], chosen["nscb_correct"]) == (94, 68)
    assert (max(result.table["nsc_correct"]), max(result.table["nscb_correct"])) == (94, 68)
