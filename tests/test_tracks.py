"""The leak guard: from the records alone it is told whose labels were used, through every network behind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.profiles.build import headline, profile, read_evaluation
from hcs_ray.profiles.tracks import provenance
from hcs_ray.screen.splits import split
from hcs_ray.study import Study, open_study
from hcs_ray.tables import read_split
from tests import scored_study
from tests.scored_study import quiet
from tests.test_exclusions import MOAS, drawn_index

BLIND: dict[str, Any] = {
    "moa_weight": 0.0,
    "treatment": {"weight": 1.0},
    "choose": "last",
    "schedule": "cosine",
}
Config = dict[str, Any]


def made(folder: Path, config: Config | None = None) -> Study:
    settings = {"profile": {"normalization": "center", "resamples": 50}, **(config or {})}
    return scored_study.make_study(folder, drawn_index(), settings)


def again(study: Study, name: str, config: Config) -> Study:
    """Another run of the same study, with its own split."""
    lines = [f"{key}={json.dumps(value)}" for key, value in config.items()]
    run = open_study(study.storage.url, name, lines)
    split(run, quiet)
    return run


def everyone() -> set[str]:
    return {f"{moa.lower()}{number}" for moa, count in MOAS.items() for number in range(count)}


def embedded(study: Study, run: str | None = None) -> Study:
    index = drawn_index()
    random = np.random.default_rng(0)
    chances = random.dirichlet((1, 1, 1), len(index))
    features = random.normal(size=(len(index), 5)) + 2 * np.eye(5)[pd.factorize(index[c.MOA])[0]]
    return scored_study.embed(study, features, {name: chances[:, n] for n, name in enumerate(MOAS)}, run)


def compounds(study: Study, *sides: str) -> set[str]:
    table = read_split(study)
    return set(table.loc[table[c.SIDE].isin(sides), c.COMPOUND]) - {"DMSO"}


def test_what_trained_or_validated_has_leaked(tmp_path: Path) -> None:
    study = made(tmp_path)
    scored_study.train(study)
    found = provenance(embedded(study)).only(
        f"{moa.lower()}{n}" for moa, count in MOAS.items() for n in range(count)
    )
    assert found.track == "supervised"
    assert set(found.used) == compounds(study, c.TRAIN, c.VALIDATION)
    trained = compounds(study, c.TRAIN)
    assert {name: why for name, why in found.used.items() if name in trained} == dict.fromkeys(
        sorted(trained), "in training, by train main"
    )
    assert set(found.used.values()) == {"in training, by train main", "in validation, by train main"}
    assert found.notes == ()


def test_weak_labels_are_track_b_and_leak_only_where_moa_labels_chose(tmp_path: Path) -> None:
    study = made(tmp_path / "blind", {"train": BLIND})
    scored_study.train(study)
    found = provenance(embedded(study))
    assert (found.track, found.used) == ("B", {})
    choices: list[Config] = [{"choose": "best"}, {"stop_after": 3}, {"schedule": "plateau"}]
    for number, chosen in enumerate(choices):
        study = made(tmp_path / str(number), {"train": BLIND | chosen})
        scored_study.train(study)
        found = provenance(embedded(study))
        assert found.track == "B"
        assert compounds(study, c.TRAIN, c.VALIDATION) <= set(found.used), chosen


def test_an_ancestor_s_labels_have_leaked_too_and_are_told_with_their_way(tmp_path: Path) -> None:
    """Three networks, each of another split, each begun from the one before."""
    first = made(tmp_path / "study")
    weights = scored_study.train(first)
    second = again(first, "second", {"split.seed": 5, "model.weights": weights})
    between = scored_study.train(second)
    third = again(first, "third", {"split.seed": 11, "model.weights": between})
    scored_study.train(third)
    used = {name for run in (first, second, third) for name in compounds(run, c.TRAIN, c.VALIDATION)}
    assert used > compounds(third, c.TRAIN, c.VALIDATION), "the splits differ"
    found = provenance(embedded(third))
    assert set(found.used) - {"DMSO"} == used
    only_first = compounds(first, c.TRAIN) - compounds(second, c.TRAIN, c.VALIDATION)
    only_first -= compounds(third, c.TRAIN, c.VALIDATION)
    for name in only_first:
        assert (
            found.used[name]
            == "in training, by train main; train second of train third began from its weights"
        )


def test_a_copied_network_is_known_by_its_content_and_one_of_another_study_by_its_place(
    tmp_path: Path,
) -> None:
    first = made(tmp_path / "study")
    copied = str(tmp_path / "renamed.pt")
    shutil.copy(scored_study.train(first), copied)
    second = again(first, "second", {"split.seed": 5, "model.weights": copied})
    scored_study.train(second)
    expected = compounds(first, c.TRAIN, c.VALIDATION) | compounds(second, c.TRAIN, c.VALIDATION)
    assert set(provenance(embedded(second)).used) - {"DMSO"} == expected
    other = made(
        tmp_path / "other", {"split": {"seed": 7}, "model": {"weights": f"{tmp_path}/study/runs/main"}}
    )
    scored_study.train(other)
    expected = compounds(first, c.TRAIN, c.VALIDATION) | compounds(other, c.TRAIN, c.VALIDATION)
    assert set(provenance(embedded(other)).used) - {"DMSO"} == expected


def test_a_network_of_ours_without_a_record_may_have_used_every_label(tmp_path: Path) -> None:
    (tmp_path / "found.pt").write_bytes(scored_study.NETWORK)
    study = made(tmp_path / "study", {"model": {"weights": str(tmp_path / "found.pt")}})
    scored_study.train(study)
    found = provenance(embedded(study))
    assert set(found.used) - {"DMSO"} == everyone()
    test = next(iter(compounds(study, c.TEST)))
    assert found.used[test].endswith("has no record: it may have used any label")
    (tmp_path / "found.pt").unlink()
    assert set(provenance(study).used) - {"DMSO"} == everyone(), "nor does one that is gone"


@pytest.mark.parametrize("weights", ["microsoft/resnet-18", "imagenet.safetensors", "imagenet.pt"])
def test_weights_from_elsewhere_are_named_and_leak_nothing(tmp_path: Path, weights: str) -> None:
    if not weights.startswith("microsoft"):
        weights = str(tmp_path / weights)
        Path(weights).write_bytes(b"weights of photographs")
    study = made(tmp_path / "study", {"model": {"weights": weights}})
    scored_study.train(study)
    found = provenance(embedded(study))
    assert set(found.used) - {"DMSO"} == compounds(study, c.TRAIN, c.VALIDATION)
    assert len(found.notes) == 1
    assert weights in found.notes[0]
    assert "not in our records" in found.notes[0]


def test_a_sweep_leaks_those_that_its_metric_ranked_by(tmp_path: Path) -> None:
    blind = {"train": BLIND}
    expected = {
        "train_loss": (),
        "validation_balanced_accuracy": (c.TRAIN, c.VALIDATION),
        "test_balanced_accuracy": (c.TRAIN, c.VALIDATION, c.TEST),
    }
    for metric, sides in expected.items():
        study = made(tmp_path / metric, blind)
        scored_study.sweep(study, {"metric": metric})
        found = provenance(embedded(study, "sweep:main/t0000"))
        assert set(found.used) - {"DMSO"} == compounds(study, *sides)
    assert "in a choice, as tune main ranked its trials by test_balanced_accuracy" in found.used.values()


def test_a_network_that_began_from_a_sweep_s_trial_has_used_what_ranked_the_trials(tmp_path: Path) -> None:
    study = made(tmp_path)
    weights = scored_study.sweep(study, {"metric": "test_balanced_accuracy"})
    later = again(study, "later", {"split.seed": 5, "model.weights": weights})
    scored_study.train(later)
    found = provenance(embedded(later))
    assert set(found.used) - {"DMSO"} == compounds(study, c.TRAIN, c.VALIDATION, c.TEST)
    way = "tune main ranked its trials by test_balanced_accuracy; train later began from its weights"
    assert f"in a choice, as {way}" in found.used.values()


def test_a_split_that_was_made_anew_cannot_vouch_for_its_network(tmp_path: Path) -> None:
    first = made(tmp_path / "study")
    weights = scored_study.train(first)
    second = again(first, "second", {"split.seed": 5, "model.weights": weights})
    scored_study.train(second)
    changed = open_study(first.storage.url, "main", ["split.seed=3"])
    split(changed, quiet, force=True)
    found = provenance(embedded(second))
    test = compounds(second, c.TEST)
    assert test <= set(found.used)
    assert "which labels it has used cannot be told" in found.used[next(iter(test))]


def test_leaked_compounds_are_in_no_headline(tmp_path: Path) -> None:
    first = made(tmp_path)
    weights = scored_study.train(first)
    plain = embedded(first)
    profile(plain, quiet)
    before = read_evaluation(plain)
    second = again(first, "second", {"split.seed": 5, "model.weights": weights})
    scored_study.train(second)
    profile(embedded(second), quiet)
    found = read_evaluation(second)
    tested = compounds(second, c.TEST)
    leaked = tested & compounds(first, c.TRAIN, c.VALIDATION)
    assert leaked, "the first network has seen some of what the second one tests"
    rows = {row[c.TREATMENT]: row["leaked"] for row in found["nscb"]["queries"]}
    assert {name.partition("@")[0] for name, gone in rows.items() if not gone} == tested - leaked
    assert found["nscb"]["held_out"]["total"] == len(tested - leaked)
    assert found["nscb"]["total"] == before["nscb"]["total"]
    judged = {row[c.COMPOUND] for row in (found["classification"] or {"predictions": []})["predictions"]}
    assert judged == tested - leaked
    lines = headline(found)
    assert lines["track"]["text"].startswith("supervised, with the compounds of one split held out")
    assert f"{found['nsc']['leaked']} have leaked: no headline" in lines["NSC, all compounds"]["text"]
    used = {name for run in (first, second) for name in compounds(run, c.TRAIN, c.VALIDATION)}
    assert found["track"]["leaked_compounds"].keys() == used


def test_another_version_s_evaluation_is_named(tmp_path: Path) -> None:
    study = made(tmp_path)
    with study.writing("train", study.claim("train")) as writer:
        writer.write("model.pt", b"x")
    embedded(study)
    with study.writing("profile", study.claim("profile")) as writer:
        writer.write("evaluation.json", b'{"format": 1}')
    with pytest.raises(
        InputError, match=r"evaluation.json: format 1, and this version reads 2; .*profile --force"
    ):
        read_evaluation(study)
