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

import pandas as pd
import psutil
import pytest
import torch

from hcs_ray.storage import LocalStorage, Storage, open_storage
from tests.command import HCS_RAY, refused
from tests.ray_nodes import Node, RayNodes, ray_nodes
from tests.training_study import draw_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 22
MID_EPOCH = (3, 6, 9, 12, 15, 18)  # steps with a checkpoint, none of them at the end of an epoch of eleven
LONGEST_S = 300
KEEP_ALL = ("--set", "train.keep_checkpoints=1000")
SEEDS = range(6)


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
def _cluster(s3: str) -> Iterator[Cluster]:
    """After the store, whose address and credentials the nodes are to know."""
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
        saved = torch.load(io.BytesIO(self.read("model.pt")), weights_only=True)
        found: dict[str, torch.Tensor] = saved["state"]
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
    points, its_points = (ended.table("points.csv").drop(columns=timed) for ended in (one, other))
    pd.testing.assert_frame_equal(points, its_points, rtol=1e-9)


def written(ended: Ended | Training, steps: list[int]) -> dict[int, str]:
    """The version of each of these checkpoints."""
    paths = {step: f"runs/{ended.name}/ray/step_{step:08d}/checkpoint.ckpt" for step in steps}
    found = {step: ended.storage.read_versioned(path) for step, path in paths.items()}
    return {step: content[1] for step, content in found.items() if content}


def strike(
    study: Path | str, cluster: Cluster, name: str, seed: int, blow: Callable[[Training], None]
) -> Ended:
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


def test_a_killed_worker_and_later_the_driver(reference: Ended, study: Path, cluster: Cluster) -> None:
    """The driver's end leaves half of Ray Train's list of checkpoints, which it writes in place."""
    with training(study, cluster, "twice") as running:
        noted = running.await_step(6)
        before = written(running, noted)
        cluster.worker(cluster.other).kill()
        noted_later = running.await_step(15)[:-1]  # a copy of the list may lack the last one
        before |= written(running, noted_later)
        running.kill()
    said = refused_run(study, cluster, "twice", "--set", "train.workers=1")
    assert "stale: train.workers changed from 2 to 1" in said
    listed = study / "runs/twice/ray/checkpoint_manager_snapshot.json"
    listed.write_bytes(listed.read_bytes()[: listed.stat().st_size // 2])
    ended = undisturbed(study, cluster, "twice")
    assert noted_later[-1] >= 12
    assert written(ended, noted_later) == before
    assert_same(ended, reference)


@pytest.mark.soak
def test_a_killed_node_and_a_new_one(reference: Ended, study: Path, cluster: Cluster) -> None:
    assert_same(strike(study, cluster, "node", 0, lambda _: replace_node(cluster)), reference)


def replace_node(cluster: Cluster) -> None:
    cluster.other.kill()
    cluster.whole()


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_worker_killed_at_any_moment(reference: Ended, study: Path, cluster: Cluster, seed: int) -> None:
    def blow(_: Training) -> None:
        cluster.worker(random.Random(seed).choice([cluster.head, cluster.other])).kill()

    assert_same(strike(study, cluster, f"worker{seed}", seed, blow), reference)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_driver_killed_at_any_moment(reference: Ended, study: Path, cluster: Cluster, seed: int) -> None:
    assert_same(strike(study, cluster, f"driver{seed}", seed, Training.kill), reference)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_killed_at_any_moment(reference: Ended, study: Path, cluster: Cluster, seed: int) -> None:
    ended = strike(study, cluster, f"node{seed}", seed, lambda _: replace_node(cluster))
    assert_same(ended, reference)


@pytest.mark.soak
def test_an_elastic_run_goes_on_with_the_node_that_is_left(study: Path, cluster: Cluster) -> None:
    elastic = ("--set", "train.workers=[1,2]")
    with training(study, cluster, "elastic", *elastic) as running:
        noted = running.await_step(12)
        before = written(running, noted)
        cluster.other.kill()
        said = running.ended()
        assert running.process.returncode == 0, said
    ended = Ended(running.storage, "elastic")
    assert written(ended, noted) == before
    assert [ranks_of(ended, step) for step in (noted[0], STEPS)] == [2, 1]
    assert noted[-1] % 11 != 0
    seen = ended.table("seen.parquet")
    assert len(seen) == 44
    assert set(seen["times_seen"]) == {2}
    assert list(ended.table("metrics.csv")["optimizer_steps"]) == [11, STEPS]


def ranks_of(ended: Ended, step: int) -> int:
    """How many ranks made a checkpoint."""
    data = io.BytesIO(ended.read(f"ray/step_{step:08d}/checkpoint.ckpt"))
    return int(torch.load(data, weights_only=True)["hcs_ray"]["generators"]["ranks"])


@pytest.mark.soak
def test_a_study_on_s3_is_killed_and_goes_on(
    reference: Ended, study: Path, cluster: Cluster, s3: str
) -> None:
    root = f"{s3}/faults"
    source, target = LocalStorage(study), open_storage(root)
    for path in (*source.sizes("shards"), *source.sizes("configs"), "study.yaml"):
        target.write(path, source.read(path))
    ended = strike(root, cluster, "worker", 1, lambda _: cluster.worker(cluster.other).kill())
    assert_same(ended, reference)
    ended = strike(root, cluster, "driver", 2, Training.kill)
    assert_same(ended, reference)
    secrets = [os.environ[name].encode() for name in ("AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN")]
    for path in target.sizes("runs"):
        assert not any(secret in target.read(path) for secret in secrets), path


def test_bad_input_that_a_worker_finds_is_told_once_and_not_tried_again(
    study: Path, cluster: Cluster, tmp_path: Path
) -> None:
    """Fifty retries would take longer than the test may."""
    (tmp_path / "model.safetensors").write_bytes(b"no tensors")
    said = refused_run(
        study, cluster, "bad", "--set", f"model.weights={tmp_path}", "--set", "train.max_failures=50"
    )
    assert str(tmp_path / "model.safetensors") in said


@pytest.mark.soak
def test_a_damaged_member_is_one_line_that_names_it(study: Path, cluster: Cluster, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(study, tmp_path / "damaged", ignore=shutil.ignore_patterns("runs")))
    index = pd.read_parquet(damaged / "shards/index.parquet")
    for row in index.itertuples():
        with (damaged / "shards" / str(row.shard)).open("r+b") as shard:
            shard.seek(int(str(row.offset)) + int(str(row.size)) // 2)
            shard.write(b"damaged")
    said = refused_run(damaged, cluster, "main", "--set", "train.max_failures=0", code=1)
    found = index[[str(key) in said for key in index["key"]]]
    assert len(found) == 1
    assert str(found["shard"].iloc[0]) in said
    assert str(found["offset"].iloc[0]) in said


def test_workers_that_never_start_are_given_up(study: Path, cluster: Cluster) -> None:
    said = refused_run(
        study, cluster, "many", "--set", "train.workers=5", "--set", "train.wait_minutes=0.05", code=1,
        RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S="2",
    )  # fmt: skip
    assert "no 5 workers with 1 CPU each within 0.05 minutes (train.wait_minutes)" in said


@pytest.mark.soak
def test_when_its_hours_are_over_it_ends_with_one_line_and_goes_on_later(
    reference: Ended, study: Path, cluster: Cluster
) -> None:
    said = refused_run(study, cluster, "hours", "--set", "train.max_hours=0.001", code=1)
    assert re.search(
        r"train.max_hours 0.001 are over after \d+ optimizer steps; run the same command again", said
    )
    assert_same(undisturbed(study, cluster, "hours"), reference)


@pytest.mark.soak
def test_a_preemption_notice_makes_a_checkpoint_at_once(study: Path, cluster: Cluster) -> None:
    """Only the ends of epochs, which are long here, are due; the run goes on where the node went."""
    longer = [
        "train.epochs=3", "train.global_batch=1", "train.checkpoint_steps=null", "model.backbone=resnet18"
    ]  # fmt: skip
    options = [word for option in longer for word in ("--set", option)]
    with training(study, cluster, "drained", *options) as running:
        running.await_step(44)
        cluster.nodes.drain(cluster.other, seconds=8)
        cluster.others.append(cluster.nodes.add(1))
        said = running.ended()
        assert running.process.returncode == 0, said
    at_once = [step for step in running.noted() if step % 44]
    assert len(at_once) == 1
    assert at_once[0] > 44
    assert_same(Ended(running.storage, "drained"), undisturbed(study, cluster, "not_drained", *options))


def refused_run(
    study: Path, cluster: Cluster, name: str, *options: str, code: int = 2, **environment: str
) -> str:
    command = ("run", study, "--name", name, "--from", "split", "--to", "train", *KEEP_ALL, *options)
    return refused(*command, code=code, RAY_ADDRESS=cluster.nodes.address, **environment)
