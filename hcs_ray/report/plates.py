"""The screen on its plates: wells coloured by a quality measure, and quality by plate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.name_order import plates_in_order
from hcs_ray.palette import scale_colours
from hcs_ray.screen.wells import FORMATS, row_letters, well_position

_FEWEST_WELLS: Final = 96  # of a plate that is drawn: on larger plates often few wells are used
_CLIP: Final = (0.02, 0.98)  # of wells: a few artefacts must not take the whole scale
_MEASURES: Final = {
    "Mean": ("mean intensity", "camera units, mean of a well's fields"),
    "FocusScore": ("focus", "variance of the Laplacian over the squared mean; low where blurred or empty"),
}
_FLAG: Final = f"{c.QC_PREFIX}Flag_"
_MARKS: Final = {c.NEGATIVE_CONTROL: "–", c.POSITIVE_CONTROL: "+"}
_LEGEND_STEPS: Final = 7


@dataclass(frozen=True)
class Measure:
    """A quality column and what it is called."""

    column: str
    title: str
    explanation: str


@dataclass(frozen=True)
class WellCell:
    """A well on a plate's map, counted from 0."""

    row: int
    column: int
    colour: str
    mark: str
    title: str


@dataclass(frozen=True)
class PlateMap:
    """One plate: its wells, of those that are there at all."""

    plate: str
    batch: str
    rows: tuple[str, ...]
    columns: int
    wells: tuple[WellCell, ...]


@dataclass(frozen=True)
class PlateMaps:
    """All plates by one measure, on one scale."""

    measure: Measure
    low: str
    high: str
    colours: tuple[str, ...]
    plates: tuple[PlateMap, ...]


@dataclass(frozen=True)
class PlateQuality:
    """A plate's fields in a line."""

    plate: str
    batch: str
    fields: int
    wells: int
    flagged: int
    medians: tuple[str, ...]


def measures(channels: Sequence[str]) -> list[Measure]:
    """Mean intensity and focus of every channel, those of the first channel first."""
    return [
        Measure(f"{c.QC_PREFIX}{name}_{channel}", f"{channel}: {title}", explanation)
        for channel in channels
        for name, (title, explanation) in _MEASURES.items()
    ]


def plate_maps(index: pd.DataFrame, measure: Measure) -> PlateMaps:
    """Wells of all plates coloured by the mean of a measure over their fields."""
    wells = _wells(index, measure.column)
    low, high = (float(wells["value"].quantile(q)) for q in _CLIP)
    shares = (wells["value"] - low) / ((high - low) or 1)
    wells = wells.assign(colour=scale_colours(shares.to_numpy()))
    shape = _plate_shape(wells)
    return PlateMaps(
        measure=measure,
        low=_short(low),
        high=_short(high),
        colours=tuple(scale_colours(np.linspace(0, 1, _LEGEND_STEPS))),
        plates=tuple(
            _plate_map(batch, plate, wells[wells[c.PLATE] == plate], shape)
            for batch, plate in plates_in_order(wells)
        ),
    )


def plate_qualities(index: pd.DataFrame, listed: Sequence[Measure]) -> list[PlateQuality]:
    """A line a plate: fields, wells, fields with a quality flag, medians of the measures."""
    return [
        _plate_quality(batch, plate, index[index[c.PLATE] == plate], listed)
        for batch, plate in plates_in_order(index)
    ]


def quality_table(rows: Sequence[PlateQuality], listed: Sequence[Measure]) -> pd.DataFrame:
    """The same as a table."""
    return pd.DataFrame(
        [
            {"batch": row.batch, "plate": row.plate, "fields": row.fields, "wells": row.wells}
            | {"flagged": row.flagged}
            | dict(zip((f"median {one.title}" for one in listed), row.medians, strict=True))
            for row in rows
        ]
    )


def _plate_quality(batch: str, plate: str, fields: pd.DataFrame, listed: Sequence[Measure]) -> PlateQuality:
    return PlateQuality(
        plate=plate,
        batch=batch,
        fields=len(fields),
        wells=int(fields[c.WELL].nunique()),
        flagged=int(flagged(fields).sum()),
        medians=tuple(_short(float(fields[measure.column].median())) for measure in listed),
    )


def flagged(fields: pd.DataFrame) -> pd.Series[bool]:
    """Whether a field carries any quality flag."""
    return fields[[name for name in fields.columns if str(name).startswith(_FLAG)]].any(axis=1)


def _wells(index: pd.DataFrame, column: str) -> pd.DataFrame:
    keys = [c.BATCH, c.PLATE, c.WELL, c.TREATMENT, c.PERT_TYPE]
    wells = index.groupby(keys, sort=True, dropna=False)[column].mean().rename("value").reset_index()
    places = [well_position(str(well), str(plate)) for plate, well in wells[[c.PLATE, c.WELL]].to_numpy()]
    return wells.assign(row=[row for row, _ in places], column=[column for _, column in places])


def _plate_shape(wells: pd.DataFrame) -> tuple[int, int]:
    """Rows and columns of the smallest standard plate that all wells fit on."""
    fits = (
        plate
        for plate in FORMATS
        if plate.wells >= _FEWEST_WELLS
        and plate.rows > wells["row"].max()
        and plate.columns > wells["column"].max()
    )
    plate = next(fits)
    return plate.rows, plate.columns


def _plate_map(batch: str, plate: str, wells: pd.DataFrame, shape: tuple[int, int]) -> PlateMap:
    records: list[dict[str, Any]] = wells.to_dict(orient="records")  # type: ignore[assignment]
    return PlateMap(
        plate=plate,
        batch=batch,
        rows=tuple(row_letters(number) for number in range(shape[0])),
        columns=shape[1],
        wells=tuple(
            WellCell(
                row=int(row["row"]),
                column=int(row["column"]),
                colour=str(row["colour"]),
                mark=_MARKS.get(str(row[c.PERT_TYPE]), ""),
                title=f"{row[c.WELL]} · {row[c.TREATMENT]} · {_short(row['value'])}",
            )
            for row in records
        ),
    )


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
