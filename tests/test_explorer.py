"""The explorer as its user meets it: a process, and a real browser."""

from __future__ import annotations

import asyncio
import io
import re
import shutil
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.explore import fields as field_data
from hcs_ray.explore.scene import Scene, open_scene
from hcs_ray.explore.server import explore
from hcs_ray.labels import Decision, LabelLog, read_labels
from hcs_ray.profiles.build import profile
from hcs_ray.stage import read_record
from hcs_ray.study import open_study
from tests.command import hcs_ray, refused
from tests.explorer_server import Running, Visit, chromium, explorer
from tests.report_study import EVIL, EVIL_MOA, make_study, quiet

pytestmark = [pytest.mark.browser, pytest.mark.timeout(300)]
TITLE = "Screen <1> & more: main"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("drawn")
    make_study(root)
    return root


@pytest.fixture(scope="module")
def scene(drawn: Path) -> Scene:
    return open_scene(open_study(str(drawn)))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def looking(drawn: Path) -> Iterator[Running]:
    """A server for those tests that give no labels."""
    with explorer(drawn, "--user", "ada") as running:
        yield running


@pytest.fixture(scope="module")
def unfinished(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study to label, without its last stages, and with a file that Finder has left."""
    root = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("unfinished") / "study"))
    for stage in ("maps", "outliers"):
        shutil.rmtree(root / stage)
    (root / "labels/events").mkdir(parents=True)
    (root / "labels/events/.DS_Store").write_text("Bud1")
    return root


@pytest.fixture(scope="module")
def ada(unfinished: Path) -> Iterator[Running]:
    with explorer(unfinished, "--user", "ada") as running:
        yield running


@pytest.fixture(scope="module")
def bo(unfinished: Path) -> Iterator[Running]:
    """A second server of the same study, open to all of this machine."""
    with explorer(unfinished, "--user", "bo", "--no-token") as running:
        yield running


def _around(scene: Scene, rows: np.ndarray[Any, Any]) -> list[tuple[float, float]]:
    """A box around some points, as corners of a lasso."""
    places = scene.fields[["x", "y"]].to_numpy(float)[rows]
    (left, bottom), (right, top) = places.min(axis=0) - 0.1, places.max(axis=0) + 0.1
    return [(left, bottom), (right, bottom), (right, top), (left, top)]


def _inside(scene: Scene, corners: list[tuple[float, float]]) -> set[str]:
    (left, bottom), (right, top) = corners[0], corners[2]
    x, y = scene.fields["x"], scene.fields["y"]
    return set(scene.fields[c.KEY][(x > left) & (x < right) & (y > bottom) & (y < top)])


# --- Looking ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "height"), [(1600, 1000), (800, 1000)])
def test_a_lasso_selects_and_all_views_follow(
    browser: Any, looking: Running, scene: Scene, tmp_path: Path, width: int, height: int
) -> None:
    visit = Visit(browser, looking.url, width, height)
    page = visit.page
    assert page.title() == TITLE
    assert page.locator("h1").inner_text() == TITLE
    assert page.url == looking.address, "the token is gone from the address"
    assert len(visit.column("marks", "x")) == 52

    corners = _around(scene, np.flatnonzero(scene.fields[c.PLATE] == "Week1_10001")[:9])
    expected = _inside(scene, corners)
    assert 2 < len(expected) < 50
    visit.lasso(corners)
    page.get_by_text(f"of {len(expected)} selected: lasso on the map").wait_for()
    assert set(visit.keys()) == expected
    visit.until("() => Bokeh.documents[0].get_model_by_name('wells').data.width.some((one) => one > 1)")
    wells = dict(zip(visit.column("wells", "well"), visit.column("wells", "count"), strict=True))
    plate = page.locator("#plate select").first.input_value()
    chosen = scene.fields[scene.fields[c.KEY].isin(expected) & (scene.fields[c.PLATE] == plate)]
    assert {well: n for well, n in wells.items() if n} == chosen[c.WELL].value_counts().to_dict()
    faded = np.array(visit.column("marks", "alpha")) < 0.5
    assert faded.sum() == 52 - len(expected)
    assert set(visit.column("doses", "treatment")) <= set(scene.fields[c.TREATMENT])
    page.screenshot(path=tmp_path / f"explorer-selected-{width}.png", full_page=True)

    wells_at = list(zip(visit.column("wells", "well"), visit.column("wells", "x"), strict=True))
    visit.click("plate figure", wells_at[3][1], 2)  # row B
    page.get_by_text(f"of 2 selected: well {wells_at[3][0]} of {plate}").wait_for()
    of_well = (scene.fields[c.PLATE] == plate) & (scene.fields[c.WELL] == wells_at[3][0])
    assert set(visit.keys()) == set(scene.fields[c.KEY][of_well])

    visit.until("() => Bokeh.documents[0].get_model_by_name('doses').data.x.length")
    dose, mean = visit.column("doses", "x")[0], visit.column("doses", "mean")[0]
    treatment = visit.column("doses", "treatment")[0]
    visit.click("dose figure", dose, mean)
    page.get_by_text(f"selected: treatment {treatment}").wait_for()
    assert set(visit.keys()) == set(scene.fields[c.KEY][scene.fields[c.TREATMENT] == treatment])

    visit.cards.nth(1).click()
    visit.until("() => Bokeh.documents[0].get_model_by_name('ring').data.x.length")
    row = scene.row_of(visit.keys()[1])
    assert visit.column("ring", "x")[0] == pytest.approx(scene.fields["x"][row])

    _looks_whole(page)
    assert not visit.faint()
    assert all(url.startswith((looking.address, "ws://127.0.0.1:", "blob:", "data:")) for url in visit.asked)
    assert not visit.complaints
    visit.leave()


def _looks_whole(page: Any) -> None:
    """Nothing lies over another part or beyond the window, and all pictures are there."""
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = page.evaluate(
        """[...document.querySelectorAll('header, section')].map((one) => {
          const { left, top, right, bottom } = one.getBoundingClientRect();
          return [left, top, right, bottom, one.scrollWidth <= one.clientWidth + 1];
        })"""
    )
    assert len(boxes) == 5
    for number, (left, top, right, bottom, fits) in enumerate(boxes):
        assert fits, f"part {number} is cut off at its side"
        for other in boxes[number + 1 :]:
            apart = right <= other[0] or other[2] <= left or bottom <= other[1] or other[3] <= top
            assert apart, f"part {number} lies over another"


def test_the_field_view_shows_true_pixels_and_contrast_changes_them(
    browser: Any, looking: Running, scene: Scene, tmp_path: Path
) -> None:
    visit = Visit(browser, looking.url)
    page = visit.page
    first = visit.keys()[0]
    visit.cards.first.dblclick()
    canvas = page.locator(".stage canvas")
    visit.until(_SHOWN)
    page.get_by_role("heading", name="Neighbours in embedding space").wait_for()
    row = scene.row_of(first)
    assert f"/{row}.png" in f"/{canvas.get_attribute('data-shown')}"

    planes = field_data.planes(scene, row, False)
    assert planes.dtype == np.float32
    low, high = field_data.percentile_limits(planes)[0]
    limits = page.locator("#side input[type=text], #side input[type=number]")
    values = [one.input_value() for one in limits.all()]
    assert f"{low:.0f}" in values
    assert f"{high:.0f}" in values

    bright = _mean(canvas)
    field = limits.nth(values.index(f"{low:.0f}"))
    before = canvas.get_attribute("data-shown")
    field.fill("60000")
    field.press("Enter")
    visit.until(_CHANGED, before)
    blue = _mean(canvas)
    assert blue[2] < bright[2] * 0.8, "nothing of the first channel is above its low limit any more"
    assert blue[0] == pytest.approx(bright[0], rel=0.15)
    assert not page.get_by_label("Contrast by percentiles of each field").is_checked()
    field.fill("")
    field.press("Enter")
    visit.until(_LIMIT_IS_BACK, "60000")

    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2 + 3, box["y"] + box["height"] / 2 + 2)
    told = page.locator(".stage .value")
    visit.until(_TOLD)
    x, y, *values_told = (
        int(number.replace(",", "")) for number in re.findall(r"[\d,]*\d", told.inner_text())
    )
    assert values_told == [int(value) for value in planes[:, y, x]], "the camera's 16 bits"

    before = canvas.get_attribute("data-shown")
    page.get_by_label("Channels side by side").check()
    visit.until(_CHANGED, before)
    before = canvas.get_attribute("data-shown")
    page.get_by_label("Illumination corrected").check()
    visit.until(_CHANGED, before)
    assert f"/{row}.png" in canvas.get_attribute("data-shown")
    page.screenshot(path=tmp_path / "explorer-field.png")
    assert not visit.faint()
    assert page.get_by_text("no reason: ordinary").count() + page.get_by_text("Evidence").count() > 0
    neighbours = [str(scene.fields[c.KEY][one]) for one in scene.neighbours(row)]
    assert visit.keys("Neighbours in embedding space") == neighbours

    page.keyboard.press("ArrowRight")  # the box that was checked last has the focus
    following = scene.row_of(visit.keys()[1])
    visit.until(_SHOWS, f"/{following}.png")
    wells = zip(visit.column("wells", "well"), visit.column("wells", "x"), strict=True)
    elsewhere = next(x for well, x in wells if well != scene.fields[c.WELL][following])
    visit.click("plate figure", elsewhere, 2)  # row B
    page.get_by_text("Choose a field").wait_for()
    visit.until(_EMPTY)
    assert max(_mean(canvas)) < 1, "the picture of a field that is no longer looked at"
    assert visit.keys("Same well") == []
    assert not visit.complaints
    visit.leave()


_FIND = """
const all = (root) => [...root.querySelectorAll('*')].flatMap(
  (one) => [one, ...(one.shadowRoot ? all(one.shadowRoot) : [])]);
const stage = all(document).find((one) => one.className.startsWith?.('stage'));
const shown = stage?.querySelector('canvas').dataset.shown;
const value = stage?.querySelector('.value').textContent;
"""
_SHOWN = f"() => {{ {_FIND} return shown; }}"
_CHANGED = f"(before) => {{ {_FIND} return shown !== before; }}"
_SHOWS = f"(address) => {{ {_FIND} return shown?.includes(address); }}"
_EMPTY = f"() => {{ {_FIND} return stage && !shown; }}"
_TYPED = "all(document).filter((one) => one.tagName === 'INPUT').map((one) => one.value)"
_LIMIT_IS_BACK = f"(limit) => {{ {_FIND} return {_TYPED}.includes(limit); }}"
_TOLD = f"() => {{ {_FIND} return value.startsWith('x '); }}"


def _mean(canvas: Any) -> list[float]:
    """The mean colour of what a canvas shows."""
    pixels = np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB"), float)
    return [float(value) for value in pixels.mean(axis=(0, 1))]


def test_nothing_of_the_data_becomes_markup(browser: Any, looking: Running, scene: Scene) -> None:
    visit = Visit(browser, looking.url)
    page = visit.page
    side = page.locator("#side")
    side.get_by_label("Browse").select_option("Treatment")
    option = f"{EVIL}@0.3 (4)"
    side.get_by_label("Of these").select_option(option)
    side.get_by_role("button", name="Show").click()
    page.get_by_text(f"selected: Treatment: {option}").wait_for()
    assert page.locator(".cards button .line", has_text=EVIL).count() == 4
    page.locator("#dose").get_by_text(EVIL).wait_for()
    page.locator("#map").get_by_label("Colour").select_option("Compound")
    page.locator("#map .colours").get_by_text(EVIL).wait_for()
    row = scene.row_of(visit.keys()[0])
    visit.page.locator("#map .colours button", has_text=EVIL).click()
    page.get_by_text(f"selected: {EVIL}").wait_for()
    [place] = visit.on_screen("map figure", [(scene.fields["x"][row], scene.fields["y"][row])])
    page.mouse.move(*place)
    page.get_by_text(f"{EVIL}@0.3").first.wait_for()
    assert not visit.faint()
    page.keyboard.press("f")
    visit.until(_SHOWN)
    page.locator("#side").get_by_text(EVIL).first.wait_for()
    page.locator("#map").get_by_label("Colour").select_option("Mechanism of action")
    page.locator("#map .colours").get_by_text(EVIL_MOA).wait_for()
    assert page.title() == TITLE
    assert page.evaluate("document.images.length") == 0
    assert not visit.complaints
    visit.leave()


def test_what_was_not_run_is_said(browser: Any, ada: Running) -> None:
    assert {"map: not run: hcs-ray map", "outliers: not run: hcs-ray outliers"} <= set(ada.lines)
    context = browser.new_context()
    page = context.new_page()
    page.goto(ada.url)
    page.locator(".cards button").first.wait_for()
    assert page.locator(".missing").all_inner_texts() == [
        "map not run: hcs-ray map", "outliers not run: hcs-ray outliers",
    ]  # fmt: skip
    page.get_by_text("No map. not run: hcs-ray map").wait_for()
    [line] = [line for line in ada.lines if line.startswith("labels: ")]
    assert line.endswith("/.DS_Store: not a label's file; move it elsewhere")
    page.get_by_text(line.removeprefix("labels: ")).wait_for()
    context.close()


# --- Labelling -------------------------------------------------------------------------------------------


def test_two_people_label_at_once_and_see_each_other(browser: Any, ada: Running, bo: Running) -> None:
    visits = [Visit(browser, ada.url, has_map=False), Visit(browser, bo.url, has_map=False)]
    keys = visits[0].keys()
    for number in range(6):
        for visit, key in zip(visits, "gb", strict=True):
            if number == 0 and key == "b":
                for _ in range(6):
                    visit.page.keyboard.down("ArrowRight")  # held: it repeats
                visit.page.keyboard.up("ArrowRight")
            visit.page.keyboard.press("ArrowRight")
            visit.page.keyboard.press(key)
    for visit in visits:
        for key in keys[:6]:
            visit.page.locator(f"[data-key='{key}'][data-verdict=good]").first.wait_for()
        for key in keys[6:12]:
            visit.page.locator(f"[data-key='{key}'][data-verdict=bad]").first.wait_for()
    visits[0].page.keyboard.press("Shift+U")
    visits[0].page.get_by_text("Nothing is selected").first.wait_for()
    assert not visits[0].faint()
    for visit in visits:
        assert not visit.complaints
        visit.leave()
    decisions = _decisions(ada.root)
    assert len(decisions) == 12
    assert {decision.user for decision in decisions} == {"ada", "bo"}


def _decisions(root: str) -> list[Decision]:
    log = LabelLog(open_study(root).storage)
    log.refresh()
    return log.decisions


def test_a_label_by_keyboard_survives_a_restart_and_reaches_the_profiles(
    browser: Any, ada: Running, tmp_path: Path
) -> None:
    """The last test of this server, which it stops."""
    visit = Visit(browser, ada.url, has_map=False)
    page, keyboard = visit.page, visit.page.keyboard
    page.get_by_label("Browse").select_option("Plate")
    page.get_by_label("Of these").select_option("Week2_20002 (12)")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("of 12 selected: Plate").wait_for()
    selected = visit.keys()
    first, second = selected[:2]
    page.locator(f"[data-key='{first}'][aria-current=true]").wait_for()
    page.get_by_role("button", name="Selection (12)").click()
    keyboard.press("ArrowRight")
    for _ in range(3):
        keyboard.down("b")  # held, it still decides once, and about this field
    keyboard.up("b")
    page.locator(f"[data-key='{second}'][data-verdict=bad]").first.wait_for()
    page.get_by_role("button", name="This field").click()
    keyboard.press("ArrowLeft")
    keyboard.press("g")
    page.locator(f"[data-key='{first}'][data-verdict=good]").first.wait_for()
    keyboard.press("z")
    page.get_by_text("Taken back: good").wait_for()
    tag = page.get_by_placeholder("tag, as in debris")
    tag.fill("dust")
    page.get_by_role("button", name="Add tag").click()
    page.get_by_text("tag dust: ").wait_for()
    page.get_by_role("button", name="Remove tag").click()
    page.get_by_text("without tag dust: ").wait_for()
    tag.fill("debris")
    tag.press("Enter")
    page.get_by_text("tag debris: ").wait_for()
    page.locator(f"[data-key='{first}']").first.click()
    keyboard.press("Shift+U")
    page.get_by_text("unsure: 12 fields").wait_for()
    keyboard.press("z")
    page.get_by_text("Taken back: unsure, 12 fields").wait_for()
    with page.expect_download() as download:
        page.get_by_text("Selected keys as CSV", exact=True).click()
    assert list(pd.read_csv(download.value.path())["key"]) == selected
    written = hcs_ray("fields", ada.root, "--keys", download.value.path(), "--out", tmp_path)
    assert written.returncode == 0, written.stderr
    assert {file.name.removesuffix(".ome.tiff") for file in tmp_path.iterdir()} == set(selected)
    assert not visit.complaints
    visit.leave()
    ada.stop()
    labelled = read_labels(open_study(ada.root).storage).set_index("key")
    with explorer(ada.root, "--user", "ada") as again:
        visit = Visit(browser, again.url, has_map=False)
        with visit.page.expect_download() as download:
            visit.page.get_by_text("Labels as CSV").click()
        assert list(pd.read_csv(download.value.path())["key"]) == list(labelled.index)
        visit.page.get_by_label("Browse").select_option("Label")
        visit.page.get_by_label("Of these").select_option("tag debris (1)")
        visit.page.get_by_role("button", name="Show").click()
        visit.page.get_by_text("of 1 selected: Label").wait_for()
        assert visit.keys() == [first]
        visit.leave()
    decisions = _decisions(ada.root)
    assert [set(one.keys) for one in decisions if one.verdict == "unsure"] == [set(selected)], "one decision"
    assert [one.keys for one in decisions if (one.user, one.verdict) == ("ada", "bad")] == [(second,)]
    assert list(labelled.loc[[first, second], "verdict"]) == [None, "bad"]
    assert labelled.loc[first, "tags"] == ["debris"]
    assert set(labelled.loc[[first, second], "user"]) == {"ada"}
    study = open_study(ada.root, overrides=["labels.exclude=[bad]"])
    bad = set(labelled.index[labelled["verdict"] == "bad"])
    assert study.claim("train").config["labels"]["fields"] == len(bad), "a training would leave them out"
    profile(study, quiet, force=True)
    record = read_record(study.storage, study.place("profile"))
    assert record is not None
    left_out = record.read(study.storage, "profiles/main/labels.json").decode()
    assert all(key in left_out for key in bad)


# --- The door --------------------------------------------------------------------------------------------


_OF_PANEL = "components/panel.template.vanilla/VanillaTemplate/_css/vanilla.css"


def _status(url: str, cookie: str = "", host: str = "") -> tuple[int, str]:
    asked = {"Cookie": cookie, "Host": host}
    request = urllib.request.Request(url, headers={name: said for name, said in asked.items() if said})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.read().decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")


def test_without_the_token_there_is_nothing_to_see(looking: Running) -> None:
    address, port = looking.address, looking.port
    wrong = f"hcs_ray_{port}={'x' * len(looking.token)}"
    for path in (
        "",
        "?token=wrong",
        "thumb/0.jpg",
        "field/0.png?d=",
        "values/0.json?x=1&y=1",
        "metadata",
        "autoload.js?bokeh-autoload-element=p1",
        _OF_PANEL,
    ):
        for cookie in ("", wrong):
            status, text = _status(address + path, cookie)
            assert status in (401, 403), path
            assert "Screen" not in text
    status, text = _status(f"{address}?token=wrong")
    assert text.count("\n") == 1
    assert "hcs-ray explore printed" in text
    right = f"hcs_ray_{port}={looking.token}"
    assert _status(f"{address}thumb/0.jpg", right)[0] == 200
    assert _status(f"{address}thumb/52.jpg", right)[0] == 404
    assert _status(address + _OF_PANEL, right)[0] == 200
    assert _status(f"{address}field/0.png?d=%7B%7D", right)[0] == 404
    assert [line for line in looking.lines if looking.token in line] == [looking.url]


def _socket_status(running: Running, cookie: str, origin: str) -> int:
    """What the websocket's handshake is answered with."""
    from tornado.httpclient import HTTPClientError, HTTPRequest
    from tornado.websocket import websocket_connect

    async def status() -> int:
        headers = {"Origin": origin, **({"Cookie": cookie} if cookie else {})}
        request = HTTPRequest(f"ws://127.0.0.1:{running.port}/ws", headers=headers)
        try:
            connection = await websocket_connect(request, subprotocols=["bokeh", "x.y"])
        except HTTPClientError as error:
            return int(error.code)
        connection.close()
        return 101

    with ThreadPoolExecutor(1) as pool:  # Playwright has a loop of its own in this thread
        return pool.submit(asyncio.run, status()).result()


def test_the_websocket_asks_for_the_token_and_the_right_origin(looking: Running) -> None:
    name = f"hcs_ray_{looking.port}"
    ours, right = f"http://127.0.0.1:{looking.port}", f"{name}={looking.token}"
    assert _socket_status(looking, "", ours) == 403
    assert _socket_status(looking, f"{name}=wrong", ours) == 403
    assert _socket_status(looking, right, "http://elsewhere.example") == 403
    assert _socket_status(looking, right, ours) == 101


def test_without_a_token_pages_of_elsewhere_are_still_refused(bo: Running) -> None:
    assert "Anybody with an account on this machine can open it and label as bo." in bo.lines
    assert bo.url == bo.address
    assert _status(bo.url)[0] == 200
    assert _status(f"{bo.url}thumb/0.jpg")[0] == 200
    assert _socket_status(bo, "", f"http://127.0.0.1:{bo.port}") == 101
    assert _socket_status(bo, "", "http://elsewhere.example") == 403
    for path in ("", "thumb/0.jpg", "metadata"):
        status, text = _status(bo.url + path, host=f"elsewhere.example:{bo.port}")
        assert status == 403, path
        assert text.count("\n") == 1
    with pytest.raises(InputError, match=r"--no-token with --address 0\.0\.0\.0: only on"):
        explore(open_study(bo.root), "0.0.0.0", 0, "bo", print, with_token=False)


def test_what_cannot_be_served_is_said_before_any_server_starts(tmp_path: Path, looking: Running) -> None:
    assert "no such file" in refused("explore", tmp_path / "nothing")
    (tmp_path / "study.yaml").write_text("{}")
    assert "run hcs-ray shard first" in refused("explore", tmp_path)
    assert "cannot be had" in refused("explore", looking.root, "--port", looking.port)
    with pytest.raises(InputError, match="--port 70000"):
        explore(open_study(looking.root), "127.0.0.1", 70000, "ada", print)
