"""Some fields as OME-TIFF, for napari, Fiji and CellProfiler."""

from __future__ import annotations

import difflib
import io
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError, Progress
from hcs_ray.pictures.colours import channel_colours, rgb_of
from hcs_ray.pictures.planes import camera_planes
from hcs_ray.shards.read import ShardReader
from hcs_ray.storage import Storage
from hcs_ray.study import Study
from hcs_ray.tables import read_index

EXTENSION: Final = ".ome.tiff"
_MICROMETRE: Final = "µm"

Planes = npt.NDArray[np.uint16] | npt.NDArray[np.float32]


def write_fields(
    study: Study,
    keys: Sequence[str],
    target: Storage,
    progress: Progress,
    *,
    corrected: bool = False,
    pixel_um: float | None = None,
    force: bool = False,
) -> list[str]:
    """Write ``<key>.ome.tiff`` of each field: (C, Y, X), the stored 16 bits.

    Args:
        keys: Of the index; one that is named twice is written once.
        target: The folder that the files go to.
        corrected: Divide the illumination of the plate out; float32, still in camera units.
        pixel_um: Side of a pixel, where it is known; a study does not record it.
        force: Write over files that are there.

    Returns:
        The files' names, in the order of the keys.

    Raises:
        InputError: a key that is not in the index, a file that is there already, or a shard that is not;
            nothing is written for the first two.
        HcsError: a member is damaged; files before it are written.
    """
    rows = _rows(study, list(dict.fromkeys(keys)))
    names = [f"{row[c.KEY]}{EXTENSION}" for row in rows]
    there = [name for name in names if target.size(name) is not None]
    if there and not force:
        raise InputError(f"{target.url}/{there[0]} is there already; --force writes over it")
    reader = ShardReader(study.storage, study.require("shard"))
    progress(0, len(rows))
    for done, (row, name) in enumerate(zip(rows, names, strict=True)):
        planes: Planes = camera_planes(reader, row, corrected)
        if not corrected:
            planes = planes.astype(np.uint16)  # whole numbers up to 65535, which float32 holds exactly
        target.write(name, ome_tiff(planes, row, reader.channels, pixel_um))
        progress(done + 1, len(rows))
    return names


def ome_tiff(
    planes: Planes, row: dict[str, Any], channels: Sequence[str], pixel_um: float | None = None
) -> bytes:
    """A field (C, Y, X) as the bytes of an uncompressed OME-TIFF, with channels' names and metadata."""
    import tifffile

    about = {name: row[name] for name in c.metadata_columns(row) if not pd.isna(row[name])}
    colours = channel_colours(channels)
    metadata: dict[str, Any] = {
        "axes": "CYX",
        "Name": str(row[c.KEY]),
        "Channel": {
            "Name": list(channels),
            "Color": [_colour_number(colours[channel]) for channel in channels],
        },
        "MapAnnotation": {name.removeprefix(c.METADATA_PREFIX): str(value) for name, value in about.items()},
    }
    if pixel_um is not None:
        metadata |= {f"PhysicalSize{axis}": pixel_um for axis in "XY"}
        metadata |= {f"PhysicalSize{axis}Unit": _MICROMETRE for axis in "XY"}
    file = io.BytesIO()
    tifffile.imwrite(file, planes, ome=True, photometric="minisblack", metadata=metadata)
    return file.getvalue()


def _colour_number(colour: str) -> int:
    """A colour as OME writes it: a signed 32-bit number of the bytes red, green, blue, alpha."""
    red, green, blue = (round(255 * part) for part in rgb_of(colour))
    return int.from_bytes(bytes((red, green, blue, 255)), "big", signed=True)


def _rows(study: Study, keys: list[str]) -> list[dict[str, Any]]:
    """The rows of the index with these keys, in this order."""
    index = read_index(study).set_index(c.KEY, drop=False)
    if unknown := [key for key in keys if key not in index.index]:
        near = difflib.get_close_matches(unknown[0], index.index, 1)
        more = f" (and {len(unknown) - 1} more)" if len(unknown) > 1 else ""
        hint = f"; the nearest is {near[0]}" if near else ""
        raise InputError(f"{study.storage.url}: has no field {unknown[0]}{more}{hint}")
    return c.rows_of(index.loc[keys])
