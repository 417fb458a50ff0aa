"""Two runs side by side, and the fields that labels have left out of one of them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest

from hcs_ray.contracts import InputError
from hcs_ray.labels import decide
from hcs_ray.outliers.find import read_outliers
from hcs_ray.profiles.build import read_evaluation
from hcs_ray.report import before, build
from hcs_ray.stage import StaleStageError, read_record
from hcs_ray.study import Study, open_study
from hcs_ray.tables import read_index
from tests.report_page import Page, copy_study, report_of
from tests.report_study import add_run, quiet

EXCLUDE = "labels.exclude=[bad, tag:debris]"
USER = "Ana <b>"


@pytest.fixture(scope="module")
def main(report_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return copy_study(report_folder, tmp_path_factory.mktemp("two-runs"))


@pytest.fixture(scope="module")
def cleaned(main: Study) -> Study:
    """A run that leaves out two fields which two people did not like, and one that is there no more."""
    keys = list(read_index(main, ["key"])["key"])
    decide(main.storage, USER, keys[:1], verdict="bad")
    decide(main.storage, "Bo", [*keys[5:6], "Week9_99999_B02_s1"], verdict="bad", add_tags=["debris"])
    return add_run(Path(main.storage.url), "cleaned", EXCLUDE)


@pytest.fixture(scope="module")
def html(cleaned: Study) -> str:
    return report_of(open_study(cleaned.storage.url, "cleaned", [EXCLUDE, "report.before=main"]))


def test_both_runs_stand_side_by_side_with_their_own_figures(main: Study, cleaned: Study, html: str) -> None:
    text = Page(html).text
    assert "Before and after: run main and run cleaned" in text
    table = pd.read_csv(Path(main.storage.url, "reports/cleaned/tables/before-after.csv"))
    for name, study in (("main", main), ("cleaned", cleaned)):
        evaluation = read_evaluation(study)
        expected = [evaluation[guard]["held_out"]["accuracy"] for guard in ("nscb", "nsc")]
        expected.append(evaluation["classification"]["treatment"]["balanced_accuracy"])
        expected += [evaluation[guard]["accuracy"] for guard in ("nscb", "nsc")]
        assert table[f"share {name}"].tolist() == pytest.approx(expected)
    section = html[html.index('<section id="before">') : html.index('<section id="screen">')]
    assert section.count("4 of 6 leaked") == 4, "in both runs, of both guards"
    for level, found in read_outliers(cleaned).items():
        cell = r'</th><td class="number">\d+</td><td class="number">(\d+)'
        rows = re.findall(rf'">(\w+) {level}s{cell}', section)
        assert {name: int(count) for name, count in rows if int(count)} == (
            found["reason"].value_counts().to_dict()
        )


def test_the_other_runs_records_are_inputs(main: Study, html: str) -> None:
    record = read_record(main.storage, main.other("cleaned").place("report"))
    assert record is not None
    assert {"profiles/main/_stage.json", "outliers/main/_stage.json"} <= set(record.inputs)
    assert record.config["report"].keys() == {"title", "thumbnails"}
    assert "outliers of main" in Page(html).text, "in the lineage"


def test_what_labels_left_out_is_told_by_label_and_by_whom(main: Study, html: str) -> None:
    text = Page(html).text
    assert "Fields that people have left out" in text
    row = re.search(r"profile, outliers</th>.*", html) or re.search(r"train, profile, outliers</th>.*", html)
    assert row is not None
    assert "bad, tag:debris" in row[0]
    assert '<td class="number">2</td>' in row[0]
    assert "2 label bad, 1 tag debris" in row[0]
    assert "1 Ana &lt;b&gt;, 1 Bo" in row[0]
    listed = pd.read_csv(Path(main.storage.url, "reports/cleaned/tables/left-out.csv"))
    assert set(listed["key"]) <= set(read_index(main, ["key"])["key"])
    assert set(listed["user"]) == {USER, "Bo"}
    assert "With and without excluded fields" in text
    plain = report_of(main)
    assert "Fields that people have left out" not in plain


def test_a_run_is_not_compared_with_itself_nor_with_one_that_is_not_there(main: Study) -> None:
    itself = open_study(main.storage.url, "main", ["report.before=main"])
    assert "Before and after" not in Page(report_of(itself)).text
    with pytest.raises(InputError, match=r"report\.before mian: .* has no profile of that run"):
        build.report(open_study(main.storage.url, "main", ["report.before=mian"]), quiet)


def test_a_run_that_has_become_stale_is_not_shown(cleaned: Study, html: str, tmp_path: Path) -> None:
    study = copy_study(Path(cleaned.storage.url), tmp_path)
    path = tmp_path / "embeddings/main/_stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    again = open_study(str(tmp_path), "cleaned", [EXCLUDE, "report.before=main"])
    with pytest.raises(StaleStageError, match="profiles/main/_stage"):
        build.report(again, quiet)
    build.report(again, quiet, force=True)
    text = Page(study.storage.read("reports/cleaned/index.html").decode()).text
    assert "Run main is stale, so it is not shown (embeddings/main/_stage.json changed)" in text
    assert "hcs-ray run . --name main --to outliers --force" in text


def test_stale_outliers_of_the_other_run_are_not_compared(cleaned: Study, html: str, tmp_path: Path) -> None:
    assert "outliers of main" in Page(html).text
    study = copy_study(Path(cleaned.storage.url), tmp_path)
    path = tmp_path / "maps/main_stage.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=2))
    again = open_study(str(tmp_path), "cleaned", [EXCLUDE, "report.before=main"])
    build.report(again, quiet, force=True)
    page = study.storage.read("reports/cleaned/index.html").decode()
    section = page[page.index('<section id="before">') : page.index('<section id="screen">')]
    assert "outliers of main" not in Page(page).text
    assert "Outliers were not looked for in both runs, or are stale in one" in section


def test_a_difference_says_what_it_is_worth(main: Study) -> None:
    evaluation = read_evaluation(main)
    same = before.side_by_side(before.Run("a", evaluation, None), before.Run("b", evaluation, None))
    assert {figure.change for figure in same.figures} <= {"+0 points; the intervals overlap", "–"}
    assert same.outliers == ()
    fewer = json.loads(json.dumps(evaluation))
    fewer["nscb"]["held_out"]["total"] -= 1
    other = before.side_by_side(before.Run("a", evaluation, None), before.Run("b", fewer, None))
    assert other.figures[0].change.endswith("of other treatments")
