"""Track A: a compound is judged in the space of the network that never saw it, and no fold is lost unseen."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from scipy.stats import ortho_group

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.model.targets import LABEL, LISTED, NONE, side_table
from hcs_ray.profiles.aggregate import Float64
from hcs_ray.profiles.fold_figures import rules
from hcs_ray.profiles.folds import FIELDS_FILE, Evaluation, Fold, compounds, evaluate, fold_study
from hcs_ray.profiles.neighbours import DROPPED, NEIGHBOUR
from hcs_ray.profiles.normalize import normalize
from hcs_ray.profiles.score import Settings, evaluate_wells
from hcs_ray.screen.splits import divide
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import Study, open_study
from hcs_ray.train import TrainJob
from hcs_ray.tune.folds import prepare_fold
from tests import test_profiles_science as science

bbbc021, cellprofiler = science.bbbc021, science.cellprofiler  # fixtures: the real wells, and their features
Space = Callable[[str], Float64]  # compound left out -> the embeddings (N, F) of the index by its fold


@dataclass(frozen=True)
class Screened:
    """A study with its index, and what its folds' networks see and say.

    Attributes:
        study: With the configuration that all folds share.
        index: One row a field, without negative control's MoA.
        features: (N, F) embeddings of its rows.
        told: Compound -> what the MoA heads say of it, where it is not the truth.
    """

    study: Study
    index: pd.DataFrame
    features: Float64
    told: Mapping[str, str]

    def train(self, space: Space | None = None) -> list[Fold]:
        """Leave behind what the trainings of all folds would."""
        names = compounds(self.study)
        folds = [Fold(name, f"trial_{n:05d}", f"sweeps/s/trials/{n:05d}") for n, name in enumerate(names)]
        for fold in folds:
            embeddings = self.features if space is None else space(fold.compound)
            self.write(fold, self._embedded(fold.compound, embeddings))
        return folds

    def _embedded(self, name: str, embeddings: Float64) -> pd.DataFrame:
        wells = self.index.drop_duplicates([c.PLATE, c.WELL])
        split = divide(wells, fold_study(self.study, name).config.split)
        table = self.index.assign(**{c.EMBEDDING: list(embeddings.astype(np.float32))})
        table = table.merge(split[[c.PLATE, c.WELL, c.SIDE]], on=[c.PLATE, c.WELL])
        classes = sorted(set(table.loc[table[c.SIDE] == c.TRAIN, c.MOA].dropna()))
        said = table[c.COMPOUND].map(lambda name: self.told.get(name, ""))
        said = said.where(said != "", table[c.MOA])
        chances: dict[str, Any] = {
            f"{c.PROBABILITY_PREFIX}{label}": 0.1 + (said == label) for label in classes
        }
        table = table.assign(**chances)
        table[list(chances)] = table[list(chances)].div(table[list(chances)].sum(axis=1), axis=0)
        return table[table[c.MOA].notna() | (table[c.PERT_TYPE] == c.NEGATIVE_CONTROL)]

    def write(self, fold: Fold, table: pd.DataFrame) -> None:
        data = parquet_bytes(pa.Table.from_pandas(table, preserve_index=False))
        self.study.storage.write(f"{fold.folder}/{FIELDS_FILE}", data)

    def read(self, fold: Fold) -> pd.DataFrame:
        return pd.read_parquet(io.BytesIO(self.study.storage.read(f"{fold.folder}/{FIELDS_FILE}")))


def screened(
    folder: Path, index: pd.DataFrame, features: Float64, config: Any, told: Mapping[str, str]
) -> Screened:
    """A study in an empty folder, of which only the index is there."""
    (folder / "study.yaml").write_text(json.dumps(config))
    study = open_study(str(folder))
    manifest = {"format": c.MANIFEST_FORMAT, "channels": ["DAPI"], "field_px": [64, 80], "plates": {}}
    with study.writing("shard", study.claim("shard")) as writer:
        writer.write_table("index.parquet", index)
        writer.write("manifest.json", json.dumps(manifest).encode())
    return Screened(study, index, features, told)


# --- The real profiles --------------------------------------------------------------------------------------


def test_in_one_space_the_sum_over_the_folds_is_the_plain_score(
    cellprofiler: tuple[pd.DataFrame, Float64], tmp_path: Path
) -> None:
    meta, features = cellprofiler
    meta = meta.assign(**{c.KEY: meta[c.PLATE] + "_" + meta[c.WELL] + "_s1"})
    meta[c.SITE] = 1
    meta[c.MOA] = meta[c.MOA].mask(meta[c.PERT_TYPE] == c.NEGATIVE_CONTROL)
    config = {"profile": {"normalization": "standardize", "resamples": 200}}
    screen = screened(tmp_path, meta, features, config, {})
    found = evaluate(screen.study, screen.train())
    summary = found.summary
    assert summary["folds"] == {"expected": 38, "evaluated": 38, "missing": {}}
    assert (summary["nsc"]["correct"], summary["nsc"]["total"]) == (84, 103)
    assert (summary["nscb"]["correct"], summary["nscb"]["total"]) == (67, 92)
    assert len(summary["nscb"]["dropped"]) == 11
    assert set(summary["nscb"]["dropped_moas"]) == {"Cholesterol-lowering", "Kinase inhibitors"}
    assert (summary["moa_head"]["correct"], summary["moa_head"]["total"]) == (103, 103)
    plain = normalize(meta, features.astype(np.float32), "standardize").features
    expected = evaluate_wells(meta, plain, "mean", Settings(resamples=200))
    assert summary["nsc"]["interval"] == list(expected.nsc.overall.interval or ())
    for guard, score in (("NSC", expected.nsc), ("NSCB", expected.nscb)):
        table = found.treatments[found.treatments["guard"] == guard]
        assert table[NEIGHBOUR].tolist() == score.queries[NEIGHBOUR].tolist()


# --- A drawn screen -----------------------------------------------------------------------------------------

MOAS = {"A": 4, "B": 3, "C": 3, "D": 2}  # compounds of each; those of D lie in one week


def drawn_index() -> pd.DataFrame:
    """Three weeks of two plates; two doses a compound, two sites a well, four wells of DMSO a plate."""
    rows: list[dict[str, Any]] = []
    names = [(f"{moa.lower()}{n}", moa) for moa, count in MOAS.items() for n in range(count)]
    for place, (compound, moa) in enumerate(names):
        for dose, row in ((1, "C"), (2, "D")):
            what = {c.COMPOUND: compound, c.TREATMENT: f"{compound}@{dose}", c.MOA: moa}
            rows += _twice(0 if moa == "D" else place % 3, f"{row}{place + 2:02d}", what, c.TREATED)
    dmso = {c.COMPOUND: "DMSO", c.TREATMENT: "DMSO@0", c.MOA: None}
    for week in range(3):
        for number in range(4):
            rows += _twice(week, f"G{number + 2:02d}", dmso, c.NEGATIVE_CONTROL)
    table = pd.DataFrame([{**row, c.SITE: site} for row in rows for site in (1, 2)])
    places = zip(table[c.PLATE], table[c.WELL], table[c.SITE], strict=True)
    table.insert(0, c.KEY, [c.field_key(*place) for place in places])
    return table.sort_values(c.KEY, ignore_index=True)


def _twice(week: int, well: str, what: Mapping[str, Any], kind: str) -> list[dict[str, Any]]:
    """A well on both plates of a week."""
    both = (f"W{week}P1", f"W{week}P2")
    return [{c.BATCH: f"W{week}", c.PLATE: name, c.WELL: well, c.PERT_TYPE: kind, **what} for name in both]


def drawn(folder: Path, split: Mapping[str, Any]) -> Screened:
    """Embeddings in which most treatments lie near their MoA, far enough from it for some errors."""
    index = drawn_index()
    rng = np.random.default_rng(3)
    compound = {name: rng.normal(size=8) for name in sorted(index[c.COMPOUND].unique())}
    centre = {moa: 1.2 * rng.normal(size=8) for moa in MOAS}
    plate = {name: rng.normal(size=8) for name in sorted(index[c.PLATE].unique())}
    what = zip(index[c.COMPOUND], index[c.MOA], index[c.PLATE], strict=True)
    signal = [compound[name] + centre.get(moa, 0) + plate[where] for name, moa, where in what]
    features = np.stack(signal) + 0.3 * rng.normal(size=(len(index), 8))
    config = {"profile": {"normalization": "center", "resamples": 200}, "split": dict(split)}
    return screened(folder, index, features, config, {"a1": "B", "c2": "A"})


@dataclass(frozen=True)
class Trained:
    """A drawn screen with all its folds in one space, and what they are worth; to be left as it is."""

    screen: Screened
    folds: list[Fold]
    found: Evaluation


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    screen = drawn(tmp_path_factory.mktemp("trained"), {})
    folds = screen.train()
    return Trained(screen, folds, evaluate(screen.study, folds))


def rows_of(found: Evaluation, guard: str) -> pd.DataFrame:
    return found.treatments[found.treatments["guard"] == guard].set_index(c.TREATMENT)


def test_each_fold_may_turn_its_space_as_it_likes(tmp_path: Path, trained: Trained) -> None:
    screen, still = drawn(tmp_path, {}), trained.found
    rng = np.random.default_rng(0)
    turns = {
        name: rng.uniform(0.1, 9) * ortho_group.rvs(8, random_state=rng) for name in screen.index[c.COMPOUND]
    }
    turned = evaluate(screen.study, screen.train(lambda name: screen.features @ turns[name]))
    assert 0.5 < still.summary["nsc"]["accuracy"] < 1, "hits and errors, both the same in all turned spaces"
    assert turned.summary == still.summary
    pd.testing.assert_frame_equal(turned.treatments, still.treatments, rtol=1e-3)


def test_only_the_compound_left_out_is_a_query_in_a_space(tmp_path: Path, trained: Trained) -> None:
    """One fold's network puts every treatment on its MoA; only its own compound gains by that."""
    screen, still = drawn(tmp_path, {}), trained.found
    wrong = rows_of(still, "NSC").query("~correct")[c.COMPOUND].iloc[0]
    codes = pd.factorize(screen.index[c.MOA])[0]
    ideal = np.eye(8)[codes] * (codes >= 0)[:, None]
    folds = screen.train(lambda name: ideal if name == wrong else screen.features)
    better = rows_of(evaluate(screen.study, folds), "NSC")
    own = better[c.COMPOUND] == wrong
    assert better.loc[own, "correct"].all()
    others = better.index[~own]
    pd.testing.assert_frame_equal(better.loc[others], rows_of(still, "NSC").loc[others])


def test_the_heads_are_judged_by_what_they_say_of_compounds_they_never_saw(trained: Trained) -> None:
    head = trained.found.summary["moa_head"]
    assert (head["correct"], head["total"]) == (20, 24), "a1 and c2, of two doses each, are told wrongly"
    recall = {"A": 0.75, "B": 1, "C": pytest.approx(2 / 3), "D": 1}
    assert head["of_evaluated_folds"]["treatment"]["recall"] == recall


def test_the_summary_states_its_rules_in_plain_json(trained: Trained) -> None:
    study, summary = trained.screen.study, trained.found.summary
    assert json.loads(json.dumps(summary, allow_nan=False)) == summary
    assert "validation compounds of the fold" in summary["rules"]["epoch"]
    assert summary["rules"]["left_out"].startswith("the compound; other compounds")
    assert summary["rules"]["treatment_from_wells"] == "mean"
    fixed = study.config.train.model_copy(update={"choose": "last", "epochs": 7})
    config = study.config.model_copy(update={"train": fixed})
    assert rules(config)["epoch"] == "a fixed budget of 7 epochs"


def test_the_table_can_be_written_and_read(trained: Trained) -> None:
    table = trained.found.treatments
    back = pd.read_parquet(io.BytesIO(parquet_bytes(pa.Table.from_pandas(table, preserve_index=False))))
    assert back[c.TREATMENT].tolist() == table[c.TREATMENT].tolist()
    assert len(back) == 2 * 24
    assert list(back["Metadata_Batches"].iloc[0]) == ["W0"]


# --- Weeks left out -----------------------------------------------------------------------------------------


def test_a_moa_that_is_gone_with_its_week_is_dropped_and_counted(tmp_path: Path) -> None:
    screen = drawn(tmp_path, {"leave_out": "a0", "leave_out_batches": True})
    found = evaluate(screen.study, screen.train())
    reason = "no compound of its MoA trains in its fold"
    lost = {"d0@1", "d0@2", "d1@1", "d1@2"}
    assert found.summary["nsc"]["dropped"] == dict.fromkeys(sorted(lost), reason)
    assert found.summary["nsc"]["dropped_by_reason"] == {reason: 4}
    assert found.summary["nsc"]["total"] == 20
    assert found.summary["nsc"]["candidates"] == 24, "they stay candidates"
    assert found.summary["nscb"]["dropped_by_reason"] == {"all its treatments lie in one batch (W0)": 4}
    assert (found.summary["moa_head"]["correct"], found.summary["moa_head"]["total"]) == (16, 20)
    assert set(found.summary["moa_head"]["dropped"]) == lost
    assert rows_of(found, "NSC").loc[sorted(lost), "predicted"].isna().all()
    assert found.summary["rules"]["left_out"].endswith("controls included")


def test_a_fold_that_saw_the_week_cannot_stand_for_one_that_did_not(trained: Trained) -> None:
    study = trained.screen.study
    split = study.config.split.model_copy(update={"leave_out_batches": True})
    strict = Study(study.storage, study.config.model_copy(update={"split": split}), "main")
    with pytest.raises(HcsError, match=r"no fold can be evaluated.*another configuration"):
        evaluate(strict, trained.folds)


# --- Folds that are not there -------------------------------------------------------------------------------


@contextlib.contextmanager
def spoilt(screen: Screened, fold: Fold, kind: str) -> Iterator[None]:
    """One fold unusable, for a while."""
    storage, path = screen.study.storage, f"{fold.folder}/{FIELDS_FILE}"
    whole = storage.read(path)
    table = screen.read(fold)
    own = table[c.COMPOUND] == fold.compound
    if kind == "absent":
        storage.delete(path)
    elif kind == "cut":
        storage.write(path, whole[:-100])
    elif kind == "not finite":
        unknown = [row * np.nan if mine else row for row, mine in zip(table[c.EMBEDDING], own, strict=True)]
        screen.write(fold, table.assign(**{c.EMBEDDING: unknown}))
    elif kind == "leaked":
        screen.write(fold, table.assign(**{c.SIDE: table[c.SIDE].mask(own, c.TRAIN)}))
    elif kind == "a well short":
        screen.write(fold, table[~(own & (table[c.WELL] == table.loc[own, c.WELL].iloc[0]))])
    yield
    storage.write(path, whole)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("no trial", "no trial left it out"),
        ("absent", "trial trial_00001 has left no fields.parquet: it failed, or has not ended"),
        ("cut", "is damaged"),
        ("not finite", "leave the row out or embed it again"),
        ("leaked", "trial trial_00001 had W1P1_C03_s1 as train, and with a1 left out it is test"),
        ("a well short", "has not just the labelled fields and negative controls, as for W1P1_C03_s1"),
    ],
)
def test_a_missing_fold_is_named_and_its_treatments_count_as_wrong(
    trained: Trained, kind: str, reason: str
) -> None:
    folds, whole = trained.folds, trained.found
    assert folds[1].compound == "a1"
    with spoilt(trained.screen, folds[1], kind):
        given = [fold for fold in folds if kind != "no trial" or fold.compound != "a1"]
        found = evaluate(trained.screen.study, given)
    missing = found.summary["folds"]["missing"]
    assert list(missing) == ["a1"]
    assert reason in missing["a1"]
    lost = ["a1@1", "a1@2"]
    for guard in ("NSC", "NSCB"):
        figures, before = found.summary[guard.lower()], whole.summary[guard.lower()]
        hits = int(rows_of(whole, guard).loc[lost, "correct"].sum())
        assert figures["total"] == before["total"]
        assert figures["correct"] == before["correct"] - hits
        rest = {"correct": figures["correct"], "total": figures["total"] - 2}
        assert figures["of_evaluated_folds"] == rest
        assert figures["missing_counted_as_wrong"] == 2
        table = rows_of(found, guard)
        assert table.loc[lost, "missing"].str.contains(reason, regex=False).all()
        assert table.loc[lost, [NEIGHBOUR, DROPPED, "predicted"]].isna().all(axis=None)
    head = found.summary["moa_head"]
    assert (head["correct"], head["total"], head["missing_counted_as_wrong"]) == (20, 24, 2)


def test_what_cannot_be_evaluated_at_all_is_one_line(trained: Trained) -> None:
    study, folds = trained.screen.study, trained.folds
    with pytest.raises(InputError, match="b0 is left out by two trials, trial_00004 and again"):
        evaluate(study, [*folds, Fold("b0", "again", "sweeps/s/trials/x")])
    with pytest.raises(InputError, match="trial x: DMSO is no compound that can be left out"):
        evaluate(study, [Fold("DMSO", "x", "sweeps/s/trials/x")])
    with pytest.raises(HcsError, match="no fold can be evaluated; the first, a0: no trial left it out"):
        evaluate(study, [])


# --- What a fold is trained on ------------------------------------------------------------------------------


def with_unlabelled(folder: Path, config: Any) -> Study:
    """The drawn screen, of which the second dose of every compound has no MoA."""
    index = drawn_index()
    index[c.MOA] = index[c.MOA].where(~index[c.TREATMENT].str.endswith("@2"))
    return screened(folder, index, np.zeros((len(index), 1)), config, {}).study


def learnt(job: TrainJob) -> pd.DataFrame:
    """The fields in the lists of its epochs."""
    table = side_table(job.fields, c.TRAIN, anchored=False)
    return table[table[LISTED]]


def test_a_fold_trains_on_its_own_sides_and_embeds_all_that_is_scored(tmp_path: Path) -> None:
    study = with_unlabelled(tmp_path, {"split": {"leave_out": "a0", "leave_out_batches": True}})
    job = prepare_fold(study, "sweeps/s/trials/0", "s")
    assert (job.folder, job.final, job.group) == ("sweeps/s/trials/0", "labelled", "s")
    seen = learnt(job)
    assert "a0" not in set(seen[c.COMPOUND])
    assert "W0" not in set(seen[c.BATCH])
    assert set(seen[c.MOA].dropna()) == {"A", "B", "C"}
    wanted = drawn_index().query(
        "Metadata_MOA.isna() or Metadata_Treatment.str.endswith('@1')", engine="python"
    )
    assert set(wanted[c.KEY]) <= set(job.fields[c.KEY])


@pytest.mark.parametrize("shown", ["train", "all"])
def test_weak_labels_show_the_compound_left_out_only_where_all_are_asked_for(
    tmp_path: Path, shown: str
) -> None:
    train = {"treatment": {"weight": 1.0, "fields": shown}}
    study = with_unlabelled(tmp_path, {"split": {"leave_out": "a0"}, "train": train})
    seen = learnt(prepare_fold(study, "sweeps/s/trials/0"))
    trains = set(seen.loc[(seen[c.SIDE] == c.TRAIN) & seen[c.MOA].notna(), c.COMPOUND])
    assert len(trains) > 2
    assert {f"{name}@2" for name in trains} <= set(seen[c.TREATMENT]), (
        "unlabelled doses have weak labels, too"
    )
    own = seen[seen[c.COMPOUND] == "a0"]
    assert set(own[c.TREATMENT]) == ({"a0@1", "a0@2"} if shown == "all" else set())
    assert (own[LABEL] == NONE).all()
    assert ("every compound is seen" in rules(study.config)["pixels"]) == (shown == "all")


def test_no_head_learns_from_a_week_that_is_left_out(tmp_path: Path) -> None:
    split = {"leave_out": "a0", "leave_out_batches": True}
    train = {"treatment": {"weight": 1.0, "fields": "all"}}
    study = with_unlabelled(tmp_path, {"split": split, "train": train})
    with pytest.raises(InputError, match=r"split\.leave_out a0: \d+ fields that are left out would be seen"):
        prepare_fold(study, "sweeps/s/trials/0")


def test_a_fold_must_name_its_compound(trained: Trained) -> None:
    with pytest.raises(InputError, match=r"split\.leave_out names no compound"):
        prepare_fold(trained.screen.study, "sweeps/s/trials/0")
