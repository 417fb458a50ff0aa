"""Raw screens of any kind as one field table and a source of pixels; generated ones; splits by compound."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import InputError

Field = Mapping[str, Any]  # one row of `Screen.fields`


class BadImageError(InputError):
    """A field's image that is missing, damaged or of another kind; one line that names it and the reason."""


@dataclass(frozen=True)
class RawField:
    """The pixels of one field as they came.

    Attributes:
        pixels: (C, H, W) uint16, contiguous.
        digests: XXH3-128 (hex) of each channel's raw bytes: its file, its archive member, its dataset rows.
    """

    pixels: npt.NDArray[np.uint16]
    digests: tuple[str, ...]


class ImageSource(Protocol):
    """Where the pixels of a screen are read from. Picklable; safe to share between threads."""

    def read(self, row: Field) -> RawField:
        """All channels of one field; `BadImageError` where one cannot be had."""


@dataclass(frozen=True)
class Screen:
    """A raw screen, ready to be sharded.

    Attributes:
        fields: One row a field, sorted by key: `contracts.KEY`, the columns of `contracts.FIELD_COLUMNS`,
            any further ``Metadata_*`` columns of the screen, and ``FileName_Orig<Channel>``, where ``source``
            finds each channel (`hcs_ray.screen.images` has the grammar).
        channels: Channel names in the order of the image planes.
        source: Reads the pixels.
        plates: Plate -> digest of all that its shards follow from: its rows, and its images as listed.
        tables: The tables that were read -> SHA-256.
        absent: Key -> one line, for each field with an image that the listing lacks.
        nuclear_channel: The channel that shows nuclei, where there is one.
        camera_maximum: The value at which a pixel is saturated, where it is known.
    """

    fields: pd.DataFrame
    channels: tuple[str, ...]
    source: ImageSource
    plates: dict[str, str]
    tables: dict[str, str] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)
    nuclear_channel: str | None = None
    camera_maximum: int | None = None


def file_column(channel: str) -> str:
    """The column with a channel's image, as JUMP's ``load_data.csv`` names it."""
    return f"FileName_Orig{channel}"
