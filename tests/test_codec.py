"""The members of a tar: any field comes back, any damage is told, other programs get at the pixels."""

from __future__ import annotations

import contextlib
import resource
import struct
import threading
import typing
from collections.abc import Callable
from typing import Any

import imagecodecs as _imagecodecs
import numpy as np
import numpy.typing as npt
import pytest
import xxhash
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hcs_ray.config import ShardsConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.shards import codec
from hcs_ray.shards.codec import Codec, Pixels

CODECS: tuple[Codec, ...] = typing.get_args(Codec)
every_codec = pytest.mark.parametrize("name", CODECS)
imagecodecs: Any = _imagecodecs
SHAPES = hnp.array_shapes(min_dims=3, max_dims=3, max_side=23)


@st.composite
def fields(draw: st.DrawFn) -> Pixels:
    """Fields of any shape and range, some with unused low bits, some of few values."""
    shape, low_bits = draw(SHAPES), draw(st.integers(0, 15))
    largest = draw(st.integers(0, 0xFFFF >> low_bits))
    if draw(st.booleans()):
        values = np.random.default_rng(draw(st.integers(0, 9))).integers(0, largest, shape, endpoint=True)
        return (values << low_bits).astype(np.uint16)
    few = hnp.arrays(np.uint16, shape, elements=st.integers(0, largest), fill=st.just(largest))
    return draw(few) << np.uint16(low_bits)


def camera_field(shape: tuple[int, int, int] = (3, 96, 112)) -> Pixels:
    """A 12-bit camera's field, stored as multiples of 16: a slope and photon noise."""
    height, width = shape[1:]
    light = np.add.outer(np.arange(height), np.arange(width)) + 60
    photons = np.random.default_rng(0).poisson(np.broadcast_to(light, shape))
    return (np.minimum(photons, 4095) << 4).astype(np.uint16)


def full(value: int) -> Pixels:
    return np.full((2, 5, 3), value, np.uint16)


@every_codec
@settings(deadline=None, max_examples=120)
@given(pixels=fields())
@example(pixels=full(0))
@example(pixels=full(1))
@example(pixels=full(0xFFFF))
@example(pixels=full(0x8000))
@example(pixels=np.array([[[0xFFFF]]], np.uint16))
@example(pixels=np.tile(np.array([0, 0xFFFF], np.uint16), (5, 7, 11)))
def test_any_field_comes_back(name: Codec, pixels: Pixels) -> None:
    data = codec.encode(pixels, name)
    out = np.full_like(pixels, 0xABCD)
    assert codec.decode(data, out) is out
    np.testing.assert_array_equal(out, pixels)


@every_codec
def test_the_bytes_follow_from_the_pixels_alone(name: Codec) -> None:
    pixels = camera_field()
    data = codec.encode(pixels, name)
    codec.encode(np.zeros_like(pixels), name)  # whatever was encoded before
    assert codec.encode(np.asfortranarray(pixels), name) == data
    frozen = pixels.copy()
    frozen.flags.writeable = False
    assert codec.encode(frozen, name) == data
    np.testing.assert_array_equal(pixels, camera_field(), "the caller's pixels stay as they are")


@every_codec
@pytest.mark.parametrize("side", [1, 2, 5, 9, 40])
def test_noise_does_not_tell_what_was_encoded_before(name: Codec, side: int) -> None:
    noise = np.random.default_rng(0).integers(0, 2**16, (3, side, side), np.uint16)
    first: list[bytes] = []
    fresh = threading.Thread(target=lambda: first.append(codec.encode(noise, name)))
    fresh.start()
    fresh.join()
    codec.encode(camera_field(), name)
    assert [codec.encode(noise, name)] == first
    if name == "blosc2":
        assert len(first[0]) <= noise.nbytes + 32 + codec.TRAILER_BYTES, "noise grows by the headers at most"


@every_codec
def test_threads_do_not_get_into_each_others_way(name: Codec) -> None:
    whole = [np.roll(camera_field(), step, axis=1) for step in range(4)]
    alone = [codec.encode(pixels, name) for pixels in whole]
    faults: list[int] = []

    def work(number: int) -> None:
        out = np.empty_like(whole[number])
        for _ in range(10):
            data = codec.encode(whole[number], name)
            if data != alone[number] or not np.array_equal(codec.decode(data, out), whole[number]):
                faults.append(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


@given(pixels=fields())
@settings(deadline=None)
def test_unused_low_bits_are_those_of_a_loop(pixels: Pixels) -> None:
    loop = 0
    while pixels.any() and not (pixels & np.uint16(1 << loop)).any():
        loop += 1
    assert codec.unused_low_bits(pixels) == loop


@every_codec
def test_unused_low_bits_cost_nothing(name: Codec) -> None:
    pixels = camera_field((1, 256, 256))
    for low_bits in range(5):
        member = codec.encode(pixels >> np.uint16(4) << np.uint16(low_bits), name)
        assert len(member) == len(codec.encode(pixels, name))
        assert member[-23] == low_bits


def as_documented(data: bytes) -> npt.NDArray[Any]:
    """docs/codecs.md's way for other programs: a plain decoder and numpy."""
    number, low_bits, channels, height, width = struct.unpack("<4xBB2x3I8x", data[-28:])
    if number == 2:
        found = np.asarray(imagecodecs.jpegxl_decode(data))
    else:
        codes = np.frombuffer(imagecodecs.blosc2_decode(data), "<u2")
        steps = (codes >> 1) ^ -(codes & 1)
        found = np.add.accumulate(steps.reshape(channels, height, width), axis=1, dtype="<u2")
    pixels: npt.NDArray[Any] = np.left_shift(found.reshape(channels, height, width), low_bits)
    return pixels


@every_codec
@pytest.mark.parametrize("shape", [(3, 96, 112), (5, 33, 17), (1, 1, 1), (1, 1, 4), (4, 4, 4)])
def test_other_programs_get_at_the_pixels(name: Codec, shape: tuple[int, int, int]) -> None:
    pixels = camera_field(shape)
    np.testing.assert_array_equal(as_documented(codec.encode(pixels, name)), pixels)


def test_a_jpegxl_member_is_an_ordinary_image() -> None:
    data = codec.encode(camera_field(), "jpegxl")
    image = imagecodecs.imread(data)
    assert image.shape == (3 * 96, 112)
    assert image.dtype == np.uint16


@every_codec
@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_any_damage_is_refused(name: Codec, data: st.DataObject) -> None:
    pixels = camera_field((2, 24, 20))
    member = bytearray(codec.encode(pixels, name))
    place = data.draw(st.integers(0, len(member) - 1))
    if data.draw(st.booleans()):
        member[place] ^= data.draw(st.integers(1, 255))
    else:
        del member[place:]
    with pytest.raises(HcsError):
        codec.decode(bytes(member), np.empty_like(pixels))


def resealed(payload: bytes, trailer: bytes) -> bytes:
    """A member whose checksum holds, as somebody with ill intent would make it."""
    about = trailer[:-8]
    return payload + about + struct.pack("<Q", xxhash.xxh3_64_intdigest(payload + about))


@every_codec
@settings(deadline=None, max_examples=300)
@given(
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    headers=st.lists(st.tuples(st.integers(0, 47), st.integers(0, 255)), max_size=2),
    kept=st.one_of(st.none(), st.integers(0, 400)),
)
def test_forged_members_harm_nobody(
    name: Codec,
    changes: list[tuple[int, int]],
    headers: list[tuple[int, int]],
    kept: int | None,
) -> None:
    pixels = camera_field((2, 24, 20))
    member = codec.encode(pixels, name)
    payload = bytearray(member[: -codec.TRAILER_BYTES])
    for place, value in changes + headers:
        payload[place % len(payload)] = value
    guarded = np.full((4, 24, 20), 7, np.uint16)
    with contextlib.suppress(HcsError):
        codec.decode(resealed(bytes(payload[:kept]), member[-codec.TRAILER_BYTES :]), guarded[1:3])
    assert (guarded[0] == 7).all(), "nothing is written before the field"
    assert (guarded[3] == 7).all(), "nor behind it"


WIDE = (1, 300, 9000)


def huge_blosc2(payload: bytes) -> bytes:
    """A Blosc2 chunk that claims to unpack to 2 GB, in blocks of as much."""
    return payload[:4] + struct.pack("<II", 2**31 - 64, 2**31 - 64) + payload[12:]


def huge_jpegxl(payload: bytes) -> bytes:
    """A JPEG XL codestream that claims 8,192 x 131,072 pixels: 2 GB, in a header longer by whole bytes."""
    stream = payload[payload.index(b"\xff\x0a") :]
    bits = "".join(f"{byte:08b}"[::-1] for byte in stream[2:])  # least significant first
    true = "0" + "00" + f"{300 - 1:09b}"[::-1] + "000" + "01" + f"{9000 - 1:018b}"[::-1]
    assert bits.startswith(true)
    claim = "0" + "10" + f"{2**13 - 1:013b}"[::-1] + "000" + "11" + f"{2**17 - 1:030b}"[::-1]
    bits = claim + bits[len(true) :]
    return stream[:2] + bytes(int(bits[start : start + 8][::-1], 2) for start in range(0, len(bits), 8))


@pytest.mark.parametrize(("name", "forge"), [("blosc2", huge_blosc2), ("jpegxl", huge_jpegxl)])
def test_a_claim_of_gigabytes_allocates_none(name: Codec, forge: Callable[[bytes], bytes]) -> None:
    member, out = codec.encode(camera_field(WIDE), name), np.empty(WIDE, np.uint16)
    forged = forge(member[: -codec.TRAILER_BYTES])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(HcsError, match=r"of another size|shape=\(8192, 131072\)"):
        codec.decode(resealed(forged, member[-codec.TRAILER_BYTES :]), out)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@every_codec
def test_a_field_of_another_shape_is_told_even_of_as_many_pixels(name: Codec) -> None:
    data = codec.encode(camera_field((3, 96, 112)), name)
    with pytest.raises(HcsError, match=r"\(3, 96, 112\) instead of \(3, 112, 96\)"):
        codec.decode(data, np.empty((3, 112, 96), np.uint16))


def test_foreign_bytes_are_not_pixels() -> None:
    chunk = bytes(imagecodecs.blosc2_encode(camera_field()))
    for foreign in (b"", b"x", bytes(4096), b"not a field" * 100, chunk):
        with pytest.raises(HcsError, match="do not end as"):
            codec.decode(foreign, np.empty((3, 96, 112), np.uint16))


def test_a_later_versions_member_is_told() -> None:
    data = codec.encode(camera_field(), "blosc2")
    for trailer in (b"HCSR\x03" + data[-23:], b"HCSR\x01\x10" + data[-22:]):
        with pytest.raises(HcsError, match="this version does not know"):
            codec.decode(resealed(data[:-28], trailer), np.empty((3, 96, 112), np.uint16))


def test_a_field_beyond_a_member_is_refused_before_memory_is_taken() -> None:
    with pytest.raises(InputError, match=r"2\.2 GB is more than a member holds"):
        codec.encode(np.zeros((1, 2**15, 2**15 + 2**10), np.uint16), "blosc2")


def test_the_configuration_offers_the_codecs_there_are() -> None:
    assert typing.get_args(ShardsConfig.model_fields["codec"].annotation) == CODECS
    assert len({codec.member(name) for name in CODECS}) == len(CODECS)
