"""What float16 has kept of a camera's pixels, and what it has lost, is what the text says."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcs_ray.screen.float16 import Float16Error, Half, is_scaled, to_integers


def to_half(values: npt.NDArray[Any]) -> Half:
    with np.errstate(over="ignore"):
        return values.astype(np.float16)


def test_of_a_12_bit_camera_float16_lost_what_the_text_says() -> None:
    camera = np.arange(0, 65536, 16, dtype=np.uint16)
    back = to_integers(to_half(camera), scaled=False).astype(int)
    wrong = back != camera
    assert camera[wrong].min() == 32784
    assert np.abs(back - camera).max() == 16
    assert set(back[camera >= 32768] % 32) == {0, 65520 % 32}
    assert camera[np.isinf(to_half(camera))].tolist() == [65520]
    assert back[-1] == 65520


def test_of_a_16_bit_camera_float16_lost_what_the_text_says() -> None:
    camera = np.arange(65536)
    half = to_half(camera)
    back = to_integers(half, scaled=False).astype(int)
    assert camera[back != camera].min() == 2049
    assert camera[np.isinf(half)].tolist() == list(range(65520, 65536))
    for first, step in ((2048, 2), (4096, 4), (8192, 8), (16384, 16), (32768, 32)):
        octave = back[(camera >= first) & (camera < min(2 * first, 65504))]
        assert set(np.diff(np.unique(octave))) == {step}


def test_scaled_values_keep_what_the_text_says() -> None:
    values = np.arange(0x3C01, dtype=np.uint16).view(np.float16)  # all from 0 to 1
    pixels = to_integers(values, scaled=True)
    exact = values.astype(np.float64)
    assert (pixels[0], pixels[-1]) == (0, 65535)
    assert (np.diff(pixels.astype(int)) >= 0).all()
    assert np.abs(pixels / 65535 - exact).max() <= 0.5 / 65535
    back = (pixels / 65535).astype(np.float16)
    np.testing.assert_array_equal(back[exact >= 1 / 64], values[exact >= 1 / 64])


@given(st.floats(width=16), st.booleans())
def test_every_float16_is_read_or_refused(value: float, scaled: bool) -> None:
    pixels = np.array([[value]], np.float16)
    good = 0 <= value <= 1 if scaled else value >= 0 and (value == np.inf or value == int(value))
    if good:
        expected = round(value * 65535) if scaled else 65520 if value == np.inf else int(value)
        assert to_integers(pixels, scaled).tolist() == [[expected]]
    else:
        with pytest.raises(Float16Error):
            to_integers(pixels, scaled)


def test_scaled_and_raw_pixels_are_told_apart() -> None:
    assert is_scaled(np.array([0, 0.5, 1], np.float16)) is True
    assert is_scaled(np.array([0, 16, 1], np.float16)) is False
    assert is_scaled(np.array([0, np.inf], np.float16)) is False
    assert is_scaled(np.array([0, 1, 1], np.float16)) is None
