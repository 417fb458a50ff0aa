"""Dose and response of the selected compounds; a click on a dose selects its fields."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import pandas as pd
import panel as pn
from bokeh.events import Tap
from bokeh.models import ColumnDataSource, HoverTool, Range1d
from bokeh.models.annotations import Whisker
from bokeh.plotting import figure

from hcs_ray import contracts as c
from hcs_ray.explore.components import Words
from hcs_ray.explore.selecting import nearest, no_rows, rows_where
from hcs_ray.explore.session import Session
from hcs_ray.explore.summaries import COUNT, DOSE, HIGH, LOW, MEAN, dose_response
from hcs_ray.explore.views.plate import number_choices
from hcs_ray.palette import CONTROL_COLOUR, MARKS, OKABE_ITO

_MOST: Final = 4  # compounds at once
_SYMBOLS: Final = {"o": "circle", "^": "triangle", "s": "square", "D": "diamond"}
_NO_POINTS: Final[dict[str, Any]] = {
    name: [] for name in ("x", "mean", "low", "high", "colour", "line", "mark", "treatment", "wells")
}
_REACH: Final = 0.06  # of the plot's width and height


class DoseView:
    """The mean of a column by dose, over wells, with its 95 % interval; controls as a line."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._table = pd.DataFrame()
        self._points = ColumnDataSource(_NO_POINTS, name="doses")
        self._lines = ColumnDataSource({"xs": [], "ys": [], "colour": []})
        self._control = ColumnDataSource({"x0": [], "x1": [], "y": []})
        self.column = pn.widgets.Select(
            name="Response", options=number_choices(session), sizing_mode="stretch_width"
        )
        self.legend = Words(sizing_mode="stretch_width")
        self.figure = self._figure()
        self.column.param.watch(lambda _: self.redraw(), "value")
        session.on("selection", self.redraw)
        session.on("current", lambda: None if session.selection else self.redraw())
        self.redraw()

    def panel(self) -> pn.viewable.Viewable:
        """Everything, for the page."""
        return pn.Column(
            self.column,
            pn.pane.Bokeh(self.figure, sizing_mode="stretch_width", height=220),
            self.legend,
            sizing_mode="stretch_width",
        )

    def redraw(self) -> None:
        """Draw the compounds of the selection, or of the field that is looked at."""
        names, more = self._compounds()
        column, scene = self.column.value, self._session.explorer.scene
        controls = scene.fields[scene.fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL]

        def work() -> tuple[pd.DataFrame, float]:
            if not names or column is None:
                return pd.DataFrame(), np.nan
            return dose_response(scene, names, column), float(controls[column].mean())

        self._session.background.run("dose", work, lambda found: self._show(*found, names, more))

    def _compounds(self) -> tuple[list[str], int]:
        """The most frequent compounds of the selection that have doses, and how many more there are."""
        fields, session = self._session.explorer.fields, self._session
        here = no_rows() if session.current is None else np.array([session.current], np.int64)
        chosen = fields.iloc[session.selection.rows if session.selection else here]
        treated = chosen[(chosen[c.PERT_TYPE] != c.NEGATIVE_CONTROL) & (chosen[c.CONCENTRATION] > 0)]
        counts = treated[c.COMPOUND].astype(str).value_counts()
        return list(counts.index[:_MOST]), max(0, len(counts) - _MOST)

    def _figure(self) -> Any:
        plot = figure(
            name="dose figure", x_axis_type="log", toolbar_location=None, tools="", height=220,
            sizing_mode="stretch_width",
            x_axis_label="concentration, µM", x_range=Range1d(start=0.01, end=100),
            y_range=Range1d(start=0, end=1),
        )  # fmt: skip
        plot.grid.grid_line_color = "#eceff2"
        plot.outline_line_color = "#dfe3e8"
        plot.segment(
            "x0", "y", "x1", "y", source=self._control, line_color=CONTROL_COLOUR, line_dash="dashed"
        )
        plot.multi_line("xs", "ys", source=self._lines, line_color="colour", line_width=1.6)
        points = plot.scatter(
            "x", "mean", source=self._points, marker="mark", color="colour", size=10,
            line_color="line", line_width=2,
        )  # fmt: skip
        plot.add_layout(
            Whisker(
                source=self._points,
                base="x",
                upper="high",
                lower="low",
                line_color="colour",
                upper_head=None,
                lower_head=None,
                line_width=1.5,
            )
        )
        plot.add_tools(
            HoverTool(
                renderers=[points],
                tooltips=[("", "@treatment"), ("", "mean @mean{0.[000]}"), ("", "wells @wells")],
            )
        )
        plot.on_event(Tap, self._tapped)
        return plot

    def _tapped(self, event: Any) -> None:
        if not len(self._table):
            return
        x, y = np.log10(self._table[DOSE].to_numpy(float)), self._table[MEAN].to_numpy(float)
        across, up = self.figure.x_range, self.figure.y_range
        reach = float(np.log10(across.end / across.start)) * _REACH, (up.end - up.start) * _REACH * 2
        found = nearest(np.column_stack([x, y]), float(np.log10(event.x)), event.y, reach)
        if found is not None:
            name = str(self._table[c.TREATMENT].iat[found])
            fields = self._session.explorer.fields
            self._session.select(rows_where(fields[c.TREATMENT].astype(str) == name), f"treatment {name}")

    @staticmethod
    def _extent(table: pd.DataFrame, control: float) -> tuple[float, float]:
        """The bottom and top of what is drawn, with a margin."""
        values = np.r_[table[[MEAN, LOW, HIGH]].to_numpy(float).ravel(), control]
        values = values[np.isfinite(values)]
        if not len(values):
            return 0.0, 1.0
        margin = float(np.ptp(values)) * 0.08 or max(abs(float(values[0])), 1.0) * 0.1
        return float(values.min()) - margin, float(values.max()) + margin

    def _show(self, table: pd.DataFrame, control: float, names: list[str], more: int) -> None:
        self._table = table
        titles = {name: title for title, name in number_choices(self._session).items()}
        self.figure.yaxis.axis_label = titles.get(self.column.value, "")
        if not len(table):
            self._points.data = _NO_POINTS
            self._lines.data = {"xs": [], "ys": [], "colour": []}
            self._control.data = {"x0": [], "x1": [], "y": []}
            self.legend.text = "Choose fields of a compound to see its doses."
            return
        number = [names.index(str(name)) for name in table[c.COMPOUND]]
        colour = [OKABE_ITO[i] for i in number]
        mean = table[MEAN].to_numpy(float)
        self._points.data = {
            "x": table[DOSE].to_numpy(float),
            "mean": mean,
            "low": np.where(np.isfinite(table[LOW]), table[LOW], mean),
            "high": np.where(np.isfinite(table[HIGH]), table[HIGH], mean),
            "colour": colour,
            "line": ["#1d232b" if chosen else "white" for chosen in self._are_selected(table)],
            "mark": [_SYMBOLS[MARKS[i % len(MARKS)]] for i in number],
            "treatment": list(table[c.TREATMENT]),
            "wells": list(table[COUNT]),
        }
        groups = [table[table[c.COMPOUND] == name] for name in names]
        self._lines.data = {
            "xs": [list(group[DOSE]) for group in groups],
            "ys": [list(group[MEAN]) for group in groups],
            "colour": list(OKABE_ITO[: len(groups)]),
        }
        ends = float(table[DOSE].min()) / 1.5, float(table[DOSE].max()) * 1.5
        self.figure.x_range.update(start=ends[0], end=ends[1])
        low, high = self._extent(table, control)
        self.figure.y_range.update(start=low, end=high)
        self._control.data = {"x0": [ends[0]], "x1": [ends[1]], "y": [control]}
        shapes = ("●", "▲", "■", "◆")
        listed = ", ".join(f"{shapes[i]} {name}" for i, name in enumerate(names))
        rest = f", and {more} more compounds" if more else ""
        self.legend.text = f"{listed}{rest}. Bars: 95 % over wells; dashed: mean of all controls."

    def _are_selected(self, table: pd.DataFrame) -> list[bool]:
        fields = self._session.explorer.fields
        chosen = set(fields[c.TREATMENT].iloc[self._session.selection.rows])
        return [name in chosen for name in table[c.TREATMENT]]
