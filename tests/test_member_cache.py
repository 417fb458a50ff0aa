"""The cache of members on local disk: what it holds is right, within its limit, whoever fills it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.model.loader import FieldSource
from hcs_ray.shards.cache import MemberCache, node_cache
from hcs_ray.shards.codec import Floats
from hcs_ray.shards.read import ShardReader
from hcs_ray.storage import LocalStorage, Storage, open_storage
from tests.stored_fields import FIELDS, WHOLE, flip, image_of, store


@pytest.fixture
def on_s3(s3: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return open_storage(f"{s3}/loader/{request.node.name}")


def content(number: int, size: int = 1000) -> tuple[str, bytes]:
    data = np.random.default_rng(number).bytes(size)
    return hashlib.sha256(data).hexdigest(), data


def kept(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_size for path in folder.glob("??/*")}


def aged(folder: Path) -> None:
    """As if an earlier run had left it."""
    for path in folder.glob("??/*"):
        os.utime(path, (1, 1))


@pytest.fixture
def cached(on_s3: Storage, tmp_path: Path) -> FieldSource:
    """A source on S3 that reads through a cache in ``tmp_path / "cache"``."""
    record, table = store(on_s3, FIELDS)
    return FieldSource(ShardReader(on_s3, record, MemberCache(tmp_path / "cache", 10**6)), table, 1)


def all_images(source: FieldSource) -> Floats:
    return np.stack([source.image(position, WHOLE) for position in range(len(source.fields))])


def test_what_is_cached_is_not_read_from_the_store_again(
    cached: FieldSource, on_s3: Storage, tmp_path: Path
) -> None:
    first = all_images(cached)
    np.testing.assert_array_equal(first[3], image_of(cached, 3))
    assert kept(tmp_path / "cache") == dict(zip(cached.fields[c.SHA256], cached.fields[c.SIZE], strict=True))
    shard = f"shards/{cached.fields[c.SHARD].iloc[0]}"
    tar = on_s3.read(shard)
    on_s3.delete(shard)
    np.testing.assert_array_equal(all_images(cached), first)
    damaged, vanished, cut = (
        tmp_path / "cache" / sha[:2] / sha for sha in cached.fields[c.SHA256][[0, 2, 4]]
    )
    flip(damaged, 100)
    vanished.unlink()
    cut.write_bytes(cut.read_bytes()[:-1])
    for position in (0, 2, 4):
        with pytest.raises(InputError, match="no such object"):
            cached.image(position, WHOLE)
    on_s3.write(shard, tar)
    np.testing.assert_array_equal(all_images(cached), first)
    assert kept(tmp_path / "cache") == dict(zip(cached.fields[c.SHA256], cached.fields[c.SIZE], strict=True))


def test_the_cache_takes_only_what_the_index_names(cached: FieldSource, tmp_path: Path) -> None:
    table = cached.fields.copy()
    table.loc[1, c.SHA256] = "0" * 64
    with pytest.raises(HcsError, match=r"field P2_.* is damaged \(another hash\)"):
        dataclasses.replace(cached, fields=table).image(1, WHOLE)
    assert kept(tmp_path / "cache") == {}


def test_a_local_study_is_not_copied_into_a_cache(tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "study")
    record, table = store(storage, FIELDS)
    source = FieldSource(ShardReader(storage, record, MemberCache(tmp_path / "cache", 10**6)), table, 1)
    np.testing.assert_array_equal(source.image(3, WHOLE), image_of(source, 3))
    assert kept(tmp_path / "cache") == {}


def test_a_full_cache_keeps_what_this_run_uses_and_gives_up_what_others_left(tmp_path: Path) -> None:
    members = [content(number) for number in range(20)]
    first = MemberCache(tmp_path, 10_500)
    for sha, data in members:
        first.put(sha, data)
    assert set(kept(tmp_path)) == {sha for sha, _ in members[:10]}, "an epoch finds half of them again"
    aged(tmp_path)
    second = MemberCache(tmp_path, 10_500)
    for sha, data in members[:4]:
        assert second.get(sha, 1000) == data
    for number, (sha, data) in enumerate(members[10:]):
        second.put(sha, data)
        assert sum(kept(tmp_path).values()) <= 10_500
        assert sha in kept(tmp_path) or number >= 6
    assert set(kept(tmp_path)) == {sha for sha, _ in members[:4] + members[10:16]}
    MemberCache(tmp_path, 100).put(*members[19])
    assert members[19][0] not in kept(tmp_path), "larger than the limit"
    time.sleep(0.02)  # longer than a tick of the clock that stamps files
    third = MemberCache(tmp_path, 2_500)
    assert third.get(members[2][0], 1000) == members[2][1]
    third.put(*members[19])
    assert set(kept(tmp_path)) == {members[2][0], members[19][0]}, (
        "a smaller limit holds from the next one on"
    )


FILL = """
import hashlib, sys
from pathlib import Path
import numpy as np
from hcs_ray.shards.cache import MemberCache

folder, limit, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
contents = [np.random.default_rng(number).bytes(1000 + number) for number in range(200)]
cache = MemberCache(folder, limit)
print("open", flush=True)
sys.stdin.readline()
for number in np.random.default_rng(seed).permutation(200):
    data = contents[number]
    sha = hashlib.sha256(data).hexdigest()
    found = cache.get(sha, len(data))
    assert found in (None, data)
    if seed == 2 and number % 7 == 0:
        cache.drop(sha)
    cache.put(sha, data)
    with cache._locked():  # or what is deleted meanwhile would count beside what is added
        assert sum(path.stat().st_size for path in folder.glob("??/*")) <= limit
print("done", flush=True)
"""


@contextlib.contextmanager
def filling(folder: Path, limit: int, seed: int) -> Iterator[subprocess.Popen[str]]:
    """A process that has opened the cache, and begins to fill it with the next line."""
    command = [sys.executable, "-c", FILL, str(folder), str(limit), str(seed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield process


def begin(process: subprocess.Popen[str]) -> None:
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()


@pytest.mark.parametrize("limit", [150_000, 10**6])
def test_two_processes_fill_a_cache_at_once(tmp_path: Path, limit: int) -> None:
    with filling(tmp_path, limit, 1) as one, filling(tmp_path, limit, 2) as other:
        for process in (one, other):
            begin(process)
        assert [process.wait(60) for process in (one, other)] == [0, 0]
    found = kept(tmp_path)
    assert 0.9 * limit < sum(found.values()) <= limit or len(found) == 200
    assert int((tmp_path / "lock").read_text()) == sum(found.values())
    for path in tmp_path.glob("??/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_a_killed_process_leaves_a_cache_in_order(tmp_path: Path) -> None:
    with filling(tmp_path, 10**6, 1) as process:
        begin(process)
        while len(list(tmp_path.glob("??/*"))) < 20:
            time.sleep(0.001)
        process.kill()
    (tmp_path / "00").mkdir(exist_ok=True)
    (tmp_path / "00" / ".hcs-tmp-x").write_bytes(b"half")
    (tmp_path / "lock").write_text("")
    cache = MemberCache(tmp_path, 10**6)
    assert not list(tmp_path.glob("??/.hcs-tmp-*"))
    cache.put(*content(1000))
    assert int((tmp_path / "lock").read_text()) == sum(kept(tmp_path).values())


FULL = """
import resource, sys
from pathlib import Path
from hcs_ray.shards.cache import MemberCache
import hashlib

cache = MemberCache(Path(sys.argv[1]), 10**6)
small, large = b"s" * 100, b"l" * 9000
cache.put(hashlib.sha256(small).hexdigest(), small)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
for _ in range(2):
    cache.put(hashlib.sha256(large).hexdigest(), large)
assert cache.get(hashlib.sha256(small).hexdigest(), 100) == small
"""


def test_a_disk_that_takes_no_more_is_told_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("this process caches no more members (File too large)") == 1
    assert sum(kept(tmp_path).values()) == 100 == int((tmp_path / "lock").read_text())


def test_the_cache_of_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_cache(str(tmp_path / "x"), 0) is None
    named = node_cache(str(tmp_path / "x"), 1.5)
    assert named is not None
    assert named.folder == tmp_path / "x"
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    own = node_cache(None, 1)
    assert own is not None
    assert own.folder.parent == tmp_path
    assert own.folder.stat().st_mode & 0o777 == 0o700
    own.folder.rename(tmp_path / "elsewhere")
    own.folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=r"belongs to another user; set train\.cache_folder"):
        node_cache(None, 1)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"file: cannot be a cache: .*; set train\.cache_folder"):
        node_cache(str(tmp_path / "file"), 1)
