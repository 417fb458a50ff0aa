"""What ``labels.exclude`` leaves out, of trainings, profiles, folds and outliers, and that it is told."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from hcs_ray import contracts as c
from hcs_ray.config import SweepConfig, with_overrides
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.labels import decide, undo
from hcs_ray.model.targets import ANCHOR, EXCLUDED, LISTED, side_table
from hcs_ray.outliers.find import find_outliers, read_outliers
from hcs_ray.pipeline import STAGES
from hcs_ray.profiles.build import headline, profile, read_evaluation
from hcs_ray.profiles.fold_stage import profile_folds, read_folds
from hcs_ray.stage import StaleStageError, parquet_bytes
from hcs_ray.storage import Storage
from hcs_ray.study import Study, open_study
from hcs_ray.train import train
from hcs_ray.train.job import prepare
from hcs_ray.tune.space import Space
from hcs_ray.tune.trials import Work, job_of
from hcs_ray.verify import verify
from tests import scored_study
from tests.scored_study import quiet
from tests.test_exclusions import MOAS, drawn_index
from tests.test_fold_stage import sweep_of
from tests.test_folds import drawn
from tests.test_outliers import Planted, fixed_size
from tests.training_study import draw_study

BAD = {"labels": {"exclude": ["bad", "tag:debris"]}}
LABELLED = ("train", "profile", "outliers", "tune", "folds", "compare")


def opened(study: Study, *overrides: str) -> Study:
    """The study as the next command sees it."""
    again = open_study(study.storage.url, overrides=overrides)
    return replace(again, name=study.name, folds=study.folds)


def bad(storage: Storage, *keys: str) -> str:
    return decide(storage, "Ana", keys, verdict="bad").id


@pytest.fixture
def index() -> pd.DataFrame:
    return drawn_index()


def embedded(folder: Path, index: pd.DataFrame, config: dict[str, Any]) -> Study:
    """A study as far as its embeddings, in which most treatments lie near their mechanism."""
    settings = {"profile": {"normalization": "center", "resamples": 30, "exclude": "none"}, **config}
    study = scored_study.make_study(folder, index, settings)
    scored_study.train(study)
    random = np.random.default_rng(0)
    features = np.eye(5)[pd.factorize(index[c.MOA])[0]] * 2 + random.normal(size=(len(index), 5))
    chances = random.dirichlet((1, 1, 1), len(index))
    scored_study.embed(study, features, {name: chances[:, n] for n, name in enumerate(MOAS)})
    return opened(study)


# --- Claims -------------------------------------------------------------------------------------------------


def test_without_exclusions_no_claim_knows_of_labels(tmp_path: Path, index: pd.DataFrame) -> None:
    study = embedded(tmp_path, index, {})
    before = {stage: study.claim(stage) for stage in LABELLED if stage != "folds"}
    bad(study.storage, index[c.KEY][0])
    for stage, claim in before.items():
        assert "labels" not in claim.config
        assert opened(study).claim(stage) == claim


def test_the_claim_changes_with_the_set_and_with_nothing_else(tmp_path: Path, index: pd.DataFrame) -> None:
    study = embedded(tmp_path, index, BAD)
    one, two, three = index[c.KEY][:3]
    storage = study.storage
    first = bad(storage, one)
    before = opened(study).claim("profile")
    assert before.config["labels"]["fields"] == 1
    decide(storage, "Bo", [one], add_tags=["debris"])  # left out for two reasons now
    decide(storage, "Bo", [two], verdict="good", add_tags=["odd"])
    assert opened(study).claim("profile") == before
    decide(storage, "Bo", [three], add_tags=["debris"])
    changes = opened(study).claim("profile").changes_since(before)
    assert changes == ["labels changed: 2 fields are left out now, 1 then"]
    undo(storage, "Ana", first)
    decide(storage, "Bo", [one], remove_tags=["debris"])
    changes = opened(study).claim("profile").changes_since(before)
    assert changes == ["labels changed: 1 fields are left out now, 1 then (others)"]
    decide(storage, "Bo", [three], remove_tags=["debris"])
    bad(storage, one)
    assert opened(study).claim("profile") == before, "the same set again"
    changes = opened(study, "labels.exclude=[]").claim("profile").changes_since(before)
    assert changes == ["labels.exclude changed from bad, tag:debris to nothing"]
    for stage, spec in STAGES.items():
        assert spec.labelled == (stage in LABELLED)


def test_a_stage_is_stale_when_labels_changed_and_what_follows_may_still_read_it(
    tmp_path: Path, index: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    study = embedded(tmp_path, index, BAD)
    one, two = index[c.KEY][:2]
    profile(study, quiet)
    bad(study.storage, one)
    later = opened(study)
    with pytest.raises(StaleStageError, match=r"profile main is stale: labels changed: 1 .* now, 0 then"):
        profile(later, quiet)
    read_evaluation(later)
    read_evaluation(later)
    told = [record.message for record in caplog.records if "made with other labels" in record.message]
    assert len(told) == 2, "once a stage: of the profile, and of the training behind it"
    assert all("--force makes it with those of now" in line for line in told)
    with pytest.raises(InputError, match=r"labels changed"):
        later.require("profile", labels=True)
    with pytest.raises(InputError, match=r"metric changed from cosine to correlation"):
        opened(study, "profile.metric=correlation").require("profile")
    profile(later, quiet, force=True)
    later.require("profile", labels=True)
    bad(study.storage, two)
    assert read_evaluation(later)["excluded"]["fields"] == 1, "as long as it is open, nothing changes"


def test_a_killed_stage_goes_on_with_the_labels_that_it_began_with(
    tmp_path: Path, index: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    study = embedded(tmp_path, index, BAD)
    one, two = index[c.KEY][:2]
    bad(study.storage, one)
    begun = opened(study)
    with pytest.raises(RuntimeError), begun.writing("outliers", begun.claim("outliers")):
        raise RuntimeError
    bad(study.storage, two)
    now = opened(study)
    on = now.with_labels_of("outliers")
    assert set(on.excluded().reasons) == {one}
    assert on.claim("outliers") == begun.claim("outliers")
    assert "outliers main goes on with the labels that it began with: 1 fields are left out" in caplog.text
    assert now.with_labels_of("outliers", force=True).excluded() == now.excluded()
    assert now.with_labels_of("profile") is now, "another stage was not begun"
    other = opened(study, "labels.exclude=[unsure]")
    assert other.with_labels_of("outliers") is other, "other rules are another question"
    kept = tmp_path / "outliers/main/labels.json"
    kept.write_bytes(kept.read_bytes().replace(one.encode(), two.encode()))
    assert now.with_labels_of("outliers") is now, "a file that does not match its digest is not believed"
    with (
        pytest.raises(StaleStageError, match="labels changed"),
        now.writing("outliers", now.claim("outliers")),
    ):
        pass


# --- Profiles and folds -------------------------------------------------------------------------------------


def test_profiles_are_scored_with_and_without_at_one_denominator(tmp_path: Path, index: pd.DataFrame) -> None:
    plain = embedded(tmp_path / "plain", index, {})
    profile(plain, quiet)
    study = embedded(tmp_path / "labelled", index, BAD)
    gone = index.loc[index[c.COMPOUND] == "a0", c.KEY].tolist()
    bad(study.storage, *gone)
    decide(study.storage, "Bo", [gone[0], index[c.KEY][0]], add_tags=["debris"])
    study = opened(study)
    profile(study, quiet)
    found, before = read_evaluation(study), read_evaluation(plain)
    for guard in ("nsc", "nscb"):
        assert found[guard] == before[guard], "the scores of all fields do not know of labels"
        assert found["excluded"]["scores"][guard]["total"] == before[guard]["total"]
    excluded = found["excluded"]
    assert excluded["by_reason"] == {"label bad": 4, "tag debris": 2}
    assert (excluded["fields"], excluded["wells_lost"], excluded["treatments_lost"]) == (5, 2, ["a0@1"])
    said = headline(found)["without excluded fields"]["text"]
    assert "1 treatment lost all fields, counted as wrong" in said
    assert "left out: 5 of 96 fields (4 label bad, 2 tag debris)" in said
    record = study.require("profile")
    kept = record.read_json(study.storage, "profiles/main/labels.json")
    assert kept["excluded"][gone[0]] == ["label bad", "tag debris"]
    assert record.config["labels"] == {name: kept[name] for name in ("exclude", "fields", "sha256")}
    assert verify(study, quiet)[1] == []
    (tmp_path / "labelled/profiles/main/labels.json").write_text("{}")
    assert [flaw.path for flaw in verify(study, quiet)[1]] == ["profiles/main/labels.json"]


def test_folds_have_their_second_evaluation_too(tmp_path: Path) -> None:
    screen = drawn(tmp_path, {})
    sweep_of(screen)
    compound = str(screen.index.loc[screen.index[c.MOA].notna(), c.COMPOUND].iloc[0])
    bad(screen.study.storage, *screen.index.loc[screen.index[c.COMPOUND] == compound, c.KEY])
    study = opened(screen.study, "labels.exclude=[bad]")
    profile_folds(study, "loco", quiet)
    found = read_folds(study)
    (setting,) = found["settings"]
    lost = int(screen.index.loc[screen.index[c.COMPOUND] == compound, c.TREATMENT].nunique())
    without = setting["without_excluded"]["nsc"]
    assert without["lost_counted_as_wrong"] == lost
    assert without["held_out"]["total"] == setting["nsc"]["held_out"]["total"]
    assert set(found["excluded"]["by_reason"]) == {"label bad"}
    assert (tmp_path / "profiles/main/folds_labels.json").exists()
    assert verify(study, quiet)[1] == []


# --- Outliers -----------------------------------------------------------------------------------------------


def screened(folder: Path, screen: Planted, exclude: str) -> Study:
    """A planted screen as a study as far as its embeddings."""
    folder.mkdir()
    (folder / "study.yaml").write_text(json.dumps({"labels": {"exclude": [exclude]}}))
    study = open_study(str(folder))
    fields = screen.fields.drop(columns="trained")
    table = fields.assign(**{c.EMBEDDING: list(screen.embeddings.astype(np.float32))})
    sides = fields[[c.PLATE, c.WELL]].drop_duplicates().assign(**{c.SIDE: c.TRAIN})
    for stage, files in {
        "shard": {"index.parquet": parquet_bytes(pa.Table.from_pandas(screen.index))},
        "split": {"main.parquet": parquet_bytes(pa.Table.from_pandas(sides, preserve_index=False))},
        "train": {},
        "embed": {f"00000000-{len(table) - 1:08d}.parquet": parquet_bytes(fixed_size(table))},
    }.items():
        with study.writing(stage, study.claim(stage)) as writer:
            for name, data in files.items():
                writer.write(name, data)
    return study


def test_what_is_left_out_shapes_nothing_that_is_usual_and_is_listed(tmp_path: Path) -> None:
    lost_well = ["P1_C04_s1", "P1_C04_s2"]
    tables = {}
    for name, factor in (("once", 1.0), ("absurd", 1e4)):
        screen = Planted(0)
        rows = screen.fields[c.KEY].isin([*lost_well, "P1_B02_s1"]).to_numpy()
        assert rows.sum() == 3
        screen.embeddings[rows] *= factor
        for key in screen.fields[c.KEY][rows]:
            screen.spoil(key, "QC_Mean_DNA", factor)
        study = screened(tmp_path / name, screen, "bad")
        bad(study.storage, *lost_well, "P1_B02_s1")
        figures = find_outliers(open_study(study.storage.url), quiet)
        assert figures["fields left out by labels"] == 3
        tables[name] = read_outliers(open_study(study.storage.url))
    field, well = tables["once"]["field"], tables["once"]["well"]
    for level in ("field", "well", "treatment"):
        pd.testing.assert_frame_equal(tables["once"][level], tables["absurd"][level])
    assert len(field) == len(Planted(0).fields), "none has vanished"
    assert sorted(field["rank"]) == list(range(1, len(field) + 1))
    out = field.tail(3)
    assert sorted(out[c.KEY]) == sorted([*lost_well, "P1_B02_s1"])
    assert out["score"].isna().all()
    assert out["reason"].isna().all()
    assert set(out["excluded"]) == {"label bad"}
    assert field["excluded"].notna().sum() == 3
    assert well.iloc[-1]["well"] == "P1_C04"
    assert well.iloc[-1]["excluded"] == "all its 2 fields are left out by labels"
    assert not set(np.concatenate(field["neighbours"])) & set(out[c.KEY])
    assert tables["once"]["treatment"]["excluded"].isna().all()


def test_a_treatment_and_a_plates_controls_that_are_left_out_are_told(tmp_path: Path) -> None:
    screen = Planted(1)
    study = screened(tmp_path / "study", screen, "bad")
    treated = screen.fields[screen.fields[c.PERT_TYPE] == c.TREATED]
    lost = treated[c.TREATMENT].iloc[0]
    bad(study.storage, *treated.loc[treated[c.TREATMENT] == lost, c.KEY])
    find_outliers(open_study(study.storage.url), quiet)
    last = read_outliers(open_study(study.storage.url))["treatment"].iloc[-1]
    assert last[c.TREATMENT] == lost
    assert np.isnan(last["score"])
    controls = screen.fields[(screen.fields[c.PLATE] == "P2") & (screen.fields[c.COMPOUND] == "DMSO")]
    bad(study.storage, *controls[c.KEY])
    with pytest.raises(
        InputError, match=r"plate P2 has no negative control .*labels.exclude leaves \d+ field"
    ):
        find_outliers(open_study(study.storage.url), quiet, force=True)
    bad(study.storage, *screen.fields[c.KEY])
    with pytest.raises(InputError, match=r"labels\.exclude leaves no field to compare"):
        find_outliers(open_study(study.storage.url), quiet, force=True)


# --- Training -----------------------------------------------------------------------------------------------


def trainable(folder: Path, index: pd.DataFrame, **config: Any) -> Study:
    """A study of which only index and split are there."""
    model = {"model": {"backbone": "tiny"}, "train": {"crop_px": 64}}
    return opened(scored_study.make_study(folder, index, {**BAD, **model, **config}))


def test_a_training_learns_nothing_of_what_is_left_out_and_is_tested_by_all(
    tmp_path: Path, index: pd.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    study = trainable(tmp_path, index)
    fields = prepare(study, "runs/main").fields
    sides = {side: side_table(fields, side, anchored=True) for side in (c.TRAIN, c.VALIDATION, c.TEST)}
    compound = str(sides[c.TRAIN].loc[sides[c.TRAIN][c.MOA].notna(), c.COMPOUND].iloc[0])
    gone = set(index.loc[index[c.COMPOUND] == compound, c.KEY])
    gone |= {str(table.loc[table[LISTED], c.KEY].iloc[-1]) for table in sides.values()}
    controls = sides[c.TRAIN].loc[sides[c.TRAIN][ANCHOR], c.KEY]
    gone.add(str(controls.iloc[0]))
    bad(study.storage, *gone)
    job = prepare(opened(study), "runs/main")
    assert set(job.fields.loc[job.fields[EXCLUDED], c.KEY]) == gone
    for side in (c.TRAIN, c.VALIDATION):
        left = side_table(job.fields, side, anchored=True)
        assert set(left[c.KEY]) == set(sides[side][c.KEY]) - gone
        assert not set(left[c.KEY]) & gone
    test = side_table(job.fields, c.TEST, anchored=True)
    listed = sides[c.TEST][LISTED]
    assert set(test.loc[test[LISTED], c.KEY]) == set(sides[c.TEST].loc[listed, c.KEY])
    assert not set(test.loc[test[ANCHOR], c.KEY]) & gone
    assert job.spec.classes == prepare(opened(study, "labels.exclude=[]"), "runs/main").spec.classes
    assert f"labels leave these compounds no field of the train side: {compound}" in caplog.text


def test_a_moa_that_loses_all_its_training_fields_is_one_line(tmp_path: Path, index: pd.DataFrame) -> None:
    study = trainable(tmp_path, index)
    bad(study.storage, *index.loc[index[c.MOA] == "B", c.KEY])
    with pytest.raises(InputError, match=r"labels.exclude bad, tag:debris leaves B no training field"):
        prepare(opened(study), "runs/main")


def test_validation_that_loses_all_its_fields_is_one_line(tmp_path: Path, index: pd.DataFrame) -> None:
    study = trainable(tmp_path, index)
    fields = prepare(study, "runs/main").fields
    judged = (fields[c.SIDE] == c.VALIDATION) & (fields[c.PERT_TYPE] == c.TREATED)
    bad(study.storage, *fields.loc[judged, c.KEY])
    with pytest.raises(InputError, match="no compound validates"):
        prepare(opened(study), "runs/main")


def test_the_trials_of_a_sweep_leave_out_what_its_claim_says(tmp_path: Path, index: pd.DataFrame) -> None:
    study = trainable(tmp_path, index)
    one, two = side_table(prepare(study, "runs/main").fields, c.TRAIN, anchored=False)[c.KEY][:2]
    bad(study.storage, one)
    study = opened(study)
    claim = study.claim("tune")
    sweep = SweepConfig.model_validate({"space": {"train.lr": {"kind": "grid", "values": [0.1, 0.2]}}})
    work = Work(study, Space.of(sweep, study.config, [], "sweep.yaml"), "sweeps/main")
    bad(study.storage, two)
    there = pickle.loads(pickle.dumps(work))  # as it travels to a trial, perhaps an hour later
    job = job_of(there, {"train.lr": 0.2}, "sweeps/main/trials/t0000")
    assert job.fields.loc[job.fields[EXCLUDED], c.KEY].tolist() == [one]
    assert claim.config["labels"]["fields"] == 1
    assert with_overrides(study.config, ["train.lr=0.2"], "test") == job.study.config


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_real_training_stopped_and_gone_on_with(
    tmp_path: Path, cluster: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = draw_study(tmp_path / "study", cluster, workers=1)
    fields = prepare(open_study(str(folder)), "runs/none").fields
    listed = side_table(fields, c.TRAIN, anchored=False)[c.KEY]
    one, two, three = listed.iloc[[0, 20, 40]]
    rules = "labels.exclude=[bad]"
    stopped = open_study(str(folder), overrides=[rules, "train.max_hours=1e-6"])
    bad(stopped.storage, one, two)
    with pytest.raises(HcsError, match="run the same command again to go on"):
        train(stopped, quiet)
    bad(stopped.storage, three)
    figures = train(open_study(str(folder), overrides=[rules]), quiet)
    assert (
        "goes on with the labels that it began with: 2 fields are left out (now it would be 3)" in caplog.text
    )
    assert figures["fields left out by labels"]["text"].startswith("2 train, 0 validation, 0 test")
    seen = pd.read_parquet(folder / "runs/main/seen.parquet")
    assert set(seen[c.KEY]) == set(listed) - {one, two}
    assert (seen["times_seen"] == 2).all(), "each field once an epoch, before and after the stop"
    record = json.loads((folder / "runs/main/_stage.json").read_text())
    assert "runs/main/labels.json" in record["outputs"]
    assert set(json.loads((folder / "runs/main/labels.json").read_text())["excluded"]) == {one, two}
    metrics = json.loads((folder / "runs/main/metrics.json").read_text())
    assert metrics["train_fields"] == len(listed) - 2
    assert metrics["excluded"]["fields"] == {"train": 2, "validation": 0, "test": 0}
    with pytest.raises(StaleStageError, match="labels changed: 3 fields are left out now, 2 then"):
        train(open_study(str(folder), overrides=[rules]), quiet)
