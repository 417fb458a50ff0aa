"""The page of one browser session: its views, put together."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import panel as pn
from bokeh.document import Document
from bokeh.models import CustomJS

from hcs_ray.explore.colourings import Colourings
from hcs_ray.explore.components import Words
from hcs_ray.explore.session import Session
from hcs_ray.explore.shared import Explorer
from hcs_ray.explore.views.dose import DoseView
from hcs_ray.explore.views.field import FieldView
from hcs_ray.explore.views.gallery import GalleryView
from hcs_ray.explore.views.labelling import LabelView
from hcs_ray.explore.views.map import MapView
from hcs_ray.explore.views.plate import PlateView

_TEMPLATES: Final = Path(__file__).parent / "templates"
_FIELD_TAB: Final = 1
_LOST: Final = "document.getElementById('lost').hidden = false"


class _Page(pn.Template):
    """The template; its representation is short, since Panel asks for it at every part that is added."""

    def __repr__(self) -> str:
        return "Page()"


def page(explorer: Explorer, colourings: Colourings, document: Document) -> pn.template.BaseTemplate:
    """A new session's page."""
    session = Session(explorer, document)
    template = _Page((_TEMPLATES / "explorer.html.j2").read_text())
    template.add_variable("css", (_TEMPLATES / "explorer.css").read_text())
    template.add_variable("study_title", explorer.title)
    template.add_variable("summary", summary(explorer))
    template.add_variable("user", explorer.user)
    template.add_variable("missing", sorted(explorer.scene.missing.items()))
    template.add_panel("map", _map(session, colourings))
    template.add_panel("plate", PlateView(session).panel())
    template.add_panel("dose", DoseView(session).panel())
    template.add_panel("labels", LabelView(session).panel())
    template.add_panel("fields", _tabs(session))
    document.js_on_event("connection_lost", CustomJS(code=_LOST))
    return template


def summary(explorer: Explorer) -> str:
    """What there is, in a line."""
    from hcs_ray import contracts as c

    fields = explorer.fields
    return (
        f"{len(fields):,} fields · {fields[c.PLATE].nunique()} plates · "
        f"{fields[c.COMPOUND].nunique()} compounds · {', '.join(explorer.scene.channels)}"
    )


def _map(session: Session, colourings: Colourings) -> pn.viewable.Viewable:
    scene = session.explorer.scene
    if "x" in scene.fields and scene.fields["x"].notna().any():
        return MapView(session, colourings).panel()
    return Words(text=f"No map. {scene.missing.get('map', '')}", sizing_mode="stretch_width")


def _tabs(session: Session) -> pn.viewable.Viewable:
    view = FieldView(session)
    tabs = pn.Tabs(
        ("Gallery", GalleryView(session).panel()), ("Field", view.panel()), sizing_mode="stretch_both"
    )
    tabs.param.watch(lambda change: view.show(change.new == _FIELD_TAB), "active")

    def show(tab: int) -> None:
        tabs.active = tab

    session.on("open", lambda: show(_FIELD_TAB))
    session.on("flip", lambda: show(1 - tabs.active))
    return tabs
