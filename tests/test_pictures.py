"""Fields as pictures: colours of channels, contrast of plates, and what is drawn with both, exactly."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.explore.fields import ChannelView, render
from hcs_ray.pictures.colours import RGB, channel_colours, rgb_of
from hcs_ray.pictures.composite import Contrast, composite, plate_contrasts
from hcs_ray.pictures.encode import jpeg
from hcs_ray.pictures.notice import notice
from hcs_ray.tables import read_index
from tests.report_study import CHANNELS, make_study


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    return read_index(make_study(tmp_path_factory.mktemp("study")))


def test_channels_are_blue_green_and_red() -> None:
    contrast = Contrast(np.full(3, 100, np.float32), np.full(3, 1100, np.float32))
    planes = np.full((3, 1, 4), 100.0)
    for channel in range(3):
        planes[channel, 0, channel] = 5000
    black = composite(planes, contrast, CHANNELS)[0, 3]
    blue, green, red = composite(planes, contrast, CHANNELS)[0, :3]
    assert black.tolist() == [0, 0, 0]
    assert (blue.argmax(), green.argmax(), red.argmax()) == (2, 1, 0)
    assert (blue.max(), green.max(), red.max()) == (255, 255, 255)
    assert channel_colours(("Mito", "DAPI", "ER")) == {
        "Mito": "magenta",
        "DAPI": "blue",
        "ER": "cyan",
    }


def test_five_channels_have_five_colours_and_do_not_burn_out() -> None:
    channels = ("DNA", "ER", "RNA", "AGP", "Mito")
    assert len(set(channel_colours(channels).values())) == 5
    contrast = Contrast(np.zeros(5, np.float32), np.full(5, 1000, np.float32))
    grey = composite(np.full((5, 1, 1), 500.0), contrast, channels)[0, 0]
    assert grey.max() < 255
    assert grey.min() > 100, "all stains together are nearly white"


def test_one_saturated_field_does_not_darken_its_plate(index: pd.DataFrame) -> None:
    plate = index[c.PLATE].iloc[0]
    spoiled = index.copy()
    spoiled.loc[spoiled[c.PLATE].eq(plate).idxmax(), "QC_P99_DAPI"] = 65520
    before, after = (plate_contrasts(index, CHANNELS)[plate] for index in (index, spoiled))
    np.testing.assert_allclose(after.white, before.white, rtol=0.02)


# --- A field drawn with limits that a person sets ---------------------------------------------------------

Floats = npt.NDArray[np.float32]
planes = hnp.arrays(np.float32, (3, 2, 3), elements=st.floats(0, 65535, width=32))
colours = st.one_of(st.sampled_from([*RGB, "white"]), st.from_regex(r"\A#[0-9a-f]{6}\Z"))
limits = st.tuples(st.integers(0, 65535), st.integers(0, 65535))


@st.composite
def channel_views(draw: Any) -> list[ChannelView]:
    return [ChannelView(name, draw(colours), draw(st.booleans()), *draw(limits)) for name in CHANNELS]


@settings(deadline=None, max_examples=60)
@given(planes, channel_views())
def test_a_picture_follows_the_rule_that_is_written_down(field: Floats, views: list[ChannelView]) -> None:
    total = np.zeros((2, 3, 3))
    for plane, view in zip(field.astype(np.float64), views, strict=True):
        if not view.shown:
            continue
        step = view.high > view.low
        light = (plane - view.low) / (view.high - view.low) if step else (plane > view.low).astype(float)
        total += np.clip(light, 0, 1)[:, :, None] * np.array(rgb_of(view.colour))
    found = render(field, views).astype(float)
    assert np.abs(found - np.clip(total, 0, 1) * 255).max() <= 0.51  # rounded, and float32


@settings(deadline=None, max_examples=60)
@given(planes, planes, channel_views())
def test_more_light_never_makes_a_pixel_darker(field: Floats, more: Floats, views: list[ChannelView]) -> None:
    assert (render(np.maximum(field, more), views) >= render(field, views)).all()


@settings(deadline=None, max_examples=60)
@given(planes, planes, channel_views())
def test_a_channel_that_is_off_has_no_influence(
    field: Floats, other: Floats, views: list[ChannelView]
) -> None:
    mixed = np.stack([a if view.shown else b for a, b, view in zip(field, other, views, strict=True)])
    np.testing.assert_array_equal(render(mixed, views), render(field, views))


@settings(deadline=None, max_examples=60)
@given(limits.filter(lambda pair: pair[0] < pair[1]), colours)
def test_limits_are_exact(pair: tuple[int, int], colour: str) -> None:
    low, high = pair
    field = np.array([[[0, low, high, 65535]]], np.float32)
    full = [int(255 * part + 0.5) for part in rgb_of(colour)]
    found = render(field, [ChannelView("DAPI", colour, True, low, high)])[0].tolist()
    assert found == [[0, 0, 0], [0, 0, 0], full, full]


def test_two_colours_add_up_and_do_not_overflow() -> None:
    field = np.full((2, 1, 1), 1000, np.float32)
    views = [ChannelView("a", "#ff8000", True, 0, 1000), ChannelView("b", "#804000", True, 0, 2000)]
    assert render(field, views)[0, 0].tolist() == [255, 160, 0]
    assert render(field, [views[0]] * 2)[0, 0].tolist() == [255, 255, 0]


@pytest.mark.parametrize("colour", ["blu", "#12345", "#12345g", "red;", "<script>"])
def test_an_unknown_colour_is_refused(colour: str) -> None:
    with pytest.raises(InputError, match="write #rrggbb or one of blue"):
        rgb_of(colour)


def test_views_must_be_of_the_fields_channels() -> None:
    with pytest.raises(InputError, match="1 views of 3 channels"):
        render(np.zeros((3, 1, 1), np.float32), [ChannelView("a", "red", True, 0, 1)])


def test_a_notice_is_a_picture_with_words() -> None:
    drawn = notice("cannot be read: damaged", 160, 128)
    assert drawn.shape == (128, 160, 3)
    ink = (drawn == (255, 209, 102)).all(axis=2)
    assert 100 < ink.sum() < 4000
    columns = np.nonzero(ink)[1]
    assert 5 < columns.min() < columns.max() < 155, "nothing is cut off"
    assert len(jpeg(drawn, 160)) < 10_000
