"""The map of all fields: drawn for what is in view, as marks while they are few and else as an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import panel as pn
from bokeh.events import RangesUpdate, Reset, SelectionGeometry, Tap
from bokeh.models import BoxSelectTool, ColumnDataSource, HoverTool, LassoSelectTool, Range1d, WheelZoomTool
from bokeh.plotting import figure

from hcs_ray.explore.colouring import Colouring, Entry
from hcs_ray.explore.colourings import VERDICT, Colourings
from hcs_ray.explore.components import Legend
from hcs_ray.explore.selecting import Mode, inside, nearest, rows_where
from hcs_ray.explore.session import Session
from hcs_ray.explore.shading import Window, shade

MOST_MARKS: Final = 4000  # in view; a browser moves more of them no longer at once
_INITIAL_PX: Final = (700, 480)
_MARGIN: Final = 0.04
_REACH_PX: Final = 12
_SYMBOLS: Final = {"o": "circle", "^": "triangle", "s": "square", "D": "diamond"}
_FADED: Final = 0.18
_MODES: Final[dict[str, Mode]] = {"New": "new", "Add": "add", "Take away": "remove"}
_NO_MARKS: Final[dict[str, Any]] = {
    name: [] for name in ("x", "y", "colour", "mark", "alpha", "size", "name", "value")
}


@dataclass(frozen=True)
class Drawn:
    """What the browser is sent: marks, or an image of a window."""

    marks: dict[str, Any]
    image: dict[str, Any]
    colouring: Colouring


class MapView:
    """The map with its legend and the choice of what colours it."""

    def __init__(self, session: Session, colourings: Colourings) -> None:
        self._session = session
        self._colourings = colourings
        fields = session.explorer.fields
        self._places = np.column_stack([fields[axis].to_numpy(np.float64) for axis in "xy"])
        self._size = _INITIAL_PX
        self._inner: dict[str, int] = {}  # as the browser tells it, one after the other
        self._fitted = False
        self._image = ColumnDataSource({"image": [], "x": [], "y": [], "dw": [], "dh": []}, name="image")
        self._marks = ColumnDataSource(_NO_MARKS, name="marks")
        self._ring = ColumnDataSource({"x": [], "y": []}, name="ring")
        self.figure = self._figure()
        self.colour = pn.widgets.Select(
            name="Colour", groups=colourings.groups, value=colourings.first, width=230
        )
        self.mode = pn.widgets.RadioButtonGroup(
            name="A lasso makes", options=list(_MODES), value="New", margin=(22, 5, 5, 10)
        )
        self.clear = pn.widgets.Button(name="Clear selection", margin=(22, 5, 5, 5))
        self.legend = Legend(sizing_mode="stretch_width")
        self._entries: tuple[Entry, ...] = ()
        self._connect()
        self.redraw()

    def panel(self) -> pn.viewable.Viewable:
        """Everything, for the page."""
        return pn.Column(
            pn.FlexBox(self.colour, self.mode, self.clear, sizing_mode="stretch_width"),
            pn.pane.Bokeh(self.figure, sizing_mode="stretch_both", min_height=300),
            self.legend,
            sizing_mode="stretch_both",
        )

    def redraw(self) -> None:
        """Draw what is in view now."""
        window, mask, name = self._window(), self._session.mask, self.colour.value
        self._session.background.run(
            "map", lambda: self._drawn(self._colourings.get(name), mask, window), self._show
        )

    def _figure(self) -> Any:
        known = self._places[np.isfinite(self._places).all(axis=1)]
        low, high = known.min(axis=0), known.max(axis=0)
        pad = np.maximum((high - low) * _MARGIN, 1e-6)
        (left, bottom), (right, top) = low - pad, high + pad
        plot = figure(
            name="map figure",
            x_range=Range1d(start=left, end=right),
            y_range=Range1d(start=bottom, end=top),
            tools="pan,reset",
            toolbar_location="above",
            sizing_mode="stretch_both",
            min_height=300,
            x_axis_label="map, x",
            y_axis_label="map, y",
        )
        plot.toolbar.logo = None
        plot.toolbar.stylesheets = [".bk-tool-overflow { color: #59626e; }"]  # Bokeh's grey is too faint
        lasso = LassoSelectTool(renderers=[], continuous=False)
        wheel = WheelZoomTool()
        plot.add_tools(lasso, BoxSelectTool(renderers=[], continuous=False), wheel)
        plot.toolbar.active_drag = lasso
        plot.toolbar.active_scroll = wheel
        plot.grid.grid_line_color = "#eceff2"
        plot.outline_line_color = "#dfe3e8"
        plot.image_rgba(source=self._image, image="image", x="x", y="y", dw="dw", dh="dh")
        marks = plot.scatter(
            "x", "y", source=self._marks, marker="mark", size="size", alpha="alpha", color="colour",
            line_color="white", line_width=0.4, line_alpha="alpha",
        )  # fmt: skip
        plot.add_tools(HoverTool(renderers=[marks], tooltips=[("", "@name"), ("", "@value")]))
        plot.scatter("x", "y", source=self._ring, size=19, fill_color=None, line_color="white", line_width=5)
        plot.scatter(
            "x", "y", source=self._ring, size=19, fill_color=None, line_color="#1d232b", line_width=2.2
        )
        return plot

    def _connect(self) -> None:
        plot, session = self.figure, self._session
        plot.on_event(SelectionGeometry, self._selected)
        plot.on_event(Tap, self._tapped)
        plot.on_event(RangesUpdate, lambda _: self.redraw())
        plot.on_event(Reset, lambda _: self.redraw())
        plot.on_change("inner_width", self._resized)
        plot.on_change("inner_height", self._resized)
        self.colour.param.watch(lambda _: self.redraw(), "value")
        self.clear.on_click(lambda _: session.clear())
        self.legend.on_told(self._category)
        session.on("selection", self.redraw)
        session.on("current", lambda: session.background.soon(self._show_ring))
        session.on("labels", self._relabelled)

    # --- From the browser

    def _selected(self, event: Any) -> None:
        if not event.final:
            return
        geometry, mode = dict(event.geometry), _MODES[self.mode.value]
        name = "box" if geometry["type"] == "rect" else "lasso"
        self._session.background.run(
            "select",
            lambda: inside(self._places, geometry),
            lambda rows: self._session.select(rows, f"{name} on the map", mode),
        )

    def _tapped(self, event: Any) -> None:
        (left, right), (bottom, top) = self._ranges()
        width, height = self._size
        reach = (right - left) / width * _REACH_PX, (top - bottom) / height * _REACH_PX
        row = nearest(self._places, event.x, event.y, reach)
        if row is not None:
            self._session.go(row)

    def _category(self, message: dict[str, Any]) -> None:
        entry = self._entries[int(message["number"])]
        colouring = self._colourings.get(self.colour.value)
        number = [one.name for one in colouring.entries].index(entry.name)
        self._session.select(rows_where(colouring.codes == number), entry.name, _MODES[self.mode.value])

    def _resized(self, attr: str, old: Any, new: Any) -> None:
        self._inner[attr] = int(new)
        width, height = self._inner.get("inner_width", 0), self._inner.get("inner_height", 0)
        if not width or not height:
            return
        self._size = width, height
        if not self._fitted:
            self._fitted = True
            self._same_scale(width, height)
        self.redraw()

    def _same_scale(self, width: int, height: int) -> None:
        """A step to the right is as long as one upwards, as the map means it."""
        (left, right), (bottom, top) = self._ranges()
        unit = max((right - left) / width, (top - bottom) / height)
        for span, low, high, pixels in (
            (self.figure.x_range, left, right, width),
            (self.figure.y_range, bottom, top, height),
        ):
            middle, half = (low + high) / 2, unit * pixels / 2
            span.update(start=middle - half, end=middle + half)
            span.update(reset_start=middle - half, reset_end=middle + half)

    # --- To the browser

    def _relabelled(self) -> None:
        if self.colour.value == VERDICT:
            self.redraw()

    def _ranges(self) -> tuple[tuple[float, float], tuple[float, float]]:
        x, y = self.figure.x_range, self.figure.y_range
        return (x.start, x.end), (y.start, y.end)

    def _window(self) -> Window:
        return Window(*self._ranges(), *self._size)

    def _drawn(self, colouring: Colouring, mask: npt.NDArray[np.bool_] | None, window: Window) -> Drawn:
        box = {"x0": window.x[0], "x1": window.x[1], "y0": window.y[0], "y1": window.y[1], "type": "rect"}
        seen = inside(self._places, box)
        if len(seen) > MOST_MARKS:
            image = shade(self._places, colouring, mask, window)
            (left, right), (bottom, top) = window.x, window.y
            place = {"x": [left], "y": [bottom], "dw": [right - left], "dh": [top - bottom]}
            return Drawn(_NO_MARKS, {"image": [image], **place}, colouring)
        if colouring.kind == "category":
            seen = seen[np.argsort(colouring.codes[seen], kind="stable")]
        alpha = np.full(len(seen), 0.9)
        if mask is not None:
            seen = seen[np.argsort(mask[seen], kind="stable")]
            alpha = np.where(mask[seen], 1.0, _FADED)
        marks = {
            "x": self._places[seen, 0], "y": self._places[seen, 1], "alpha": alpha,
            "size": np.full(len(seen), 8.0 if len(seen) < 1500 else 6.0),
            "colour": colouring.colours(seen),
            "mark": [_SYMBOLS[mark] for mark in colouring.marks(seen)],
            "name": [self._session.explorer.names[row] for row in seen],
            "value": colouring.words(seen),
        }  # fmt: skip
        return Drawn(marks, {"image": [], "x": [], "y": [], "dw": [], "dh": []}, colouring)

    def _show(self, drawn: Drawn) -> None:
        self._image.data = drawn.image
        self._marks.data = drawn.marks
        colouring = drawn.colouring
        self._entries = tuple(entry for entry in colouring.entries if entry.fields)
        unknown = int((~np.isfinite(colouring.values)).sum()) if colouring.kind == "number" else 0
        scale = {
            "low": f"≤ {colouring.low:.4g}", "high": f"≥ {colouring.high:.4g}", "colours": colouring.ramp,
            "unknown": f"{unknown:,} fields" if unknown else "",
        }  # fmt: skip
        self.legend.param.update(
            title=colouring.title,
            entries=[
                {
                    "name": one.name,
                    "colour": one.style.colour,
                    "mark": one.style.mark if drawn.image["x"] == [] else "o",
                    "fields": one.fields,
                }
                for one in self._entries
            ],
            scale=scale if colouring.kind == "number" else {},
        )

    def _show_ring(self) -> None:
        row = self._session.current
        here = [] if row is None or not np.isfinite(self._places[row]).all() else [self._places[row]]
        self._ring.data = {"x": [x for x, _ in here], "y": [y for _, y in here]}
