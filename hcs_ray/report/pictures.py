"""Pictures of fields: channels as colours, with one contrast for all fields of a plate."""

from __future__ import annotations

import base64
import io
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.shards.read import ShardReader, corrected

COLOUR_OF: Final = {"DAPI": "blue", "DNA": "blue", "Hoechst": "blue", "Tubulin": "green", "Actin": "red"}
_RGB: Final = {
    "blue": (0.15, 0.35, 1.0),  # pure blue is too dark for eyes and screens
    "magenta": (1.0, 0.0, 1.0),
    "cyan": (0.0, 1.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "red": (1.0, 0.0, 0.0),
}
_BRIGHTEST: Final = 1.5  # of the sum of all channels' colours; more burns out where many stains lie
_GAMMA: Final = 0.8  # lifts dim structures a little
_HEADROOM: Final = 1.2  # over the 99th percentile, so that bright structures keep their shape
_JPEG_QUALITY: Final = 85

Image8 = npt.NDArray[np.uint8]
Planes = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Picture:
    """An image inside the page: a data URI and the text that stands for it."""

    source: str
    alt: str


@dataclass(frozen=True)
class Contrast:
    """Black and white points of a plate's channels, camera units, (C,) each."""

    black: npt.NDArray[np.float32]
    white: npt.NDArray[np.float32]


def channel_colours(channels: Sequence[str]) -> dict[str, str]:
    """The name of each channel's colour: the usual one of a stain, or the next that is free."""
    taken = {COLOUR_OF.get(channel) for channel in channels}
    free = itertools.cycle([name for name in _RGB if name not in taken] or list(_RGB))
    return {channel: COLOUR_OF.get(channel) or next(free) for channel in channels}


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
    light = np.clip((planes - black) / np.maximum(_HEADROOM * (white - black), 1), 0, 1) ** _GAMMA
    names = channel_colours(channels)
    colours = np.array([_RGB[names[channel]] for channel in channels], dtype=np.float32)
    colours *= _BRIGHTEST / max(_BRIGHTEST, float(colours.sum(axis=0).max()))
    rgb = np.einsum("chw,ck->hwk", light, colours)
    return np.asarray(np.clip(rgb, 0, 1) * 255 + 0.5, dtype=np.uint8)


def jpeg(rgb: Image8, longest_px: int) -> str:
    """RGB (H, W, 3) as a JPEG data URI whose longer side is at most ``longest_px``."""
    from PIL import Image

    image = Image.fromarray(rgb)
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_JPEG_QUALITY, optimize=True)
    return data_uri(buffer.getvalue(), "image/jpeg")


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a URI that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


class FieldPictures:
    """Composites of fields of a study, read from its shards."""

    def __init__(self, reader: ShardReader, index: pd.DataFrame) -> None:
        self._reader = reader
        columns = [c.KEY, c.PLATE, c.SITE, c.SHARD, c.OFFSET, c.SIZE, c.SHA256]
        self._rows = {row[c.KEY]: row for row in index[columns].to_dict(orient="records")}
        self._contrasts = plate_contrasts(index, reader.channels)

    def picture(self, key: str, longest_px: int, alt: str) -> Picture:
        """The picture of one field."""
        row = self._rows[key]
        plate = str(row[c.PLATE])
        pixels = self._reader.pixels(row[c.SHARD], int(row[c.OFFSET]), int(row[c.SIZE]), row[c.SHA256])
        everything = slice(None)
        scaled = corrected(pixels, self._reader.plate(plate, int(row[c.SITE])), everything, everything)
        low, high = (
            np.asarray(self._reader.manifest["plates"][plate][name], np.float32)[:, None, None]
            for name in ("low", "high")
        )
        flat = scaled * np.maximum(high - low, 1) + low  # illumination stays corrected
        rgb = composite(flat, self._contrasts[plate], self._reader.channels)
        return Picture(jpeg(rgb, longest_px), alt)
