"""Figures and tables beside the page, and what makes the page readable by everybody."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hcs_ray.contracts import InputError
from hcs_ray.profiles.build import read_evaluation
from hcs_ray.report.annex import Annex, file_name
from hcs_ray.report.chart import Chart
from hcs_ray.stage import read_record
from hcs_ray.study import Study
from tests.report_page import Page, copy_study, report_of

STYLE = Path(__file__).resolve().parents[1] / "hcs_ray/report/templates/style.css"


@pytest.fixture(scope="module")
def study(report_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return copy_study(report_folder, tmp_path_factory.mktemp("files"))


@pytest.fixture(scope="module")
def page(study: Study) -> Page:
    return Page(report_of(study))


def test_every_link_leads_to_a_file_of_the_record(study: Study, page: Page) -> None:
    record = read_record(study.storage, study.place("report"))
    assert record is not None
    links = {link["href"] for link in page.all("a") if not link["href"].startswith("#")}
    assert links | {"index.html"} == {path.removeprefix("reports/main/") for path in record.outputs}
    for path in record.outputs:
        data = study.storage.read(path)
        if path.endswith(".png"):
            assert Image.open(io.BytesIO(data)).width > 300
        elif path.endswith(".svg"):
            assert data.startswith(b"<?xml")
        elif path.endswith(".csv"):
            assert len(pd.read_csv(io.BytesIO(data)))


def test_tables_hold_what_the_stages_found(study: Study, page: Page) -> None:
    def read(name: str) -> pd.DataFrame:
        return pd.read_csv(io.BytesIO(study.storage.read(f"reports/main/tables/{name}.csv")))

    evaluation = read_evaluation(study)
    rows = read("scores-by-mechanism").set_index("moa")
    for moa, found in evaluation["nscb"]["by_moa"].items():
        right = rows.loc[moa, ["nscb_held_out_right", "nscb_leaked_right"]].sum()
        total = rows.loc[moa, ["nscb_held_out_total", "nscb_leaked_total"]].sum()
        assert (right, total) == (found["correct"], found["total"])
    assert read("headline")["share"][1] == pytest.approx(evaluation["nsc"]["held_out"]["accuracy"])
    assert len(read("outliers-field")) == 52
    matrix = read("confusion-fields").set_index("true").to_numpy()
    assert matrix.sum() == evaluation["classification"]["field"]["count"]


def test_every_head_of_a_table_says_what_it_is_the_head_of(page: Page) -> None:
    heads = page.all("th")
    assert len(heads) > 50
    assert all(head.get("scope") in ("row", "col", "colgroup") for head in heads)
    drawings = [found for found in page.all("svg") if found.get("aria-hidden") != "true"]
    assert all(found.get("role") == "img" and found.get("aria-label") for found in drawings)
    scrolled = [found for found in page.all("div") if "wide" in found.get("class", "").split()]
    assert all(found.get("tabindex") == "0" and found.get("aria-label") for found in scrolled)


# --- Colours that everybody can read --------------------------------------------------------------------

# Text on what lies behind it.
PAIRS = [
    ("ink", "paper"), ("ink", "page"), ("soft", "paper"), ("soft", "page"), ("accent", "paper"),
    ("accent", "page"), ("ink", "accent-paper"), ("good", "good-paper"), ("warn", "warn-paper"),
    ("quiet", "quiet-paper"), ("soft", "accent-paper"), ("head-ink", "head"), ("head-soft", "head"),
]  # fmt: skip


def colours() -> dict[str, tuple[str, str]]:
    """Each variable of the style, light and dark."""
    text = STYLE.read_text()
    found = re.findall(r"--([a-z-]+): (?:light-dark\((#\w{6}), (#\w{6})\)|(#\w{6}));", text)
    return {name: (light or both, dark or both) for name, light, dark, both in found}


def luminance(colour: str) -> float:
    """Relative luminance as WCAG 2 has it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_contrast_is_that_of_black_and_white_at_most() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.01)


@pytest.mark.parametrize(("ink", "paper"), PAIRS)
def test_text_stands_out_in_the_light_and_in_the_dark(ink: str, paper: str) -> None:
    known = colours()
    for number, mode in enumerate(("light", "dark")):
        found = contrast(known[ink][number], known[paper][number])
        assert found >= 4.5, f"{ink} on {paper}, {mode}: {found:.2f}"


def test_marks_stand_out_from_what_they_lie_on() -> None:
    known = colours()
    for number in (0, 1):
        assert contrast(known["mark"][number], known["paper"][number]) >= 3


# --- Names of files -------------------------------------------------------------------------------------


@given(st.lists(st.text(min_size=1, max_size=8), min_size=2, max_size=2, unique=True))
def test_other_names_have_other_files(words: list[str]) -> None:
    names = [file_name("sweep", word) for word in words]
    assert all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in names)
    if words[0].replace(" ", "-") != words[1].replace(" ", "-"):
        assert names[0] != names[1]


def test_two_files_of_one_name_are_refused() -> None:
    annex = Annex()
    annex.chart(Chart("loss", "Loss", b"<svg/>"))
    assert dict(annex) == {"figures/loss.svg": b"<svg/>"}
    with pytest.raises(InputError, match=r"two files figures/loss\.svg"):
        annex.chart(Chart("loss", "Loss", b"<svg/>"))
