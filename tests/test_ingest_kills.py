"""Killed in the middle and run again, `hcs-ray shard` ends with the bytes of an undisturbed run."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from hcs_ray.storage import LocalStorage, Storage, open_storage
from tests.command import HCS_RAY, hcs_ray
from tests.drawn_screen import draw_tiny
from tests.s3_server import BUCKET, S3Server
from tests.s3_server import running as running_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

STUDY_YAML = "shards: {max_shard_mb: 1}\n"
PLATES = 24


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four small plates, sharded undisturbed."""
    folder = tmp_path_factory.mktemp("kills") / "study"
    draw_tiny(folder / "raw", weeks=4, plates_per_week=6, height_px=128, width_px=128)
    (folder / "study.yaml").write_text(STUDY_YAML)
    done = hcs_ray("shard", folder)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def fresh(reference: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "study"
    return Path(shutil.copytree(reference, folder, ignore=shutil.ignore_patterns("shards", "configs")))


@contextmanager
def running(study: str) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [HCS_RAY, "shard", study],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "AWS_MAX_ATTEMPTS": "3"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for child in _workers_of(process.pid):
            child.kill()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A store of this test's own, which it may kill."""
    (tmp_path / "weed").mkdir()
    with running_store(tmp_path / "weed") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def await_parts(storage: Storage, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until some plates are written, and not all."""
    deadline = time.monotonic() + 120
    while len(storage.sizes("shards/parts")) < count:
        assert process.poll() is None, f"it ended too soon: {process.communicate()[1]}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _workers_of(pid: int) -> list[psutil.Process]:
    """Ray's workers of a driver: whatever of its session still runs a task."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if line.startswith("ray::") and "task" in line:
            with_driver = any(f"hcs-ray-{pid}-" in " ".join(up.cmdline()) for up in process.parents())
            if with_driver:
                found.append(process)
    return found


def assert_same(storage: Storage, reference: Path) -> None:
    undisturbed = LocalStorage(reference)
    files = [path for path in undisturbed.sizes("shards") if not path.endswith("_stage.json")]
    assert sorted(path for path in storage.sizes("shards") if not path.endswith("_stage.json")) == sorted(
        files
    )
    for path in files:
        assert storage.read(path) == undisturbed.read(path), path


def nothing_half_written(folder: Path) -> bool:
    return not [path for path in (folder / "shards").rglob("*") if path.name.startswith(".")]


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 7))])
def test_a_killed_driver(reference: Path, fresh: Path, seed: int) -> None:
    with running(str(fresh)) as process:
        await_parts(LocalStorage(fresh), random.Random(seed).randint(1, PLATES - 8), process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert not (fresh / "shards/_stage.json").exists()
    done = hcs_ray("shard", fresh)
    assert done.returncode == 0, done.stderr
    assert_same(LocalStorage(fresh), reference)
    assert nothing_half_written(fresh)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 7))])
def test_a_killed_worker(reference: Path, fresh: Path, seed: int) -> None:
    with running(str(fresh)) as process:
        await_parts(LocalStorage(fresh), random.Random(seed).randint(1, PLATES - 8), process)
        victims: list[psutil.Process] = []
        while not victims and process.poll() is None:
            victims = _workers_of(process.pid)
        victims[0].kill()
        _, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert_same(LocalStorage(fresh), reference)
    assert nothing_half_written(fresh)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.soak) for seed in range(1, 7))])
def test_a_killed_store(reference: Path, fresh: Path, store: S3Server, seed: int) -> None:
    root = f"{BUCKET}/{uuid.uuid4().hex}"
    (fresh / "study.yaml").write_text(f"{STUDY_YAML}root: {root}\nscreen: {{folder: {fresh / 'raw'}}}\n")
    storage = open_storage(root)
    with running(str(fresh / "study.yaml")) as process:
        await_parts(storage, random.Random(seed).randint(1, PLATES - 8), process)
        store.kill()
        _, said = process.communicate(timeout=200)
    assert process.returncode == 1
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("hcs-ray: ")]) == 1
    store.start()
    done = hcs_ray("shard", fresh / "study.yaml")
    assert done.returncode == 0, done.stderr
    assert_same(storage, reference)
    assert not unfinished_uploads()


def unfinished_uploads() -> list[str]:
    import boto3

    found = boto3.client("s3").list_multipart_uploads(Bucket=BUCKET.removeprefix("s3://"))
    return [upload["Key"] for upload in found.get("Uploads", [])]
