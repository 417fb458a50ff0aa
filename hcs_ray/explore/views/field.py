"""One field as the camera saw it, with its contrast, what is known of it, and fields to compare it with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import panel as pn
from matplotlib.colors import to_hex

from hcs_ray.explore.components import Gallery, Viewer, Words
from hcs_ray.explore.drawing import Drawing
from hcs_ray.explore.fields import ChannelView
from hcs_ray.explore.looked_up import Found, facts, find
from hcs_ray.explore.session import Session
from hcs_ray.explore.views.gallery import connected, items, label_marks
from hcs_ray.pictures.colours import channel_colours, rgb_of

_LOW: Final = 1.0
_HIGH: Final = 99.7
_BRIGHTEST: Final = 65535
_CHOOSE: Final = "Choose a field: a picture of the gallery, a point of the map, or → for the next."


@dataclass(frozen=True)
class Channel:
    """The controls of a channel."""

    name: str
    shown: Any
    colour: Any
    low: Any
    high: Any

    def view(self) -> ChannelView:
        """As they are set."""
        return ChannelView(
            self.name,
            self.colour.value,
            bool(self.shown.value),
            float(self.low.value),
            float(self.high.value),
        )


class FieldView:
    """The field that is looked at."""

    def __init__(self, session: Session) -> None:
        self._session = session
        colours = channel_colours(session.explorer.scene.channels)
        self.channels = [_channel(name, to_hex(rgb_of(colours[name]))) for name in colours]
        self.corrected = _check("Illumination corrected", False)
        self.apart = _check("Channels side by side", False)
        self.percentile = _check("Contrast by percentiles of each field", True)
        self.low = _percent("Low, %", _LOW, step=0.5)
        self.high = _percent("High, %", _HIGH, step=0.1)
        self.viewer = Viewer(sizing_mode="stretch_both", min_height=260)
        self.facts = Words(text=_CHOOSE, sizing_mode="stretch_width")
        self.strips = {
            title: connected(
                Gallery(label=title, empty="none", follow=False, sizing_mode="stretch_width"), session
            )
            for title in (
                "Neighbours in embedding space", "Same well", "Same treatment, other wells",
                "Controls beside it",
            )
        }  # fmt: skip
        self._setting = False
        self._due = True
        self._row: int | None = None  # what the view is about
        self._readable = True
        self.visible = False
        self._connect()

    def panel(self) -> pn.viewable.Viewable:
        """Everything, for the page."""
        controls = pn.Column(
            *(
                pn.Row(one.shown, one.colour, one.low, one.high, sizing_mode="stretch_width", margin=0)
                for one in self.channels
            ),
            self.percentile,
            pn.Row(self.low, self.high, margin=0),
            self.corrected,
            self.apart,
            width=318,
        )
        strips = [
            pn.Column(
                pn.pane.HTML(f"<h3>{title}</h3>", margin=(2, 5, 0, 5)), gallery, sizing_mode="stretch_width"
            )
            for title, gallery in self.strips.items()
        ]
        return pn.Column(
            pn.FlexBox(
                pn.Column(self.viewer, height=430, min_width=320, styles={"flex": "1 1 340px"}),
                controls,
                sizing_mode="stretch_width",
            ),
            self.facts,
            *strips,
            scroll="y-auto",
            sizing_mode="stretch_both",
        )

    def show(self, visible: bool) -> None:
        """Fields are read only while the view is open."""
        self.visible = visible
        if visible:
            (self._look if self._due else self._draw)()

    def _connect(self) -> None:
        self._session.on("current", self._look)
        for widget in (self.corrected, self.percentile):
            widget.param.watch(lambda _: self._look(), "value")
        for widget in (self.low, self.high):
            _on_number(widget, self._look)
        self.apart.param.watch(lambda _: self._draw(), "value")
        for one in self.channels:
            for widget in (one.shown, one.colour):
                widget.param.watch(lambda _: self._draw(), "value")
            for widget in (one.low, one.high):
                _on_number(widget, self._limit_set)

    def _limit_set(self) -> None:
        """A limit that a person sets holds for the fields that follow."""
        if not self._setting:
            self._setting = True
            self.percentile.value = []
            self._setting = False
            self._draw()

    def _look(self) -> None:
        row, session = self._session.current, self._session
        self._due = True
        if row != self._row:
            self._turn_to(row)
        if row is None or not self.visible or self._setting:
            return
        self._due = False
        scene, corrected = session.explorer.scene, bool(self.corrected.value)
        low, high = sorted((float(self.low.value), float(self.high.value)))
        session.background.run("field", lambda: find(scene, row, corrected, (low, high)), self._found)

    def _turn_to(self, row: int | None) -> None:
        """What is known at once of another field; nothing of the one before stays to be taken for its."""
        explorer = self._session.explorer
        self._row, self._readable = row, True
        self.viewer.param.update(
            src="",
            values="",
            alt="" if row is None else explorer.names[row],
            field="" if row is None else str(row),
        )
        for gallery in self.strips.values():
            gallery.param.update(items=[] if row is None else None, labels={})
        self._tell(row)

    def _found(self, found: Found) -> None:
        if found.row != self._row:  # another was chosen since, or none
            return
        self._readable = not found.problem
        self._tell(found.row, found.problem)
        if not found.problem and self.percentile.value:
            self._setting = True
            for one, (low, high) in zip(self.channels, found.limits, strict=True):
                one.low.value, one.high.value = round(low), max(round(high), round(low) + 1)
            self._setting = False
        explorer = self._session.explorer
        for gallery, rows in zip(self.strips.values(), found.relatives, strict=True):
            gallery.param.update(
                items=items(explorer, rows), labels=label_marks(explorer, rows), current=None
            )
        self._draw()

    def _draw(self) -> None:
        row, explorer = self._session.current, self._session.explorer
        if row is None or self._setting or not self.visible:
            return
        if not self._readable:  # its thumbnail says so
            self.viewer.param.update(src=f"thumb/{row}.jpg?v={explorer.version}", values="", panels=1)
            return
        drawing = Drawing(
            tuple(one.view() for one in self.channels), bool(self.corrected.value), bool(self.apart.value)
        )
        self.viewer.param.update(
            src=f"field/{row}.png?v={explorer.version}&d={drawing.query()}",
            values=f"values/{row}.json?v={explorer.version}&corrected={len(self.corrected.value)}",
            panels=drawing.panels,
        )

    def _tell(self, row: int | None, problem: str = "") -> None:
        if row is None:
            self.facts.param.update(text=_CHOOSE, facts=[])
            return
        explorer = self._session.explorer
        unread = [["Cannot be read", problem]] if problem else []
        self.facts.param.update(text=explorer.names[row], facts=[*unread, *facts(explorer.scene.about(row))])


def _channel(name: str, colour: str) -> Channel:
    limit = {"start": 0, "end": _BRIGHTEST, "step": 50, "width": 84, "margin": (2, 3)}
    return Channel(
        name,
        _check(name, True, width=84, margin=(14, 2, 2, 5)),
        pn.widgets.ColorPicker(value=colour, width=38, margin=(16, 3, 2, 2)),
        pn.widgets.IntInput(name="low", value=0, **limit),
        pn.widgets.IntInput(name="high", value=_BRIGHTEST, **limit),
    )


def _percent(name: str, value: float, step: float) -> Any:
    return pn.widgets.FloatInput(name=name, value=value, start=0, end=100, step=step, width=85)


def _on_number(widget: Any, then: Callable[[], None]) -> None:
    """Call ``then`` after each new number; a box that is emptied takes its last number back."""

    def changed(change: Any) -> None:
        if change.new is None:
            widget.value = change.old
        elif change.old is not None:
            then()

    widget.param.watch(changed, "value")


def _check(name: str, value: bool, **options: Any) -> Any:
    """A box to check whose text is its label, as that of Panel's own `Checkbox` is not."""
    return pn.widgets.CheckBoxGroup(options=[name], value=[name] if value else [], **options)
