"""A sweep as its user runs it: real trainings, killed and gone on with, and its best network passed on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from hcs_ray import contracts as c
from hcs_ray.config import parse_sweep
from hcs_ray.profiles.folds import compounds
from hcs_ray.stage import read_record
from hcs_ray.storage import LocalStorage
from hcs_ray.study import open_study
from hcs_ray.tables import read_embeddings
from hcs_ray.tune.sweep import _can_go_on
from tests.command import HCS_RAY, hcs_ray, refused
from tests.conftest import REPOSITORY
from tests.drawn_study import drawn_study

pytestmark = pytest.mark.timeout(400)

SCORE = "validation_balanced_accuracy"
LONGEST_S = 240


@pytest.fixture(scope="module")
def split(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    """The smallest demo, as far as its split."""
    folder = tmp_path_factory.mktemp("split") / "demo"
    drawn_study(folder)
    done = hcs_ray("run", folder, "--to", "split", RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def study(split: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(split, tmp_path / "demo"))


@pytest.fixture(scope="module")
def swept(split: Path, tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    """The smallest demo after the smoke sweep; tests read it."""
    folder = Path(shutil.copytree(split, tmp_path_factory.mktemp("swept") / "demo"))
    done = hcs_ray("tune", folder, REPOSITORY / "tune_configs/smoke.yaml", RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    (folder.parent / "terminal").write_text(done.stderr)
    return folder


def test_the_smoke_sweep_ranks_its_trials_and_says_what_next(swept: Path) -> None:
    said = (swept.parent / "terminal").read_text()
    assert "3 trials at a time: 2 CPUs, 0.5 CPU each" in said
    assert f"Next: hcs-ray embed {swept} --run sweep:main/best" in said
    board = pd.read_parquet(swept / "sweeps/main/leaderboard.parquet")
    assert list(board["rank"]) == [1, 2, 3]
    assert set(board["trial"]) == {"t0000", "t0001", "t0002"}
    assert board["score"].is_monotonic_decreasing
    assert board["score"].between(0, 1).all()
    assert board["train.lr"].between(1e-3, 1e-2).all()
    assert board["train.lr"].nunique() == 3
    assert set(board["status"]) <= {"ended", "stopped"}
    for trial in board["trial"]:
        assert str(trial) in said, "it stands in the table on the terminal"
    assert (swept / "sweeps/main/leaderboard.svg").read_bytes().startswith(b"<?xml")


def test_every_trial_leaves_the_network_that_its_score_belongs_to(swept: Path) -> None:
    study = open_study(str(swept))
    record = read_record(study.storage, study.place("tune"))
    assert record is not None
    assert not record.missing(study.storage, study.place("tune"))
    history = pd.read_parquet(swept / "sweeps/main/history.parquet")
    board = pd.read_parquet(swept / "sweeps/main/leaderboard.parquet").set_index("trial")
    for trial, row in board.iterrows():
        told = history[history["trial"] == trial]
        assert row["score"] == told[SCORE].max()
        assert row["epochs"] == len(told)
        path = f"sweeps/main/trials/{trial}/model.pt"
        assert path in record.outputs
        saved = torch.load(swept / path, weights_only=True)
        assert json.loads(saved["spec"])["model"]["backbone"] == "tiny"


def test_a_sweep_that_is_done_is_not_run_again_but_tells_its_figures(swept: Path, cluster: str) -> None:
    again = hcs_ray("tune", swept, REPOSITORY / "tune_configs/smoke.yaml", RAY_ADDRESS=cluster)
    assert again.returncode == 0, again.stderr
    assert "complete" in again.stderr
    assert "t0000" in again.stderr


def test_another_sweep_under_the_same_name_is_stale(swept: Path, tmp_path: Path) -> None:
    other = tmp_path / "sweep.yaml"
    other.write_text((REPOSITORY / "tune_configs/smoke.yaml").read_text().replace("samples: 3", "samples: 4"))
    assert "sweep.samples changed from 3 to 4" in refused("tune", swept, other)


def test_a_trial_s_network_is_passed_on_by_name(swept: Path, tmp_path: Path, cluster: str) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "demo"))
    done = hcs_ray("embed", folder, "--run", "sweep:main/best", RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    study = open_study(str(folder))
    record = read_record(study.storage, study.place("embed"))
    assert record is not None
    best = json.loads((folder / "sweeps/main/sweep.json").read_text())["best"]
    assert record.config["run"] == f"sweep:main/{best}"
    assert "sweeps/main/_stage.json" in record.inputs
    assert "runs/main/_stage.json" not in record.inputs
    meta, features = read_embeddings(study)  # what comes after embed accepts it
    assert features.std(0).max() > 0
    assert meta[c.KEY].is_unique
    assert "run changed from" in refused("embed", folder, "--run", f"sweep:main/{other_than(best)}")
    retuned = folder / "sweeps/main/_stage.json"
    retuned.write_text(retuned.read_text().replace('"code"', '"code" '))
    assert "sweeps/main/_stage.json changed" in refused("profile", folder)


def other_than(trial: str) -> str:
    return "t0001" if trial == "t0000" else "t0000"


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ("sweep:main/t9", "no network of a trial t9; there are: best, t0000, t0001, t0002"),
        ("sweep:other/best", "there is no finished sweep other; there are: main"),
        ("main", "write sweep:NAME/best or sweep:NAME/TRIAL; there are: main"),
    ],
)
def test_an_unknown_run_is_one_line_that_lists_what_there_is(swept: Path, run: str, words: str) -> None:
    assert words in refused("embed", swept, "--run", run)


def test_a_trial_that_can_never_fit_is_one_line(study: Path, tmp_path: Path, cluster: str) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(
        "space: {train.lr: {kind: choice, values: [0.1]}}\nresources: {workers: 3, cpus_per_worker: 1}\n"
    )
    message = refused("tune", study, sweep, RAY_ADDRESS=cluster)
    assert "no trial fits: Ray has 2 CPUs, and a trial takes 3 CPU each" in message


KILLED = """
space: {train.epochs: {kind: grid, values: [1, 12]}}
fixed: {train.schedule: constant}
resources: {workers: 1}
"""


def trial_files(trial: Path) -> list[Path]:
    """All files of a trial but W&B's own logs: its service may still write into them when a run has ended."""
    return [path for path in trial.rglob("*.*") if path.is_file() and "logs" not in path.parts]


def test_a_killed_sweep_keeps_its_finished_trial_and_goes_on_in_the_middle_of_the_next(
    study: Path, tmp_path: Path, cluster: str
) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(KILLED)
    trials = study / "sweeps/main/trials"
    leaderboard = study / "sweeps/main/leaderboard.parquet"
    command = [HCS_RAY, "tune", str(study), str(sweep)]
    kill_when(lambda: {"ended", "running"} == statuses_with_score(leaderboard), command, RAY_ADDRESS=cluster)
    finished = {path: path.stat().st_mtime_ns for path in trial_files(trials / "t0000")}
    told = json.loads((trials / "t0001/epochs.json").read_text())
    assert 1 <= len(told) < 12
    done = hcs_ray("tune", study, sweep, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    for path, changed in finished.items():
        assert path.stat().st_mtime_ns == changed, path
    rows = json.loads((trials / "t0001/epochs.json").read_text())
    assert rows[: len(told)] == told, "the epochs before the kill were not run again: they tell their times"
    assert [row["epoch"] for row in rows] == list(range(12))
    board = pd.read_parquet(leaderboard).set_index("trial")
    assert board["epochs"].to_dict() == {"t0000": 1, "t0001": 12}
    assert set(board["status"]) == {"ended"}


def statuses_with_score(leaderboard: Path) -> set[str]:
    """How trials stand that have told an epoch; the leaderboard is kept current, and always whole."""
    if not leaderboard.exists():
        return set()
    table = pd.read_parquet(leaderboard)
    return set(table.loc[table["score"].notna(), "status"])


def kill_when(ready: Callable[[], bool], command: list[str], **environment: str) -> None:
    """Run a command and SIGKILL it once it has come so far."""
    deadline = time.monotonic() + LONGEST_S
    with subprocess.Popen(
        command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env={**os.environ, **environment}
    ) as process:
        while not ready():
            assert process.poll() is None, "it ended before"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)


def test_a_state_of_tune_that_a_kill_has_cut_is_dropped(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path)
    assert not _can_go_on(storage, "ray")
    storage.write("ray/tuner.pkl", b"\x80\x05N.")
    storage.write("ray/experiment_state-1.json", b'{"trial_data": []}')
    assert _can_go_on(storage, "ray")
    storage.write("ray/searcher-state-1.pkl", b"\x80\x05N")
    assert not _can_go_on(storage, "ray")
    assert storage.sizes("ray") == {}


POPULATION = """
space: {train.lr: {kind: loguniform, low: 1.0e-5, high: 1.0e-1}}
samples: 2
fixed: {train.epochs: 4, train.schedule: constant}
resources: {workers: 1}
scheduler: {kind: KIND, interval_epochs: 2, quantile_fraction: 0.5}
"""


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["pbt", "pb2"])
def test_the_worse_of_a_population_goes_on_from_the_better_one_s_weights(
    study: Path, tmp_path: Path, cluster: str, kind: str
) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(POPULATION.replace("KIND", kind))
    done = hcs_ray("tune", study, sweep, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    trials = study / "sweeps/main/trials"
    exploits = [path for path in trials.glob("t*/t*-*") if path.is_dir()]
    assert exploits
    for folder in exploits:
        assert_went_on(study, folder)


def assert_went_on(study: Path, folder: Path) -> None:
    """Its first epochs are the donor's, its later ones its own, with its own learning rate."""
    rows = json.loads((folder / "epochs.json").read_text())
    donor = Path(rows[0]["checkpoint"]).parts[3]
    assert donor != folder.parent.name
    told = json.loads((study / "sweeps/main/trials" / donor / "epochs.json").read_text())
    taken = [row for row in rows if f"/{folder.name}/" not in row["checkpoint"]]
    assert taken == told[: len(taken)]
    own = rows[len(taken) :]
    assert own
    assert own[0]["epoch"] == taken[-1]["epoch"] + 1
    wanted = json.loads((folder / "values.json").read_text())["train.lr"]
    saved = torch.load(study / own[-1]["checkpoint"] / "checkpoint.ckpt", weights_only=True)
    for optimizer in saved["optimizer_states"]:
        assert {group["lr"] for group in optimizer["param_groups"]} == {wanted}


@pytest.mark.soak
def test_compounds_left_out_are_scored_in_their_own_folds(study: Path, tmp_path: Path, cluster: str) -> None:
    sweep = tmp_path / "sweep.yaml"
    names = compounds(open_study(str(study)))
    sweep.write_text(
        f"space: {{split.leave_out: {{kind: compounds, values: {json.dumps(names[:2])}}}}}\n"
        "fixed: {train.epochs: 1}\nresources: {workers: 1}\n"
    )
    done = hcs_ray("tune", study, sweep, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    found = json.loads((study / "sweeps/main/evaluation.json").read_text())["settings"]
    assert len(found) == 1
    assert found[0]["folds"]["evaluated"] == 2
    assert sorted(found[0]["folds"]["missing"]) == names[2:]
    table = pd.read_parquet(study / "sweeps/main/treatments.parquet")
    assert set(table.loc[table["trial"].notna(), c.COMPOUND]) == set(names[:2])
    assert "learned from a split of its own" in refused("embed", study, "--run", "sweep:main/best")


@pytest.mark.soak
def test_layouts_are_swept_without_any_training(swept: Path, tmp_path: Path, cluster: str) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "demo"))
    named = ("--name", "second")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text("objective: map\nspace: {map.neighbors: {kind: grid, values: [3, 15]}}\n")
    assert "embed second is not complete" in refused("tune", folder, sweep, *named)
    for command in (["split"], ["embed", "--run", "sweep:main/best"], ["tune", sweep]):
        done = hcs_ray(command[0], folder, *command[1:], *named, RAY_ADDRESS=cluster)
        assert done.returncode == 0, done.stderr
    assert f"Next: hcs-ray map {folder} --name second --force --set map.neighbors=" in done.stderr
    board = pd.read_parquet(folder / "sweeps/second/leaderboard.parquet")
    assert sorted(board["map.neighbors"]) == [3, 15]
    assert board["score"].between(0.5, 1).all()


def test_a_network_is_not_judged_by_compounds_that_it_learned_from(swept: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(swept, tmp_path / "demo"))
    other = ("--name", "second", "--set", "split.seed=5")
    assert hcs_ray("split", folder, *other).returncode == 0
    message = refused("embed", folder, "--run", "sweep:main/best", *other)
    assert "sweep main learned from another split than that of second" in message


@pytest.mark.soak
@pytest.mark.parametrize(
    "rules",
    [
        "scheduler: {kind: hyperband}",
        "scheduler: {kind: median_stopping, min_trials: 1}",
        "searcher: {kind: optuna}\nscheduler: {kind: asha, reduction_factor: 2}",
        "searcher: {kind: optuna, sampler: nsga2}\n"
        "metric: [{name: validation_balanced_accuracy}, {name: train_loss, mode: min}]",
    ],
)
def test_every_other_scheduler_and_searcher_ends(
    study: Path, tmp_path: Path, cluster: str, rules: str
) -> None:
    text = (
        "space: {train.lr: {kind: loguniform, low: 1.0e-4, high: 1.0e-1}}\nsamples: 3\n"
        f"fixed: {{train.epochs: 3}}\nresources: {{workers: 1}}\n{rules}\n"
    )
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(text)
    done = hcs_ray("tune", study, sweep, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    board = pd.read_parquet(study / "sweeps/main/leaderboard.parquet")
    assert len(board) == parse_sweep(text, "s").samples
    assert board["score"].between(0, 1).all()
    assert (study / "sweeps/main/trials" / board["trial"][0] / "model.pt").exists()
