"""Which fields are meant: those inside a lasso or box, of a treatment or well, or wrongly predicted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c

Rows = npt.NDArray[np.int64]
Places = npt.NDArray[np.floating[Any]]
Mode = Literal["new", "add", "remove"]


def no_rows() -> Rows:
    return np.empty(0, np.int64)


@dataclass(frozen=True)
class Selection:
    """Fields, as row numbers of the scene in the order in which they are shown, and where they come from."""

    rows: Rows = field(default_factory=no_rows)
    title: str = ""

    def __bool__(self) -> bool:
        return len(self.rows) > 0

    def combined(self, other: Selection, mode: Mode) -> Selection:
        """This selection replaced by, enlarged by or without another."""
        if mode == "add" and self:
            rows = np.concatenate([self.rows, other.rows[~np.isin(other.rows, self.rows)]])
            return Selection(rows, f"{self.title} + {other.title}")
        if mode == "remove":
            return Selection(self.rows[~np.isin(self.rows, other.rows)], f"{self.title} − {other.title}")
        return other


def rows_where(mask: Any) -> Rows:
    """The row numbers at which a mask holds; what is not known does not."""
    known = pd.Series(mask).fillna(False).to_numpy(bool)
    return np.flatnonzero(known).astype(np.int64)


def inside(places: Places, geometry: Mapping[str, Any]) -> Rows:
    """The points (N, 2) inside a selection of Bokeh: a box (``rect``) or a lasso (``poly``).

    A point whose place is not known is inside of nothing; a lasso of fewer than three corners holds nothing.
    """
    if geometry["type"] == "rect":
        ends = np.array([[geometry["x0"], geometry["y0"]], [geometry["x1"], geometry["y1"]]], float)
        low, high = ends.min(axis=0), ends.max(axis=0)
        return rows_where(((places >= low) & (places <= high)).all(axis=1))
    from matplotlib.path import Path

    corners = np.column_stack([np.asarray(geometry[axis], dtype=float) for axis in "xy"])
    corners = corners[np.isfinite(corners).all(axis=1)]
    if len(corners) < 3:
        return no_rows()
    near = inside(places, dict(zip(("x0", "y0", "x1", "y1"), _bounds(corners), strict=True), type="rect"))
    return np.asarray(near[Path(corners).contains_points(places[near])], np.int64)


def _bounds(corners: Places) -> list[float]:
    return [*corners.min(axis=0), *corners.max(axis=0)]


def nearest(places: Places, x: float, y: float, reach: tuple[float, float]) -> int | None:
    """The point nearest to (x, y), with both axes measured in ``reach``; None where none is within it."""
    away = (((places - (x, y)) / reach) ** 2).sum(axis=1)
    away = np.where(np.isfinite(away), away, np.inf)
    if not len(away) or away.min() > 1:
        return None
    return int(away.argmin())


def of_well(fields: pd.DataFrame, plate: str, well: str) -> Rows:
    """The fields of a well."""
    return rows_where((fields[c.PLATE] == plate) & (fields[c.WELL] == well))


def keys_csv(fields: pd.DataFrame, rows: Rows) -> bytes:
    """Which fields these are, in this order, as CSV (UTF-8); its first column is their keys."""
    columns = {
        c.KEY: "key", c.PLATE: "plate", c.WELL: "well", c.SITE: "site", c.TREATMENT: "treatment",
    }  # fmt: skip
    chosen = fields[list(columns)].iloc[rows].rename(columns=columns)
    return chosen.to_csv(index=False, lineterminator="\n").encode()


def by_rank(fields: pd.DataFrame, rows: Rows | None = None) -> Rows:
    """Rows (all where None) in the order of their outlier rank; where outliers were not scored, of keys."""
    chosen = np.arange(len(fields), dtype=np.int64) if rows is None else rows
    if "outlier_rank" not in fields:
        return chosen
    rank = pd.to_numeric(fields["outlier_rank"].iloc[chosen]).to_numpy(dtype=float, na_value=np.inf)
    return chosen[np.argsort(rank, kind="stable")]


def misclassified(fields: pd.DataFrame, truth: str | None = None, read_as: str | None = None) -> Rows:
    """Wrongly predicted fields, the surest first; of one mechanism that is read as another where given."""
    if "is_right" not in fields:
        return no_rows()
    wrong = fields["is_right"].eq(False).fillna(False)
    if truth is not None:
        wrong &= true_class(fields) == truth
    if read_as is not None:
        wrong &= fields["predicted_moa"] == read_as
    rows = rows_where(wrong)
    sure = fields["probability"].iloc[rows].to_numpy(dtype=float, na_value=0)
    return rows[np.argsort(-sure, kind="stable")]


def confusions(fields: pd.DataFrame) -> list[tuple[str, str, int]]:
    """(mechanism, what it is read as, fields) of all mistakes, the most frequent first."""
    rows = misclassified(fields)
    if not len(rows):
        return []
    wrong = fields.iloc[rows]
    pairs = pd.DataFrame({"truth": true_class(wrong).to_numpy(), "read": wrong["predicted_moa"].to_numpy()})
    counts = pairs.value_counts().reset_index(name="fields")
    counts = counts.sort_values(["fields", "truth", "read"], ascending=[False, True, True])
    return [(str(truth), str(read), int(count)) for truth, read, count in counts.itertuples(index=False)]


def true_class(fields: pd.DataFrame) -> pd.Series[Any]:
    """What a prediction is compared with: the mechanism, or the name of a negative control."""
    control = fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL
    return fields[c.MOA].astype(object).where(~control, fields[c.COMPOUND])
