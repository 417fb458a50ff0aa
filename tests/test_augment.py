"""Random changes of fields: each against an oracle, and none dependent on the company an image is in."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import scipy.ndimage
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.config import AugmentConfig, TrainConfig
from hcs_ray.model import augment
from hcs_ray.model.noise import gaussian_noise, hashed

OFF: dict[str, Any] = {"flips": False, "quarter_turns": False, "intensity": 0.0}
ALL_ON: dict[str, Any] = {"rotation_degrees": 180, "gamma": 0.3, "noise": 0.1, "blur_px": 1.5}
SHAPE = (3, 80, 100)


def config(crop_px: int = 32, downsample: int = 1, **changes: Any) -> TrainConfig:
    changes = {**OFF, **changes}
    return TrainConfig(crop_px=crop_px, downsample=downsample, augment=AugmentConfig(**changes))


def drawn(train: TrainConfig, images: int, channels: int = 3, epoch: int = 0) -> torch.Tensor:
    return torch.from_numpy(
        np.stack([augment.draw(train.augment, channels, (0, epoch, f"k{i}")) for i in range(images)])
    )


def pictures(count: int, side: int, channels: int = 3) -> torch.Tensor:
    """Corrected pixels: mostly in 0 to 1, some below and above."""
    return torch.rand(count, channels, side, side, generator=torch.Generator().manual_seed(0)) * 1.3 - 0.2


def changed(train: TrainConfig, images: torch.Tensor, changes: torch.Tensor) -> npt.NDArray[np.float32]:
    return augment.apply(images, changes, train).numpy()


# --- What is read ------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 80), st.integers(0, 9))
def test_a_crop_is_a_square_within_the_field(height: int, width: int, side: int, epoch: int) -> None:
    shape, expected = (2, height, width), min(side, height, width)
    for crop in (augment.draw_crop(shape, side, (0, epoch, "k")), augment.centre(shape, side)):
        for part, length in ((crop.rows, height), (crop.columns, width)):
            assert 0 <= part.start <= part.stop <= length
            assert part.stop - part.start == expected
    middle = augment.centre(shape, side).rows
    assert abs(middle.start - (height - middle.stop)) <= 1
    assert augment.whole(shape) == augment.Crop(slice(0, height), slice(0, width))


def test_crops_follow_from_seed_epoch_and_key_and_reach_every_place() -> None:
    def start(seed: int, epoch: int, key: str) -> tuple[int, int]:
        crop = augment.draw_crop((1, 12, 10), 8, (seed, epoch, key))
        return crop.rows.start, crop.columns.start

    assert start(1, 2, "k") == start(1, 2, "k")
    starts = [start(0, epoch, f"k{i}") for epoch in range(10) for i in range(60)]
    assert set(starts) == {(row, column) for row in range(5) for column in range(3)}
    assert len({(start(0, 0, f"k{i}"), start(1, 0, f"k{i}"), start(0, 1, f"k{i}")) for i in range(60)}) > 50


@settings(deadline=None)
@given(st.integers(1, 90), st.integers(1, 5), st.sampled_from([0, 0.5, 10, 45, 90, 180]))
def test_what_is_read_for_a_rotation_exceeds_the_crop_evenly(
    crop_px: int, downsample: int, degrees: float
) -> None:
    train = config(crop_px, downsample, rotation_degrees=degrees)
    side = augment.read_px(train, SHAPE)
    plain = augment.read_px(config(crop_px, downsample), SHAPE)
    assert plain == min(crop_px, 80)
    assert plain <= side <= 80
    assert (side - plain) % (2 * downsample) == 0
    if not degrees:
        assert side == plain


@settings(deadline=None, max_examples=50)
@given(st.integers(2, 48), st.integers(1, 4), st.sampled_from([3.0, 30.0, 45.0, 180.0]), st.integers(0, 99))
def test_a_turned_crop_has_no_empty_corner_where_the_field_allows(
    crop_px: int, downsample: int, degrees: float, epoch: int
) -> None:
    """A ramp stays a ramp up to the corners only if nothing beyond the square was looked at."""
    train = config(crop_px, downsample, rotation_degrees=degrees)
    read = augment.read_px(train, (1, 200, 200))
    small = -(-read // downsample)
    side = -(-crop_px // downsample)
    ramp = torch.arange(small, dtype=torch.float32) - (small - 1) / 2
    changes = drawn(train, 4, 1, epoch)
    found = changed(train, ramp.expand(4, 1, small, small).contiguous(), changes)
    away = np.arange(side) - (side - 1) / 2
    cosine, sine = changes.numpy()[:, :1, None], changes.numpy()[:, 1:, None]
    assert found.shape == (4, 1, side, side)
    np.testing.assert_allclose(found[:, 0], cosine * away - sine * away[:, None], atol=1e-4)


# --- Each change against an oracle ---------------------------------------------------------------------


def test_without_changes_nothing_is_drawn_and_the_images_are_returned() -> None:
    train = config()
    changes = drawn(train, 4)
    assert (changes.shape, changes.dtype) == ((4, 0), torch.float32)
    images = pictures(4, 32)
    assert augment.apply(images, changes, train) is images


def dihedral(image: npt.NDArray[np.float32]) -> list[bytes]:
    """The four turns, then the four turns of the mirror image."""
    return [
        np.ascontiguousarray(np.rot90(start, turns, (1, 2))).tobytes()
        for start in (image, image[:, :, ::-1])
        for turns in range(4)
    ]


@pytest.mark.parametrize(
    ("flips", "quarter_turns", "expected"),
    [(True, True, range(8)), (False, True, range(4)), (True, False, (0, 2, 4, 6))],
)
def test_flips_and_turns_move_pixels_exactly_and_are_equally_frequent(
    flips: bool, quarter_turns: bool, expected: tuple[int, ...]
) -> None:
    train = config(7, flips=flips, quarter_turns=quarter_turns)
    image = pictures(1, 7)
    found = changed(train, image.repeat(800, 1, 1, 1), drawn(train, 800))
    elements = dihedral(image[0].numpy())
    counts = np.bincount([elements.index(one.tobytes()) for one in found], minlength=8)
    assert set(np.flatnonzero(counts)) == set(expected)
    assert scipy.stats.chisquare(counts[list(expected)]).pvalue > 0.001


def test_free_rotation_is_that_of_scipy_and_goes_both_ways() -> None:
    train = config(24, rotation_degrees=30)
    read = augment.read_px(train, (3, 28, 28))
    assert read == 28, "less than is needed: beyond the field is its mirror image"
    images, changes = pictures(6, read), drawn(train, 6)
    found = changed(train, images, changes)
    away = np.arange(24) - 11.5
    for image, one, (cosine, sine) in zip(images.numpy(), found, changes.numpy(), strict=True):
        at = [
            sine * away + cosine * away[:, None] + 13.5,
            cosine * away - sine * away[:, None] + 13.5,
        ]
        for channel, plane in zip(image, one, strict=True):
            expected = scipy.ndimage.map_coordinates(channel.astype(float), at, order=1, mode="mirror")
            np.testing.assert_allclose(plane, expected, atol=2e-5)
    angles = np.degrees(np.arctan2(*drawn(train, 400).numpy()[:, ::-1].T))
    assert scipy.stats.kstest(angles, "uniform", (-30, 60)).pvalue > 0.001


def test_gains_and_gammas_are_those_of_numpy_for_each_channel() -> None:
    images = pictures(5, 16, 4)
    bright = config(16, intensity=0.3)
    gains = drawn(bright, 5, 4)
    expected = images.numpy() * gains.numpy()[:, :, None, None]
    np.testing.assert_array_equal(changed(bright, images, gains), expected)
    bent = config(16, gamma=0.5)
    exponents = drawn(bent, 5, 4)
    expected = np.maximum(images.numpy(), 0).astype(float) ** exponents.numpy()[:, :, None, None]
    np.testing.assert_allclose(changed(bent, images, exponents), expected, rtol=1e-5)
    many = drawn(bright, 1000, 4).numpy()
    assert scipy.stats.kstest(many.ravel(), "uniform", (0.7, 0.6)).pvalue > 0.001
    logs = np.log(drawn(bent, 1000, 4).numpy().ravel()) / np.log(1.5)
    assert scipy.stats.kstest(logs, "uniform", (-1, 2)).pvalue > 0.001
    assert abs(np.corrcoef(many.T) - np.eye(4)).max() < 0.15, "each channel has its own"


@pytest.mark.parametrize("downsample", [1, 3])
def test_blur_is_that_of_scipy_with_a_sigma_for_each_image(downsample: int) -> None:
    train = config(40 * downsample, downsample, blur_px=2.0)
    images, changes = pictures(5, 40), drawn(train, 5)
    found = changed(train, images, changes)
    sigmas = changes.numpy()[:, 0] / downsample
    assert len(set(sigmas)) == 5
    for image, one, sigma in zip(images.numpy(), found, sigmas, strict=True):
        expected = scipy.ndimage.gaussian_filter(
            image.astype(float), (0, sigma, sigma), mode="mirror", radius=math.ceil(6 / downsample)
        )
        np.testing.assert_allclose(one, expected, atol=1e-5)
    np.testing.assert_array_equal(changed(train, images, torch.zeros(5, 1)), images.numpy())


def test_a_blur_wider_than_the_image_is_cut_off() -> None:
    train = config(5, blur_px=10)
    assert np.isfinite(changed(train, pictures(2, 5), drawn(train, 2))).all()


def test_added_noise_has_the_drawn_standard_deviation() -> None:
    train = config(64, noise=0.2)
    images, changes = pictures(8, 64), drawn(train, 8)
    noise = changed(train, images, changes) - images.numpy()
    np.testing.assert_allclose(noise.std((1, 2, 3)), changes.numpy()[:, 0], rtol=0.03)
    spread = drawn(train, 500).numpy()[:, 0]
    assert scipy.stats.kstest(spread, "uniform", (0, 0.2)).pvalue > 0.001


# --- The noise itself ----------------------------------------------------------------------------------


def seeds(rows: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(2**24, size=(rows, 2)).astype(np.int32))


def test_noise_is_normal_and_white() -> None:
    side = 256
    noise = gaussian_noise(seeds(4), 3 * side * side).numpy()
    assert scipy.stats.kstest(noise[:, ::3].ravel(), "norm").pvalue > 0.001
    assert abs(noise.mean()) < 0.005
    assert scipy.stats.kurtosis(noise, axis=None) == pytest.approx(0, abs=0.03)
    assert 4.5 < abs(noise).max() < 7
    planes = noise.reshape(4, 3, side, side)
    limit = 5 / side  # five standard errors
    for axis in (2, 3):
        shifted = np.roll(planes, 1, axis)
        assert abs((planes * shifted).mean((2, 3))).max() < limit, "neighbours"
    everything = planes.reshape(12, -1)
    assert abs(np.corrcoef(everything) - np.eye(12)).max() < limit, "channels and images"
    power = abs(np.fft.rfft2(planes)) ** 2 / side**2
    assert power[..., 1:, 1:].max() < 25, "no line in the spectrum stands out"


def test_near_seeds_make_unrelated_noise() -> None:
    near = torch.tensor([[a, b] for a in range(8) for b in range(8)], dtype=torch.int32)
    noise = gaussian_noise(near, 40_000).numpy()
    assert abs(np.corrcoef(noise) - np.eye(64)).max() < 5.5 / 200
    assert all((one != other).mean() > 0.99 for one, other in pairwise(noise))


def test_the_hash_is_that_of_unsigned_arithmetic_and_a_bijection() -> None:
    numbers = np.arange(-5, 2**16, dtype=np.int64).astype(np.uint32) * np.uint32(65521)
    x = numbers ^ (numbers >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x ^= x >> np.uint32(15)
    x = x * np.uint32(0x846CA68B)
    x ^= x >> np.uint32(16)
    found = hashed(torch.from_numpy(numbers.view(np.int32))).numpy()
    np.testing.assert_array_equal(found.view(np.uint32), x)
    assert len(np.unique(found)) == len(numbers)


@pytest.mark.parametrize("count", [1, 2, 7])
def test_noise_comes_in_any_number(count: int) -> None:
    assert gaussian_noise(seeds(3), count).shape == (3, count)


# --- What holds for all together -----------------------------------------------------------------------


@settings(deadline=None, max_examples=25)
@given(st.permutations(range(6)), st.integers(1, 6), st.integers(9, 40))
def test_an_image_is_changed_the_same_in_any_company(order: list[int], kept: int, crop_px: int) -> None:
    train = TrainConfig(crop_px=crop_px, augment=AugmentConfig(**ALL_ON))
    images, changes = pictures(6, augment.read_px(train, SHAPE)), drawn(train, 6)
    together = augment.apply(images, changes, train)
    some = order[:kept]
    torch.testing.assert_close(
        augment.apply(images[some], changes[some], train), together[some], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    "changes",
    [{"flips": True, "quarter_turns": True}, {"rotation_degrees": 90}, {"intensity": 0.2}, {"gamma": 0.2},
     {"noise": 0.1}],
)  # fmt: skip
def test_all_but_the_blur_are_the_same_to_the_last_bit(changes: dict[str, Any]) -> None:
    train = config(32, **changes)
    images, drew = pictures(8, augment.read_px(train, SHAPE)), drawn(train, 8)
    together = augment.apply(images, drew, train)
    for i in range(8):
        assert torch.equal(augment.apply(images[i : i + 1], drew[i : i + 1], train)[0], together[i])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_changes_are_made_in_float32_and_beside_the_images_given(dtype: torch.dtype) -> None:
    train = TrainConfig(crop_px=40, augment=AugmentConfig(**ALL_ON))
    images, changes = pictures(4, augment.read_px(train, SHAPE)), drawn(train, 4)
    before = images.clone()
    expected = augment.apply(images, changes, train)
    with torch.autocast("cpu", dtype=dtype):
        found = augment.apply(images, changes, train)
    assert (found.dtype, found.shape, found.requires_grad) == (torch.float32, (4, 3, 40, 40), False)
    assert torch.equal(found, expected)
    assert torch.equal(images, before)
    assert torch.isfinite(found).all()


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("downsample", [1, 4])
def test_any_number_of_channels_and_any_field(channels: int, downsample: int) -> None:
    train = TrainConfig(crop_px=70, downsample=downsample, augment=AugmentConfig(**ALL_ON))
    for field, expected in (((channels, 50, 64), 50), ((channels, 200, 200), 70)):
        side = -(-augment.read_px(train, field) // downsample)
        found = changed(train, pictures(2, side, channels), drawn(train, 2, channels))
        assert found.shape == (2, channels, *[-(-expected // downsample)] * 2)


def test_parameters_follow_from_seed_epoch_and_key() -> None:
    on = AugmentConfig(**ALL_ON)
    one = augment.draw(on, 3, (0, 1, "k"))
    np.testing.assert_array_equal(one, augment.draw(on, 3, (0, 1, "k")))
    for other in ((1, 1, "k"), (0, 2, "k"), (0, 1, "l")):
        assert (one[3:] != augment.draw(on, 3, other)[3:]).all()


def test_switching_one_change_off_leaves_the_others_as_they_were() -> None:
    everything = augment.draw(AugmentConfig(**ALL_ON), 3, (0, 0, "k")).tolist()
    for name in ("rotation_degrees", "gamma", "noise", "blur_px", "intensity"):
        without = AugmentConfig.model_validate({**ALL_ON, name: 0.0})
        rest = augment.draw(without, 3, (0, 0, "k")).tolist()
        assert len(rest) < len(everything)
        assert [value for value in everything if value in rest] == rest
