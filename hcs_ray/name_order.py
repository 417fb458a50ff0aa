"""The order in which people expect names with numbers in them: Week2 before Week10."""

from __future__ import annotations

import re
from collections.abc import Iterable

import pandas as pd

from hcs_ray import contracts as c

NameKey = tuple[tuple[bool, int, str], ...]


def name_key(name: str) -> NameKey:
    """Sorts names by their parts, digits as numbers."""
    return tuple(
        (not part.isdecimal(), int(part) if part.isdecimal() else 0, part)
        for part in re.findall(r"\d+|\D+", name)
    )


def in_order(names: Iterable[object]) -> list[str]:
    """Distinct names in order."""
    return sorted({str(name) for name in names}, key=name_key)


def plates_in_order(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Each (batch, plate) of a table of fields or wells, by batch."""
    pairs = table[[c.BATCH, c.PLATE]].drop_duplicates().astype(str).itertuples(index=False, name=None)
    return sorted(
        ((str(batch), str(plate)) for batch, plate in pairs), key=lambda pair: tuple(map(name_key, pair))
    )
