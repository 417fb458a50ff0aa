"""What goes wrong with fields and plates is told apart, on generated fields whose truth is known."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from scipy import ndimage

from hcs_ray.config import ShardsConfig
from hcs_ray.screen.wells import well_name
from hcs_ray.shards import kernels, measure, quality
from hcs_ray.shards.measure import MEASURES, FieldMeasures, FieldReader
from hcs_ray.shards.statistics import PlateStatistics
from tests.drawn_fields import CHANNELS, CONFIG, FULL_SCALE, Drawn, drawn_plate, spoilt

Pixels = NDArray[np.uint16]
SHAPE = (3, CONFIG.height_px, CONFIG.width_px)
FLAGS = [f"QC_Flag_{name}" for name in quality.FLAGS]


def measured(pixels: Pixels, camera_maximum: int | None = None) -> FieldMeasures:
    reader = FieldReader(pixels.shape, (0.1, 99.9), None, camera_maximum)
    return reader.measure(pixels)[0]


def table_of(
    fields: list[Pixels], camera_maximum: int | None = None, nuclear: str | None = None
) -> pd.DataFrame:
    channels = CHANNELS[: len(fields[0])]
    shape: tuple[int, int, int] = fields[0].shape
    statistics = PlateStatistics(channels, shape, ShardsConfig(), nuclear, camera_maximum)
    for number, pixels in enumerate(fields):
        statistics.add(pixels, well_name(number // 12, number % 12), 1)
    return statistics.field_table()


# --- the figures themselves ---------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=3, max_dims=3, max_side=30)), st.integers(0, 15))
def test_figures_of_small_fields_are_those_of_all_pixels(pixels: Pixels, shift: int) -> None:
    pixels = np.asarray(pixels >> shift << shift, np.uint16)
    found = measured(pixels, camera_maximum=40_000)
    columns = dict(zip(MEASURES, found.values.T, strict=True))
    planes = pixels.reshape(len(pixels), -1)
    for name, percent in (("P01", 1), ("P50", 50), ("P99", 99)):
        np.testing.assert_array_equal(columns[name], np.percentile(planes, percent, axis=1, method="higher"))
    wanted = np.percentile(planes, (0.1, 99.9), axis=1, method="higher").T
    np.testing.assert_array_equal(found.scale, wanted)
    np.testing.assert_array_equal(found.maximum, planes.max(axis=1))
    np.testing.assert_allclose(columns["Mean"], planes.mean(axis=1))
    np.testing.assert_allclose(columns["SD"], planes.std(axis=1), rtol=1e-6, atol=1e-3)
    np.testing.assert_allclose(columns["Zero"], (planes == 0).mean(axis=1))
    np.testing.assert_allclose(columns["Saturated"], (planes >= 40_000).mean(axis=1))


def test_half_of_the_rows_say_what_all_say() -> None:
    field = np.tile(drawn_plate()[0].pixels, (1, 2, 2)) + np.uint16(0)
    assert measure.rows_apart(field.shape, measure.HISTOGRAM_PIXELS) == 2
    found, planes = measured(field), field.reshape(3, -1)
    exact = np.percentile(planes, (0.1, 99.9), axis=1, method="higher").T
    np.testing.assert_allclose(found.scale, exact, rtol=0.02)  # a step of the camera is 1.5 % of the lowest
    np.testing.assert_allclose(found.values[:, MEASURES.index("P50")], np.median(planes, axis=1), rtol=0.02)


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=2, max_dims=2, max_side=40)), st.integers(1, 12))
def test_block_sums_are_those_of_a_loop(plane: Pixels, block: int) -> None:
    rows, columns = (range(0, side, block) for side in plane.shape)
    sums = np.empty((len(rows), len(columns)), np.uint32)
    bits = kernels.block_sums(plane, block, sums)
    wanted = [[plane[y : y + block, x : x + block].sum(dtype=int) for x in columns] for y in rows]
    np.testing.assert_array_equal(sums, wanted)
    assert bits == np.bitwise_or.reduce(plane, axis=None)


def test_the_largest_block_of_the_brightest_pixels_fits() -> None:
    plane = np.full((kernels.LARGEST_BLOCK, kernels.LARGEST_BLOCK), 65_535, np.uint16)
    sums = np.empty((1, 1), np.uint32)
    kernels.block_sums(plane, kernels.LARGEST_BLOCK, sums)
    assert sums[0, 0] == plane.sum(dtype=np.uint64)


@settings(deadline=None, max_examples=30)
@given(
    hnp.arrays(
        np.float32,
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=20),
        elements=st.floats(-10, 60_000, width=32),
    )
)
def test_opening_levels_and_tiles_are_those_of_libraries_and_loops(frame: NDArray[np.float32]) -> None:
    wanted = ndimage.grey_opening(frame, size=3, mode="nearest")
    np.testing.assert_array_equal(kernels.opened(frame), wanted)
    counts = np.histogram(frame, [-np.inf, *measure.level_edges()[1:], np.inf])[0]
    np.testing.assert_array_equal(measure.levels_of(frame), counts)
    edges = [measure.tile_edges(side) for side in frame.shape]
    values, places = measure.darkest_blocks(frame, edges)
    np.testing.assert_array_equal(frame.ravel()[places], values)
    tiles = [
        part for band in np.split(frame, edges[0][1:-1]) for part in np.split(band, edges[1][1:-1], axis=1)
    ]
    np.testing.assert_array_equal(values, [tile.min() for tile in tiles])


@settings(deadline=None, max_examples=30)
@given(hnp.arrays(np.uint16, hnp.array_shapes(min_dims=3, max_dims=3, min_side=2, max_side=30)))
def test_the_focus_score_is_that_of_scipys_laplacian(pixels: Pixels) -> None:
    _, height, width = pixels.shape
    blocks = pixels[:, : height // 2 * 2, : width // 2 * 2].reshape(-1, height // 2, 2, width // 2, 2)
    for plane, whole, score in zip(
        blocks.sum(axis=(2, 4), dtype=float), pixels, measured(pixels).values, strict=True
    ):
        laplacian = ndimage.laplace(plane)[1:-1, 1:-1]
        wanted = laplacian.var() / (4 * whole.mean()) ** 2 if laplacian.size and whole.any() else 0
        np.testing.assert_allclose(score[MEASURES.index("FocusScore")], wanted, rtol=1e-6, atol=1e-9)


def test_a_field_leaves_a_few_kilobytes_whatever_its_size() -> None:
    sizes = []
    for side in (256, 2048):
        found = measured(np.random.default_rng(0).integers(0, 4096, (3, side, side), np.uint16))
        arrays = [getattr(found, item.name) for item in dataclasses.fields(found)]
        sizes.append(sum(array.nbytes for array in arrays if array is not None))
    assert max(sizes) < 4_000
    assert sizes[0] == sizes[1]


def test_the_same_fields_give_the_same_table_in_any_thread() -> None:
    fields = [field.pixels for field in drawn_plate()[:6]]
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        tables = list(pool.map(table_of, [fields] * 3))
    for table in tables:
        pd.testing.assert_frame_equal(table, tables[0], check_exact=True)


# --- what is wrong with a field -------------------------------------------------------------------------


@functools.cache
def clean_and_spoilt() -> tuple[pd.DataFrame, list[str]]:
    """The QC of a plate whose last fields have something wrong, and what that is."""
    plate = drawn_plate()
    bad = {
        "OutOfFocus": spoilt(plate[1], "out_of_focus", 0.6),
        "Debris": spoilt(plate[2], "debris", 0.9),
        "Empty": spoilt(plate[3], "empty", 0.95),
        "Saturated": blazing(plate[4].pixels),
        "": vignetted(plate[5].pixels),
    }
    fields = [field.pixels for field in plate] + list(bad.values())
    return table_of(fields, FULL_SCALE, "DAPI"), [""] * len(plate) + list(bad)


def blazing(pixels: Pixels) -> Pixels:
    """One channel exposed for far too long."""
    bright = pixels.astype(np.int64)
    bright[1] *= 12
    return np.minimum(bright, FULL_SCALE).astype(np.uint16)


def vignetted(pixels: Pixels) -> Pixels:
    """Half of the light gone on one side."""
    return (pixels * np.linspace(1, 0.5, pixels.shape[2])).astype(np.uint16)


@pytest.mark.parametrize("name", quality.FLAGS)
def test_each_fault_raises_its_own_flag_alone(name: str) -> None:
    table, faults = clean_and_spoilt()
    row = table.iloc[faults.index(name)]
    assert [flag for flag in FLAGS if row[flag]] == [f"QC_Flag_{name}"]


def test_fields_without_fault_carry_no_flag() -> None:
    table, faults = clean_and_spoilt()
    clean = table[[not fault for fault in faults]]
    assert clean[FLAGS].to_numpy().mean() < 0.01


def test_what_is_left_of_uneven_light_shows() -> None:
    table, _ = clean_and_spoilt()
    residual = table["QC_IlluminationResidual_DAPI"]
    assert residual.idxmax() == len(table) - 1
    assert residual.iloc[-1] > 1.5 * residual.iloc[:-5].max()


def test_background_is_found_between_the_cells() -> None:
    table, _ = clean_and_spoilt()
    plate = drawn_plate()
    planted = [field.plan.nuisance.background[0] * (0.55 + 0.45 * darkest_tenth(field)) for field in plate]
    error = table["QC_Background_DAPI"].iloc[: len(planted)] / planted - 1
    assert error.abs().median() < 0.05, "with light that the optics scatter on top"


def darkest_tenth(field: Drawn) -> float:
    """The share of the lamp's light, 1 in its centre, that a tenth of the field does not get."""
    shade = field.shade(0)
    return float(np.quantile(shade, 0.1) / shade.max())


def test_nuclei_are_counted_within_a_few_percent() -> None:
    table, _ = clean_and_spoilt()
    truth = np.array([field.nuclei for field in drawn_plate()])
    found = table["QC_NucleusCount"].iloc[: len(truth)].to_numpy()
    error = np.abs(found - truth) / truth
    assert np.median(error) < 0.05
    assert np.quantile(error, 0.9) < 0.12
    assert np.corrcoef(found, truth)[0, 1] > 0.9


def test_cell_area_follows_the_number_of_cells() -> None:
    plate = drawn_plate()
    fields = [plate[0].pixels] * 8 + [spoilt(plate[0], "empty", share) for share in (0.3, 0.6, 0.9)]
    area = table_of(fields)["QC_CellArea"].to_numpy()
    assert (np.diff(area[7:]) < 0).all()
    assert area[-1] < 0.35 * area[0]


def test_without_a_nuclear_channel_there_is_no_count() -> None:
    table = table_of([drawn_plate()[0].pixels] * 2)
    assert "QC_NucleusCount" not in table
    assert set(table.filter(regex="Mean").columns) == {f"QC_Mean_{channel}" for channel in CHANNELS}


def test_where_the_cameras_maximum_is_unknown_the_fields_own_counts() -> None:
    plate = drawn_plate()
    fields = [field.pixels for field in plate[:8]]
    table = table_of([*fields, blazing(fields[0]), np.zeros_like(fields[0])])
    share = table["QC_Saturated_Tubulin"]
    assert share.iloc[0] == pytest.approx((fields[0][1] == fields[0][1].max()).mean())
    assert table["QC_Flag_Saturated"].tolist() == [False] * 8 + [True, False]
    assert share.iloc[9] == 1, "all of a black field is at its own maximum, which is not the camera's"


@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 3, 5), (1, 40, 48)])
@pytest.mark.parametrize("value", [0, 65_535])
def test_fields_without_contrast_have_figures_all_the_same(shape: tuple[int, int, int], value: int) -> None:
    fields = [np.full(shape, value, np.uint16)] * 3
    table = table_of(fields, 65_535, CHANNELS[0])
    assert not table.drop(columns=list(table.filter(like="WellSpread"))).isna().to_numpy().any()
    assert (table["QC_NucleusCount"] == 0).all()
    assert table["QC_Flag_Saturated"].all() == (value > 0)


# --- wells and plates -----------------------------------------------------------------------------------


def test_the_spread_of_a_well_is_that_of_its_fields() -> None:
    means = np.array([[100.0], [300.0], [200.0], [200.0], [7.0]])
    spread = quality.well_spreads(means, ["A01", "A01", "B01", "B01", "AF48"])[:, 0]
    np.testing.assert_allclose(spread, [np.sqrt(0.5), np.sqrt(0.5), 0, 0, np.nan])


def wells_of(rows: int, columns: int) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64]]:
    row, column = np.divmod(np.arange(rows * columns), columns)
    return [well_name(y, x) for y, x in zip(row.tolist(), column.tolist(), strict=True)], row, column


@pytest.mark.parametrize("size", [(8, 12), (16, 24), (32, 48)])
def test_planted_plate_effects_are_found(size: tuple[int, int]) -> None:
    names, row, column = wells_of(*size)
    noise = np.random.default_rng(0).lognormal(0, 0.1, len(names))
    edge = (row == 0) | (row == size[0] - 1) | (column == 0) | (column == size[1] - 1)
    hits = np.where(np.arange(len(names)) % 17 == 3, 4.0, 1.0)  # strong treatments here and there

    def effects(pattern: NDArray[np.float64]) -> dict[str, float]:
        return quality.plate_effects(pd.Series(1000 * pattern * noise * hits, index=names))

    flat = effects(np.ones(len(names)))
    assert all(abs(value) < 0.08 for value in flat.values())
    assert effects(1 + 0.3 * edge)["EdgeEffect"] == pytest.approx(0.3, abs=0.08)
    rising = effects(0.8 + 0.4 * row / row.max())
    assert rising["RowGradient"] == pytest.approx(0.4, abs=0.1)
    assert abs(rising["ColumnGradient"]) < 0.08
    falling = effects(1.2 - 0.4 * column / column.max())
    assert falling["ColumnGradient"] == pytest.approx(-0.4, abs=0.1)


def test_a_plate_of_one_well_has_no_effects() -> None:
    effects = quality.plate_effects(pd.Series([5.0], index=["B02"]))
    assert all(np.isnan(value) for value in effects.values())


def test_a_plate_is_summed_up_in_a_row() -> None:
    fields: tuple[Drawn, ...] = drawn_plate()[:12]
    statistics = PlateStatistics(CHANNELS, SHAPE, ShardsConfig(), "DAPI", FULL_SCALE)
    for number, field in enumerate(fields):
        statistics.add(field.pixels, well_name(1 + number // 6, number % 6), 1)
    row, table = statistics.plate_row(), statistics.field_table()
    assert row["QC_Fields"] == row["QC_Wells"] == 12
    assert row["QC_NucleusCount"] == table["QC_NucleusCount"].median()
    assert row["QC_Flag_Debris"] == table["QC_Flag_Debris"].sum()
    assert {f"QC_ColumnGradient_{channel}" for channel in CHANNELS} <= set(row)
    assert all(isinstance(value, float) for value in row.values())
    low, high = statistics.percentiles()
    for scale, percent in ((low, 0.1), (high, 99.9)):
        planes = [
            np.percentile(field.pixels.reshape(3, -1), percent, axis=1, method="higher") for field in fields
        ]
        np.testing.assert_array_equal(scale, np.median(planes, axis=0))


def test_one_saturated_field_does_not_set_the_scale_of_its_plate() -> None:
    statistics = PlateStatistics(("A",), (1, 64, 64), ShardsConfig(), None, None)
    for value in [1000] * 9 + [65_520]:
        statistics.add(np.full((1, 64, 64), value, np.uint16), "B02", 1)
    assert [value.tolist() for value in statistics.percentiles()] == [[1000.0], [1000.0]]


@settings(deadline=None, max_examples=30)
@given(
    hnp.arrays(
        np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(0, 9, width=32)
    )
)
def test_the_opening_is_scipys(frame: NDArray[np.float32]) -> None:
    expected = ndimage.grey_opening(frame, size=(3, 3), mode="nearest")
    np.testing.assert_array_equal(kernels.opened(frame), expected)
