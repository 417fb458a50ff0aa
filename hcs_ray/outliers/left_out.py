"""Fields that labels leave out: they shape nothing that others are compared with, and are still listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.outliers.artefacts import WELL_NAME
from hcs_ray.outliers.levels import DRIVERS, EVIDENCE, FIELD, LEVELS, NEIGHBOURS, RANK, Level
from hcs_ray.profiles.aggregate import WELLS

EXCLUDED: Final = "excluded"  # of a row: the labels that left it out; null where it was scored


def with_left_out(tables: Mapping[str, pd.DataFrame], left_out: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The tables with a row, at the end, for all that has no score: fields, and what has no field left.

    Such a row has no score, no neighbours and no reason; its ranks follow on the others'. ``left_out`` has a
    row a field: key, ``Metadata_*`` and `EXCLUDED`.
    """
    rows = left_out.sort_values(c.KEY, ignore_index=True)
    rows = rows.assign(**{WELL_NAME: rows[c.PLATE].astype(str) + "_" + rows[c.WELL].astype(str)})
    return {level.name: _appended(level, tables[level.name], rows) for level in LEVELS}


def _appended(level: Level, table: pd.DataFrame, left_out: pd.DataFrame) -> pd.DataFrame:
    table = table.assign(**{EXCLUDED: pd.array([None] * len(table), dtype="string")})
    groups = left_out[~left_out[level.identity].isin(table[level.identity])].groupby(level.identity)
    first = groups.head(1).sort_values(level.identity, ignore_index=True)
    if first.empty:
        return table
    counts = groups.size().loc[first[level.identity]].to_numpy()
    why = list(first[EXCLUDED])
    if level is not FIELD:
        why = [f"all its {count} fields are left out by labels" for count in counts]
    empty: list[list[str]] = [[] for _ in why]
    known: dict[str, Any] = {
        RANK: np.arange(len(table) + 1, len(table) + 1 + len(first)),
        EXCLUDED: pd.array(why, dtype="string"),
        EVIDENCE: pd.array([f"not scored: {words}" for words in why], dtype="string"),
        NEIGHBOURS: pd.Series(empty, dtype=object),
        DRIVERS: pd.Series(empty, dtype=object),
    }
    if WELLS in level.columns:
        known[WELLS] = left_out.groupby(level.identity)[WELL_NAME].nunique().loc[first[level.identity]].array
    added = first.assign(**known).reindex(columns=table.columns)
    for name in table.select_dtypes(bool).columns:
        added[name] = np.asarray(first.get(name, False), dtype=bool)
    return pd.concat([table, added.astype(table.dtypes.to_dict())], ignore_index=True)
