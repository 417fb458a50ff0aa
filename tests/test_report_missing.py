"""What was not run stands in the report as not run, with the command; what is stale is not shown."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

from hcs_ray.cli.app import app
from hcs_ray.contracts import InputError
from hcs_ray.pipeline import EXTRAS, STAGES
from hcs_ray.profiles.compare import compare
from hcs_ray.report import build
from hcs_ray.report.standing import stand
from hcs_ray.stage import COMMANDS, Claim, StaleStageError, read_record
from hcs_ray.study import Study, open_study
from tests.report_page import Page, copy_study, report_of
from tests.report_study import quiet

SHOWN = ("split", "train", "embed", "profile", "map", "outliers")


@pytest.fixture
def study(report_folder: Path, tmp_path: Path) -> Study:
    return copy_study(report_folder, tmp_path)


def forget(study: Study, *stages: str) -> None:
    """As if these stages had never been run."""
    for stage in stages:
        place = study.place(stage)
        Path(study.storage.url, place.record).unlink()


def commands(html: str) -> list[str]:
    """What the page says was not run."""
    return re.findall(r"not run: ([^\n]*)", Page(html).text)


def test_of_shards_alone_there_is_a_report_that_says_what_to_run(study: Study) -> None:
    forget(study, *SHOWN)
    html = report_of(study)
    page = Page(html)
    assert "52 fields of view were screened. This page" in page.text
    assert not [image for image in page.all("img") if "embedding" in image.get("alt", "")]
    assert set(commands(html)) == {
        "hcs-ray split . --name main",
        "hcs-ray run . --name main --to train",
        "hcs-ray run . --name main --to profile",
        "hcs-ray run . --name main --to map",
        "hcs-ray run . --name main --to outliers",
        "hcs-ray run . --name main --to embed, then hcs-ray profile . --name main --compare",
        "hcs-ray tune . tune_configs/leave_one_compound_out.yaml --name loco, then "
        "hcs-ray profile . --name main --folds loco",
        "hcs-ray tune . SWEEP.yaml --name NAME",
    }
    assert "hcs-ray run . --name main --to shard" in html, "how to make again what there is"
    record = read_record(study.storage, study.place("report"))
    assert record is not None
    assert set(record.inputs) == {"shards/_stage.json"}
    assert "Balanced accuracy" not in page.text


def test_every_command_that_the_page_names_is_one_of_ours(study: Study) -> None:
    forget(study, "map")
    standing = stand(study, study.claim("report"))
    assert set(standing.missing) == {"map", "outliers", "folds", "compare"}
    assert standing.missing["map"].commands == ("hcs-ray map . --name main",)
    for missing in standing.missing.values():
        for command in missing.commands:
            verb = command.split()[1]
            done = CliRunner().invoke(app, [verb, "--help"])
            assert done.exit_code == 0, command
            for option in re.findall(r"--[a-z]+", command):
                assert option in done.output, command


def test_a_stage_that_comes_later_is_shown_without_force(study: Study) -> None:
    about = Path(study.storage.url, "maps/main_stage.json")
    outliers = Path(study.storage.url, "outliers/main/_stage.json")
    kept = about.read_bytes(), outliers.read_bytes()
    forget(study, "map", "outliers")
    first = report_of(study)
    assert "not run: hcs-ray map . --name main" in Page(first).text
    about.write_bytes(kept[0])
    outliers.write_bytes(kept[1])
    second = report_of(open_study(study.storage.url))
    assert "not run: hcs-ray map" not in Page(second).text
    assert "Map of 52 fields coloured by batch" in second
    figures = {path.name for path in Path(study.storage.url, "reports/main/figures").iterdir()}
    assert "map-batch.svg" in figures
    record = read_record(study.storage, study.place("report"))
    assert record is not None
    assert set(record.inputs) == {study.place(stage).record for stage in ("shard", *SHOWN)}


def test_what_has_become_stale_is_not_shown(study: Study) -> None:
    html = report_of(study)
    assert "UMAP, cosine distance, 15 neighbours" in html
    changed = open_study(study.storage.url, overrides=["map.neighbors=7"])
    with pytest.raises(StaleStageError, match=r"maps/main_stage\.json is new or gone.*--force"):
        build.report(changed, quiet)
    figures = build.report(changed, quiet, force=True)
    assert figures["not shown"] == "map (stale), outliers (stale)"
    text = Page(changed.storage.read("reports/main/index.html").decode()).text
    assert "UMAP, cosine distance" not in text
    assert "Stale, so it is not shown (map main is stale: map.neighbors changed from 15 to 7)" in text
    assert "hcs-ray map . --name main --force" in text
    assert study.storage.url not in text
    left = {path.name for path in Path(study.storage.url, "reports/main/figures").iterdir()}
    assert not [name for name in left if name.startswith("map-")], "figures of what is not shown any more"


def test_a_report_needs_shards(study: Study) -> None:
    forget(study, "shard")
    with pytest.raises(InputError, match="shard main is not complete; run hcs-ray shard first"):
        build.report(study, quiet)


def test_the_report_follows_from_every_stage_and_from_nothing_after_it() -> None:
    spec = STAGES["report"]
    assert {*spec.inputs, *spec.shows} == {*STAGES, *EXTRAS} - {"report", "tune"}


def test_all_that_follows_is_told_in_the_order_of_the_pipeline(study: Study) -> None:
    assert study.downstream("shard") == [*SHOWN, "report"]
    assert study.downstream("profile") == ["report"]
    assert study.downstream("map") == ["outliers", "report"]
    assert study.downstream("folds") == ["report"]


# --- Normalisations and sweeps --------------------------------------------------------------------------


def test_normalisations_are_shown_where_they_were_compared(study: Study) -> None:
    compare(study, quiet)
    html = report_of(study)
    page = Page(html)
    document = json.loads(study.storage.read("profiles/main/comparison.json"))
    assert "not run: hcs-ray profile . --name main --compare" not in page.text
    assert f"Chosen by the rule: {document['chosen']}." in page.text
    assert document["rule"] in page.text
    for method in document["methods"]:
        assert f'<th scope="row">{method}' in html
    table = pd.read_csv(Path(study.storage.url, "reports/main/tables/normalisations.csv"))
    assert list(table["method"]) == list(pd.read_parquet(
        Path(study.storage.url, "profiles/main/comparison.parquet"))["method"])  # fmt: skip
    drawn = Path(study.storage.url, "reports/main/figures/normalisations.svg").read_bytes()
    assert drawn == study.storage.read("profiles/main/comparison.svg")


def add_sweep(study: Study, name: str, space: tuple[str, ...] = ("train.lr",)) -> None:
    """What `hcs-ray tune` leaves, as far as the report reads it."""
    other = replace(study, name=name)
    claim = study.claim("tune")
    sweep = {"objective": "train", "space": {key: {} for key in space}}
    claim = Claim(inputs=claim.inputs, config={**claim.config, "sweep": sweep})
    table = pd.DataFrame(
        {
            "rank": [1, 2], "trial": ["t1", "<i>t0"], "status": ["ended", "failed"], "score": [0.9, None],
            "epochs": [3, 0], "optimizer_steps": [9, 0], "error": [None, "<b>"],
        }
    ).assign(**dict.fromkeys(space, 0.001))  # fmt: skip
    summary = {"best": "t1", "metric": "validation_balanced_accuracy", "mode": "max", "trials": {}}
    with other.writing("tune", claim) as writer:
        writer.write_table("leaderboard.parquet", table)
        writer.write("sweep.json", json.dumps(summary).encode())
        writer.write("leaderboard.svg", b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")


def test_every_finished_sweep_has_its_leaderboard(study: Study) -> None:
    add_sweep(study, "first")
    add_sweep(study, "loco", ("split.leave_out",))
    html = report_of(study)
    page = Page(html)
    assert "first: 2 trials, the best t1" in page.text
    assert "is no estimate for new compounds" in page.text
    assert "Each trial left one compound out" in page.text
    assert "<i>t0" in page.text
    assert "<i>t0" not in html
    assert "not run: hcs-ray tune . SWEEP.yaml" not in page.text
    record = read_record(study.storage, study.place("report"))
    assert record is not None
    assert {"sweeps/first/_stage.json", "sweeps/loco/_stage.json"} <= set(record.inputs)
    assert "reports/main/tables/sweep-first.csv" in record.outputs
    forget(study, "split")  # which the sweeps had learned by
    assert study.sweeps() == {}


def test_a_run_with_a_sweeps_network_says_whose_it_is(study: Study) -> None:
    """Its own training was never run."""
    root = Path(study.storage.url)
    add_sweep(study, "main")
    summary = json.loads((root / "sweeps/main/sweep.json").read_text())
    assert summary["best"] == "t1"
    record = json.loads((root / "embeddings/main/_stage.json").read_text())
    digest = study.claim("embed").inputs[study.place("train").record]
    assert record["inputs"].pop("runs/main/_stage.json") == digest
    sweep = (root / "sweeps/main/_stage.json").read_bytes()
    record["inputs"]["sweeps/main/_stage.json"] = hashlib.sha256(sweep).hexdigest()
    record["config"]["run"] = "sweep:main/t1"
    (root / "embeddings/main/_stage.json").write_text(json.dumps(record))
    forget(study, "train", "profile", "map", "outliers")
    shutil.rmtree(root / "runs")
    text = Page(report_of(open_study(str(root)))).text
    assert "No network was trained in run main: it embeds that of sweep:main/t1" in text
    assert "The network of sweep:main/t1 turned every field into 6 numbers." in text
    assert "hcs-ray profile . --name main" in text


def test_the_names_of_commands_are_those_of_the_stages() -> None:
    assert set(COMMANDS) == set(EXTRAS)
