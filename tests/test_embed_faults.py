"""Embedding that is struck in the middle ends, run again, with the bytes of an undisturbed run.

Real processes, real nodes, a real S3 store, and SIGKILL. The undisturbed run is made once, on this machine's
disk; values are compared with all else in its files, bit by bit.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError
from hcs_ray.embed import embed
from hcs_ray.storage import LocalStorage, Storage, open_storage
from hcs_ray.study import open_study
from hcs_ray.tables import is_chunk_file, read_embeddings, read_index, read_unreadable
from tests.command import HCS_RAY, hcs_ray, refused
from tests.dying_worker import Dying
from tests.embedding_study import idle, sharded_study, trained
from tests.ray_nodes import Node, RayNodes, ray_nodes
from tests.s3_server import BUCKET, S3Server
from tests.s3_server import running as running_store
from tests.stored_fields import flip

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# Many small chunks, each slow enough to be met in the middle.
CHUNKS = 30
EMBED = "embed: {chunk_fields: 4, batch: 2, test_time_augmentation: dihedral, workers: 2}\n"
FOLDER = "embeddings/main"
LONGEST_S = 300
SEEDS = range(4)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 fields of 5 plates, sharded, with a network."""
    folder = sharded_study(
        tmp_path_factory.mktemp("faults") / "study", EMBED, plates_per_week=5, dmso_wells=6, sites=3,
        height_px=192, width_px=208,
    )  # fmt: skip
    trained(folder, backbone="resnet18")
    assert len(read_index(open_study(str(folder)))) == 4 * CHUNKS
    return folder


@pytest.fixture(scope="module")
def reference(study: Path, cluster: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run."""
    folder = Path(shutil.copytree(study, tmp_path_factory.mktemp("undisturbed") / "study"))
    done = hcs_ray("embed", folder, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def fresh(study: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(study, tmp_path / "study"))


@dataclass
class Embedding:
    """A running ``hcs-ray embed``."""

    process: subprocess.Popen[str]
    storage: Storage

    def chunks(self) -> int:
        """How many files are there."""
        return sum(is_chunk_file(path.rpartition("/")[2]) for path in self.storage.sizes(FOLDER))

    def await_chunks(self, count: int) -> None:
        deadline = time.monotonic() + LONGEST_S
        while self.chunks() < count:
            assert self.process.poll() is None, f"it ended too soon: {self.process.communicate()[1]}"
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.communicate()

    def ended(self) -> str:
        """Wait for it; what it said."""
        return self.process.communicate(timeout=LONGEST_S)[1]


@contextlib.contextmanager
def embedding(study: Path | str, *options: str, **environment: str) -> Iterator[Embedding]:
    root = (Path(study) / "study.yaml") if isinstance(study, Path) else study
    process = subprocess.Popen(
        [HCS_RAY, "embed", str(root), *options],
        stderr=subprocess.PIPE, text=True, start_new_session=True, env={**os.environ, **environment},
    )  # fmt: skip
    try:
        yield Embedding(process, open_study(str(root)).storage)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def actors(parents: list[psutil.Process]) -> list[psutil.Process]:
    """The embedding actors among processes and what they have started."""
    found = []
    for parent in parents:
        with contextlib.suppress(psutil.Error):
            for process in (parent, *parent.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    if any("MapWorker" in word for word in process.cmdline()):
                        found.append(process)
    return found


def kill_one(found: Callable[[], list[psutil.Process]], chance: random.Random) -> None:
    """One of the actors, as soon as there is one."""
    deadline = time.monotonic() + 60
    while not (there := found()):
        assert time.monotonic() < deadline, "no actor runs"
        time.sleep(0.01)
    chance.choice(there).kill()


def assert_same(storage: Storage, reference: Path) -> None:
    """Every file of the embeddings, and so every key once and every value bit by bit."""
    undisturbed = LocalStorage(reference)
    files = undisturbed.sizes(FOLDER)
    assert sum(is_chunk_file(path.rpartition("/")[2]) for path in files) == CHUNKS
    assert sorted(storage.sizes(FOLDER)) == sorted(files)
    for path in files:
        one, other = storage.read(path), undisturbed.read(path)
        assert (_followed(one) == _followed(other)) if path.endswith("_stage.json") else one == other, path


def _followed(record: bytes) -> dict[str, Any]:
    """What a record lists, and what that follows from; the code may have been committed meanwhile."""
    found = json.loads(record)
    return {name: found[name] for name in ("inputs", "config", "outputs")}


def strike_at(seed: int) -> tuple[random.Random, int]:
    """The chance of a seed, and after how many chunks it strikes."""
    chance = random.Random(seed)
    return chance, chance.randint(1, CHUNKS - 8)


def test_the_undisturbed_run_holds_every_field_once(reference: Path) -> None:
    study = open_study(str(reference))
    meta, features = read_embeddings(study)
    assert meta[c.KEY].tolist() == read_index(study)[c.KEY].tolist()
    assert features.std(0).min() > 0


def test_a_killed_worker_and_then_the_driver(reference: Path, fresh: Path, cluster: str) -> None:
    chance = random.Random(0)
    with embedding(fresh, RAY_ADDRESS=cluster) as running:
        running.await_chunks(chance.randint(1, 8))
        kill_one(lambda: actors([psutil.Process()]), chance)
        running.await_chunks(chance.randint(10, CHUNKS - 8))
        running.kill()
    assert not (fresh / FOLDER / "_stage.json").exists()
    before = {path.name: path.stat().st_mtime_ns for path in (fresh / FOLDER).glob("*.parquet")}
    assert len(before) >= 10
    done = hcs_ray("embed", fresh, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    assert_same(LocalStorage(fresh), reference)
    after = {path.name: path.stat().st_mtime_ns for path in (fresh / FOLDER).glob("*.parquet")}
    assert before.items() <= after.items(), "what was there was not made again"
    again = hcs_ray("embed", fresh, RAY_ADDRESS=cluster)
    assert "complete" in again.stderr
    assert after == {path.name: path.stat().st_mtime_ns for path in (fresh / FOLDER).glob("*.parquet")}


def test_what_changed_is_refused(reference: Path, fresh: Path, cluster: str) -> None:
    shutil.copytree(reference / FOLDER, fresh / FOLDER)
    shutil.copytree(reference / "configs", fresh / "configs", dirs_exist_ok=True)
    assert "complete" in hcs_ray("embed", fresh, RAY_ADDRESS=cluster).stderr
    message = refused("embed", fresh, "--set", "embed.tiles=center")
    assert "embed main is stale: embed.tiles changed" in message
    assert "or give the result another --name" in message
    model = fresh / "runs/main/model.pt"
    model.write_bytes(model.read_bytes() + b"another")
    assert "model.pt is missing or has another size" in refused("embed", fresh)


def test_a_chunk_that_kills_its_worker_again_and_again_ends_it(fresh: Path, cluster: str) -> None:
    with pytest.raises(HcsError, match=r"died 4 times at the fields \d+ to \d+ of the index"):
        embed(open_study(str(fresh), overrides=["embed.workers=1"]), idle, make=Dying)
    assert not (fresh / FOLDER / "_stage.json").exists()


@pytest.mark.soak
def test_damaged_members_end_it_or_are_left_out_and_listed(
    reference: Path, fresh: Path, cluster: str
) -> None:
    index = read_index(open_study(str(fresh)))
    for row in (5, 6, 50):
        place = index.iloc[row]
        flip(fresh / "shards" / place[c.SHARD], int(place[c.OFFSET]) + int(place[c.SIZE]) // 2)
    message = refused("embed", fresh, code=1, RAY_ADDRESS=cluster)
    named = index[[f"field {key}" in message for key in index[c.KEY]]]
    assert named.index.isin([5, 6, 50]).all()
    assert str(named[c.SHARD].iloc[0]) in message
    assert f"byte {named[c.OFFSET].iloc[0]} is damaged" in message
    done = hcs_ray("embed", fresh, "--set", "embed.on_error=quarantine", RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    assert "UNREADABLE: 3 fields left out (embeddings/main/unreadable.parquet says why)" in done.stderr
    study = open_study(str(fresh), overrides=["embed.on_error=quarantine"])
    listed = read_unreadable(study)
    assert listed is not None
    pd.testing.assert_frame_equal(
        listed[[c.KEY, c.SHARD, c.OFFSET]],
        index.iloc[[5, 6, 50]][[c.KEY, c.SHARD, c.OFFSET]].reset_index(drop=True),
    )
    meta, _ = read_embeddings(study)
    assert meta[c.KEY].tolist() == index[c.KEY].drop([5, 6, 50]).tolist()
    for path in (fresh / "shards").glob("*.tar"):
        shutil.copy(reference / "shards" / path.name, path)
    done = hcs_ray("embed", fresh, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    assert_same(LocalStorage(fresh), reference)


def test_a_damaged_or_foreign_chunk_is_made_again(reference: Path, fresh: Path, cluster: str) -> None:
    shutil.copytree(reference / FOLDER, fresh / FOLDER)
    (fresh / FOLDER / "_stage.json").unlink()
    chunks = sorted((fresh / FOLDER).glob("0*.parquet"))
    flip(chunks[0], chunks[0].stat().st_size // 3)
    chunks[1].write_bytes(chunks[2].read_bytes())
    table = pq.read_table(chunks[3])
    pq.write_table(table.replace_schema_metadata(None), chunks[3])
    (fresh / FOLDER / "00000000-00000511.parquet").write_bytes(b"of another chunk_fields")
    done = hcs_ray("embed", fresh, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    assert_same(LocalStorage(fresh), reference)


# --- the matrix ----------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_driver_killed_at_any_moment(reference: Path, fresh: Path, seed: int) -> None:
    """With a Ray session of its own, which dies with it."""
    _, chunks = strike_at(seed)
    with embedding(fresh) as running:
        running.await_chunks(chunks)
        running.kill()
    done = hcs_ray("embed", fresh)
    assert done.returncode == 0, done.stderr
    assert_same(LocalStorage(fresh), reference)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_worker_killed_at_any_moment(reference: Path, fresh: Path, cluster: str, seed: int) -> None:
    chance, chunks = strike_at(seed)
    with embedding(fresh, RAY_ADDRESS=cluster) as running:
        running.await_chunks(chunks)
        kill_one(lambda: actors([psutil.Process()]), chance)
        said = running.ended()
    assert running.process.returncode == 0, said
    assert_same(LocalStorage(fresh), reference)


@dataclass(frozen=True)
class TwoNodes:
    nodes: RayNodes
    head: Node
    others: list[Node]

    def whole(self) -> TwoNodes:
        if not self.others or self.others[-1].process.poll() is not None:
            self.others.append(self.nodes.add(1))
        return self


@pytest.fixture(scope="module")
def _two_nodes(s3: str) -> Iterator[TwoNodes]:
    with ray_nodes() as nodes:
        yield TwoNodes(nodes, nodes.start_head(1), [])


@pytest.fixture
def two_nodes(_two_nodes: TwoNodes) -> TwoNodes:
    return _two_nodes.whole()


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_node_killed_at_any_moment(reference: Path, fresh: Path, two_nodes: TwoNodes, seed: int) -> None:
    """With every second seed another takes its place; else the run ends on the node that is left."""
    _, chunks = strike_at(seed)
    other = two_nodes.others[-1]
    with embedding(fresh, RAY_ADDRESS=two_nodes.nodes.address) as running:
        running.await_chunks(chunks)
        assert actors(other.processes()), "it had work there"
        other.kill()
        if seed % 2:
            two_nodes.whole()
        said = running.ended()
    assert running.process.returncode == 0, said
    assert_same(LocalStorage(fresh), reference)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A store of this test's own, which it may kill."""
    (tmp_path / "weed").mkdir()
    with running_store(tmp_path / "weed") as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        yield server


def upload(study: Path) -> tuple[str, Storage]:
    root = f"{BUCKET}/{uuid.uuid4().hex}"
    source, target = LocalStorage(study), open_storage(root)
    for path in source.sizes():
        if not path.startswith("raw/"):
            target.write(path, source.read(path))
    return root, target


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_store_that_is_away_for_seconds_is_waited_for(
    reference: Path, study: Path, store: S3Server, seed: int
) -> None:
    root, storage = upload(study)
    chance, chunks = strike_at(seed)
    with embedding(root) as running:
        running.await_chunks(chunks)
        store.kill()
        time.sleep(chance.uniform(0.5, 6))
        store.start()
        said = running.ended()
    assert running.process.returncode == 0, said
    assert_same(storage, reference)


@pytest.mark.soak
@pytest.mark.parametrize("seed", SEEDS)
def test_a_store_that_stays_away_ends_it_in_one_line(
    reference: Path, study: Path, store: S3Server, seed: int
) -> None:
    root, storage = upload(study)
    _, chunks = strike_at(seed)
    with embedding(root, AWS_MAX_ATTEMPTS="2") as running:
        running.await_chunks(chunks)
        store.kill()
        said = running.ended()
    assert running.process.returncode == 1
    assert "Traceback" not in said
    assert len([line for line in said.splitlines() if line.startswith("hcs-ray: ")]) == 1, said
    store.start()
    done = hcs_ray("embed", root)
    assert done.returncode == 0, done.stderr
    assert_same(storage, reference)
