"""Workers, drivers and nodes that die in the middle of an epoch: the run ends as if nothing had happened.

Real Ray nodes, each a raylet with workers of its own, and SIGKILL. One cluster and one undisturbed run are
shared by all: a run struck once, at whatever moment, ends with the same number of optimizer steps, the same
list of fields seen, and bitwise the same weights.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest
import torch

from hcs_ray.storage import LocalStorage, Storage, open_storage
from tests.command import HCS_RAY
from tests.ray_nodes import Node, RayNodes, ray_nodes
from tests.training_study import draw_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 22
MID_EPOCH = (3, 6, 9, 12, 15, 18)  # steps with a checkpoint, none of them at the end of an epoch of eleven
LONGEST_S = 300
KEEP_ALL = ("--set", "train.keep_checkpoints=1000")
SOAK = [pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 6)]


@dataclass(frozen=True)
class Cluster:
    """Two nodes of one core: the head, to which drivers connect, and another, which tests may take away."""

    nodes: RayNodes
    head: Node
    others: list[Node]

    def whole(self) -> Cluster:
        """With the other node there, a new one where the last was killed."""
        if not self.others or self.others[-1].process.poll() is not None:
            self.others.append(self.nodes.add(1))
        return self

    @property
    def other(self) -> Node:
        return self.others[-1]

    def worker(self, node: Node) -> psutil.Process:
        """The rank of the running training on a node."""
        for process in node.processes():
            with contextlib.suppress(psutil.Error):
                if any("RayTrainWorker" in word for word in process.cmdline()):
                    return process
        raise AssertionError(f"no rank runs on {node.name}")


@pytest.fixture(scope="module")
def _cluster() -> Iterator[Cluster]:
    with ray_nodes(RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S="1") as nodes:
        yield Cluster(nodes, nodes.start_head(1), [])


@pytest.fixture
def cluster(_cluster: Cluster) -> Cluster:
    return _cluster.whole()


@pytest.fixture(scope="module")
def study(_cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards to train on."""
    return draw_study(tmp_path_factory.mktemp("faults") / "study", _cluster.whole().nodes.address)


@pytest.fixture(scope="module")
def reference(study: Path, _cluster: Cluster) -> Ended:
    """The undisturbed run."""
    return undisturbed(study, _cluster.whole(), "reference")


@dataclass(frozen=True)
class Ended:
    """What a finished run has left."""

    storage: Storage
    name: str

    def read(self, file: str) -> bytes:
        return self.storage.read(f"runs/{self.name}/{file}")

    def weights(self) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = torch.load(io.BytesIO(self.read("model.pt")), weights_only=True)["state"]
        return found

    def table(self, file: str) -> pd.DataFrame:
        data = io.BytesIO(self.read(file))
        found: pd.DataFrame = pd.read_parquet(data) if file.endswith(".parquet") else pd.read_csv(data)
        return found


class Training:
    """A running ``hcs-ray train``; the checkpoints that Ray Train has noted."""

    def __init__(self, study: str, name: str, storage: Storage, address: str, *options: str) -> None:
        self.storage, self.name = storage, name
        command = [HCS_RAY, "run", study, "--name", name, "--from", "split", "--to", "train", *options]
        self.process = subprocess.Popen(
            command, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "RAY_ADDRESS": address},
        )  # fmt: skip

    def noted(self) -> list[int]:
        """The steps of its checkpoints."""
        found = self.storage.read_versioned(f"runs/{self.name}/ray/checkpoint_manager_snapshot.json")
        return sorted({int(step) for step in re.findall(r"step_(\d{8})", found[0].decode())}) if found else []

    def await_step(self, step: int) -> list[int]:
        """Wait for a checkpoint of this step or a later one; those that are there then."""
        deadline = time.monotonic() + LONGEST_S
        while not (noted := self.noted()) or noted[-1] < step:
            assert self.process.poll() is None, f"it ended too soon: {self.process.communicate()[1]}"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return noted

    def ended(self) -> str:
        """Wait for it; what it said."""
        _, said = self.process.communicate(timeout=LONGEST_S)
        return said

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@contextlib.contextmanager
def training(study: Path | str, cluster: Cluster, name: str, *options: str) -> Iterator[Training]:
    storage = open_storage(str(study))
    running = Training(str(study), name, storage, cluster.nodes.address, *KEEP_ALL, *options)
    try:
        yield running
    finally:
        if running.process.poll() is None:
            running.kill()


def undisturbed(study: Path | str, cluster: Cluster, name: str, *options: str) -> Ended:
    """A run from its beginning, or on from where it was killed, to its end."""
    with training(study, cluster, name, *options) as running:
        said = running.ended()
        assert running.process.returncode == 0, said
    return Ended(running.storage, name)


def assert_same(one: Ended, other: Ended) -> None:
    """Optimizer steps, fields seen, history and figures of points, and every bit of the weights."""
    history, its = one.table("metrics.csv"), other.table("metrics.csv")
    assert history["optimizer_steps"].iloc[-1] == its["optimizer_steps"].iloc[-1]
    pd.testing.assert_frame_equal(history, its, rtol=1e-9)
    pd.testing.assert_frame_equal(one.table("seen.parquet"), other.table("seen.parquet"))
    weights, undisturbed_weights = one.weights(), other.weights()
    assert weights.keys() == undisturbed_weights.keys()
    for name, value in weights.items():
        assert torch.equal(value, undisturbed_weights[name]), name
    assert json.loads(one.read("metrics.json")) == json.loads(other.read("metrics.json"))
    timed = ["fields_per_second", "wait_share"]
    points = [ended.table("points.csv").drop(columns=timed) for ended in (one, other)]
    pd.testing.assert_frame_equal(*points, rtol=1e-9)


def written(ended: Ended | Training, steps: list[int]) -> dict[int, str]:
    """The version of each of these checkpoints."""
    paths = {step: f"runs/{ended.name}/ray/step_{step:08d}/checkpoint.ckpt" for step in steps}
    found = {step: ended.storage.read_versioned(path) for step, path in paths.items()}
    return {step: content[1] for step, content in found.items() if content}


def strike(study: Path | str, cluster: Cluster, name: str, seed: int, blow: Callable[[Training], None]) -> Ended:
    """Start a run, strike it after a seeded checkpoint in mid-epoch, and see it through to its end.

    It must have gone on from a checkpoint: those that were there are not written again.
    """
    with training(study, cluster, name) as running:
        noted = running.await_step(random.Random(seed).choice(MID_EPOCH))
        assert noted[-1] < STEPS - 1, "struck too late"
        before = written(running, noted)
        blow(running)
        said = running.ended() if running.process.poll() is None else ""
    ended = Ended(running.storage, name)
    if running.process.returncode != 0:  # the driver was killed
        assert running.process.returncode == -signal.SIGKILL, said
        undisturbed(study, cluster, name)
    assert written(ended, noted) == before
    return ended


def test_the_reference_saw_every_field_in_every_epoch(reference: Ended) -> None:
    seen = reference.table("seen.parquet")
    assert len(seen) == 44
    assert set(seen["times_seen"]) == {2}
    assert list(reference.table("metrics.csv")["optimizer_steps"]) == [11, STEPS]


@pytest.mark.parametrize("seed", [0, *SOAK])
def test_a_killed_worker(reference: Ended, study: Path, cluster: Cluster, seed: int) -> None:
    def blow(_: Training) -> None:
        cluster.worker(random.Random(seed).choice([cluster.head, cluster.other])).kill()

    assert_same(strike(study, cluster, f"worker{seed}", seed, blow), reference)


@pytest.mark.parametrize("seed", [0, *SOAK])
def test_a_killed_driver(reference: Ended, study: Path, cluster: Cluster, seed: int) -> None:
    assert_same(strike(study, cluster, f"driver{seed}", seed, Training.kill), reference)


@pytest.mark.parametrize("seed", [0, *SOAK])
def test_a_killed_node_and_a_new_one(reference: Ended, study: Path, cluster: Cluster, seed: int) -> None:
    def blow(_: Training) -> None:
        cluster.other.kill()
        cluster.whole()

    assert_same(strike(study, cluster, f"node{seed}", seed, blow), reference)
