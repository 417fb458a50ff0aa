"""All plates of a measure in one figure, for the files beside the page."""

from __future__ import annotations

import math
from typing import Final

import numpy as np

from hcs_ray.report.chart import Chart
from hcs_ray.report.drawing import Numbers, drawing
from hcs_ray.report.plates import PlateMap, PlateMaps

_ACROSS: Final = 8
_WELL_INCHES: Final = 0.11
_GAP: Final = (3, 2)  # wells between plates: rows, for the name of a plate, and columns
_EMPTY: Final = "#f1f3f5"


def plates_figure(name: str, maps: PlateMaps) -> Chart:
    """Wells as colours, a plate beside the other, in one picture; the title says what they mean."""
    first = maps.plates[0]
    rows, columns = len(first.rows) + _GAP[0], first.columns + _GAP[1]
    across = min(_ACROSS, len(maps.plates))
    down = math.ceil(len(maps.plates) / across)
    wells = np.ones((down * rows, across * columns, 3))
    places = [
        (number // across * rows + _GAP[0], number % across * columns) for number in range(len(maps.plates))
    ]
    for plate, (top, left) in zip(maps.plates, places, strict=True):
        wells[top : top + len(plate.rows), left : left + plate.columns] = _colours(plate)
    alt = (
        f"{maps.measure.title} of the wells of {len(maps.plates)} plates, from {maps.low} to {maps.high}: "
        f"{maps.measure.explanation}"
    )
    size = (max(across * columns * _WELL_INCHES, 4.5), down * rows * _WELL_INCHES + 0.6)
    with drawing(name, alt, size) as (figure, drawn):
        axes = figure.add_subplot()
        axes.imshow(wells, interpolation="nearest")
        for plate, (top, left) in zip(maps.plates, places, strict=True):
            axes.text(left - 0.5, top - 1, plate.plate, fontsize=6, va="bottom")
        axes.set_axis_off()
        axes.set_title(f"{maps.measure.title}: {maps.low} (dark) to {maps.high} (light)", fontsize=9)
        figure.supxlabel(maps.measure.explanation, fontsize=7)
    return drawn[0]


def _colours(plate: PlateMap) -> Numbers:
    """The wells of a plate (R, C, 3), 0 to 1."""
    from matplotlib.colors import to_rgb

    colours = np.tile(to_rgb(_EMPTY), (len(plate.rows), plate.columns, 1))
    for well in plate.wells:
        colours[well.row, well.column] = to_rgb(well.colour)
    return colours
