"""A run's training: resumed anywhere it ends bitwise the same, each option does what it says, and as a command.

Most tests train in this process, without Ray: what they check is `hcs_ray.model.fitting`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from hcs_ray import contracts as c
from hcs_ray.model import fitting
from hcs_ray.model.checkpoint import CHECKPOINT_FILE, CHECKPOINT_KEY, RunState
from hcs_ray.model.epochs import epoch_list
from hcs_ray.model.network import SCORE, MoaNetwork
from hcs_ray.study import open_study
from tests.command import hcs_ray, refused
from tests.training_study import TRAIN, Alone, draw_study, run_with

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
