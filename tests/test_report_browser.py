"""The report in Chromium: from disk, in the dark, on paper, in a narrow window, and of a study half run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hcs_ray.study import Study
from tests.report_page import copy_study, report_of

pytestmark = pytest.mark.browser
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
DARK = "rgb(18, 22, 28)"  # of the page


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=chromium, args=QUIET)
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def study(report_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    study = copy_study(report_folder, tmp_path_factory.mktemp("whole"))
    report_of(study)
    return study


@pytest.fixture(scope="module")
def begun(report_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    """Of which shards and split alone are there."""
    study = copy_study(report_folder, tmp_path_factory.mktemp("begun"))
    for stage in ("train", "embed", "profile", "map", "outliers"):
        Path(study.storage.url, study.place(stage).record).unlink()
    report_of(study)
    return study


class Visit:
    """A page of a study, and what it asked for and complained of."""

    def __init__(self, browser: Any, study: Study, width: int, scheme: str) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(
            offline=True, viewport={"width": width, "height": 900}, color_scheme=scheme
        )
        self.page = self.context.new_page()
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(f"file://{Path(study.storage.url).resolve()}/reports/main/index.html")

    @property
    def fits(self) -> bool:
        """Nothing is cut off at the side."""
        return bool(self.page.evaluate("document.documentElement.scrollWidth <= innerWidth"))

    def style(self, selector: str, name: str) -> str:
        """What the browser makes of a style."""
        return str(self.page.eval_on_selector(selector, f"found => getComputedStyle(found)['{name}']"))

    def close(self) -> None:
        """All was well."""
        self.context.close()
        assert not self.complaints
        assert all(url.startswith(("file://", "data:")) for url in self.asked)
        assert len([url for url in self.asked if url.startswith("file://")]) == 1


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (400, "dark")])
def test_the_report_opens_from_disk_without_a_network(
    browser: Any, study: Study, tmp_path: Path, width: int, scheme: str
) -> None:
    visit = Visit(browser, study, width, scheme)
    page = visit.page
    assert page.title() == "Screen <1> & more: main"
    assert page.locator("section h2").all_inner_texts()[:2] == ["In short", "The screen"]
    assert page.evaluate("[...document.images].every(i => !i.src || (i.complete && i.naturalWidth > 0))")
    assert visit.fits
    for details in page.locator("details").all():
        details.evaluate("found => { found.open = true; }")
    assert visit.fits
    assert (visit.style("body", "backgroundColor") == DARK) == (scheme == "dark")

    distance = page.locator("#neighbours table").nth(1).locator("th[scope=col]").nth(4)
    distance.get_by_role("button").click()
    assert distance.get_attribute("aria-sort") == "ascending"
    cells = page.locator("#neighbours table").nth(1).locator("tbody tr > :nth-child(5)").all_inner_texts()
    assert [float(cell) for cell in cells] == sorted(float(cell) for cell in cells)
    page.locator(".zoom").first.click()
    assert page.locator("dialog img").is_visible()
    page.keyboard.press("Escape")
    page.locator(".keys button").nth(2).click()
    assert page.locator(".map use.pick").count() == 12  # three compounds, two plates, two sites
    page.screenshot(path=tmp_path / f"report-{width}-{scheme}.png", full_page=True)
    visit.close()


def test_the_switch_turns_the_light_out_and_is_remembered(browser: Any, study: Study) -> None:
    visit = Visit(browser, study, 1400, "light")
    page = visit.page
    switch = page.locator(".theme")
    assert switch.inner_text() == "Dark colours"
    switch.focus()
    page.keyboard.press("Enter")
    assert visit.style("body", "backgroundColor") == DARK
    assert visit.style(".chart img", "backgroundColor") == "rgb(255, 255, 255)", "charts keep a light card"
    visit.asked.clear()
    page.reload()
    assert visit.style("body", "backgroundColor") == DARK
    assert switch.inner_text() == "Light colours"
    switch.click()
    assert visit.style("body", "backgroundColor") != DARK
    visit.close()


def test_what_is_not_remembered_can_be_read_all_the_same(browser: Any, study: Study) -> None:
    visit = Visit(browser, study, 1400, "light")
    visit.page.add_init_script(
        "Object.defineProperty(window, 'localStorage', { get() { throw new Error('no storage'); } })"
    )
    visit.asked.clear()
    visit.page.reload()
    visit.page.locator(".theme").click()
    assert visit.style("body", "backgroundColor") == DARK
    visit.close()


def test_paper_is_light_and_has_no_switches(browser: Any, study: Study, tmp_path: Path) -> None:
    visit = Visit(browser, study, 794, "dark")
    page = visit.page
    page.locator(".theme").click()  # chosen light, then dark
    page.locator(".theme").click()
    page.emulate_media(media="print")
    assert visit.style("body", "backgroundColor") == "rgb(255, 255, 255)"
    assert visit.style("h2", "color") == "rgb(29, 35, 43)"
    assert visit.fits
    for hidden in ("nav", ".theme", ".files", "#files"):
        assert not page.locator(hidden).first.is_visible(), hidden
    page.pdf(path=tmp_path / "report.pdf", format="A4")
    assert (tmp_path / "report.pdf").stat().st_size > 20_000
    visit.close()


def test_the_keyboard_reaches_everything(browser: Any, study: Study) -> None:
    visit = Visit(browser, study, 1400, "light")
    page = visit.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    assert page.locator(".skip").bounding_box()["x"] >= 0, "shown as it has the focus"
    page.keyboard.press("Tab")
    assert visit.style(":focus", "outlineStyle") == "solid"
    unreachable = page.evaluate(
        "[...document.querySelectorAll('.zoom, .keys button, th button, summary')]"
        ".filter(found => found.tabIndex < 0).length"
    )
    assert unreachable == 0
    visit.close()


@pytest.mark.parametrize(("width", "scheme"), [(1400, "dark"), (400, "light")])
def test_of_a_study_half_run_the_rest_says_how_to_run_it(
    browser: Any, begun: Study, tmp_path: Path, width: int, scheme: str
) -> None:
    visit = Visit(browser, begun, width, scheme)
    text = visit.page.locator("main").inner_text()
    assert "not run: hcs-ray train . --name main" in text
    assert "not run: hcs-ray run . --name main --to map" in text
    assert visit.page.locator("#map svg, #outliers img, #confusion table").count() == 0
    assert visit.page.locator("#screen .zoom").count() == 3
    assert visit.fits
    visit.page.screenshot(path=tmp_path / f"begun-{width}-{scheme}.png", full_page=True)
    visit.close()
