"""Reading a field: the right floats, and one line about what is damaged or out of reach."""

from __future__ import annotations

import dataclasses
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import StorageConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.model.augment import Crop
from hcs_ray.model.epochs import Share
from hcs_ray.model.loader import BatchLoader, FieldSource
from hcs_ray.shards import codec, read
from hcs_ray.shards.codec import Codec, Floats, Look, Pixels
from hcs_ray.shards.illumination import block_means
from hcs_ray.shards.read import Plate, corrected
from hcs_ray.storage import LocalStorage, Storage, open_storage
from tests.s3_server import S3Server
from tests.stored_fields import FIELDS, SHAPE, WHOLE, flip, image_of, random_field, source_in, tar_of

EPS = float(np.finfo(np.float32).eps)
every_codec = pytest.mark.parametrize("kind", ["blosc2", "jpegxl"])


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_PAUSES", (0.01, 0.01, 0.01))


@pytest.fixture
def source(tmp_path: Path) -> FieldSource:
    return source_in(LocalStorage(tmp_path / "study"))


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


def test_an_image_is_the_corrected_field(source: FieldSource) -> None:
    crop = Crop(slice(3, 30), slice(5, 40))
    for position in range(len(FIELDS)):
        np.testing.assert_array_equal(source.image(position, crop), image_of(source, position, crop))
    half = dataclasses.replace(source, downsample=2)
    expected = block_means(image_of(half, 4, crop), 2)
    np.testing.assert_allclose(half.image(4, crop), expected, atol=1e-5)
    counts = dataclasses.replace(source, corrected=False)
    np.testing.assert_array_equal(counts.image(4, WHOLE), FIELDS[4])


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
    source: FieldSource, where: Callable[[int, int], int], why: str
) -> None:
    row = source.fields.iloc[5]
    flip(tar_of(source, 5), where(int(row[c.OFFSET]), int(row[c.SIZE])))
    line = refused(source, 5)
    assert "is damaged (" in line
    assert why in line
    np.testing.assert_array_equal(source.image(7, WHOLE), image_of(source, 7), "of the same shard")


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


def test_what_passes_is_read_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    storage = Troubled(tmp_path)
    source = source_in(storage)
    storage.troubles = [AWAY, halved, changed]
    with caplog.at_level(logging.WARNING, "hcs_ray"):
        np.testing.assert_array_equal(source.image(3, WHOLE), image_of(source, 3))
    assert storage.reads == 4
    assert len([line for line in caplog.messages if line.endswith("trying again")]) == 3
    row = source.fields.iloc[3]
    storage.troubles = [changed, AWAY]
    whole = source.reader.pixels(row[c.SHARD], row[c.OFFSET], row[c.SIZE], row[c.SHA256])
    np.testing.assert_array_equal(whole, FIELDS[3])


def test_what_stays_is_an_error_and_bad_input_is_not_tried_again(tmp_path: Path) -> None:
    storage = Troubled(tmp_path)
    source = source_in(storage)
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


@pytest.fixture
def on_s3(s3: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return open_storage(f"{s3}/loader/{request.node.name}")


def test_a_store_that_is_killed_and_comes_back_costs_no_field(
    on_s3: Storage, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read, "_PAUSES", (0.3,) * 100)
    source = source_in(on_s3)
    shares = [Share(np.array([row]), 1) for row in range(len(FIELDS))]
    loader = BatchLoader(source, shares, lambda _: WHOLE, threads=1)
    seen = []
    for batch in loader:
        seen.append(int(batch["rows"][0]))
        np.testing.assert_array_equal(batch["images"][0].numpy(), image_of(source, seen[-1]))
        if len(seen) == 1:
            s3_server.kill()
            back = threading.Timer(1.5, s3_server.start)
            back.start()
    back.join()
    assert seen == list(range(len(FIELDS)))


def test_a_store_that_stays_away_is_one_line(on_s3: Storage) -> None:
    source = source_in(on_s3)
    source.reader.storage = open_storage(on_s3.url, StorageConfig(endpoint="http://127.0.0.1:1"))
    with pytest.raises(HcsError) as caught:
        source.image(2, WHOLE)
    row = source.fields.iloc[2]
    place = f"the member at byte {row[c.OFFSET]} of {on_s3.url}/shards/{row[c.SHARD]}"
    assert str(caught.value).startswith(
        f"field {row[c.KEY]}: {place}: cannot be read: the store does not answer"
    )
    assert "\n" not in str(caught.value)
