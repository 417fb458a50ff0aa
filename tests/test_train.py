"""A run's training: resumed anywhere it ends bitwise the same, each option does what it says; the command.

Most tests train in this process, without Ray: what they check is `hcs_ray.model.fitting`.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError
from hcs_ray.model import fitting
from hcs_ray.model.augment import centre
from hcs_ray.model.checkpoint import CHECKPOINT_FILE, CHECKPOINT_KEY, RunState
from hcs_ray.model.epochs import epoch_list
from hcs_ray.model.loader import FieldSource, training_batches
from hcs_ray.model.module import MoaModule
from hcs_ray.model.network import SCORE, MoaNetwork
from hcs_ray.model.targets import LABEL
from hcs_ray.study import Study, open_study
from hcs_ray.train import load_network, read_metrics
from tests.command import hcs_ray
from tests.training_study import Alone, draw_study, run_of, run_with

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

STEPS = 22
TIMES = {"fields_per_second", "wait_share"}  # of points: no two runs are as fast

# Sets of options that together use all that a checkpoint must hold.
OPTIONS: dict[str, list[str]] = {
    "plain": [],
    "all heads": [
        "train.treatment.weight=0.5", "train.adversary.target=plate", "train.ema_decay=0.9",
        "train.schedule=plateau", "train.warmup=0.2", "train.clip_norm=0.1", "model.dropout=0.3",
        "train.augment.rotation_degrees=20", "train.augment.noise=0.1", "train.augment.gamma=0.2",
        "train.augment.blur_px=1", "train.sampling=class_balanced", "train.channels_last=true",
    ],
    "in parts": ["train.device_batch=3", "train.schedule=cosine", "train.warmup=0.1", "train.precision=bf16"],
    "anchored": ["model.normalization=control_anchored", "train.plates_per_batch=2", "train.choose=last"],
    "stopped early": ["train.epochs=12", "train.stop_after=1", "train.lr=1e-6", "train.schedule=constant"],
}  # fmt: skip


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, cluster: str) -> Path:
    """Shards and splits to train on."""
    return draw_study(tmp_path_factory.mktemp("training") / "study", cluster)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Sums over several threads may round differently from one time to the next."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


def content(checkpoint: Path) -> dict[str, Any]:
    found: dict[str, Any] = torch.load(checkpoint / CHECKPOINT_FILE, weights_only=True)
    return found


def comparable(state: RunState) -> dict[str, Any]:
    """All of a state but how long it took."""
    points = [{name: value for name, value in point.items() if name not in TIMES} for point in state.points]
    return {**vars(state), "points": points}


def assert_same(one: Any, other: Any, where: str = "") -> None:
    """Bitwise, through mappings and lists."""
    assert type(one) is type(other), where
    if isinstance(one, Mapping):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for place, (mine, its) in enumerate(zip(one, other, strict=True)):
            assert_same(mine, its, f"{where}/{place}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other or one != one, where


def assert_ends_alike(run: fitting.Run, from_: Path, reference: tuple[RunState, Path], folder: Path) -> None:
    """A run that goes on from a checkpoint ends with all that the undisturbed one ended with."""
    alone = Alone(folder)
    state = alone.fit(run, from_)
    assert_same(comparable(state), comparable(reference[0]))
    last, undisturbed = content(alone.checkpoints[-1]), content(reference[1])
    for part in ("state_dict", "optimizer_states", "global_step"):
        assert_same(last[part], undisturbed[part], part)


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("moments", [3, pytest.param(100, marks=pytest.mark.soak)])
def test_resumed_after_any_step_it_ends_bitwise_the_same(
    study: Path, tmp_path: Path, options: list[str], moments: int
) -> None:
    run = run_with(study, "train.checkpoint_steps=1", *options)
    (tmp_path / "whole").mkdir()
    whole = Alone(tmp_path / "whole")
    state = whole.fit(run)
    assert state.done
    steps = [int(report["optimizer_steps"]) for report in whole.reported]
    assert steps == list(range(1, len(steps) + 1))
    before_the_end = whole.checkpoints[:-1]
    chosen = random.Random(0).sample(before_the_end, min(moments, len(before_the_end)))
    for number, checkpoint in enumerate(chosen):
        (tmp_path / str(number)).mkdir()
        assert_ends_alike(run, checkpoint, (state, whole.checkpoints[-1]), tmp_path / str(number))


@pytest.fixture(scope="module")
def plain(study: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunState, Alone]:
    """An undisturbed run with the weights of every step."""
    alone = Alone(tmp_path_factory.mktemp("plain"))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    state = alone.fit(run_with(study, "train.checkpoint_steps=1", "train.stop_after=5"))
    torch.set_num_threads(threads)
    return state, alone


def weights_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The network's, not those of a moving average."""
    saved = content(checkpoint)["state_dict"].items()
    return {name.removeprefix("network."): value for name, value in saved if name.startswith("network.")}


def test_a_checkpoint_says_how_far_it_is_and_holds_no_pickle(plain: tuple[RunState, Alone]) -> None:
    for step, checkpoint in enumerate(plain[1].checkpoints, start=1):
        ours = content(checkpoint)[CHECKPOINT_KEY]
        assert ours["step"] == step
        assert (ours["epoch"], ours["samples"]) == divmod(step * 4, 44)
        assert ours["generators"] == {"seed": 0, "step": step, "ranks": 1}
        assert int(ours["seen"].sum()) == step * 4


def test_the_fields_seen_are_the_entries_of_the_lists(
    study: Path, plain: tuple[RunState, Alone], tmp_path: Path
) -> None:
    assert plain[0].seen.tolist() == [2] * 44
    run = run_with(study, "train.sampling=plate_and_class_balanced", "train.epochs=1")
    state = Alone(tmp_path).fit(run)
    fields = run.source(c.TRAIN).fields
    assert (
        state.seen.tolist() == np.bincount(epoch_list(fields, run.config, 0), minlength=len(fields)).tolist()
    )
    assert max(state.seen) > 1


def test_the_chosen_weights_are_those_of_the_best_epoch(plain: tuple[RunState, Alone]) -> None:
    state, alone = plain
    scores = [row[SCORE] for row in state.history]
    end = (scores.index(max(scores)) + 1) * 11 - 1
    assert_same(state.best, weights_of(alone.checkpoints[end]))


def test_early_stopping_ends_after_epochs_without_a_better_score(study: Path, tmp_path: Path) -> None:
    state = Alone(tmp_path).fit(run_with(study, *OPTIONS["stopped early"]))
    scores = [row[SCORE] for row in state.history]
    assert state.done
    assert state.epoch == len(scores) < 12
    assert scores[-1] <= max(scores[:-1])
    assert all(scores[i] > max(scores[:i]) for i in range(1, len(scores) - 1))


def test_the_moving_average_is_judged_and_kept_and_changes_no_training(
    study: Path, plain: tuple[RunState, Alone], tmp_path: Path
) -> None:
    run = run_with(study, "train.ema_decay=0.8", "train.choose=last", "train.checkpoint_steps=1")
    alone = Alone(tmp_path)
    state = alone.fit(run)
    raw = [weights_of(checkpoint) for checkpoint in alone.checkpoints]
    assert_same(raw[-1], weights_of(plain[1].checkpoints[-1]))
    torch.manual_seed(run.config.seed)
    expected = {name: value.double() for name, value in MoaNetwork(run.spec).state_dict().items()}
    for update, weights in enumerate(raw):
        decay = min(0.8, (1 + update) / (10 + update))
        for name, value in weights.items():
            expected[name] += (1 - decay) * (value.double() - expected[name])
    for name, value in state.best.items():
        if value.is_floating_point():
            torch.testing.assert_close(value.double(), expected[name], rtol=1e-4, atol=1e-6)


def first_gradients(
    run: fitting.Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> dict[str, torch.Tensor]:
    """Of the weights, in the first optimizer step."""
    found: list[dict[str, torch.Tensor]] = []

    def keep(module: MoaModule, _: object) -> None:
        named = module.network.named_parameters()
        found.append({name: value.grad.clone() for name, value in named if value.grad is not None})

    monkeypatch.setattr(MoaModule, "on_before_optimizer_step", keep)
    folder.mkdir()
    Alone(folder).fit(run)
    return found[0]


SMALL_STEP = [
    "train.epochs=1", "train.global_batch=22", "train.crop_px=64", "train.class_weights=false",
    "train.augment.intensity=0", "train.augment.flips=false", "train.augment.quarter_turns=false",
    "model.backbone=convnextv2-atto",
]  # fmt: skip


def test_gradients_are_those_of_the_whole_batch_also_in_parts(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An oracle computes them by a plain loss; convnextv2 has no batch statistics, so parts must agree."""
    run = run_with(study, *SMALL_STEP)
    batch = next(iter(training_batches(run.source(c.TRAIN), run.config, 0, 0, 1)))
    torch.manual_seed(run.config.seed)
    network = MoaNetwork(run.spec)
    labels = torch.from_numpy(run.source(c.TRAIN).fields[LABEL].to_numpy("int64").copy())[batch["rows"]]
    torch.nn.functional.cross_entropy(network(batch["images"]).moa, labels).backward()  # type: ignore[no-untyped-call]
    expected = {name: value.grad for name, value in network.named_parameters() if value.grad is not None}
    for device_batch in ("null", "5"):
        parts = run_with(
            study, *SMALL_STEP, "train.class_weights=false", f"train.device_batch={device_batch}"
        )
        found = first_gradients(parts, tmp_path / device_batch, monkeypatch)
        assert found.keys() == expected.keys()
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-6)


def test_bf16_learns_nearly_the_same(study: Path, plain: tuple[RunState, Alone], tmp_path: Path) -> None:
    state = Alone(tmp_path).fit(run_with(study, "train.precision=bf16", "train.epochs=2"))
    losses = [history[0]["train_loss"] for history in (state.history, plain[0].history)]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
    assert losses[0] != losses[1]
    assert all(value.dtype != torch.bfloat16 for value in state.best.values())


def test_each_head_has_its_loss_and_the_reversal_grows(study: Path, tmp_path: Path) -> None:
    alone = Alone(tmp_path)
    state = alone.fit(run_with(study, *OPTIONS["all heads"], "train.log_steps=1"))
    row = state.history[-1]
    assert row["train_loss"] == pytest.approx(
        row["train_moa"] + 0.5 * row["train_treatment"] + row["train_domain"], rel=1e-5
    )
    reversals = [point["reversal"] for point in alone.noted]
    assert reversals[0] < reversals[2] < reversals[-1]
    assert all(point["gradient_norm"] > 0 for point in alone.noted)
    assert state.points == alone.noted


def test_a_node_that_leaves_makes_one_checkpoint_at_once(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_POLL_SECONDS", 0.0)
    alone = Alone(tmp_path, leaves_at=5)
    alone.fit(run_with(study, "train.checkpoint_steps=null"))
    assert [int(report["optimizer_steps"]) for report in alone.reported] == [5, 11, STEPS]
    assert [report["epoch_end"] for report in alone.reported] == [0, 1, 1]


def test_when_its_time_is_over_it_ends_with_a_checkpoint_to_go_on_from(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fitting, "_POLL_SECONDS", 0.0)
    run = run_with(study, "train.checkpoint_steps=null")
    alone = Alone(tmp_path, time_over_at=15)
    with pytest.raises(fitting.StoppedError):
        alone.fit(run)
    assert [int(report["optimizer_steps"]) for report in alone.reported] == [11, 15]
    (tmp_path / "whole").mkdir()
    whole = Alone(tmp_path / "whole")
    reference = whole.fit(run), whole.checkpoints[-1]
    (tmp_path / "on").mkdir()
    assert_ends_alike(run, alone.checkpoints[-1], reference, tmp_path / "on")


def test_a_checkpoint_of_another_version_is_one_line() -> None:
    with pytest.raises(HcsError, match=r"a checkpoint has format 1; this version reads 2.*--force"):
        RunState.from_plain({"format": 1, "epoch": 0})


def test_a_damaged_member_is_one_line_that_names_shard_key_and_offset(study: Path, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(study, tmp_path / "damaged"))
    run = run_with(damaged)
    member = run.source(c.TRAIN).fields.iloc[7]
    with (damaged / "shards" / member[c.SHARD]).open("r+b") as shard:
        shard.seek(member[c.OFFSET] + member[c.SIZE] // 2)
        shard.write(b"damaged")
    (tmp_path / "alone").mkdir()
    with pytest.raises(HcsError) as error:
        Alone(tmp_path / "alone").fit(run)
    for named in (member[c.KEY], member[c.SHARD], str(member[c.OFFSET])):
        assert named in str(error.value)
    assert "\n" not in str(error.value)


KEY = 40 * "5ec7e7"


def test_the_command_leaves_all_that_was_learned_and_no_secret(study: Path, cluster: str) -> None:
    done = hcs_ray("train", study, "--set", "train.tensorboard=true", RAY_ADDRESS=cluster, WANDB_API_KEY=KEY)
    assert done.returncode == 0, done.stderr
    folder = study / "runs/main"
    opened = open_study(str(study), overrides=["train.tensorboard=true"])
    assert {Path(path).name for path in opened.require("train").outputs} >= {"model.pt", "metrics.csv"}
    summary = read_metrics(opened)
    history = pd.read_csv(folder / "metrics.csv")
    assert list(history["optimizer_steps"]) == [11, STEPS]
    assert summary["selected"][SCORE] == pytest.approx(history[SCORE].max())
    assert summary["test"]["test_balanced_accuracy"] == pytest.approx(judged_again(opened), abs=1e-6)
    learned, judged, tested = (
        set(summary[f"{side}_compounds"]) - {"DMSO", "taxol"} for side in ("train", "validation", "test")
    )
    assert tested
    assert not tested & (learned | judged)
    assert pd.read_parquet(folder / "seen.parquet")["times_seen"].tolist() == [2] * 44
    points = pd.read_csv(folder / "points.csv")
    assert set(points["optimizer_steps"]) == {2, 4, 6, 8, 10, 11, 12, 14, 16, 18, 20, STEPS}
    assert pd.read_csv(folder / "confusion.csv", index_col=0).to_numpy().sum() == summary["test_fields"]
    assert (folder / "misclassified.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(folder.glob("wandb/offline-run-*/*.wandb"))) == 1
    assert list(folder.glob("tensorboard/**/events.*"))
    secrets = [KEY, os.environ["RAY_AUTH_TOKEN"], os.environ["AWS_SECRET_ACCESS_KEY"]]
    for path in folder.rglob("*"):
        assert path.is_dir() or not any(secret.encode() in path.read_bytes() for secret in secrets), path


def judged_again(opened: Study) -> float:
    """Balanced accuracy of the network that was kept, from all test fields at once, by another library."""
    network, spec = load_network(opened)
    run = run_of(opened)
    fields = run.fields[(run.fields[c.SIDE] == c.TEST) & (run.fields[LABEL] >= 0)]
    middle = centre(run.reader.shape, run.config.crop_px)
    source = FieldSource(run.reader, fields, run.config.downsample)
    images = torch.from_numpy(np.stack([source.image(row, middle) for row in range(len(fields))]))
    with torch.inference_mode():
        predicted = network(images).moa.argmax(1).numpy()
    assert predicted.max() < len(spec.classes)
    return float(balanced_accuracy_score(fields[LABEL], predicted))
