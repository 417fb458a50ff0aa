"""The parts of the page that are our own: their JavaScript is in templates/, and uses text, never markup."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Final

import param
from panel.custom import JSComponent

_TEMPLATES: Final = Path(__file__).parent / "templates"


class _Part(JSComponent):
    """A part with the page's look."""

    _stylesheets: ClassVar[list[Any]] = [_TEMPLATES / "parts.css"]

    def __init__(self, **params: Any) -> None:
        super().__init__(**params)  # type: ignore[no-untyped-call]

    def on_told(self, hear: Callable[[dict[str, Any]], None]) -> None:
        """Call ``hear`` with what the part's JavaScript sends."""
        self.on_msg(lambda event: hear(event.data))


class Gallery(_Part):
    """Thumbnails: ``items`` as dicts of row, key, lines and title; ``labels`` row -> [verdict, *tags].

    Without ``items`` (None) it says that they are being read, and keeps its height.
    """

    items: Any = param.List(allow_None=True)
    labels: Any = param.Dict(default={})
    current: Any = param.Integer(default=None, allow_None=True)
    label: Any = param.String()
    empty: Any = param.String()
    version: Any = param.String()
    follow: Any = param.Boolean(default=True)

    _esm = _TEMPLATES / "gallery.js"


class Legend(_Part):
    """Categories with their colours and marks, or a scale of numbers."""

    title: Any = param.String()
    entries: Any = param.List()
    scale: Any = param.Dict(default={})

    _esm = _TEMPLATES / "legend.js"


class Viewer(_Part):
    """The picture at an address; ``values`` is the address that tells the values of a pixel.

    With another ``field`` it is empty until it has an address, and says that the field is being read.
    """

    src: Any = param.String()
    values: Any = param.String()
    alt: Any = param.String()
    field: Any = param.String()
    panels: Any = param.Integer(default=1)

    _esm = _TEMPLATES / "viewer.js"


class Keys(_Part):
    """Tells which key was pressed, wherever on the page."""

    _esm = _TEMPLATES / "keys.js"


class Words(_Part):
    """A line of text, and ``facts`` as pairs of a term and what is said of it; ``polite`` is read aloud."""

    text: Any = param.String()
    facts: Any = param.List()
    polite: Any = param.Boolean()

    _esm = _TEMPLATES / "words.js"
