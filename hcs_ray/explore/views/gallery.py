"""The fields that are shown as thumbnails, page by page, and ways to choose them."""

from __future__ import annotations

import asyncio
import io
import re
from collections.abc import Callable
from typing import Any, Final

import pandas as pd
import panel as pn

from hcs_ray import contracts as c
from hcs_ray.explore.components import Gallery, Words
from hcs_ray.explore.selecting import (
    Rows,
    by_rank,
    confusions,
    keys_csv,
    misclassified,
    rows_where,
)
from hcs_ray.explore.session import Session
from hcs_ray.explore.shared import Explorer
from hcs_ray.labels import VERDICTS

PAGE: Final = 60
SHOWN: Final = "Fields shown"
_EMPTY: Final = "No field."
_ANY_LABEL: Final = "any label"


def items(explorer: Explorer, rows: Any) -> list[dict[str, Any]]:
    """What a `Gallery` shows of some fields."""
    fields = explorer.fields
    return [
        {
            "row": int(row),
            "key": str(fields[c.KEY].iat[row]),
            "title": explorer.names[row],
            "lines": [
                str(fields[c.COMPOUND].iat[row]),
                f"{_dose(fields, row)} · {fields[c.WELL].iat[row]} s{fields[c.SITE].iat[row]}",
                str(fields[c.PLATE].iat[row]),
            ],
        }
        for row in rows
    ]


def _dose(fields: pd.DataFrame, row: int) -> str:
    dose = float(fields[c.CONCENTRATION].to_numpy(float)[row])
    return f"{dose:g} µM" if dose > 0 else "control"


def label_marks(explorer: Explorer, rows: Any) -> dict[str, list[str]]:
    """The labels of some fields, as a `Gallery` takes them."""
    labels = explorer.labels.by_row()
    found = {int(row): labels[int(row)] for row in rows if int(row) in labels}
    return {str(row): [label.verdict or "", *sorted(label.tags)] for row, label in found.items()}


def connected(gallery: Gallery, session: Session) -> Gallery:
    """A gallery whose pictures a click picks and a double click opens."""

    def clicked(message: dict[str, Any]) -> None:
        act: dict[str, Callable[[int], None]] = {"pick": session.go, "open": session.open}
        act[str(message["kind"])](int(message["row"]))

    def labelled() -> None:
        gallery.labels = label_marks(session.explorer, [item["row"] for item in gallery.items or []])

    def gone() -> None:
        gallery.current = session.current

    gallery.version = session.explorer.version
    gallery.on_told(clicked)
    session.on("labels", labelled)
    session.on("current", gone)
    return gallery


class GalleryView:
    """Pages of thumbnails of what is selected."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._page = 0
        self.gallery = connected(Gallery(label=SHOWN, empty=_EMPTY, sizing_mode="stretch_width"), session)
        self.before = pn.widgets.Button(name="‹", width=36, margin=(3, 2), description="The page before")
        self.after = pn.widgets.Button(name="›", width=36, margin=(3, 2), description="The next page")
        self.title = Words(sizing_mode="stretch_width", margin=(8, 5))
        self.download = pn.widgets.FileDownload(
            callback=self._csv, filename=f"{session.explorer.scene.study.name}-selection.csv",
            label="Selected keys as CSV", margin=(3, 2), button_type="default",
            description="Key, plate, well, site and treatment of the selected fields, in this order: "
            "for hcs-ray fields --keys",
        )  # fmt: skip
        self.before.on_click(lambda _: self._turn(-1))
        self.after.on_click(lambda _: self._turn(1))
        session.on("selection", self._selected)
        session.on("current", self._follow)
        self._show()

    def panel(self) -> pn.viewable.Viewable:
        """Everything, for the page."""
        return pn.Column(
            Browse(self._session).panel(),
            pn.Row(self.before, self.after, self.title, self.download, sizing_mode="stretch_width"),
            pn.Column(self.gallery, scroll="y-auto", sizing_mode="stretch_both", min_height=220),
            sizing_mode="stretch_both",
        )

    async def _csv(self) -> io.BytesIO:
        """Written on a thread: a selection may be the whole screen."""
        explorer, rows = self._session.explorer, self._session.selection.rows
        loop = asyncio.get_running_loop()
        return io.BytesIO(await loop.run_in_executor(explorer.pool, keys_csv, explorer.fields, rows))

    def _selected(self) -> None:
        self._page = 0
        self._show()

    def _turn(self, by: int) -> None:
        last = max(0, (len(self._session.shown) - 1) // PAGE)
        self._page = min(max(self._page + by, 0), last)
        self._show()

    def _follow(self) -> None:
        """Turn to the page of the field that is looked at, where it is among those shown."""
        rows = self._session.shown
        if self._session.current is None or self._session.current in self._rows():
            return
        for place in (rows == self._session.current).nonzero()[0][:1]:
            self._page = int(place) // PAGE
            self._show()

    def _rows(self) -> Rows:
        return self._session.shown[self._page * PAGE : (self._page + 1) * PAGE]

    def _show(self) -> None:
        session, rows = self._session, self._rows()
        self.gallery.param.update(
            items=items(session.explorer, rows),
            labels=label_marks(session.explorer, rows),
            current=session.current,
        )
        count = len(session.shown)
        first, last = self._page * PAGE + 1, min((self._page + 1) * PAGE, count)
        order = ", the most unusual first" if "outlier_rank" in session.explorer.fields else ""
        what = (
            f"{count:,} selected: {session.selection.title}"
            if session.selection
            else f"all {count:,} fields{order}"
        )
        self.title.text = f"{first:,} to {last:,} of {what}" if count else what
        self.download.disabled = not session.selection
        self.before.disabled, self.after.disabled = self._page == 0, last >= count


class Browse:
    """Chooses fields by what is known of them: two lists, of which the first says what the second lists."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._ways: dict[str, Callable[[], dict[str, Callable[[], Rows]]]] = {
            "Outliers, by rank": self._outliers,
            "Misclassified": self._mistakes,
            "Treatment": lambda: self._by(c.TREATMENT),
            "Mechanism of action": lambda: self._by(c.MOA),
            "Plate": lambda: self._by(c.PLATE),
            "Label": self._labels,
        }
        self.way = pn.widgets.Select(name="Browse", options=list(self._ways), width=165)
        self.which = pn.widgets.Select(
            name="Of these", options=[], min_width=150, sizing_mode="stretch_width"
        )
        self.show = pn.widgets.Button(name="Show", margin=(22, 5, 5, 5), button_type="primary")
        self._found: dict[str, Callable[[], Rows]] = {}
        self.way.param.watch(lambda _: self._list(), "value")
        self.show.on_click(lambda _: self._choose())
        session.on("labels", lambda: self._list() if self.way.value == "Label" else None)
        self._list()

    def panel(self) -> pn.viewable.Viewable:
        """Everything, for the page."""
        return pn.Row(self.way, self.which, self.show, sizing_mode="stretch_width")

    def _list(self) -> None:
        self._found = self._ways[self.way.value]()
        missing = self._session.explorer.scene.missing
        stage = {"Outliers, by rank": "outliers", "Misclassified": "embed"}.get(self.way.value, "")
        names = list(self._found) or [missing.get(stage, "none")]
        before = _uncounted(str(self.which.value))
        same = [name for name in names if _uncounted(name) == before]
        self.which.param.update(options=names, value=(same or names)[0])
        self.which.disabled = self.show.disabled = not self._found

    def _choose(self) -> None:
        make = self._found.get(self.which.value)
        if make is not None:
            self._session.select(make(), f"{self.way.value}: {self.which.value}")
            if self._session.selection:
                self._session.go(int(self._session.selection.rows[0]))

    def _by(self, column: str) -> dict[str, Callable[[], Rows]]:
        fields = self._session.explorer.fields
        names = fields[column].dropna().astype(str)
        counts = names.value_counts().sort_index()

        def of(name: str) -> Callable[[], Rows]:
            return lambda: rows_where(fields[column].astype(object).eq(name))

        return {f"{name} ({count:,})": of(str(name)) for name, count in counts.items()}

    def _outliers(self) -> dict[str, Callable[[], Rows]]:
        fields = self._session.explorer.fields
        if "outlier_rank" not in fields:
            return {}
        reasons = fields["outlier_reason"]

        def of(reason: str) -> Callable[[], Rows]:
            return lambda: by_rank(fields, rows_where(reasons.eq(reason)))

        named = {f"{reason} ({count:,})": of(str(reason)) for reason, count in reasons.value_counts().items()}
        ranked = rows_where(fields["outlier_rank"].notna())
        return {f"all ({len(ranked):,})": lambda: by_rank(fields, ranked), **named}

    def _mistakes(self) -> dict[str, Callable[[], Rows]]:
        fields = self._session.explorer.fields

        def of(truth: str, read_as: str) -> Callable[[], Rows]:
            return lambda: misclassified(fields, truth, read_as)

        pairs = {
            f"{truth} read as {read_as} ({count:,})": of(truth, read_as)
            for truth, read_as, count in confusions(fields)
        }
        if not pairs:
            return {}
        every = misclassified(fields)
        return {f"all, the surest first ({len(every):,})": lambda: every, **pairs}

    def _labels(self) -> dict[str, Callable[[], Rows]]:
        labels = self._session.explorer.labels

        def those(mean: Callable[[Any], bool]) -> Callable[[], Rows]:
            def rows() -> Rows:
                wanted = {row for row, label in labels.by_row().items() if mean(label)}
                return rows_where([row in wanted for row in range(len(self._session.explorer.fields))])

            return rows

        def verdict_is(verdict: str) -> Callable[[Any], bool]:
            return lambda label: bool(label.verdict == verdict)

        def has_tag(tag: str) -> Callable[[Any], bool]:
            return lambda label: tag in label.tags

        found = {str(verdict): those(verdict_is(verdict)) for verdict in VERDICTS}
        found |= {f"tag {tag}": those(has_tag(tag)) for tag in labels.tags()}
        counted = {f"{name} ({len(rows()):,})": rows for name, rows in found.items()}
        return {_ANY_LABEL: those(lambda _: True), **counted} if labels.by_row() else {}


def _uncounted(name: str) -> str:
    """An entry of a list without its number of fields, which changes with every label."""
    return re.sub(r" \([\d,]+\)$", "", name)
