"""Fields as pictures: the colours of channels, the contrast of plates, and what is drawn with both."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from hcs_ray import contracts as c
from hcs_ray.pictures.colours import channel_colours
from hcs_ray.pictures.composite import Contrast, composite, plate_contrasts
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
