"""Channels added up as colours, with one contrast for all fields of a plate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.pictures.colours import channel_colours, rgb_of

GAMMA: Final = 0.8  # lifts dim structures a little
_BRIGHTEST: Final = 1.5  # of the sum of all channels' colours; more burns out where many stains lie
_HEADROOM: Final = 1.2  # over the 99th percentile, so that bright structures keep their shape

Image8 = npt.NDArray[np.uint8]
Planes = npt.NDArray[np.floating[Any]]
Colours = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Contrast:
    """Black and white points of a plate's channels, camera units, (C,) each."""

    black: npt.NDArray[np.float32]
    white: npt.NDArray[np.float32]


def plate_contrasts(index: pd.DataFrame, channels: Sequence[str]) -> dict[str, Contrast]:
    """Contrast of each plate: medians over its fields of their 1st and 99th percentiles.

    Medians, since a few bright artefacts would otherwise darken every picture of a plate.
    """
    low, high = ([f"{c.QC_PREFIX}{name}_{channel}" for channel in channels] for name in ("P01", "P99"))
    medians = index.groupby(c.PLATE, sort=True)[[*low, *high]].median()
    return {
        str(plate): Contrast(row[low].to_numpy(np.float32), row[high].to_numpy(np.float32))
        for plate, row in medians.iterrows()
    }


def composite(planes: Planes, contrast: Contrast, channels: Sequence[str]) -> Image8:
    """Planes (C, H, W) in camera units to RGB (H, W, 3) uint8, colours added up; many are dimmed."""
    black, white = contrast.black[:, None, None], contrast.white[:, None, None]
    light = np.clip((planes - black) / np.maximum(_HEADROOM * (white - black), 1), 0, 1) ** GAMMA
    names = channel_colours(channels)
    return add_up(light, dimmed(np.array([rgb_of(names[channel]) for channel in channels], np.float32)))


def dimmed(colours: Colours) -> Colours:
    """Colours (C, 3), all darker alike where so many would burn out together."""
    return colours * (_BRIGHTEST / max(_BRIGHTEST, float(colours.sum(axis=0).max())))


def add_up(light: Planes, colours: Colours) -> Image8:
    """Light (C, H, W), 0 to 1, times colours (C, 3), summed: RGB (H, W, 3) uint8, rounded, cut at 255."""
    rgb = np.empty((*light.shape[1:], 3), np.uint8)
    for number, shares in enumerate(np.asarray(colours, light.dtype).T):
        plane = np.minimum(np.tensordot(shares, light, 1), 1)
        plane *= 255
        plane += 0.5
        rgb[..., number] = plane
    return rgb
