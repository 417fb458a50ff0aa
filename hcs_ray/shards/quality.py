"""Quality of fields and of their plate, from the figures of all the plate's fields.

Columns are called ``QC_<Measure>_<Channel>``, ``QC_<Measure>`` for the field as a whole, ``QC_Flag_<Name>``.
They describe and flag; nothing is dropped for them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from hcs_ray.contracts import QC_PREFIX
from hcs_ray.screen.wells import well_position
from hcs_ray.shards.measure import MEASURES, FieldMeasures, Float64, contrasts, level_edges

FLAG: Final = f"{QC_PREFIX}Flag_"
FLAGS: Final = ("Saturated", "OutOfFocus", "Empty", "Debris")

SATURATED_SHARE: Final = 0.02  # a measured P99 has lost its meaning from 0.01 on
CELL_LIGHT: Final = 0.15  # of the cells' contrast: above noise and scattered light, below dim cytoplasm
EMPTY_SHARE: Final = 0.25  # of the plate's median cell area: below it a field says little about its cells
# Over the 99th percentile, in two channels at once, in 3 x 3 blocks or more: cells that are brightest in one
# channel are not in the next, and what is brightest in a cell is smaller.
DEBRIS_LIGHT: Final = 1.1
DEBRIS_SHARE: Final = 0.001  # of the area; fields of cells alone stay below on generated screens
_LEAST_SCARCITY: Final = 0.8  # debris lifts a field's own 99th percentile, but so do some treatments
FOCUS_Z: Final = -5.0  # fields in focus are above -2 on generated screens, visibly blurred ones below -6
_FOCUS_LEAST_SPREAD: Final = 0.1  # of the logarithm: a plate of identical fields has no outliers
_NORMAL_MAD: Final = 0.6745

Bools = npt.NDArray[np.bool_]


def field_table(
    fields: Sequence[FieldMeasures],
    wells: Sequence[str],
    residuals: Float64,
    channels: Sequence[str],
    camera_maximum: int | None,
) -> pd.DataFrame:
    """The QC columns of a plate's fields, one row each, in order.

    ``FocusScore`` is the variance of the Laplacian of small blocks over the squared mean (Pech-Pacheco et al.
    2000), low where a field is out of focus; ``Saturated`` the share of pixels at or above the camera's
    maximum, or at the field's own where that is not known (CellProfiler's PercentMaximal / 100); ``Zero``
    that of black ones; ``Mean``, ``SD``, ``P01``, ``P50`` and ``P99`` in camera units; ``Background`` the
    tenth percentile, over a grid of 8 x 8 tiles, of each tile's darkest block; ``IlluminationResidual``
    (N, C) the coefficient of variation of those blocks after correction; ``WellSpread`` that of the means of
    a well's fields, NaN for one field; ``DetailCorrelation``, of two channels or more, the mean correlation
    of a channel's fine detail with that of the others. ``NucleusCount`` is there with a nuclear channel;
    ``CellArea`` and ``Debris`` are shares of the area.
    """
    values = np.stack([field.values for field in fields])
    columns: dict[str, npt.NDArray[np.generic]] = {}
    spreads = well_spreads(values[:, :, MEASURES.index("Mean")], wells)
    for number, channel in enumerate(channels):
        measured = dict(zip(MEASURES, values[:, number].T, strict=True))
        measured |= {"IlluminationResidual": residuals[:, number], "WellSpread": spreads[:, number]}
        if len(channels) > 1:
            measured["DetailCorrelation"] = np.array([field.alike[number] for field in fields])
        columns |= {f"{QC_PREFIX}{name}_{channel}": column for name, column in measured.items()}
    if fields[0].nuclei is not None:
        columns[f"{QC_PREFIX}NucleusCount"] = np.array([field.nuclei for field in fields], np.int64)
    cell_area, debris = _areas(fields, values)
    columns |= {f"{QC_PREFIX}CellArea": cell_area, f"{QC_PREFIX}Debris": debris}
    flags = {
        "Saturated": _saturated(fields, values, camera_maximum),
        "Empty": cell_area < EMPTY_SHARE * np.median(cell_area),
        "Debris": debris > DEBRIS_SHARE,
    }
    flags["OutOfFocus"] = _out_of_focus(values) & ~flags["Empty"]
    return pd.DataFrame(columns | {f"{FLAG}{name}": flags[name] for name in FLAGS})


def _areas(fields: Sequence[FieldMeasures], values: Float64) -> tuple[Float64, Float64]:
    """The shares of the area that cells and debris cover, (N,) each.

    Brightness is in units of the field's own contrast, which may be unlike the plate's: scarcity is the
    plate's over the field's, the median over the channels, so that one overexposed channel does not matter.
    """
    contrast = np.maximum(contrasts(values), 1)
    scarcity = np.median(np.median(contrast, axis=0) / contrast, axis=1)
    cell_light = CELL_LIGHT * np.maximum(scarcity, 1)
    debris_light = DEBRIS_LIGHT * np.maximum(scarcity, _LEAST_SCARCITY)
    cells = [_share_above(field.any_level, light) for field, light in zip(fields, cell_light, strict=True)]
    debris = [_share_above(field.two_level, light) for field, light in zip(fields, debris_light, strict=True)]
    return np.array(cells), np.array(debris)


def _share_above(levels: npt.NDArray[np.uint32], light: float) -> float:
    return float(levels[np.searchsorted(level_edges(), light) :].sum() / levels.sum())


def _saturated(fields: Sequence[FieldMeasures], values: Float64, camera_maximum: int | None) -> Bools:
    """Many pixels at the camera's maximum; where that is not known, at the plate's brightest pixel's."""
    many = values[:, :, MEASURES.index("Saturated")] > SATURATED_SHARE
    if camera_maximum is None:
        brightest = np.stack([field.maximum for field in fields])
        many &= brightest == brightest.max()
    return np.asarray(many.any(axis=1))


def _out_of_focus(values: Float64) -> Bools:
    """The median over the channels of the robust z-score of the logarithm of the focus score is low."""
    score = np.log(np.maximum(values[:, :, MEASURES.index("FocusScore")], 1e-12))
    deviation = score - np.median(score, axis=0)
    spread = np.maximum(np.median(np.abs(deviation), axis=0) / _NORMAL_MAD, _FOCUS_LEAST_SPREAD)
    return np.asarray(np.median(deviation / spread, axis=1) < FOCUS_Z)


def well_spreads(means: Float64, wells: Sequence[str]) -> Float64:
    """For each field the coefficient of variation of its well's field means, (N, C); NaN for one field."""
    groups = pd.DataFrame(means).groupby(list(wells))
    spread = groups.transform("std") / groups.transform("mean")
    return spread.to_numpy(dtype=np.float64)


def illumination_residuals(
    fields: Sequence[FieldMeasures], function: npt.NDArray[np.float32], step: int
) -> Float64:
    """The coefficient of variation of each field's darkest blocks after correction, (N, C).

    ``function`` is that of their site, (C, H, W); ``step`` is the side of a block in pixels.
    """
    residuals = []
    for field in fields:
        _, height, width = function.shape
        row, column = np.divmod(field.places.astype(np.int64), -(-width // step))
        y, x = (np.minimum(at * step + step // 2, side - 1) for at, side in ((row, height), (column, width)))
        corrected = field.tiles / np.stack([plane[y[c], x[c]] for c, plane in enumerate(function)])
        residuals.append(corrected.std(axis=1) / np.maximum(corrected.mean(axis=1), 1e-12))
    return np.asarray(residuals, np.float64)


def plate_row(table: pd.DataFrame, wells: Sequence[str], channels: Sequence[str]) -> dict[str, float]:
    """A plate in a row: numbers of fields and wells, medians of QC columns, flagged fields, plate effects.

    ``EdgeEffect`` is the median of the outermost wells that are used minus that of the others,
    ``RowGradient`` and ``ColumnGradient`` the change from the first row (column) to the last on a Theil-Sen
    line through the rows' (columns') medians; all of the wells' median mean intensity, relative to the
    plate's median. A layout with the controls at the edge shows in them too. NaN where there is nothing to
    compare.
    """
    row = {f"{QC_PREFIX}Fields": float(len(table)), f"{QC_PREFIX}Wells": float(len(set(wells)))}
    measured = table.drop(columns=[f"{FLAG}{name}" for name in FLAGS])
    row |= {str(name): float(value) for name, value in measured.median().items()}
    row |= {f"{FLAG}{name}": float(table[f"{FLAG}{name}"].sum()) for name in FLAGS}
    for channel in channels:
        well_means = table[f"{QC_PREFIX}Mean_{channel}"].groupby(list(wells)).median()
        effects = plate_effects(well_means)
        row |= {f"{QC_PREFIX}{name}_{channel}": value for name, value in effects.items()}
    return row


def plate_effects(well_means: pd.Series[float]) -> dict[str, float]:
    """Edge effect and gradients of one value for each well, whose names are the index; see `plate_row`."""
    places = np.array([well_position(str(well), "plate") for well in well_means.index])
    values = well_means.to_numpy(dtype=np.float64)
    middle = float(np.median(values))
    names = ("EdgeEffect", "RowGradient", "ColumnGradient")
    if middle <= 0:
        return dict.fromkeys(names, float("nan"))
    outer = ((places == places.min(axis=0)) | (places == places.max(axis=0))).any(axis=1)
    edge = float("nan")
    if outer.any() and not outer.all():
        edge = float(np.median(values[outer]) - np.median(values[~outer])) / middle
    gradients = [_gradient(values, places[:, axis]) / middle for axis in (0, 1)]
    return dict(zip(names, (edge, *gradients), strict=True))


def _gradient(values: npt.NDArray[Any], places: npt.NDArray[Any]) -> float:
    medians = pd.Series(values).groupby(places).median()
    if len(medians) < 2:
        return float("nan")
    slope = stats.theilslopes(medians.to_numpy(), medians.index.to_numpy()).slope
    return float(slope * (places.max() - places.min()))
