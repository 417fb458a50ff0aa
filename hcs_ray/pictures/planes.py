"""The planes of a field in camera units, as they came or with their illumination corrected."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hcs_ray import contracts as c
from hcs_ray.shards.codec import Floats, Look
from hcs_ray.shards.read import Member, ShardReader


def member_of(row: Mapping[str, Any]) -> Member:
    """The member that a row of the index tells of."""
    return Member(
        str(row[c.KEY]), str(row[c.SHARD]), int(row[c.OFFSET]), int(row[c.SIZE]), str(row[c.SHA256])
    )


def whole(reader: ShardReader, block_px: int = 1) -> Look:
    """All of a field, by means of blocks."""
    return Look(slice(0, reader.shape[1]), slice(0, reader.shape[2]), block_px)


def camera_planes(
    reader: ShardReader, row: Mapping[str, Any], correct: bool, look: Look | None = None
) -> Floats:
    """What ``look`` wants (none: all) of the field of a row of the index, (C, h, w) float32, camera units.

    With ``correct`` its illumination is divided out; the intensity scale of its plate is never.

    Raises:
        HcsError: as `ShardReader.fetch` says; the member is damaged or its shard is gone.
    """
    look = look or whole(reader)
    fetched = reader.fetch(member_of(row))
    out = np.empty(look.shape(len(reader.channels)), np.float32)
    if not correct:
        return reader.floats(fetched, look, None, out)
    plate = str(row[c.PLATE])
    reader.floats(fetched, look, reader.plate(plate, int(row[c.SITE])), out)
    scale = reader.manifest["plates"][plate]
    low, high = (np.asarray(scale[name], np.float32)[:, None, None] for name in ("low", "high"))
    out *= np.maximum(high - low, 1)
    out += low
    return out
