"""What every kind of screen does with its plates: choose among them, and say what each consists of."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.screen import file_column


def select_plates(fields: pd.DataFrame, wanted: Sequence[str] | None, table: str) -> pd.DataFrame:
    """The fields of the wanted plates, all where None; an unknown plate is an error with the nearest."""
    if wanted is None:
        return fields
    known = sorted(fields[c.PLATE].unique())
    for plate in wanted:
        if plate not in known:
            near = difflib.get_close_matches(plate, known, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]}" if near else ""
            raise InputError(f"screen.plates: {table} has no plate {plate}{hint}")
    return fields[fields[c.PLATE].isin(list(wanted))].reset_index(drop=True)


def plate_digests(
    fields: pd.DataFrame, channels: Iterable[str], listed: Mapping[str, object]
) -> dict[str, str]:
    """Plate -> SHA-256 of its rows, in the order of their keys, and of its images as they are listed.

    Rows count with every column but the image locations, so a screen may move. What a location stands for is
    ``listed[location]``, anything that JSON takes (a name, a size, a CRC); None where it is not there.
    """
    files = [file_column(channel) for channel in channels]
    columns = sorted(str(name) for name in fields.columns if name not in files)
    digests = {}
    for plate, rows in fields.sort_values(c.KEY).groupby(c.PLATE):
        digest = hashlib.sha256(json.dumps(columns).encode())
        images = zip(*(rows[name] for name in files), strict=True)
        for values, locations in zip(rows[columns].itertuples(index=False, name=None), images, strict=True):
            line = [_plain(value) for value in values], [listed.get(location) for location in locations]
            digest.update(json.dumps(line).encode() + b"\n")
        digests[str(plate)] = digest.hexdigest()
    return digests


def _plain(value: Any) -> Any:
    """A cell as JSON has it; every kind of missing value is None."""
    if pd.isna(value):
        return None
    return value.item() if hasattr(value, "item") else value
