"""Numbers of some fields for the views beside the map: wells of a plate, and doses of treatments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pandas as pd
from scipy import stats

from hcs_ray import contracts as c
from hcs_ray.explore.columns import number_column
from hcs_ray.explore.scene import Rows, Scene
from hcs_ray.screen.wells import well_position

ROW: Final = "row"
COLUMN: Final = "column"
VALUE: Final = "value"
COUNT: Final = "n"
MEAN: Final = "mean"
LOW: Final = "low"
HIGH: Final = "high"
DOSE: Final = "concentration_um"
_CONFIDENCE: Final = 0.95


def plate_grid(
    scene: Scene, rows: Sequence[int] | Rows | None, plate: str, column: str | None = None
) -> pd.DataFrame:
    """The wells of a plate, each with what some fields (none: all) of it say.

    Returns:
        One row a well of the plate that is in the study, by row and column: ``Metadata_Well``, ``row`` and
        ``column`` from 0, ``Metadata_Treatment``, ``Metadata_pert_type``, ``n`` of the fields, and ``value``:
        their mean, of a category their most frequent member (of equals the first by name), without a column
        their number; NaN or None where there is none.
    """
    fields = scene.fields
    there = fields[fields[c.PLATE].astype(str) == plate]
    wells = there[[c.WELL, c.TREATMENT, c.PERT_TYPE]].drop_duplicates(c.WELL).set_index(c.WELL)
    chosen = there if rows is None else there[there.index.isin(np.asarray(rows))]
    groups = chosen.groupby(c.WELL, sort=True)
    wells[COUNT] = groups.size().reindex(wells.index, fill_value=0).astype(int)
    wells[VALUE] = wells[COUNT] if column is None else _summed_up(scene, groups, column).reindex(wells.index)
    places = [well_position(str(well), plate) for well in wells.index]
    wells[ROW], wells[COLUMN] = ([place[axis] for place in places] for axis in (0, 1))
    return wells.reset_index().sort_values([ROW, COLUMN], ignore_index=True)


def dose_response(scene: Scene, chosen: Sequence[int] | Sequence[str] | Rows, column: str) -> pd.DataFrame:
    """Treatments by dose: fields are averaged in their wells, wells in their treatment.

    Args:
        chosen: Rows of fields, or names of compounds, whose fields are then all taken.
        column: Of numbers.

    Returns:
        One row a treatment, by compound and concentration: ``Metadata_Treatment``, ``Metadata_Compound``,
        ``concentration_um``, ``mean``, ``low`` and ``high`` (the 95 % interval of Student's t over the wells;
        NaN for one well), ``n`` of the wells.

    Raises:
        InputError: there is no such column, or it holds no numbers.
    """
    number_column(scene.columns(), column)
    names = [name for name in chosen if isinstance(name, str)]
    rows = scene.rows_of_compounds(names) if names else np.asarray(chosen, np.intp)
    fields = scene.fields.iloc[rows]
    known = fields[fields[column].notna()]
    by = [c.COMPOUND, c.CONCENTRATION, c.TREATMENT]
    wells = known.groupby([*by, c.PLATE, c.WELL], sort=True, dropna=False)[column].mean()
    found = wells.astype(np.float64).groupby(by, sort=True, dropna=False).agg([MEAN, "sem", "count"])
    found = found.reset_index().rename(columns={c.CONCENTRATION: DOSE, "count": COUNT})
    factor = stats.t.ppf((1 + _CONFIDENCE) / 2, np.maximum(found[COUNT] - 1, 1))
    found[LOW], found[HIGH] = found[MEAN] - factor * found["sem"], found[MEAN] + factor * found["sem"]
    return found[[c.TREATMENT, c.COMPOUND, DOSE, MEAN, LOW, HIGH, COUNT]]


def _summed_up(scene: Scene, groups: Any, column: str) -> pd.Series[Any]:
    kinds = {info.name: info.kind for info in scene.columns()}
    if kinds.get(column) == "category":
        found: pd.Series[Any] = groups[column].agg(_most_frequent)
        return found
    number_column(scene.columns(), column)
    means: pd.Series[Any] = groups[column].mean()
    return means


def _most_frequent(values: pd.Series[Any]) -> Any:
    counts = values.dropna().astype(str).value_counts()
    return min(counts[counts == counts.max()].index) if len(counts) else None
