"""One field as the camera saw it, with its contrast, what is known of it, and fields to compare it with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
import panel as pn
from matplotlib.colors import to_hex

from hcs_ray import contracts as c
from hcs_ray.explore import fields as field_data
from hcs_ray.explore.components import Gallery, Viewer, Words
from hcs_ray.explore.drawing import Drawing
from hcs_ray.explore.fields import ChannelView
from hcs_ray.explore.session import Session
from hcs_ray.explore.views.gallery import connected, items, label_marks
from hcs_ray.pictures.colours import channel_colours, rgb_of

_FLAG: Final = f"{c.QC_PREFIX}Flag_"
_LOW: Final = 1.0
_HIGH: Final = 99.7
_BRIGHTEST: Final = 65535
_STRIP: Final = 8
_CHOOSE: Final = "Choose a field: a picture of the gallery, a point of the map, or → for the next."
Limits = list[tuple[float, float]]


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


@dataclass(frozen=True)
class Found:
    """What was read and looked up for a field."""

    row: int
    limits: Limits
    relatives: tuple[list[int], ...]


class FieldView:
    """The field that is looked at."""

    def __init__(self, session: Session) -> None:
        self._session = session
        colours = channel_colours(session.explorer.scene.channels)
        self.channels = [_channel(name, to_hex(rgb_of(colours[name]))) for name in colours]
        self.corrected = _check("Illumination corrected", False)
        self.apart = _check("Channels side by side", False)
        self.percentile = _check("Contrast by percentiles of each field", True)
        self.low = pn.widgets.FloatInput(name="Low, %", value=_LOW, start=0, end=100, step=0.5, width=85)
        self.high = pn.widgets.FloatInput(name="High, %", value=_HIGH, start=0, end=100, step=0.1, width=85)
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
        if visible and self._due:
            self._look()

    def _connect(self) -> None:
        self._session.on("current", self._look)
        self._session.on("labels", lambda: self._tell(self._session.current))
        for widget in (self.corrected, self.percentile, self.low, self.high):
            widget.param.watch(lambda _: self._look(), "value")
        self.apart.param.watch(lambda _: self._draw(), "value")
        for one in self.channels:
            for widget in (one.shown, one.colour):
                widget.param.watch(lambda _: self._draw(), "value")
            for widget in (one.low, one.high):
                widget.param.watch(lambda _: self._limit_set(), "value")

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
        if row is None or not self.visible or self._setting:
            return
        self._due = False
        scene, corrected = session.explorer.scene, bool(self.corrected.value)
        low, high = sorted((float(self.low.value or 0), float(self.high.value or 0)))

        def work() -> Found:
            planes = field_data.planes(scene, row, corrected)
            relatives = (
                scene.neighbours(row, _STRIP),
                scene.same_well(row)[:_STRIP],
                scene.same_treatment(row, _STRIP),
                scene.controls_beside(row, _STRIP),
            )
            return Found(row, field_data.percentile_limits(planes, low, high), relatives)

        self._tell(row)
        session.background.run("field", work, self._found)

    def _found(self, found: Found) -> None:
        if self.percentile.value:
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
        drawing = Drawing(
            tuple(one.view() for one in self.channels), bool(self.corrected.value), bool(self.apart.value)
        )
        self.viewer.param.update(
            src=f"field/{row}.png?v={explorer.version}&d={drawing.query()}",
            values=f"values/{row}.json?v={explorer.version}&corrected={len(self.corrected.value)}",
            alt=explorer.names[row],
            field=str(row),
            panels=drawing.panels,
        )

    def _tell(self, row: int | None) -> None:
        if row is not None:
            about = self._session.explorer.scene.about(row)
            self.facts.param.update(text=self._session.explorer.names[row], facts=facts(about))


def facts(about: dict[str, Any]) -> list[list[str]]:
    """What is known of a field, as pairs of a term and text; what is not known is left out."""

    def known(name: str) -> bool:
        return name in about and not pd.isna(about[name])

    found: list[list[str]] = []
    if about[c.PERT_TYPE] == c.NEGATIVE_CONTROL:
        found.append(["Mechanism", "negative control"])
    else:
        found.append(["Mechanism", str(about[c.MOA]) if known(c.MOA) else "no label"])
    if known("predicted_moa"):
        verdict = ("right" if about["is_right"] else "wrong") if known("is_right") else ""
        side = f"; {about[c.SIDE]} side of the split" if known(c.SIDE) else ""
        found.append(
            [
                "Prediction",
                f"{about['predicted_moa']}, probability {about['probability']:.2f}"
                f"{f' ({verdict})' if verdict else ''}{side}",
            ]
        )
    if known("unreadable"):
        found.append(["Not embedded", str(about["unreadable"])])
    if known("outlier_rank"):
        reason = str(about["outlier_reason"]) if known("outlier_reason") else "no reason: ordinary"
        found.append(
            ["Outlier", f"rank {about['outlier_rank']:,}, score {about['outlier_score']:.2f}; {reason}"]
        )
    if known("outlier_evidence") and about["outlier_evidence"]:
        found.append(["Evidence", str(about["outlier_evidence"])])
    flags = [name.removeprefix(_FLAG) for name, value in about.items() if name.startswith(_FLAG) and value]
    found.append(["Quality flags", ", ".join(flags) or "none"])
    found.append(["Key", str(about[c.KEY])])
    return found


def _channel(name: str, colour: str) -> Channel:
    limit = {"start": 0, "end": _BRIGHTEST, "step": 50, "width": 84, "margin": (2, 3)}
    return Channel(
        name,
        _check(name, True, width=84, margin=(14, 2, 2, 5)),
        pn.widgets.ColorPicker(value=colour, width=38, margin=(16, 3, 2, 2)),
        pn.widgets.IntInput(name="low", value=0, **limit),
        pn.widgets.IntInput(name="high", value=_BRIGHTEST, **limit),
    )


def _check(name: str, value: bool, **options: Any) -> Any:
    """A box to check whose text is its label, as that of Panel's own `Checkbox` is not."""
    return pn.widgets.CheckBoxGroup(options=[name], value=[name] if value else [], **options)
