"""Labels by mouse: good, bad, unsure and free tags, for one field or for all that are selected."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import panel as pn

from hcs_ray.contracts import InputError
from hcs_ray.explore.components import Keys, Words
from hcs_ray.explore.session import Session
from hcs_ray.labels import VERDICTS, checked_tag

THIS_FIELD: Final = "this field"
SELECTION: Final = "selection"
_MARGIN: Final = (3, 3)
_KEY_OF: Final = {"good": "g", "bad": "b", "unsure": "u"}
_COLOURS: Final = (Path(__file__).parents[1] / "templates" / "verdicts.css").read_text()
_COLOUR_OF: Final = {"good": "success", "bad": "danger", "unsure": "warning"}


class LabelView:
    """The bar of labels, which is always there, and the keys."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.about = pn.widgets.RadioButtonGroup(
            name="The label is for",
            options={"This field": THIS_FIELD, "Selection": SELECTION},
            margin=_MARGIN,
        )
        self.verdicts = [
            pn.widgets.Button(
                name=f"{verdict.capitalize()} · {_KEY_OF[verdict]}",
                button_type=_COLOUR_OF[verdict],
                stylesheets=[_COLOURS],
                margin=_MARGIN,
                description=f"{_KEY_OF[verdict]}: this field; Shift: the selection",
            )
            for verdict in VERDICTS
        ]
        self.clear = pn.widgets.Button(name="None · c", margin=_MARGIN, description="Take the verdict away")
        self.undo = pn.widgets.Button(
            name="Undo · z", margin=_MARGIN, description="Take back the last decision of this page"
        )
        self.tag = pn.widgets.TextInput(placeholder="tag, as in debris", width=130, margin=_MARGIN)
        self.add = pn.widgets.Button(name="Add tag", margin=_MARGIN)
        self.remove = pn.widgets.Button(name="Remove tag", margin=_MARGIN)
        self.download = pn.widgets.FileDownload(
            callback=self._csv, filename=f"{session.explorer.scene.study.name}-labels.csv",
            label="Labels as CSV", margin=_MARGIN, button_type="default",
            description="All labels as a CSV file",
        )  # fmt: skip
        self.keys = Keys(width=0, height=0, margin=0)
        self.said = Words(polite=True, sizing_mode="stretch_width")
        self.field = Words(sizing_mode="stretch_width")
        self._connect()
        self._show()
        self._say()

    def panel(self) -> pn.viewable.Viewable:
        """Everything, for the page."""
        return pn.Column(
            pn.FlexBox(
                self.about, *self.verdicts, self.clear, self.undo, self.tag, self.add, self.remove,
                self.download, self.keys, sizing_mode="stretch_width",
            ),
            self.field,
            self.said,
            sizing_mode="stretch_width",
        )  # fmt: skip

    def _connect(self) -> None:
        session = self._session
        for verdict, button in zip(VERDICTS, self.verdicts, strict=True):
            button.on_click(self._decider(verdict))
        self.clear.on_click(lambda _: session.label(self._whole, clear=True))
        self.undo.on_click(lambda _: session.undo())
        self.add.on_click(lambda _: self._tag(add=True))
        self.remove.on_click(lambda _: self._tag(add=False))
        self.tag.param.watch(lambda _: self._tag(add=True), "enter_pressed")
        self.keys.on_told(lambda message: self._pressed(str(message["key"]), bool(message["shift"])))
        session.on("selection", self._show)
        session.on("current", self._show)
        session.on("labels", self._show)
        session.on("said", self._say)

    @property
    def _whole(self) -> bool:
        return bool(self.about.value == SELECTION)

    def _decider(self, verdict: str) -> Callable[[Any], None]:
        return lambda _: self._session.label(self._whole, verdict=verdict)

    def _say(self) -> None:
        self.said.text = self._session.said

    def _tag(self, add: bool) -> None:
        try:
            tag = checked_tag(str(self.tag.value_input or self.tag.value or ""))
        except InputError as error:
            self._session.say(str(error))
            return
        if add:
            self._session.label(self._whole, add=tag)
        else:
            self._session.label(self._whole, remove=tag)

    def _pressed(self, key: str, shift: bool) -> None:
        """A key is about this field, or with Shift about the selection, whatever the buttons are about."""
        session = self._session
        verdict = next((name for name, letter in _KEY_OF.items() if letter == key), None)
        if verdict is not None:
            session.label(shift, verdict=verdict)
        elif key == "c":
            session.label(shift, clear=True)
        elif key == "z":
            session.undo()
        elif key in ("ArrowLeft", "ArrowRight"):
            session.step(1 if key == "ArrowRight" else -1)
        elif key == "f":
            session.flip()
        elif key == "Escape":
            session.clear()

    async def _csv(self) -> io.BytesIO:
        """On a thread: a large table would keep all sessions waiting."""
        explorer = self._session.explorer
        made = asyncio.get_running_loop().run_in_executor(explorer.pool, explorer.labels.csv)
        return io.BytesIO(await made)

    def _show(self) -> None:
        session = self._session
        count = len(session.selection.rows)
        named = {f"Selection ({count:,})" if count else "Selection": SELECTION}
        value = self.about.value
        self.about.options = {"This field": THIS_FIELD, **named}
        self.about.value = value
        if session.current is None:
            self.field.text = "No field is chosen."
            return
        label = session.explorer.labels.of(session.current)
        words = ", ".join([label.verdict or "no verdict", *(f"#{tag}" for tag in sorted(label.tags))])
        by = f" ({label.user})" if label.user else ""
        self.field.text = f"{session.explorer.names[session.current]}: {words}{by}"
