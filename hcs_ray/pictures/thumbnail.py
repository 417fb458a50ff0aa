"""Small pictures of fields, averaged down while they are decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hcs_ray import contracts as c
from hcs_ray.pictures.composite import Contrast, composite
from hcs_ray.pictures.encode import jpeg
from hcs_ray.pictures.planes import camera_planes, whole
from hcs_ray.shards.read import ShardReader


@dataclass(frozen=True)
class Thumbnail:
    """Draws composites at most ``size_px`` wide and high, in the contrast of their plates."""

    reader: ShardReader
    contrasts: Mapping[str, Contrast]  # of each plate
    size_px: int
    correct: bool  # illumination

    def draw(self, row: Mapping[str, Any]) -> bytes:
        """A JPEG of the field of a row of the index.

        Raises:
            HcsError: the member is damaged, or its shard is gone.
        """
        look = whole(self.reader, max(1, max(self.reader.shape[1:]) // self.size_px))
        planes = camera_planes(self.reader, row, self.correct, look)
        rgb = composite(planes, self.contrasts[str(row[c.PLATE])], self.reader.channels)
        return jpeg(rgb, self.size_px)
