"""The parts of the explorer that need no browser: what is selected, how it is coloured and drawn."""

from __future__ import annotations

import csv
import io
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bokeh.document import Document
from bokeh.server.callbacks import NextTickCallback
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.explore.background import Background
from hcs_ray.explore.colouring import NOT_KNOWN, category_colouring, number_colouring, toned_styles
from hcs_ray.explore.colourings import Colourings
from hcs_ray.explore.drawing import Drawing, parse_drawing
from hcs_ray.explore.fields import ChannelView
from hcs_ray.explore.scene import open_scene
from hcs_ray.explore.selecting import (
    Selection,
    by_rank,
    confusions,
    inside,
    keys_csv,
    misclassified,
    nearest,
)
from hcs_ray.explore.server import _hosts
from hcs_ray.explore.session import Session
from hcs_ray.explore.shading import Window, shade
from hcs_ray.explore.shared import open_explorer
from hcs_ray.explore.views.field import FieldView
from hcs_ray.explore.views.gallery import Browse
from hcs_ray.explore.views.map import MapView
from hcs_ray.palette import QUIET_COLOUR
from hcs_ray.study import open_study
from hcs_ray.tables import read_index
from tests.stored_fields import flip

NUMBERS = st.floats(-5, 5, allow_nan=False)


def selection(*rows: int) -> Selection:
    return Selection(np.array(rows, np.int64), "some")


# --- Selecting -------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30), NUMBERS, NUMBERS, NUMBERS, NUMBERS)
def test_a_box_and_the_lasso_along_it_hold_the_same(
    points: list[tuple[float, float]], x0: float, y0: float, x1: float, y1: float
) -> None:
    places = np.array([*points, (np.nan, 0.0)])
    box = inside(places, {"type": "rect", "x0": x0, "y0": y0, "x1": x1, "y1": y1})
    lasso = inside(places, {"type": "poly", "x": [x0, x1, x1, x0], "y": [y0, y0, y1, y1]})
    low, high = (min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1))
    naive = [i for i, (x, y) in enumerate(points) if low[0] <= x <= high[0] and low[1] <= y <= high[1]]
    assert box.tolist() == naive
    assert set(lasso) <= set(box)
    edge = {i for i in naive if points[i][0] in (low[0], high[0]) or points[i][1] in (low[1], high[1])}
    assert set(box) - edge - set(lasso) == set() or np.ptp([x0, x1]) * np.ptp([y0, y1]) < 1e-9


def test_a_lasso_that_is_no_area_holds_nothing() -> None:
    places = np.zeros((3, 2))
    assert len(inside(places, {"type": "poly", "x": [0, 1], "y": [0, 1]})) == 0
    assert len(inside(places, {"type": "poly", "x": [0, np.nan, 1, 1], "y": [0, 0, 0, np.nan]})) == 0


def test_selections_are_replaced_enlarged_and_reduced() -> None:
    one, two = selection(3, 1), selection(1, 2)
    assert one.combined(two, "new").rows.tolist() == [1, 2]
    assert one.combined(two, "add").rows.tolist() == [3, 1, 2]
    assert one.combined(two, "remove").rows.tolist() == [3]
    assert not Selection()


def test_a_selection_leaves_in_the_order_in_which_it_is_shown() -> None:
    fields = pd.DataFrame(
        {
            c.KEY: ["p_B02_s1", "p_B03_s1"],
            c.PLATE: "p", c.WELL: ["B02", "B03"], c.SITE: 1,
            c.TREATMENT: ["x, y@1", '"z"@2'], c.MOA: None,
        }
    )  # fmt: skip
    told = list(csv.reader(io.StringIO(keys_csv(fields, selection(1, 0).rows).decode())))
    assert told == [
        ["key", "plate", "well", "site", "treatment"],
        ["p_B03_s1", "p", "B03", "1", '"z"@2'],
        ["p_B02_s1", "p", "B02", "1", "x, y@1"],
    ]


def test_the_nearest_point_is_that_within_reach() -> None:
    places = np.array([[0.0, 0.0], [1.0, 0.0], [np.nan, np.nan]])
    assert nearest(places, 0.6, 0, (0.5, 0.5)) == 1
    assert nearest(places, 0.5, 2, (0.6, 1.0)) is None
    assert nearest(places[2:], 0, 0, (9, 9)) is None


def test_mistakes_are_listed_surest_first_and_outliers_by_rank() -> None:
    fields = pd.DataFrame(
        {
            c.MOA: ["A", "A", "B", None, None],
            c.COMPOUND: ["a", "a", "b", "DMSO", "x"],
            c.PERT_TYPE: ["trt", "trt", "trt", "negcon", "trt"],
            "predicted_moa": ["B", "B", "B", "A", "A"],
            "probability": [0.4, 0.9, 0.8, 0.7, 0.9],
            "is_right": pd.array([False, False, True, False, pd.NA], dtype="boolean"),
            "outlier_rank": pd.array([3, 1, pd.NA, 2, 4], dtype="Int64"),
        }
    )
    assert misclassified(fields).tolist() == [1, 3, 0]
    assert misclassified(fields, "A", "B").tolist() == [1, 0]
    assert confusions(fields) == [("A", "B", 2), ("DMSO", "A", 1)]
    assert by_rank(fields).tolist() == [1, 3, 0, 4, 2]
    assert misclassified(fields.drop(columns="is_right")).tolist() == []


# --- Colours ---------------------------------------------------------------------------------------------


def _fields(moas: list[str | None]) -> pd.DataFrame:
    return pd.DataFrame({c.MOA: moas, c.PERT_TYPE: "trt", c.COMPOUND: [f"c{i}" for i in range(len(moas))]})


def test_categories_have_styles_of_their_own_until_they_run_out() -> None:
    styles = toned_styles([f"name {i}" for i in range(24)])
    assert len({(style.colour, style.mark) for style in styles.values()}) == 24
    assert len({style.colour for style in styles.values()}) == 24, "told apart by colour alone in an image"
    many = category_colouring(c.COMPOUND, "Compound", _fields([None] * 60))
    assert [entry.name for entry in many.entries if entry.style.colour == QUIET_COLOUR] == ["35 others"]
    assert sum(entry.fields for entry in many.entries) == 60


def test_what_is_not_known_is_grey() -> None:
    moas = category_colouring(c.MOA, "Mechanism", _fields(["Week10", "Week2", None]))
    assert [entry.name for entry in moas.entries] == ["no label", "Week2", "Week10"]
    assert moas.colours(np.array([2])) == [QUIET_COLOUR]
    numbers = number_colouring("v", "v", pd.Series([1.0, 2.0, None]))
    assert numbers.colours(np.array([2])) == [QUIET_COLOUR]
    assert numbers.words(np.array([0, 2])) == ["1", NOT_KNOWN]
    empty = number_colouring("v", "v", pd.Series([None, None], dtype=object))
    assert empty.colours(np.array([0, 1])) == [QUIET_COLOUR] * 2


@pytest.mark.parametrize("kind", ["category", "number"])
def test_the_shaded_map_has_every_point_at_its_place(kind: str) -> None:
    places = np.array([[0.5, 0.5], [9.5, 0.5], [0.5, 9.5], [np.nan, np.nan]])
    colouring = (
        category_colouring(c.MOA, "m", _fields(["A", "B", None, "A"]))
        if kind == "category"
        else number_colouring("v", "v", pd.Series([1.0, 2.0, np.nan, 1.0]))
    )
    window = Window((0, 10), (0, 10), 100, 100)
    image = shade(places, colouring, None, window)
    alpha = image >> 24
    assert image.shape == (100, 100)
    assert all(alpha[y, x] > 100 for y, x in ((5, 5), (5, 95), (95, 5)))
    assert alpha[50, 50] == alpha[95, 95] == 0
    chosen = shade(places, colouring, np.array([True, False, False, False]), window) >> 24
    assert chosen[5, 5] >= alpha[5, 5]
    assert 0 < chosen[5, 95] < alpha[5, 95] * 0.4


# --- A field, asked for ------------------------------------------------------------------------------------


def test_a_drawing_is_read_as_it_was_asked_for() -> None:
    from urllib.parse import unquote

    views = (
        ChannelView("DAPI", "#0000ff", True, 100.0, 5000.0),
        ChannelView("Actin", "red", False, 0.0, 1.0),
    )
    drawing = Drawing(views, True, False)
    assert parse_drawing(unquote(drawing.query()), ["DAPI", "Actin"]) == drawing
    with pytest.raises(InputError, match="not a drawing"):
        parse_drawing(unquote(drawing.query()), ["DAPI"])


@settings(deadline=None, max_examples=60)
@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
            st.sampled_from(["views", "corrected", "side_by_side", "name", "colour", "shown", "low"]), inner
        ),
    )
)  # fmt: skip
def test_any_other_drawing_is_refused_in_a_line(document: Any) -> None:
    with pytest.raises(InputError):
        parse_drawing(json.dumps(document), ["DAPI"])


# --- Work beside the event loop ---------------------------------------------------------------------------


def _turn(document: Document) -> None:
    """What a server's event loop does with what threads have handed it."""
    for callback in list(document.session_callbacks):
        if isinstance(callback, NextTickCallback):  # others come again
            document.remove_next_tick_callback(callback)
        callback.callback()


def test_of_several_answers_only_the_newest_is_handed_over() -> None:
    document, said, got, go = Document(), list[str](), list[int](), Event()

    def slow() -> int:
        go.wait(10)
        return 1

    with ThreadPoolExecutor(2) as pool:
        background = Background(pool, document, said.append)
        background.run("map", slow, got.append)
        background.run("map", lambda: 2, got.append)
        background.run("plate", lambda: 3, got.append)
        go.set()
    _turn(document)
    assert (sorted(got), said) == ([2, 3], [])


def test_decisions_are_all_made_and_what_fails_says_so_in_a_line() -> None:
    document, said, made = Document(), list[str](), list[int]()

    def fail() -> int:
        raise InputError("the shard is gone")

    with ThreadPoolExecutor(1) as pool:
        background = Background(pool, document, said.append)
        for number in range(5):
            background.run_each(pool, "label", partial(made.append, number), lambda _: None)
        background.run_each(pool, "label", fail, made.append)
    _turn(document)
    assert made == [0, 1, 2, 3, 4], "in the order in which they were asked for"
    assert said == ["the shard is gone"]


# --- A session, without its browser ---------------------------------------------------------------------


@pytest.fixture
def opened(report_folder: Path, tmp_path: Path) -> Iterator[Session]:
    """A session of a study of its own, whose third field is damaged."""
    root = shutil.copytree(report_folder, tmp_path / "study")
    study = open_study(str(root))
    damaged = read_index(study).iloc[2]
    flip(root / "shards" / str(damaged[c.SHARD]), int(damaged[c.OFFSET]) + int(damaged[c.SIZE]) // 2)
    explorer = open_explorer(open_scene(study), "ada")
    yield Session(explorer, Document())
    explorer.close()


def _wait(session: Session, done: Callable[[], bool]) -> None:
    """Let the event loop turn until something is there."""
    for _ in range(600):
        _turn(session._document)
        if done():
            return
        time.sleep(0.05)
    raise AssertionError(session.said)


def test_the_arrows_go_on_from_where_they_were(opened: Session) -> None:
    opened.select(selection(4, 6, 8, 10).rows, "some")
    opened.step(1)
    assert opened.current == 4, "the first"
    opened.step(1)
    opened.step(1)
    opened.go(30)  # a neighbour, which is not selected
    opened.step(1)
    assert opened.current == 10
    opened.step(1)
    assert opened.current == 10, "the last"
    opened.go(31)
    opened.step(-1)
    assert opened.current == 8
    opened.select(selection(20, 21).rows, "others")
    opened.step(1)
    assert opened.current == 20, "the first of what was selected since"


def test_the_map_waits_for_the_lock_of_its_document(opened: Session) -> None:
    """Bokeh refuses a change without it, and a click's other views would hear nothing of the click."""
    scene = opened.explorer.scene
    view = MapView(opened, Colourings(scene, opened.explorer.labels))
    opened.go(3)
    ring = view.figure.select_one({"name": "ring"}).data
    assert ring == {"x": [], "y": []}
    _turn(opened._document)
    assert view.figure.select_one({"name": "ring"}).data["x"] == [scene.fields["x"][3]]


def test_a_list_of_labels_keeps_what_was_chosen_of_it(opened: Session) -> None:
    browse = Browse(opened)
    labels, keys = opened.explorer.labels, opened.explorer.scene.keys
    labels.decide("ada", [keys[0]], "good")
    browse.way.value = "Label"
    assert browse.which.value == "any label"
    browse.which.value = "good (1)"
    labels.decide("ada", [keys[1]], "good")
    _turn(opened._document)
    assert browse.which.value == "good (2)"
    browse.way.value = "Plate"
    assert browse.which.value == browse.which.options[0]


def test_the_field_view_shows_nothing_of_the_field_before(opened: Session) -> None:
    view, scene = FieldView(opened), opened.explorer.scene
    view.show(True)
    opened.go(0)
    _wait(opened, lambda: view.viewer.src.startswith("field/0.png"))
    same_well = view.strips["Same well"]
    assert [item["row"] for item in same_well.items] == scene.same_well(0)

    opened.go(1)
    assert opened.explorer.names[1] == view.facts.text == view.viewer.alt
    assert (view.viewer.src, view.viewer.values, same_well.items) == ("", "", None), "it is still being read"
    _wait(opened, lambda: view.viewer.src.startswith("field/1.png"))

    opened.go(2)
    assert view.viewer.src == ""
    _wait(opened, lambda: view.viewer.src.startswith("thumb/2.jpg"))
    assert view.viewer.values == ""
    assert [item["row"] for item in same_well.items] == scene.same_well(2)
    assert view.facts.facts[0][0] == "Cannot be read"
    assert str(scene.fields[c.SHARD][2]) in view.facts.facts[0][1]
    view.apart.value = view.apart.options
    assert view.viewer.src.startswith("thumb/2.jpg")

    opened.go(1)
    opened.select(selection(20, 21).rows, "others")
    opened.explorer.pool.shutdown()
    _turn(opened._document)  # the first was read, but is no longer asked for
    assert (view.viewer.src, same_well.items, view.facts.facts) == ("", [], [])
    assert view.facts.text.startswith("Choose a field")


def test_a_limit_that_is_cleared_takes_its_last_number_back(opened: Session) -> None:
    view = FieldView(opened)
    view.show(True)
    opened.go(0)
    _wait(opened, lambda: view.viewer.src != "")
    before, one = view.viewer.src, view.channels[0]
    for box in (one.low, one.high, view.low, view.high):
        kept = box.value
        box.value = None
        assert box.value == kept
    assert view.percentile.value, "nobody has set a limit"
    assert view.viewer.src == before
    one.low.value = 1234
    assert "1234" in view.viewer.src
    assert not view.percentile.value


# --- The server -------------------------------------------------------------------------------------------


def test_a_browser_may_ask_by_the_names_of_the_address_alone() -> None:
    assert _hosts("127.0.0.1") == ["127.0.0.1", "localhost"]
    assert _hosts("::1") == ["[::1]", "127.0.0.1", "localhost"]
    assert _hosts("192.168.7.7") == ["192.168.7.7"]
    assert "localhost" in _hosts("0.0.0.0")


def test_the_help_does_not_load_the_explorer() -> None:
    code = (
        "import sys; import hcs_ray.cli, hcs_ray.explore\n"
        "print([name for name in ('panel', 'bokeh', 'datashader', 'tornado') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
