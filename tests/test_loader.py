"""The loader: the right floats in the right order, whatever the storage, the disk or the threads do."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import TrainConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.model import augment, epochs
from hcs_ray.model import targets as t
from hcs_ray.model.augment import Crop
from hcs_ray.model.epochs import Share
from hcs_ray.model.loader import Batch, BatchLoader, FieldSource, plain_batches, training_batches
from hcs_ray.shards import codec, read
from hcs_ray.shards.cache import MemberCache, node_cache
from hcs_ray.shards.codec import Codec, Floats, Look, Pixels
from hcs_ray.shards.illumination import block_means
from hcs_ray.shards.read import Plate, ShardReader, corrected
from hcs_ray.storage import LocalStorage, Storage, open_storage
from tests.s3_server import S3Server
from tests.stored_fields import SHAPE, random_field, store

EPS = float(np.finfo(np.float32).eps)
FIELDS = 13
every_codec = pytest.mark.parametrize("kind", ["blosc2", "jpegxl"])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_PAUSES", (0.01, 0.01, 0.01))


@pytest.fixture(scope="module")
def fields() -> list[Pixels]:
    return [random_field(number) for number in range(FIELDS)]


def source_in(storage: Storage, fields: list[Pixels], downsample: int = 1) -> FieldSource:
    record, table = store(storage, fields)
    return FieldSource(ShardReader(storage, record), table, downsample)


@pytest.fixture(scope="module")
def shared_source(fields: list[Pixels], tmp_path_factory: pytest.TempPathFactory) -> FieldSource:
    """One that no test damages."""
    return source_in(LocalStorage(tmp_path_factory.mktemp("study")), fields)


@pytest.fixture
def source(fields: list[Pixels], tmp_path: Path) -> FieldSource:
    return source_in(LocalStorage(tmp_path / "study"), fields)


WHOLE = augment.whole(SHAPE)


def image_of(source: FieldSource, fields: list[Pixels], position: int, crop: Crop = WHOLE) -> Floats:
    plate = source.reader.plate(source.fields[c.PLATE].iloc[position])
    return corrected(fields[position], plate, crop.rows, crop.columns)


# --- Floats -------------------------------------------------------------------------------------------


@st.composite
def looks(draw: st.DrawFn) -> tuple[Pixels, Look]:
    shape = tuple(draw(st.integers(1, most)) for most in (4, 40, 70))
    low_bits = draw(st.integers(0, 15))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    pixels = (rng.integers(0, 2 ** (16 - low_bits), shape) << low_bits).astype(np.uint16)
    ends = [
        sorted(draw(st.tuples(*2 * [st.integers(0, size)]).filter(lambda x: x[0] != x[1])))
        for size in shape[1:]
    ]
    return pixels, Look(slice(*ends[0]), slice(*ends[1]), draw(st.integers(1, 20)))


def reference(pixels: Pixels, look: Look, plate: Plate | None) -> Floats:
    """The way with all arrays between: the crop, corrected, then its block means in double precision."""
    crop = pixels[:, look.rows, look.columns].astype(np.float32)
    if plate is not None:
        crop = corrected(pixels, plate, look.rows, look.columns)
    return block_means(crop, look.block_px).astype(np.float32) if look.block_px > 1 else crop


@every_codec
@pytest.mark.parametrize("correcting", [True, False])
@settings(deadline=None, max_examples=60)
@given(drawn=looks(), seed=st.integers(0, 9))
def test_the_one_pass_gives_what_the_steps_give(
    kind: Codec, correcting: bool, drawn: tuple[Pixels, Look], seed: int
) -> None:
    pixels, look = drawn
    rng = np.random.default_rng(seed)
    gain: Floats = (10.0 ** rng.uniform(-5, -3, pixels.shape)).astype(np.float32)
    bias: Floats = rng.uniform(-3, 0, len(pixels)).astype(np.float32)
    plate = Plate(gain, bias[:, None, None])
    scale = (gain, bias) if correcting else None
    out: Floats = np.empty(look.shape(len(pixels)), np.float32)
    out.fill(np.nan)
    found = codec.decode_floats(codec.open_member(codec.encode(pixels, kind), pixels.shape), look, scale, out)
    assert found is out
    wanted = reference(pixels, look, plate if correcting else None)
    if look.block_px == 1:
        np.testing.assert_array_equal(out, wanted, "the same operations in the same order")
    else:
        largest = (pixels * plate.gain).max() + 3 if correcting else pixels.max()
        np.testing.assert_allclose(out, wanted, rtol=0, atol=2 * look.block_px * EPS * max(largest, 1))


def test_a_look_outside_the_field_or_another_place_for_it_is_refused() -> None:
    pixels = random_field(0)
    member = codec.open_member(codec.encode(pixels, "blosc2"), SHAPE)
    inside = Look(slice(0, 4), slice(0, 6), 2)
    for look in (
        Look(slice(-1, 3), slice(0, 3)),
        Look(slice(0, 38), slice(0, 3)),
        Look(slice(3, 3), slice(0, 3)),
    ):
        with pytest.raises(ValueError, match="does not lie in a field"):
            codec.decode_floats(member, look, None, np.empty(look.shape(2), np.float32))
    places: list[Any] = [np.empty((2, 2, 3)), np.empty((2, 4, 6), np.float32)]
    for out in (*places, np.empty((3, 2, 2), np.float32).T):
        with pytest.raises(ValueError, match="no place for"):
            codec.decode_floats(member, inside, None, out)


@every_codec
def test_threads_keep_to_their_own_memory(kind: Codec) -> None:
    pixels = [random_field(number) for number in range(4)]
    members = [codec.open_member(codec.encode(one, kind), SHAPE) for one in pixels]
    faults: list[int] = []

    def work(number: int) -> None:
        look = Look(slice(0, 37), slice(0, 41))
        out = np.empty(SHAPE, np.float32)
        for _ in range(50):
            codec.decode_floats(members[number], look, None, out)
            if not np.array_equal(out, pixels[number]):
                faults.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


def test_an_image_is_the_corrected_field(shared_source: FieldSource, fields: list[Pixels]) -> None:
    crop = Crop(slice(3, 30), slice(5, 40))
    for position in range(FIELDS):
        np.testing.assert_array_equal(
            shared_source.image(position, crop), image_of(shared_source, fields, position, crop)
        )
    half = dataclasses.replace(shared_source, downsample=2)
    expected = block_means(image_of(half, fields, 4, crop), 2)
    np.testing.assert_allclose(half.image(4, crop), expected, atol=1e-5)
    counts = dataclasses.replace(shared_source, corrected=False)
    np.testing.assert_array_equal(counts.image(4, WHOLE), fields[4])


# --- What is damaged or out of reach ------------------------------------------------------------------


def tar_of(source: FieldSource, position: int) -> Path:
    storage = source.reader._storage
    assert isinstance(storage, LocalStorage)
    return storage.path(f"shards/{source.fields[c.SHARD].iloc[position]}")


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def refused(source: FieldSource, position: int) -> str:
    """The line that names the field, the shard and the place."""
    with pytest.raises(HcsError) as caught:
        source.image(position, WHOLE)
    line = str(caught.value)
    row = source.fields.iloc[position]
    assert "\n" not in line
    assert line.startswith(f"field {row[c.KEY]}: ")
    assert str(tar_of(source, position)) in line
    assert f"the member at byte {row[c.OFFSET]} " in line
    return line


@pytest.mark.parametrize(
    ("where", "why"),
    [
        (lambda offset, size: offset - 512, "names another member"),
        (lambda offset, size: offset - 512 + 130, "names another size"),
        (lambda offset, size: offset, "do not match their own checksum"),
        (lambda offset, size: offset + size // 2, "do not match their own checksum"),
        (lambda offset, size: offset + size - 1, "do not match their own checksum"),
        (lambda offset, size: offset + size - 28, "do not end as a field's member does"),
    ],
)
def test_a_flipped_bit_anywhere_is_noticed(
    source: FieldSource, fields: list[Pixels], where: Callable[[int, int], int], why: str
) -> None:
    row = source.fields.iloc[5]
    flip(tar_of(source, 5), where(int(row[c.OFFSET]), int(row[c.SIZE])))
    line = refused(source, 5)
    assert "is damaged (" in line
    assert why in line
    np.testing.assert_array_equal(source.image(7, WHOLE), image_of(source, fields, 7), "of the same shard")


def test_a_shard_that_is_cut_or_gone_is_one_line(source: FieldSource) -> None:
    last = int(source.fields[source.fields[c.PLATE] == "P1"].index[-1])
    path = tar_of(source, last)
    path.write_bytes(path.read_bytes()[: source.fields[c.OFFSET].iloc[last] + 10])
    assert "10 of" in refused(source, last)
    path.unlink()
    assert "no such file" in refused(source, last)


def test_an_index_that_names_another_member_is_noticed(source: FieldSource) -> None:
    """Whole members all: only the tar's own header tells that they are others."""
    table = source.fields.copy()
    places = [c.OFFSET, c.SIZE, c.SHARD]
    table.loc[4, places] = table.loc[6, places].to_numpy()
    assert "names another member" in refused(dataclasses.replace(source, fields=table), 4)
    shifted = source.fields.copy()
    shifted.loc[4, c.OFFSET] = int(shifted[c.OFFSET].iloc[4]) + 512
    assert "damaged" in refused(dataclasses.replace(source, fields=shifted), 4)
    first = source.fields.copy()
    first.loc[4, c.OFFSET] = 100
    assert "no tar has a member there" in refused(dataclasses.replace(source, fields=first), 4)


def test_a_forged_member_is_refused_with_its_place(source: FieldSource) -> None:
    """Its checksum holds, and what it holds is no field."""
    import xxhash

    row = source.fields.iloc[5]
    path, offset, size = tar_of(source, 5), int(row[c.OFFSET]), int(row[c.SIZE])
    data = bytearray(path.read_bytes())
    data[offset : offset + 40] = bytes(40)
    data[offset + size - 8 : offset + size] = xxhash.xxh3_64_intdigest(
        bytes(data[offset : offset + size - 8])
    ).to_bytes(8, "little")
    path.write_bytes(data)
    assert "damaged (holds" in refused(source, 5)


class Troubled(LocalStorage):
    """A folder whose next reads fail, one after another, in the ways given."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.troubles: list[HcsError | Callable[[bytes], bytes]] = []
        self.reads = 0

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        data = super().read_range(path, offset, size)
        self.reads += 1
        trouble = self.troubles.pop(0) if self.troubles else None
        if isinstance(trouble, HcsError):
            raise trouble
        return trouble(data) if trouble else data


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def changed(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


AWAY = HcsError("x.tar: cannot be read: Stale file handle")


def test_what_passes_is_read_again(
    tmp_path: Path, fields: list[Pixels], caplog: pytest.LogCaptureFixture
) -> None:
    storage = Troubled(tmp_path)
    source = source_in(storage, fields)
    storage.troubles = [AWAY, halved, changed]
    with caplog.at_level(logging.WARNING, "hcs_ray"):
        np.testing.assert_array_equal(source.image(3, WHOLE), image_of(source, fields, 3))
    assert storage.reads == 4
    assert len([line for line in caplog.messages if line.endswith("trying again")]) == 3
    row = source.fields.iloc[3]
    storage.troubles = [changed, AWAY]
    whole = source.reader.pixels(row[c.SHARD], row[c.OFFSET], row[c.SIZE], row[c.SHA256])
    np.testing.assert_array_equal(whole, fields[3])


def test_what_stays_is_an_error_and_bad_input_is_not_tried_again(
    tmp_path: Path, fields: list[Pixels]
) -> None:
    storage = Troubled(tmp_path)
    source = source_in(storage, fields)
    storage.troubles = [AWAY] * 4
    key, offset = source.fields[c.KEY].iloc[3], source.fields[c.OFFSET].iloc[3]
    with pytest.raises(
        HcsError, match=rf"^field {key}: the member at byte {offset} of x.tar: cannot be read: Stale"
    ):
        source.image(3, WHOLE)
    assert storage.reads == 4
    storage.troubles = [InputError("x.tar: no such file")]
    with pytest.raises(InputError, match=f"field {key}: the member at byte {offset} of x.tar: no such file"):
        source.image(3, WHOLE)
    assert storage.reads == 5


def test_damaged_corrections_name_the_field_and_the_file(source: FieldSource) -> None:
    path = tar_of(source, 0).parent / "illumination/P1_Illum1.npy"
    flip(path, 200)
    with pytest.raises(HcsError, match=rf"field {source.key(0)}: .*P1_Illum1.npy is damaged"):
        source.image(0, WHOLE)


# --- A store on a network -----------------------------------------------------------------------------


@pytest.fixture
def on_s3(s3: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return open_storage(f"{s3}/loader/{request.node.name}")


def test_a_store_that_is_killed_and_comes_back_costs_no_field(
    on_s3: Storage, s3_server: S3Server, fields: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_PAUSES", (0.3,) * 100)
    source = source_in(on_s3, fields)
    shares = [Share(np.array([row]), 1) for row in range(FIELDS)]
    loader = BatchLoader(source, shares, lambda _: WHOLE, threads=1)
    seen = []
    for batch in loader:
        seen.append(int(batch["rows"][0]))
        np.testing.assert_array_equal(batch["images"][0].numpy(), image_of(source, fields, seen[-1]))
        if len(seen) == 1:
            s3_server.kill()
            back = threading.Timer(1.5, s3_server.start)
            back.start()
    back.join()
    assert seen == list(range(FIELDS))


def test_a_store_that_stays_away_is_one_line(
    on_s3: Storage, s3_server: S3Server, fields: list[Pixels]
) -> None:
    source = source_in(on_s3, fields)
    source.image(0, WHOLE)
    s3_server.kill()
    try:
        with pytest.raises(HcsError) as caught:
            source.image(2, WHOLE)
    finally:
        s3_server.start()
    row = source.fields.iloc[2]
    place = f"the member at byte {row[c.OFFSET]} of {on_s3.url}/shards/{row[c.SHARD]}"
    assert str(caught.value).startswith(f"field {row[c.KEY]}: {place}: cannot be read: ")
    assert "\n" not in str(caught.value)


# --- The cache ----------------------------------------------------------------------------------------


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
def cached(on_s3: Storage, fields: list[Pixels], tmp_path: Path) -> FieldSource:
    """A source on S3 that reads through a cache in ``tmp_path / "cache"``."""
    record, table = store(on_s3, fields)
    return FieldSource(ShardReader(on_s3, record, MemberCache(tmp_path / "cache", 10**6)), table, 1)


def all_images(source: FieldSource) -> Floats:
    return np.stack([source.image(position, WHOLE) for position in range(len(source.fields))])


def test_what_is_cached_is_not_read_from_the_store_again(
    cached: FieldSource, on_s3: Storage, fields: list[Pixels], tmp_path: Path
) -> None:
    first = all_images(cached)
    np.testing.assert_array_equal(first[3], image_of(cached, fields, 3))
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


def test_a_local_study_is_not_copied_into_a_cache(tmp_path: Path, fields: list[Pixels]) -> None:
    storage = LocalStorage(tmp_path / "study")
    record, table = store(storage, fields)
    source = FieldSource(ShardReader(storage, record, MemberCache(tmp_path / "cache", 10**6)), table, 1)
    np.testing.assert_array_equal(source.image(3, WHOLE), image_of(source, fields, 3))
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


# --- Batches ------------------------------------------------------------------------------------------


def rows_of(batch: Batch) -> list[int]:
    rows: list[int] = batch["rows"].tolist()
    return rows


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def dealt(sizes: list[int], seed: int = 0) -> list[Share]:
    rng = np.random.default_rng(seed)
    return [Share(rng.integers(0, FIELDS, size), max(size, 1) + 2) for size in sizes]


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(0, 5), max_size=9), threads=st.integers(1, 5), anchors=st.integers(0, 2))
def test_batches_come_in_the_order_of_the_shares(
    shared_source: FieldSource, sizes: list[int], threads: int, anchors: int
) -> None:
    shares = [dataclasses.replace(share, anchors=np.arange(anchors)) for share in dealt(sizes)]

    def crop(key: str) -> Crop:
        left = int(key[-4:-3])
        return Crop(slice(2, 30), slice(left, left + 24))

    loader = BatchLoader(
        shared_source,
        shares,
        crop,
        lambda key: np.array([len(key), hash(key) % 99], np.float32),
        threads=threads,
    )
    assert len(loader) == len(shares)
    for _ in range(2):
        batches = 0
        for share, batch in zip(shares, loader, strict=True):
            batches += 1
            read_rows = [*(share.rows if len(share.rows) else [0]), *share.anchors]
            assert rows_of(batch) == read_rows
            real = len(read_rows) - anchors
            weight = 1 / share.batch if len(share.rows) else 0
            np.testing.assert_allclose(batch["weights"], [weight] * real + [0] * anchors, rtol=1e-6)
            assert batch["anchors"].tolist() == [False] * real + [True] * anchors
            for image, change, row in zip(batch["images"], batch["changes"], read_rows, strict=True):
                key = shared_source.key(row)
                np.testing.assert_array_equal(image, shared_source.image(row, crop(key)))
                assert change.tolist() == [len(key), hash(key) % 99]
        assert batches == len(shares)
    assert not loader_threads()
    assert (
        {name: batch[name].dtype for name in ("images", "weights", "changes")}
        == dict.fromkeys(("images", "weights", "changes"), torch.float32)
        if shares
        else True
    )


def test_a_batch_lasts_until_the_second_one_after_it(
    shared_source: FieldSource, fields: list[Pixels]
) -> None:
    shares = [Share(np.array([row, (row + 3) % FIELDS]), 2) for row in range(FIELDS)]
    loader = BatchLoader(shared_source, shares, lambda _: WHOLE, threads=3)
    before: Batch | None = None
    places = Counter[int]()
    for batch in loader:
        time.sleep(0.003)  # the readers run as far ahead as they may
        for held in (before, batch):
            for image, row in zip(held["images"], rows_of(held), strict=True) if held else ():
                np.testing.assert_array_equal(image, image_of(shared_source, fields, row))
        before = batch
        places[batch["images"].data_ptr()] += 1
    assert len(places) < len(shares), "memory is used again"
    first = set(places)
    assert {batch["images"].data_ptr() for batch in loader} == first, "also in the next epoch"


def test_what_cannot_be_read_raises_where_its_batch_would_come(source: FieldSource) -> None:
    row = source.fields.iloc[7]
    flip(tar_of(source, 7), int(row[c.OFFSET]) + 50)
    loader = BatchLoader(
        source, [Share(np.array([n, n + 1]), 2) for n in (0, 2, 6, 8)], lambda _: WHOLE, threads=4
    )
    seen = []
    with pytest.raises(
        HcsError, match=f"field {row[c.KEY]}: .*the member at byte {row[c.OFFSET]} is damaged"
    ):
        for batch in loader:
            seen.append(rows_of(batch))
    assert seen == [[0, 1], [2, 3]]
    assert not loader_threads()


def test_an_iteration_that_is_left_leaves_no_threads(shared_source: FieldSource) -> None:
    loader = BatchLoader(shared_source, dealt([3] * 30), lambda _: WHOLE, threads=3)
    left = iter(loader)
    next(left)
    assert loader_threads()
    loader.close()
    assert not loader_threads()
    assert next(left, None) is None
    again = iter(loader)
    next(again)
    assert len(list(loader)) == 30, "a new iteration ends the one before and begins at the beginning"
    assert next(again, None) is None
    for _ in loader:
        break
    assert not loader_threads(), "without a word, too"


def test_a_distant_store_gets_more_readers_and_no_more_decoders(
    on_s3: Storage, fields: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_in(on_s3, fields)
    most = Counter[str]()
    now = Counter[str]()
    lock = threading.Lock()

    def counted(name: str, action: Callable[..., object], pause: float) -> Callable[..., object]:
        def count(*arguments: object) -> object:
            with lock:
                now[name] += 1
                most[name] = max(most[name], now[name])
            try:
                time.sleep(pause)
                return action(*arguments)
            finally:
                with lock:
                    now[name] -= 1

        return count

    monkeypatch.setattr(source.reader, "fetch", counted("fetch", source.reader.fetch, 0.05))
    monkeypatch.setattr(source.reader, "floats", counted("floats", source.reader.floats, 0.005))
    shares = [Share(np.array([row, 12 - row]), 2) for row in range(FIELDS)]
    loader = BatchLoader(source, shares, lambda _: WHOLE, threads=2)
    assert [rows_of(batch) for batch in loader] == [share.rows.tolist() for share in shares]
    assert most["floats"] == 2
    assert most["fetch"] > 4


# --- A run's batches ----------------------------------------------------------------------------------


def train_config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"global_batch": 5, "crop_px": 16, "threads": 2, **changes})


def test_the_ranks_read_the_epochs_list_from_any_cursor_on(shared_source: FieldSource) -> None:
    config = train_config()
    listed = epochs.epoch_list(shared_source.fields, config, 3).tolist()
    whole: dict[int, dict[int, Floats]] = {}
    for world in (1, 2, 3):
        for start in (0, 5, 10, FIELDS):
            loaders = [
                training_batches(shared_source, config, 3, rank, world, start) for rank in range(world)
            ]
            assert len({len(loader) for loader in loaders}) == 1
            seen = []
            for batches in zip(*loaders, strict=True):
                real = [row for batch in batches for row in batch["rows"][batch["weights"] > 0].tolist()]
                seen += sorted(real)
                assert sum(float(batch["weights"].sum()) for batch in batches) == pytest.approx(1)
                for batch in batches:
                    for row, image, change in zip(
                        rows_of(batch), batch["images"], batch["changes"], strict=True
                    ):
                        look = {0: image.numpy().copy(), 1: change.numpy().copy()}
                        for part, found in look.items():
                            np.testing.assert_array_equal(found, whole.setdefault(row, look)[part])
            wanted = [sorted(listed[i : i + 5]) for i in range(start, FIELDS, 5)]
            assert seen == [row for batch in wanted for row in batch]


def test_another_epoch_is_another_look(shared_source: FieldSource) -> None:
    config = train_config(global_batch=FIELDS)
    images = []
    for epoch in (0, 1):
        batch = next(iter(training_batches(shared_source, config, epoch, 0, 1)))
        assert batch["images"].shape == (FIELDS, 2, 16, 16)
        assert batch["changes"].shape[1] > 0
        images.append(batch["images"][batch["rows"].argsort()].clone())
    assert not torch.equal(*images)


def test_judging_reads_every_listed_field_once_in_the_middle(
    fields: list[Pixels], shared_source: FieldSource
) -> None:
    listed = shared_source.fields.assign(**{t.LISTED: np.arange(FIELDS) % 4 != 1})
    source = dataclasses.replace(shared_source, fields=listed)
    middle = augment.centre(SHAPE, 16)
    seen = []
    for rank in (0, 1):
        for batch in plain_batches(source, train_config(), rank, 2):
            assert batch["changes"].shape == (len(batch["rows"]), 0)
            for row, image, weight in zip(rows_of(batch), batch["images"], batch["weights"], strict=True):
                np.testing.assert_array_equal(image, image_of(source, fields, row, middle))
                seen += [row] if weight > 0 else []
    assert sorted(seen) == np.flatnonzero(listed[t.LISTED]).tolist()


@pytest.mark.parametrize("world", [1, 2, 7])
def test_anchors_come_last_and_weigh_nothing(shared_source: FieldSource, world: int) -> None:
    table = shared_source.fields
    for rank in range(world):
        for loader in (
            training_batches(shared_source, train_config(), 0, rank, world, 0, 2),
            plain_batches(shared_source, train_config(), rank, world, 2),
        ):
            for batch in loader:
                anchors = batch["anchors"].numpy()
                rows = batch["rows"].numpy()
                assert (np.diff(anchors.astype(int)) >= 0).all(), "at the end"
                assert not batch["weights"][batch["anchors"]].any()
                assert table[t.ANCHOR].to_numpy()[rows[anchors]].all()
                held = Counter(table[c.PLATE].iloc[rows[anchors]])
                assert held == dict.fromkeys(table[c.PLATE].iloc[rows[~anchors]], 2), "also for a stand-in"
