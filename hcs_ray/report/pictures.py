"""Pictures inside the page, as data URIs."""

from __future__ import annotations

import base64
from dataclasses import dataclass

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.pictures.composite import composite, plate_contrasts
from hcs_ray.pictures.encode import jpeg
from hcs_ray.pictures.planes import camera_planes
from hcs_ray.shards.read import ShardReader


@dataclass(frozen=True)
class Picture:
    """An image inside the page: a data URI and the text that stands for it."""

    source: str
    alt: str


def data_uri(data: bytes, media_type: str) -> str:
    """Bytes as a URI that holds them."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"


class FieldPictures:
    """Composites of fields of a study, read from its shards."""

    def __init__(self, reader: ShardReader, index: pd.DataFrame) -> None:
        self._reader = reader
        columns = [c.KEY, c.PLATE, c.SITE, c.SHARD, c.OFFSET, c.SIZE, c.SHA256]
        self._rows = {row[c.KEY]: row for row in c.rows_of(index[columns])}
        self._contrasts = plate_contrasts(index, reader.channels)

    def picture(self, key: str, longest_px: int, alt: str) -> Picture:
        """The picture of one field."""
        row = self._rows[key]
        planes = camera_planes(self._reader, row, correct=True)
        rgb = composite(planes, self._contrasts[str(row[c.PLATE])], self._reader.channels)
        return Picture(data_uri(jpeg(rgb, longest_px), "image/jpeg"), alt)
