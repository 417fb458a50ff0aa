"""The light that a microscope spreads unevenly is found from the fields of a plate, whatever lies in them."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import threadpoolctl
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from hcs_ray.config import ShardsConfig
from hcs_ray.shards.illumination import MEDIAN_FRAMES, IlluminationEstimate, block_means
from hcs_ray.shards.statistics import PlateStatistics
from tests.drawn_fields import CHANNELS, CONFIG, FULL_SCALE, drawn_plate
from tests.planted_light import Float64, cells_of, plain, plate_of, residual, vignetting

SIGMA = 0.05


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.uint16, (2, 13, 17)), st.integers(1, 20))
def test_block_means_are_those_of_a_loop(pixels: NDArray[np.uint16], block: int) -> None:
    found = block_means(pixels, block)
    for row in range(found.shape[1]):
        for column in range(found.shape[2]):
            part = pixels[:, row * block : (row + 1) * block, column * block : (column + 1) * block]
            np.testing.assert_allclose(found[:, row, column], part.mean(axis=(1, 2)))


def test_smoothing_block_means_is_smoothing_all_pixels() -> None:
    rng = np.random.default_rng(0)
    mean = np.mean([cells_of(rng) for _ in range(60)], axis=0) * vignetting("gaussian")
    pixels = mean.repeat(8, 0).repeat(8, 1) * rng.uniform(0.9, 1.1, (1024, 1280))
    full = ndimage.gaussian_filter(pixels, 64, mode="reflect")
    blocks = ndimage.gaussian_filter(block_means(pixels[None].astype(np.float32), 8)[0], 8, mode="reflect")
    centres = full.reshape(128, 8, 160, 8)[:, 3:5, :, 3:5].mean(axis=(1, 3))
    assert np.abs(blocks / centres - 1).max() < 3e-4


def estimate_of(fields: Float64, method: Literal["mean", "median"] = "mean") -> NDArray[np.float32]:
    estimate = IlluminationEstimate((1, 1024, 1280), 8, method, by_site=False)
    for field in fields:
        estimate.add(field[None].astype(np.float32), 1)
    return np.asarray(estimate.functions(SIGMA)[0, 0])


def at_blocks(function: NDArray[np.float32]) -> Float64:
    return np.asarray(block_means(function[None], 8)[0])


@pytest.mark.parametrize("kind", ["gaussian", "cos4", "tilted", "none"])
@pytest.mark.parametrize("radius", [3.0, 6.5], ids=["nuclei", "whole cells"])
def test_a_planted_light_is_found_among_outliers(kind: str, radius: float) -> None:
    shade = vignetting(kind)
    plates = [plate_of(240, seed, radius) * shade for seed in range(2)]
    found = np.mean([residual(at_blocks(estimate_of(fields)), shade) for fields in plates], axis=0)
    before = np.mean([residual(plain(fields), shade) for fields in plates], axis=0)
    assert found[0] < 1 < before[0], "median, %"
    assert found[1] < 6 < before[1], "worst corner, %"


def test_few_fields_give_a_cautious_estimate() -> None:
    shade = vignetting("gaussian")
    plates = [plate_of(24, seed, 3.0) * shade for seed in range(4)]
    median, worst = np.median([residual(at_blocks(estimate_of(fields)), shade) for fields in plates], axis=0)
    median_plain, worst_plain = np.median([residual(plain(fields), shade) for fields in plates], axis=0)
    assert median < min(3, median_plain / 2)
    assert worst < min(15, worst_plain / 2)


def test_the_median_hardly_sees_dirt() -> None:
    shade = vignetting("cos4")
    median, worst = residual(at_blocks(estimate_of(plate_of(240, 0, 3.0) * shade, "median")), shade)
    assert median < 0.5
    assert worst < 3


def test_a_bright_field_weighs_no_more_than_another() -> None:
    fields = plate_of(24, 1, 3.0)
    brighter = fields * np.where(np.arange(24) == 3, 1000.0, 1.0)[:, None, None]
    np.testing.assert_allclose(estimate_of(brighter), estimate_of(fields), rtol=1e-5)


@pytest.mark.parametrize("method", ["mean", "median"])
@pytest.mark.parametrize("size", [(5, 3), (61, 90), (128, 128), (257, 310)])
def test_fields_of_any_size_have_functions_of_mean_one(size: tuple[int, int], method: str) -> None:
    rng = np.random.default_rng(0)
    shape = (2, *size)
    config = ShardsConfig.model_validate({"illumination_method": method, "illumination_block_px": 8})
    statistics = PlateStatistics(("A", "B"), shape, config, None, None)
    for _ in range(6):
        statistics.add(rng.integers(100, 4000, shape, np.uint16), "B02", 1)
    functions = statistics.illumination()
    assert functions.shape == shape
    assert functions.dtype == np.float32
    np.testing.assert_allclose(functions.mean(axis=(1, 2), dtype=np.float64), 1, atol=1e-5)
    assert functions.min() > 0


@pytest.mark.parametrize("block_px", [3, 8, 300])
def test_blocks_of_any_size_serve(block_px: int) -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(0.7, 1.3, 320)
    statistics = PlateStatistics(
        ("A",), (1, 256, 320), ShardsConfig(illumination_block_px=block_px), None, None
    )
    for _ in range(4):
        statistics.add((rng.uniform(900, 1100, (1, 256, 320)) * x).astype(np.uint16), "B02", 1)
    across = statistics.illumination()[0].mean(axis=0)
    np.testing.assert_allclose(across, x, atol=0.01 if block_px < 300 else 0.3)


def test_dark_corners_and_black_channels_stay_finite() -> None:
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:96j, -1:1:128j]
    statistics = PlateStatistics(("A", "Black"), (2, 96, 128), ShardsConfig(), None, None)
    for _ in range(8):
        round_field = rng.uniform(900, 1100, (96, 128)) * (np.hypot(y, x) < 1.1)
        statistics.add(np.stack([round_field, 0 * round_field]).astype(np.uint16), "B02", 1)
    functions = statistics.illumination()
    assert functions[0, 0, 0] < 0.3 < functions[0, 48, 64]
    assert functions[0].min() > 0.03
    np.testing.assert_array_equal(functions[1], 1)


def test_one_field_does_not_tell_its_cells_from_the_light() -> None:
    statistics = PlateStatistics(("A",), (1, 64, 64), ShardsConfig(), None, None)
    statistics.add(np.random.default_rng(0).integers(0, 4096, (1, 64, 64), np.uint16), "B02", 1)
    np.testing.assert_array_equal(statistics.illumination(), 1)


def test_each_site_may_have_its_own_light() -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(0.8, 1.2, 128)
    statistics = PlateStatistics(("A",), (1, 96, 128), ShardsConfig(illumination_by_site=True), None, None)
    for well in ("B02", "B03", "B04", "B05"):
        for site, shade in ((9, x), (2, x[::-1])):
            statistics.add((rng.uniform(900, 1100, (1, 96, 128)) * shade).astype(np.uint16), well, site)
    assert statistics.sites == [2, 9]
    functions = statistics.illumination()
    assert functions.shape == (2, 1, 96, 128)
    np.testing.assert_allclose(functions[0, 0].mean(axis=0), x[::-1], atol=0.02)
    np.testing.assert_allclose(functions[1, 0].mean(axis=0), x, atol=0.02)
    assert statistics.field_table()["QC_IlluminationResidual_A"].max() < 0.03


def test_the_vignetting_of_a_generated_plate_is_taken_out() -> None:
    config = ShardsConfig(illumination_block_px=4)
    statistics = PlateStatistics(CHANNELS, (3, CONFIG.height_px, CONFIG.width_px), config, "DAPI", FULL_SCALE)
    for field in drawn_plate():
        statistics.add(field.pixels, field.plan.well.name, 1)
    before, after = [], []
    for number, function in enumerate(statistics.illumination()):
        shade = drawn_plate()[0].shade(number)
        before.append(residual(np.ones_like(shade), shade))
        after.append(residual(function, shade))
    (median_before, worst_before), (median, worst) = np.mean(before, axis=0), np.mean(after, axis=0)
    assert median < min(3, median_before / 2)
    assert worst < worst_before / 2


def test_the_bytes_do_not_depend_on_threads() -> None:
    fields = plate_of(24, 0, 3.0) * vignetting("gaussian")
    with threadpoolctl.threadpool_limits(1):
        one = estimate_of(fields)
    with threadpoolctl.threadpool_limits(4):
        np.testing.assert_array_equal(estimate_of(fields), one)


@settings(deadline=None, max_examples=20)
@given(st.lists(st.integers(1, 5), min_size=1, max_size=400), st.booleans())
def test_a_median_keeps_few_frames_however_many_fields(sites: list[int], by_site: bool) -> None:
    estimate = IlluminationEstimate((1, 8, 8), 4, "median", by_site)
    for site in sites:
        estimate.add(np.ones((1, 2, 2), np.float32), site)
    assert 0 < estimate.kept_frames <= MEDIAN_FRAMES
