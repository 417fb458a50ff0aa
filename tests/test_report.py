"""The report tells the truth, harms nobody, asks nothing of a network, and opens in a browser."""

from __future__ import annotations

import base64
import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hcs_ray.pipeline import STAGES
from hcs_ray.profiles.build import read_evaluation
from hcs_ray.report import answers, build, fieldmap, outliers, pictures, replicates, scores, sections
from hcs_ray.report.material import Material
from hcs_ray.stage import read_record
from hcs_ray.study import Study, open_study
from tests.report_page import Page, context, copy_study, material_of, report_of
from tests.report_study import EVIL, EVIL_MOA, make_study, quiet


@pytest.fixture(scope="module")
def study(report_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Study:
    return copy_study(report_folder, tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def material(study: Study) -> Material:
    return material_of(study)


@pytest.fixture(scope="module")
def html(study: Study) -> str:
    return report_of(study)


# --- Fields that could not be read --------------------------------------------------------------------


def test_a_report_does_without_damaged_fields_and_says_so(tmp_path: Path) -> None:
    """The first field of every well is damaged, which `hcs-ray embed` was to leave out."""
    study = make_study(tmp_path, unreadable=slice(0, None, 2))
    build.report(study, quiet)
    text = Page(study.storage.read("reports/main/index.html").decode()).text
    assert "all fields but 26 that could not be read into 6 numbers" in text
    assert read_evaluation(study)["not_embedded"]["fields"] == 26
    material = material_of(study)
    assert material.outliers is not None
    assert material.embeddings is not None
    assert {len(material.fields), len(material.outliers["field"]), len(material.embeddings)} == {26}
    tables = dict(material.outliers)
    tables["well"] = tables["well"].assign(reason="mislabelled", evidence="near to another")
    drawn = pictures.FieldPictures(material.reader, material.index)
    levels = {level.level: level for level in outliers.suspects(tables, material.fields, drawn, 8)}
    assert len(levels["well"].cards) == 2, "a well's picture is of a field that can be read"


# --- The page as a whole -----------------------------------------------------------------------------


def test_every_section_is_there_and_every_picture_has_a_text(html: str) -> None:
    page = Page(html)
    sections = [attributes["id"] for attributes in page.all("section")]
    assert sections == [
        "answers", "screen", "quality", "training", "neighbours", "confusion", "batches", "map", "outliers",
        "sweeps", "lineage", "files",
    ]  # fmt: skip
    here = {link["href"] for link in page.all("a") if link["href"].startswith("#")}
    assert here == {f"#{name}" for name in sections}
    images = [image for image in page.all("img") if "src" in image]
    assert len(images) >= 8 + 3 + 2 + 3 + 6  # thumbnails, a field a label, curves, by plate, maps
    assert all(image["alt"] for image in images)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "52 fields · 4 plates · 2 batches · 7 compounds · 6 labelled treatments" in page.text


def test_nothing_of_the_data_becomes_markup(html: str) -> None:
    page = Page(html)
    assert len(page.all("script")) == 2  # our own
    assert "document.title" not in html.split("<main>")[0]
    assert EVIL not in html
    assert EVIL in page.text
    assert EVIL_MOA in page.text
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert "Screen <1> & more" in page.text


def test_nothing_is_loaded_from_anywhere(html: str) -> None:
    page = Page(html)
    loads = [
        a[name]
        for tag, a in page.elements
        for name in ("src", "href", "xlink:href", "data", "action")
        if name in a and tag != "a"
    ]
    assert len(loads) > 50
    assert all(load.startswith(("data:image/", "#")) for load in loads)
    assert not page.all("link")
    assert "@import" not in html
    assert "url(" not in html
    policy = next(meta["content"] for meta in page.all("meta") if "http-equiv" in meta)
    assert policy.startswith("default-src 'none'; img-src data:;")
    for load in loads:
        if load.startswith("data:image/svg"):
            svg = base64.b64decode(load.split(",")[1]).decode()
            assert set(re.findall(r'href="(.)', svg)) <= {"#", "d"}  # a mark of its own, or pixels as data:


def test_the_bytes_follow_from_the_inputs(study: Study, html: str) -> None:
    code = (
        "import sys, hashlib; from hcs_ray.study import open_study; from hcs_ray.report import build\n"
        "study = open_study(sys.argv[1])\n"
        "page = build.context(study, study.claim('report'), lambda *_: None)\n"
        "digest = hashlib.sha256(build.render(page.values).encode())\n"
        "for path, data in page.annex: digest.update(path.encode() + data)\n"
        "print(digest.hexdigest())"
    )
    root = str(study.storage.url)
    environment = {**os.environ, "PYTHONHASHSEED": "7", "TZ": "Asia/Tokyo", "SOURCE_DATE_EPOCH": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, root], env=environment, capture_output=True, text=True, check=True
    )
    digest = hashlib.sha256(html.encode())
    record = read_record(study.storage, study.place("report"))
    assert record is not None
    files = list(build.context(study, study.claim("report"), quiet).annex)
    for path, data in files:
        assert study.storage.read(f"reports/main/{path}") == data
        digest.update(path.encode() + data)
    assert done.stdout.strip() == digest.hexdigest()
    assert set(record.outputs) == {f"reports/main/{path}" for path in ("index.html", *dict(files))}
    assert root not in html


def test_a_complete_report_is_left_alone(study: Study, html: str) -> None:
    again = build.report(open_study(study.storage.url), quiet)
    assert again["file"] == "reports/main/index.html"
    assert study.storage.read("reports/main/index.html").decode() == html
    assert len(html) < 2_000_000


def test_the_lineage_leads_to_raw_hashes(study: Study, html: str) -> None:
    for stage in list(STAGES)[: list(STAGES).index("report")]:
        record = study.storage.read(study.place(stage).record)
        assert f'title="{hashlib.sha256(record).hexdigest()}"' in html
    assert f'image.csv <span class="mono soft" title="{"0" * 64}"' in html
    assert study.keep_config() in html
    assert "hcs-ray run . --name main" in html


def test_a_run_without_test_compounds_and_without_outliers_has_its_report(
    study: Study, material: Material
) -> None:
    held_out = {
        "correct": 0,
        "total": 0,
        "accuracy": None,
        "interval": None,
        "compounds": 0,
        "null_correct": None,
    }
    nobody = {**held_out, "above_chance": False}
    evaluation = read_evaluation(study) | {"classification": None}
    for guard in ("nsc", "nscb"):
        evaluation[guard] = evaluation[guard] | {"held_out": nobody}
    assert material.outliers is not None
    ordinary = {level: table.assign(reason=None, evidence=None) for level, table in material.outliers.items()}
    drawn = pictures.FieldPictures(material.reader, material.index)
    page = context(study) | sections.answer_values(evaluation)
    page["suspects"] = outliers.suspects(ordinary, material.fields, drawn, 0)
    text = Page(build.render(page)).text
    assert "Nothing could be scored on held-out compounds" in text
    assert "Not scored: no labelled compound was held out." in text
    assert "No outlier with a reason was found." in text


def test_a_map_says_how_it_was_made_and_whether_it_was_told_labels(study: Study, material: Material) -> None:
    page = context(study)
    plain = Page(build.render(page)).text
    assert "UMAP, cosine distance, 15 neighbours, minimum distance 0.1, seed 42; all 52 fields" in plain
    assert "was told" not in plain
    told = {"supervised": "moa", "densmap": True, "fields": 9000, "landmarks": 52}
    assert material.map_about is not None
    page["map"] = fieldmap.field_map(material.fields, material.map_about.model_copy(update=told))
    html = build.render(page)
    text = Page(html).text
    assert "This map was told the mechanisms." in text
    assert "densMAP, supervised by MoA labels, cosine distance" in text
    assert "52 landmarks, sampled evenly over plates and treatments, laid out; 8,948 other" in text
    assert html.count("USES MoA LABELS") == 2, "on the large map, and where it is read aloud"
    assert all("uses moa labels" in picture.alt for picture in page["map"].small)


# --- Honest words -------------------------------------------------------------------------------------


def _tally(correct: int, total: int, high: float, above: bool) -> dict[str, Any]:
    null = {"mean": 1.0, "interval": [0.0, high], "p_value": 0.2, "permutations": 1000}
    return {
        "correct": correct, "total": total, "accuracy": correct / total, "interval": [0.1, 0.6],
        "compounds": 5, "null_correct": null, "above_chance": above, "leaked": 4,
    }  # fmt: skip


def _evaluation(above: bool) -> dict[str, Any]:
    tally = _tally(3, 12, 2 if above else 3, above)
    null = {"mean": 0.2, "interval": [0.0, 0.4], "p_value": 0.2, "permutations": 1000}
    treatment = {
        "balanced_accuracy": 0.3, "null_balanced_accuracy": null, "interval": None, "compounds": 1,
        "count": 2, "above_chance": False,
    }  # fmt: skip
    return {
        "nsc": {**tally, "held_out": tally}, "nscb": {**tally, "held_out": tally},
        "classification": {"treatment": treatment}, "same_batch_share": 0.7, "same_batch_expected": 0.3,
    }  # fmt: skip


def test_what_is_not_above_chance_is_called_so() -> None:
    found = answers.held_out_answers(_evaluation(above=False))
    assert {answer.verdict for answer in found} == {"not above chance"}
    assert all(answer.reading.startswith("Not above chance: ") for answer in found)
    assert all("does not lie above that range" in answer.reading for answer in found)
    assert answers.summary(found).startswith("Not above chance: ")


def test_what_is_above_chance_is_told_beside_what_is_not() -> None:
    found = answers.held_out_answers(_evaluation(above=True))
    assert [answer.verdict for answer in found] == ["above chance", "above chance", "not above chance"]
    assert found[0].chance == pytest.approx((0, 2 / 12))
    assert "2 of 3 figures are above chance (NSCB, held-out; NSC, held-out)" in answers.summary(found)
    assert "One compound alone gives no interval." in found[2].reading


def test_leaked_scores_are_marked(study: Study, html: str) -> None:
    evaluation = read_evaluation(study)
    assert evaluation["nscb"]["leaked"] == 4
    assert html.count("4 of 6 leaked") == 2
    listed = scores.queries(evaluation)
    assert [query.leaked for query in listed] == [False, False, True, True, True, True]


def test_verdicts_of_the_page_are_those_of_the_evaluation(
    study: Study, material: Material, html: str
) -> None:
    evaluation = read_evaluation(study)
    verdicts = [evaluation[guard]["held_out"]["above_chance"] for guard in ("nscb", "nsc")]
    verdicts.append(evaluation["classification"]["treatment"]["above_chance"])
    assert material.profiled is not None
    leaked = evaluation["track"]["leaked_compounds"]
    found = replicates.replicates(material.profiled.wells, study.config.profile, leaked)
    assert not isinstance(found, str)
    verdicts.append(found.held_out.verdict == "above chance")
    verdicts += [evaluation[guard]["above_chance"] for guard in ("nscb", "nsc")]
    verdicts.append(found.overall.verdict == "above chance")
    shown = re.findall(r'<span class="badge (?:above|below)">((?:not )?above chance)</span>', html)
    assert shown == ["above chance" if verdict else "not above chance" for verdict in verdicts]


@pytest.mark.parametrize(
    ("share", "expected", "words"),
    [
        (0.3, 0.29, "No sign that"),
        (0.4, 0.3, "mild batch effect"),
        (0.72, 0.29, "2.5 times chance: profiles group"),
    ],
)
def test_the_gauge_of_batch_leak_is_read_in_words(share: float, expected: float, words: str) -> None:
    gauge = answers.batch_gauge({"same_batch_share": share, "same_batch_expected": expected})
    assert gauge is not None
    assert words in gauge.reading
    assert answers.batch_gauge({"same_batch_share": None, "same_batch_expected": None}) is None


def test_scores_of_mechanisms_add_up_to_the_evaluation(study: Study) -> None:
    evaluation = read_evaluation(study)
    rows = scores.mechanisms(scores.queries(evaluation))
    assert sum(row.nscb_held_out.right for row in rows) == evaluation["nscb"]["held_out"]["correct"]
    assert sum(row.nsc_held_out.right for row in rows) == evaluation["nsc"]["held_out"]["correct"]
    assert sum(row.nscb_held_out.total for row in rows) == evaluation["nscb"]["held_out"]["total"]
    right = sum(row.nscb_held_out.right + row.nscb_leaked.right for row in rows)
    assert right == evaluation["nscb"]["correct"]
