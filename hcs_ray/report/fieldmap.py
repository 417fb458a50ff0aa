"""The map of all fields: one large, with a title on every point, and small ones by what else is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.maps import MapAbout
from hcs_ray.name_order import in_order
from hcs_ray.palette import (
    OKABE_ITO,
    QUIET_COLOUR,
    Style,
    mechanism_labels,
    mechanism_styles,
    ordered_styles,
    tints,
)
from hcs_ray.report.chart import Chart
from hcs_ray.report.drawing import Numbers
from hcs_ray.report.map_figures import category_map, value_map

NO_REASON: Final = "none"
_WIDTH: Final = 1000  # of the large map's coordinates
_HEIGHTS: Final = (450, 800)
_MARGIN: Final = 16
_LARGE_INCHES: Final = (7.4, 6.0)
_LARGE_POINTS: Final = 3000  # with a title each; more would make the page slow
_SYMBOLS: Final = {"o": "circle", "^": "triangle", "s": "square", "D": "diamond"}


@dataclass(frozen=True)
class Point:
    """A field on the large map, in the coordinates of its drawing."""

    x: float
    y: float
    group: int
    title: str


@dataclass(frozen=True)
class Group:
    """An entry of the large map's legend."""

    name: str
    colour: str
    symbol: str
    fields: int


@dataclass(frozen=True)
class FieldMap:
    """The large map (of ``shown`` fields among ``total``) and the small ones."""

    about: MapAbout
    width: int
    height: int
    shown: int
    total: int
    groups: tuple[Group, ...]
    points: tuple[Point, ...]
    small: tuple[Chart, ...]
    large: Chart  # the large map as a file, all fields


def field_map(fields: pd.DataFrame, about: MapAbout) -> FieldMap:
    """From a table of fields: ``x``, ``y``, ``Metadata_*``, ``side``, perhaps ``score``, ``reason``."""
    table = fields.assign(label=mechanism_labels(fields))
    styles = {
        name: style for name, style in mechanism_styles(fields).items() if (table["label"] == name).any()
    }
    places = table[["x", "y"]].to_numpy(dtype=np.float64)
    drawn, height = _fitted(places)
    rows = np.unique(np.linspace(0, len(table) - 1, min(len(table), _LARGE_POINTS)).astype(int))
    names = list(styles)
    mark = f"\n{about.mark}" if about.mark else ""
    points = [
        Point(round(drawn[row, 0], 1), round(drawn[row, 1], 1), names.index(table["label"].iloc[row]), title)
        for row, title in zip(rows, _titles(table.iloc[rows]), strict=True)
    ]
    return FieldMap(
        about=about,
        width=_WIDTH,
        height=height,
        shown=len(points),
        total=len(table),
        groups=tuple(
            Group(name, style.colour, _SYMBOLS[style.mark], int((table["label"] == name).sum()))
            for name, style in styles.items()
        ),
        points=tuple(sorted(points, key=lambda point: point.group)),
        small=tuple(_small_maps(table, places, mark)),
        large=category_map(
            "map-mechanism", f"Mechanism{mark}", places, list(table["label"]), styles, styles, _LARGE_INCHES
        ),
    )


def _small_maps(table: pd.DataFrame, places: Numbers, mark: str) -> list[Chart]:
    batches = ordered_styles(in_order(table[c.BATCH]))
    plates = {
        plate: Style(tone)
        for batch, style in batches.items()
        for plate, tone in _toned(in_order(table[table[c.BATCH] == batch][c.PLATE]), style.colour)
    }
    sides = {
        c.UNUSED: Style(QUIET_COLOUR), c.TEST: Style(OKABE_ITO[1]),
        c.VALIDATION: Style(OKABE_ITO[5]), c.TRAIN: Style(OKABE_ITO[0]),
    }  # fmt: skip
    dose = table[c.CONCENTRATION].where(table[c.CONCENTRATION] > 0).to_numpy(dtype=np.float64)
    unit = "log10 of concentration in µM; grey: control"
    batch, plate = (list(table[name].astype(str)) for name in (c.BATCH, c.PLATE))
    words = f"Plate: a tone within its batch{mark}"
    return [
        category_map("map-batch", f"Batch{mark}", places, batch, batches, batches),
        category_map("map-plate", words, places, plate, plates, batches),
        category_map(
            "map-side",
            f"Side of the split{mark}",
            places,
            list(table[c.SIDE].astype(str)),
            sides,
            _last_first(sides),
        ),
        value_map("map-dose", f"Dose{mark}", places, np.log10(dose), unit),
        *(_outlier_maps(table, places, mark) if "score" in table else []),
    ]


def _outlier_maps(table: pd.DataFrame, places: Numbers, mark: str) -> list[Chart]:
    reasons = {
        NO_REASON: Style(QUIET_COLOUR), "novel": Style(OKABE_ITO[2]),
        "mislabelled": Style(OKABE_ITO[3], "D"), "artefact": Style(OKABE_ITO[1], "^"),
    }  # fmt: skip
    reason = table["reason"].astype(object).where(table["reason"].notna(), NO_REASON).astype(str)
    score = table["score"].to_numpy(dtype=np.float64)
    return [
        value_map("map-outlier-score", f"Outlier score{mark}", places, score, "higher is more unusual"),
        category_map(
            "map-outlier-reason", f"Outlier reason{mark}", places, list(reason), reasons, _last_first(reasons)
        ),
    ]


def _last_first(styles: dict[str, Style]) -> dict[str, Style]:
    """For a legend: what is drawn on top comes first."""
    return dict(reversed(styles.items()))


def _toned(plates: list[str], colour: str) -> zip[tuple[str, str]]:
    return zip(plates, tints(colour, len(plates)), strict=True)


def _titles(table: pd.DataFrame) -> list[str]:
    return [
        f"{label} · {treatment} · {plate} {well} site {site} · {side}"
        for label, treatment, plate, well, site, side in zip(
            table["label"], table[c.TREATMENT], table[c.PLATE], table[c.WELL], table[c.SITE], table[c.SIDE],
            strict=True,
        )
    ]  # fmt: skip


def _fitted(places: Numbers) -> tuple[Numbers, int]:
    """Places scaled alike in both directions into a drawing, y upwards, and the drawing's height."""
    low = places.min(axis=0)
    extent = np.maximum(places.max(axis=0) - low, 1e-9)
    inner = _WIDTH - 2 * _MARGIN
    height = int(np.clip(inner * extent[1] / extent[0], *_HEIGHTS)) + 2 * _MARGIN
    scale = min(inner / extent[0], (height - 2 * _MARGIN) / extent[1])
    middle = low + extent / 2
    x = _WIDTH / 2 + (places[:, 0] - middle[0]) * scale
    y = height / 2 - (places[:, 1] - middle[1]) * scale
    return np.column_stack([x, y]), height
