"""What a field's quality columns should be, from its plate and from the treatment's other wells.

Phenotypes change images as artefacts do. A column is therefore compared with what the treatment's other wells
show, as a two-way additive model: plate plus treatment, fitted by medians (Tukey 1977, "median polish"), the
field's own well left out. The spread about it is larger where there are fewer cells, as counting has it, so
that a toxic treatment's fields are not odd for being few-celled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.outliers.calibrate import NORMAL_MAD, PRIOR_ROWS
from hcs_ray.profiles.aggregate import Float64, Ints

_ROUNDS: Final = 3  # of median polish; a fourth changes nothing that shows
_MANY_WELLS: Final = 24  # of a treatment: the median hardly depends on one of them, and is taken of all
_MEDIAN_COST: Final = 1.25  # variance of the median of n values, times n, over that of one (small n, normal)
_BINS: Final = 8  # of the expected number of cells, where the spread is measured
_FIELDS_A_BIN: Final = 40
_UNREST_CUT: Final = 2.5  # standard deviations
_PRIOR_FIELDS: Final = 2  # a treatment's own unrest counts as much as that of all from so many fields on
_FEWEST_CELLS: Final = 0.5
_FLOOR: Final = 0.01  # of a column's median: below it a logarithm says nothing


@dataclass(frozen=True)
class Measure:
    """A kind of quality column, ``QC_<Measure>_<Channel>`` or ``QC_<Measure>``.

    Intensities are compared by their logarithm, shares and counts by their square root, correlations by
    Fisher's z.
    """

    words: str
    scale: Literal["logarithm", "root", "fisher"] = "logarithm"
    least_spread: float = 0.02  # on that scale, so that rounding among equals is no outlier

    def scaled(self, values: Float64) -> Float64:
        """Values (N,) on the scale on which their deviations are alike, small or large."""
        if self.scale == "fisher":
            return np.asarray(np.arctanh(np.clip(values, -0.999, 0.999)))
        if self.scale == "root":
            return np.sqrt(np.maximum(values, 0.0))
        floor = max(_FLOOR * float(np.nanmedian(np.abs(values))), float(np.finfo(np.float32).tiny))
        return np.asarray(np.log(np.maximum(values, floor)))


# WellSpread is left out: it is the same for all fields of a well, the spoilt one and the others.
MEASURES: Final[dict[str, Measure]] = {
    "FocusScore": Measure("focus score"),
    "Mean": Measure("mean intensity"),
    "SD": Measure("standard deviation"),
    "P01": Measure("1st percentile"),
    "P50": Measure("median intensity"),
    "P99": Measure("99th percentile"),
    "Background": Measure("background"),
    "IlluminationResidual": Measure("unevenness of the background"),
    "DetailCorrelation": Measure("detail shared with other channels", scale="fisher"),
    "Saturated": Measure("share of saturated pixels", scale="root"),
    "Zero": Measure("share of black pixels", scale="root"),
    "NucleusCount": Measure("number of nuclei", scale="root", least_spread=0.1),
    "CellArea": Measure("share of the area under cells", scale="root"),
    "Debris": Measure("share of the area under debris", scale="root"),
}
_COUNTS: Final = ("NucleusCount", "CellArea")  # the first of these that is there says how many cells


class Column(NamedTuple):
    """A quality column of a table, its kind, and its channel ("" of the field as a whole)."""

    name: str
    measure: Measure
    channel: str

    @property
    def words(self) -> str:
        return f"{self.measure.words} of {self.channel}" if self.channel else self.measure.words


class Deviations(NamedTuple):
    """How far fields are from what was expected of them, (N, Q) in robust standard deviations.

    ``replicated`` (N,) is whether other wells of the treatment said what to expect; the other fields are
    compared with their plate alone.
    """

    columns: tuple[Column, ...]
    z: Float64
    replicated: npt.NDArray[np.bool_]


def quality_columns(quality: pd.DataFrame) -> tuple[Column, ...]:
    """The columns of a table that can be compared, in its order."""
    found = []
    for name in map(str, quality.columns):
        measure, _, channel = name.removeprefix(c.QC_PREFIX).partition("_")
        if name.startswith(c.QC_PREFIX) and measure in MEASURES:
            found.append(Column(name, MEASURES[measure], channel))
    return tuple(found)


def deviations(fields: pd.DataFrame, quality: pd.DataFrame) -> Deviations:
    """The deviations of ``quality``'s columns, row-aligned with ``fields`` (plate, well, treatment).

    A value that is not there deviates by 0.
    """
    columns = quality_columns(quality)
    scaled = [col.measure.scaled(quality[col.name].to_numpy(dtype=np.float64)) for col in columns]
    values = np.stack(scaled, axis=1) if columns else np.empty((len(fields), 0))
    plate, treatment = (pd.factorize(fields[name])[0] for name in (c.PLATE, c.TREATMENT))
    well = fields.groupby([c.PLATE, c.WELL], sort=False).ngroup().to_numpy()
    on_plate = plate_effects(values, plate, treatment)
    expected, others = of_other_wells(values - on_plate, well, treatment)
    residual = values - on_plate - np.nan_to_num(expected)
    residual /= np.sqrt(1.0 + _MEDIAN_COST / np.maximum(others, 1))[:, None]
    cells = _expected_cells(columns, on_plate + np.nan_to_num(expected))
    least = np.array([column.measure.least_spread for column in columns])
    spread = _spreads(residual, cells, least, others > 0)
    alone = others == 0  # phenotypes, too, are among what may deviate from the plate
    spread[alone] = np.maximum(spread[alone], _mad(values - on_plate))
    z = _on_plate(np.nan_to_num(residual / spread), plate)
    return Deviations(columns, z / _unrest(z, treatment)[:, None], others > 0)


def plate_effects(values: Float64, plate: Ints, treatment: Ints) -> Float64:
    """The effect (N, Q) of each row's plate on its values, by median polish of plates and treatments."""
    by_treatment = np.zeros_like(values)
    for _ in range(_ROUNDS):
        by_plate = pd.DataFrame(values - by_treatment).groupby(plate).transform("median").to_numpy()
        by_treatment = pd.DataFrame(values - by_plate).groupby(treatment).transform("median").to_numpy()
    return np.asarray(by_plate)


def of_other_wells(values: Float64, well: Ints, treatment: Ints) -> tuple[Float64, Ints]:
    """The median (N, Q) of the rows of the same treatment in other wells, and how many these are (N,).

    NaN and 0 where there is no other well.
    """
    median = _middle if np.isfinite(values).all() else _known_middle
    expected, others = np.full_like(values, np.nan), np.zeros(len(values), dtype=np.int64)
    for rows in rows_by(treatment):
        wells = well[rows]
        distinct, sizes = np.unique(wells, return_counts=True)
        if len(distinct) > _MANY_WELLS:
            expected[rows], others[rows] = median(values[rows]), len(rows) - sizes.min()
            continue
        for number in distinct if len(distinct) > 1 else ():
            own = wells == number
            expected[rows[own]] = median(values[rows[~own]])
            others[rows[own]] = int((~own).sum())
    return expected, others


def _middle(values: Float64) -> Float64:
    """The median of columns (n, Q) without NaN; numpy's takes several times as long for few rows."""
    ordered, half = np.sort(values, axis=0), len(values) // 2
    return np.asarray((ordered[half] + ordered[-1 - half]) / 2)


def _known_middle(values: Float64) -> Float64:
    return np.asarray(np.nanmedian(values, axis=0))


def rows_by(groups: Ints) -> list[Ints]:
    """The rows of each group, in order."""
    order = np.argsort(groups, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(groups[order])) + 1)


def _expected_cells(columns: tuple[Column, ...], expected: Float64) -> Float64 | None:
    """The number of cells (N,) that each field should have, in any unit; None where nothing counts them."""
    names = [column.name for column in columns]
    for count in _COUNTS:
        if (name := f"{c.QC_PREFIX}{count}") in names:
            roots = np.nan_to_num(expected[:, names.index(name)])
            area = np.maximum(roots, 0.0) ** 2
            return np.asarray(np.maximum(area, _FEWEST_CELLS * area[area > 0].min(initial=1.0)))
    return None


def _spreads(
    residual: Float64, cells: Float64 | None, least: Float64, replicated: npt.NDArray[np.bool_]
) -> Float64:
    """The standard deviation (N, Q) of residuals: its square is linear in one over the number of cells.

    Fitted to the squared MADs of bins of that number, with coefficients that are not negative.
    """
    from scipy.optimize import nnls

    known = np.flatnonzero(replicated) if replicated.any() else np.arange(len(residual))
    bins = max(1, min(_BINS, len(known) // _FIELDS_A_BIN))
    if cells is None or bins == 1:
        return np.tile(np.maximum(_mad(residual[known]), least), (len(residual), 1))
    inverse = 1.0 / cells
    order = known[np.argsort(inverse[known], kind="stable")]
    groups = np.array_split(order, bins)
    variance = np.stack([_mad(residual[group]) for group in groups]) ** 2 + least**2 / 100
    middle = np.array([np.median(inverse[group]) for group in groups])
    design = np.stack([np.ones(bins), middle], axis=1)
    spread = np.empty_like(residual)
    for column, target in enumerate(variance.T):
        (constant, slope), _ = nnls(design / target[:, None], np.ones(bins))
        spread[:, column] = np.sqrt(constant + slope * inverse)
    return np.maximum(spread, least)


def _on_plate(z: Float64, plate: Ints) -> Float64:
    """Deviations in units of their own plate's spread, as far as its fields are enough to tell it."""
    rows = np.bincount(plate)[plate][:, None].astype(np.float64)
    own = pd.DataFrame(np.abs(z)).groupby(plate).transform("median").to_numpy() / NORMAL_MAD
    return np.asarray(z / np.sqrt((rows * np.maximum(own, 0.5) ** 2 + PRIOR_ROWS) / (rows + PRIOR_ROWS)))


def _unrest(z: Float64, treatment: Ints) -> Float64:
    """How much more the fields of each row's treatment deviate than others do, (N,), at least 1.

    The median over its fields of their mean absolute deviation, cut where one column could carry it, which
    one bad field among six does not move much; shrunk to 1.
    """
    varies = np.abs(z).max(axis=0, initial=0.0) > 0
    if not varies.any():
        return np.ones(len(z))
    typical = np.minimum(np.abs(z[:, varies]), _UNREST_CUT).mean(axis=1)
    rows = np.bincount(treatment)[treatment]
    own = pd.Series(typical).groupby(treatment).transform("median").to_numpy() / np.median(typical)
    square = (rows * np.maximum(own, 1.0) ** 2 + _PRIOR_FIELDS) / (rows + _PRIOR_FIELDS)
    return np.asarray(np.sqrt(square), dtype=np.float64)


def spread_of(values: Float64) -> float:
    """The MAD of values (N,) about 0, scaled to the standard deviation of a normal distribution."""
    return float(np.nanmedian(np.abs(values)) / NORMAL_MAD)


def _mad(values: Float64) -> Float64:
    """The median absolute value of columns (Q,), scaled to the standard deviation of a normal one."""
    return np.asarray(np.nanmedian(np.abs(values), axis=0) / NORMAL_MAD)
