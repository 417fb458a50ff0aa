"""`hcs-ray profile --folds`: a sweep's folds scored, and again where the settings of profiles change."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hcs_ray import contracts as c
from hcs_ray.config import LEAVE_OUT, SweepConfig, with_values
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.profiles.fold_stage import headline_setting, profile_folds, read_folds
from hcs_ray.profiles.folds import FIELDS_FILE, Fold, evaluate
from hcs_ray.report.tracks import folds
from hcs_ray.screen.splits import split
from hcs_ray.stage import StaleStageError
from hcs_ray.study import Study, open_study
from hcs_ray.verify import verify
from tests.command import hcs_ray
from tests.scored_study import NETWORK, quiet
from tests.test_folds import Screened, drawn


def sweep_of(screen: Screened, settings: tuple[dict[str, Any], ...] = ({},)) -> Study:
    """The record of a sweep ``loco`` over the compounds (and some settings), whose trials have ended."""
    study = replace(screen.study, name="loco")
    split(study, quiet)
    trained = screen.train()
    space: dict[str, Any] = {LEAVE_OUT: {"kind": "compounds", "values": [fold.compound for fold in trained]}}
    for name in settings[0]:
        space[name] = {"kind": "grid", "values": [setting[name] for setting in settings]}
    told = SweepConfig.model_validate({"space": space}).model_dump(mode="json")
    rows, files = [], {}
    for number, (setting, fold) in enumerate((setting, fold) for setting in settings for fold in trained):
        trial = f"t{number:04d}"
        rows.append({"trial": trial, "score": 0.5, "rank": number + 1, LEAVE_OUT: fold.compound, **setting})
        files[f"trials/{trial}/{FIELDS_FILE}"] = study.storage.read(f"{fold.folder}/{FIELDS_FILE}")
    base = study.claim("tune")
    claim = base.model_copy(update={"config": base.config | {"sweep": told}})
    with study.writing("tune", claim) as writer:
        for file, data in files.items():
            writer.write(file, data)
        writer.write_table("leaderboard.parquet", pd.DataFrame(rows))
    return study


@pytest.fixture
def screen(tmp_path: Path) -> Screened:
    return drawn(tmp_path, {})


def test_the_stage_scores_what_the_sweep_has_scored(screen: Screened) -> None:
    sweep_of(screen)
    study = screen.study
    figures = profile_folds(study, "loco", quiet)
    found = read_folds(study)
    assert found["sweep"] == "loco"
    assert found["track"]["track"] == "A"
    assert found["track"]["leaked_compounds"] == {}
    (setting,) = found["settings"]
    names = sorted(screen.index.loc[screen.index[c.MOA].notna(), c.COMPOUND].unique())
    trials = [Fold(name, f"t{n:04d}", f"sweeps/loco/trials/t{n:04d}") for n, name in enumerate(names)]
    expected = json.loads(json.dumps(evaluate(study, trials).summary))
    assert {k: v for k, v in setting.items() if k != "values"} == expected
    assert headline_setting(found) == setting
    text = figures["NSC, left-out compounds"]["text"]
    assert text.startswith(f"{setting['nsc']['correct']}/{setting['nsc']['total']} (")
    table = pd.read_parquet(Path(study.storage.url) / "profiles/main/folds.parquet")
    assert len(table) == 2 * setting["nsc"]["candidates"]


def test_another_normalisation_is_another_result_and_the_old_one_is_stale(screen: Screened) -> None:
    sweep_of(screen)
    profile_folds(screen.study, "loco", quiet)
    before = (Path(screen.study.storage.url) / "profiles/main/folds.json").read_bytes()
    profile_folds(screen.study, "loco", quiet)
    assert (Path(screen.study.storage.url) / "profiles/main/folds.json").read_bytes() == before
    config = with_values(screen.study.config, {"profile.normalization": "none"}, "test")
    changed = replace(screen.study, config=config)
    with pytest.raises(StaleStageError, match="normalization changed from center to none"):
        profile_folds(changed, "loco", quiet)
    with pytest.raises(InputError, match=r"\(hcs-ray profile --folds --force\)"):
        read_folds(changed)
    profile_folds(changed, "loco", quiet, force=True)
    assert read_folds(changed)["settings"][0]["rules"]["normalization"] == "none"


def test_it_shares_its_folder_with_the_profiles_and_neither_harms_the_other(screen: Screened) -> None:
    sweep_of(screen)
    study = screen.study
    place, other = study.place("folds"), study.place("profile")
    assert place.record == "profiles/main/folds_stage.json"
    assert place.owns("profiles/main/folds.json")
    assert not place.owns("profiles/main/well.parquet")
    assert not other.owns("profiles/main/folds.json")
    assert other.owns("profiles/main/well.parquet")
    profile_folds(study, "loco", quiet)
    _, flaws = verify(study, quiet)
    assert flaws == []
    (Path(study.storage.url) / "profiles/main/folds.parquet").write_bytes(b"x")
    _, flaws = verify(study, quiet)
    assert [flaw.path for flaw in flaws] == ["profiles/main/folds.parquet"]


def test_several_settings_have_no_headline(screen: Screened) -> None:
    sweep_of(
        screen,
        ({"train.epochs": 2, "train.schedule": "cosine"}, {"train.epochs": 9, "train.schedule": "cosine"}),
    )
    figures = profile_folds(screen.study, "loco", quiet)
    found = read_folds(screen.study)
    assert [setting["values"]["train.epochs"] for setting in found["settings"]] == [2, 9]
    assert headline_setting(found) is None
    assert "choosing one by these scores would leak" in figures["no headline"]["text"]
    assert "train.epochs=9, train.schedule=cosine: NSC, left-out compounds" in figures
    shown = folds(found)
    assert shown is not None
    assert not shown.headline
    assert shown.settings[0].values == "train.epochs = 2, train.schedule = cosine"


def test_what_a_common_ancestor_has_learned_has_leaked_in_every_fold(screen: Screened) -> None:
    study = screen.study
    split(study, quiet)
    with study.writing("train", study.claim("train")) as writer:
        writer.write("model.pt", NETWORK)
    weights = f"{study.storage.url}/runs/main/model.pt"
    config = with_values(study.config, {"model.weights": weights, "split.seed": 3}, "test")
    begun = replace(screen, study=replace(study, config=config))
    place = _sweep_with_weights(begun, weights)
    assert place == "sweeps/loco/_stage.json"
    figures = profile_folds(replace(study, config=config), "loco", quiet)
    found = read_folds(replace(study, config=config))
    sides = pd.read_parquet(Path(study.storage.url) / "splits/main.parquet")
    used = set(sides.loc[sides[c.SIDE].isin((c.TRAIN, c.VALIDATION)), c.COMPOUND]) - {"DMSO"}
    assert set(found["track"]["leaked_compounds"]) - {"DMSO"} == used
    nsc = found["settings"][0]["nsc"]
    assert nsc["leaked"] == 2 * len(used)
    assert nsc["held_out"]["total"] == nsc["total"] - nsc["leaked"]
    assert f"{nsc['leaked']} more have leaked" in figures["NSC, left-out compounds"]["text"]


def _sweep_with_weights(screen: Screened, weights: str) -> str:
    from hcs_ray.model.weights import weights_digest
    from hcs_ray.stage import read_record

    study = sweep_of(screen)
    record = read_record(study.storage, study.place("tune"))
    assert record is not None
    files = {path: study.storage.read(path) for path in record.outputs}
    inputs = record.inputs | {f"weights {weights}": weights_digest(weights) or ""}
    with study.writing("tune", record.claim.model_copy(update={"inputs": inputs}), force=True) as writer:
        for path, data in files.items():
            writer.write(path.removeprefix("sweeps/loco/"), data)
    return study.place("tune").record


def test_excluded_fields_are_left_out_beside_with_the_same_denominator(tmp_path: Path) -> None:
    plain = drawn(tmp_path, {})
    lost = plain.index[c.TREATMENT] == "a0@1"
    flagged = plain.index.assign(QC_Flag_Debris=lost)
    with plain.study.writing("shard", plain.study.claim("shard"), force=True) as writer:
        writer.write_table("index.parquet", flagged)
        writer.write("manifest.json", b"{}")
    sweep_of(plain)
    profile_folds(plain.study, "loco", quiet)
    found = read_folds(plain.study)
    assert found["excluded"]["by_reason"] == {"QC_Flag_Debris": int(lost.sum())}
    setting = found["settings"][0]
    for guard in ("nsc", "nscb"):
        assert setting["without_excluded"][guard]["total"] == setting[guard]["total"]
        assert setting["without_excluded"][guard]["lost_counted_as_wrong"] == 1
    names = sorted(plain.index.loc[plain.index[c.MOA].notna(), c.COMPOUND].unique())
    trials = [Fold(name, f"t{n:04d}", f"sweeps/loco/trials/t{n:04d}") for n, name in enumerate(names)]
    without = evaluate(plain.study, trials)
    assert without.summary["without_excluded"] is None
    assert without.summary["nsc"] == setting["nsc"]


def test_what_cannot_be_scored_is_one_line(screen: Screened) -> None:
    study = sweep_of(screen)
    with pytest.raises(InputError, match=r"--folds nothing: there is no finished sweep nothing"):
        profile_folds(screen.study, "nothing", quiet)
    other = replace(study, name="plain")
    split(other, quiet)
    base = other.claim("tune")
    told = {"sweep": {"space": {"train.lr": {"kind": "uniform", "low": 0.1, "high": 0.2}}}}
    with other.writing("tune", base.model_copy(update={"config": base.config | told})) as writer:
        writer.write("sweep.json", b"{}")
    with pytest.raises(InputError, match=r"--folds plain: this sweep leaves no compounds out"):
        profile_folds(screen.study, "plain", quiet)
    damaged = Path(study.storage.url) / "sweeps/loco/trials/t0000" / FIELDS_FILE
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"x")
    with pytest.raises(HcsError, match=r"t0000/fields.parquet is damaged"):
        profile_folds(screen.study, "loco", quiet)


def test_the_command_says_the_track_and_where_all_lies(screen: Screened) -> None:
    sweep_of(screen)
    done = hcs_ray("profile", screen.study.storage.url, "--folds", "loco", "--json")
    assert done.returncode == 0, done.stderr
    assert "track A" in done.stderr
    assert "profiles/main/folds.json" in done.stderr
    assert "NSCB, left-out compounds" in json.loads(done.stdout)
    assert open_study(screen.study.storage.url).require("folds").stage == "folds"
