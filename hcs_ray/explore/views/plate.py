"""One plate as a heat map; a click on a well selects its fields."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
import panel as pn
from bokeh.events import Tap
from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper, Range1d
from bokeh.models.annotations import ColorBar
from bokeh.plotting import figure

from hcs_ray import contracts as c
from hcs_ray.explore.colourings import titled
from hcs_ray.explore.selecting import of_well
from hcs_ray.explore.session import Session
from hcs_ray.explore.summaries import COLUMN, COUNT, ROW, VALUE, plate_grid
from hcs_ray.name_order import in_order
from hcs_ray.palette import QUIET_COLOUR, scale_colours
from hcs_ray.screen.wells import FORMATS, row_letters

SELECTED: Final = "Fields selected"
_MARKS: Final = {c.NEGATIVE_CONTROL: "–", c.POSITIVE_CONTROL: "+"}
_COLUMNS: Final = (
    "x", "y", "value", "words", "well", "treatment", "mark", "count", "width", "line",
)  # fmt: skip
_FIRST: Final = ("outlier_score", "QC_NucleusCount", "probability")
_FEWEST: Final = 96
_INK: Final = "#1d232b"
_OUTLINE: Final[dict[str, Any]] = {"text_outline_width": 3}  # Bokeh's type hints do not know it


def number_choices(session: Session) -> dict[str, str]:
    """Title -> column, of all columns of numbers; what tells most comes first."""
    infos = {info.name: info for info in session.explorer.scene.columns() if info.kind == "number"}
    first = [infos.pop(name) for name in _FIRST if name in infos]
    return {titled(info): info.name for info in [*first, *infos.values()]}


class PlateView:
    """A plate's wells by the mean of a column, or by how many of their fields are selected."""

    def __init__(self, session: Session) -> None:
        self._session = session
        fields = session.explorer.fields
        self._plates = in_order(fields[c.PLATE])
        self._wells = ColumnDataSource({name: [] for name in _COLUMNS}, name="wells")
        self._table = pd.DataFrame()
        self.plate = pn.widgets.Select(name="Plate", options=self._plates, width=125)
        self.column = pn.widgets.Select(
            name="Well's colour", options=[*number_choices(session), SELECTED], sizing_mode="stretch_width"
        )
        self._mapper = LinearColorMapper(palette=scale_colours(np.linspace(0, 1, 64)), low=0, high=1)
        self.figure = self._figure()
        self.plate.param.watch(lambda _: self.redraw(), "value")
        self.column.param.watch(lambda _: self.redraw(), "value")
        session.on("selection", self._selected)
        session.on("current", self._current)
        self.redraw()

    def panel(self) -> pn.viewable.Viewable:
        """Everything, for the page."""
        return pn.Column(
            pn.Row(self.plate, self.column, sizing_mode="stretch_width"),
            pn.pane.Bokeh(self.figure, sizing_mode="stretch_width", height=250),
            sizing_mode="stretch_width",
        )

    def redraw(self) -> None:
        """Draw the chosen plate again."""
        session, plate = self._session, self.plate.value
        column = number_choices(session).get(self.column.value)
        rows = session.selection.rows

        def work() -> tuple[pd.DataFrame, pd.DataFrame]:
            chosen = plate_grid(session.explorer.scene, rows, plate)
            every = chosen if column is None else plate_grid(session.explorer.scene, None, plate, column)
            return every, chosen

        session.background.run("plate", work, lambda tables: self._show(*tables))

    def _figure(self) -> Any:
        plot = figure(
            name="plate figure", x_axis_location="above", toolbar_location=None, tools="", height=250,
            sizing_mode="stretch_width", x_range=Range1d(start=0.5, end=12.5),
            y_range=Range1d(start=8.5, end=0.5),
        )  # fmt: skip
        plot.grid.visible = False
        plot.axis.minor_tick_line_color = None
        plot.axis.major_tick_line_color = None
        plot.outline_line_color = "#dfe3e8"
        wells = plot.rect(
            "x", "y", 0.9, 0.9, source=self._wells, line_width="width", line_color="line",
            fill_color={"field": "value", "transform": self._mapper},
        )  # fmt: skip
        for outline in (_INK, None):  # an outline alone would cover the thin strokes
            plot.text(
                "x", "y", text="mark", source=self._wells, text_align="center", text_baseline="middle",
                text_color="white", text_font_size="18px", text_font_style="bold",
                text_outline_color=outline,
                **_OUTLINE,
            )  # fmt: skip
        plot.add_tools(
            HoverTool(
                renderers=[wells],
                tooltips=[("", "@well · @treatment"), ("", "value @words"), ("", "fields selected @count")],
            )
        )  # fmt: skip
        self._mapper.nan_color = QUIET_COLOUR
        self._bar = ColorBar(color_mapper=self._mapper, width=9, padding=4, title_standoff=6)
        plot.add_layout(self._bar, "right")
        plot.on_event(Tap, self._tapped)
        return plot

    def _tapped(self, event: Any) -> None:
        row, column = round(event.y) - 1, round(event.x) - 1
        found = self._table[(self._table[ROW] == row) & (self._table[COLUMN] == column)]
        for well in found[c.WELL]:
            plate = self.plate.value
            rows = of_well(self._session.explorer.fields, plate, str(well))
            self._session.select(rows, f"well {well} of {plate}")

    def _selected(self) -> None:
        """Turn to the plate with most of the selection, where the present one has none of it."""
        plates = self._session.explorer.fields[c.PLATE].iloc[self._session.selection.rows].astype(str)
        if len(plates) and not (plates == self.plate.value).any():
            self.plate.value = plates.value_counts().index[0]
        else:
            self.redraw()

    def _current(self) -> None:
        row = self._session.current
        if row is not None:
            plate = str(self._session.explorer.fields[c.PLATE].iat[row])
            if plate == self.plate.value:
                self.redraw()
            elif not self._session.selection:
                self.plate.value = plate

    def _show(self, wells: pd.DataFrame, chosen: pd.DataFrame) -> None:
        self._table = wells
        values = wells[VALUE].to_numpy(np.float64)
        known = values[np.isfinite(values)]
        low, high = (float(known.min()), float(known.max())) if len(known) else (0.0, 1.0)
        self._mapper.update(low=low, high=high if high > low else low + 1)
        rows, columns = _shape(wells)
        plot = self.figure
        plot.x_range.update(start=0.5, end=columns + 0.5)
        plot.y_range.update(start=rows + 0.5, end=0.5)
        step = max(1, columns // 12)
        plot.xaxis.ticker = list(range(1, columns + 1, step))
        plot.yaxis.ticker = list(range(1, rows + 1, max(1, step // 2)))
        plot.yaxis.major_label_overrides = {row: row_letters(row - 1) for row in range(1, rows + 1)}
        here = self._here()
        picked = (chosen[COUNT] > 0).to_numpy()
        width = np.where(picked, 2.5, 0.5)
        line = np.where(picked, _INK, "#ffffff")
        marks = [_MARKS.get(str(kind), "") for kind in wells[c.PERT_TYPE]]
        current = (wells[c.WELL] == here).to_numpy()
        self._wells.data = {
            "x": wells[COLUMN].to_numpy() + 1,
            "y": wells[ROW].to_numpy() + 1,
            "value": values,
            "words": [f"{value:.4g}" if np.isfinite(value) else "not known" for value in values],
            "well": list(wells[c.WELL]),
            "treatment": list(wells[c.TREATMENT]),
            "mark": ["●" if now else mark for now, mark in zip(current, marks, strict=True)],
            "count": list(chosen[COUNT]),
            "width": width,
            "line": list(line),
        }  # fmt: skip

    def _here(self) -> str:
        row, fields = self._session.current, self._session.explorer.fields
        if row is None or str(fields[c.PLATE].iat[row]) != self.plate.value:
            return ""
        return str(fields[c.WELL].iat[row])


def _shape(wells: pd.DataFrame) -> tuple[int, int]:
    """Rows and columns of the smallest standard plate that all wells fit on."""
    plate = next(
        plate
        for plate in FORMATS
        if plate.wells >= _FEWEST and plate.rows > wells[ROW].max() and plate.columns > wells[COLUMN].max()
    )
    return plate.rows, plate.columns
