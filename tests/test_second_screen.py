"""A screen that is not BBBC021 goes the whole way as its user takes it, from the tables that it came with.

Five channels on 384 wells, Harmony's file names, one plate of OME-TIFFs, JUMP's ``load_data.csv`` and plate
maps; what the tables say has to arrive in the index, and what the images say in the report.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml

from hcs_ray import contracts as c
from hcs_ray.pipeline import STAGES
from hcs_ray.shards.read import ShardReader
from hcs_ray.study import Study, open_study
from hcs_ray.tables import read_embeddings, read_index
from tests.command import hcs_ray

pytestmark = pytest.mark.timeout(300)

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
TRAINING = {
    "model": {"backbone": "tiny"},
    "train": {"epochs": 1, "global_batch": 16, "crop_px": 96, "lr": 3e-3, "workers": 1},
    "embed": {"workers": 1},
    "profile": {"resamples": 200},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The study, run once from generated images to the report."""
    folder = tmp_path_factory.mktemp("second") / "study"
    drawn = hcs_ray("generate", folder / "raw", "--size", "cellpainting")
    assert drawn.returncode == 0, drawn.stderr
    (folder / "raw/truth.parquet").rename(folder.parent / "truth.parquet")  # no stage may read it
    (folder / "study.yaml").write_text(drawn.stdout + yaml.safe_dump(TRAINING))
    done = hcs_ray("run", folder)
    assert done.returncode == 0, done.stderr
    (folder.parent / "terminal").write_text(done.stderr)
    return folder


@pytest.fixture(scope="module")
def study(folder: Path) -> Study:
    return open_study(str(folder))


@pytest.fixture(scope="module")
def truth(folder: Path) -> pd.DataFrame:
    """What was drawn, and what the tables say of it, by key."""
    return pd.read_parquet(folder.parent / "truth.parquet").set_index(c.KEY)


@pytest.fixture(scope="module")
def load_data(folder: Path) -> pd.DataFrame:
    """The screen's own table, by key."""
    table = pd.read_csv(folder / "raw/load_data.csv")
    keys = [
        c.field_key(plate, well, site)
        for plate, well, site in zip(table[c.PLATE], table[c.WELL], table[c.SITE], strict=True)
    ]
    return table.set_axis(pd.Index(keys))


def test_every_stage_leaves_a_record(study: Study) -> None:
    for stage in STAGES:
        if stage != "tune":
            record = study.require(stage)
            assert record.outputs
            assert not record.missing(study.storage, study.place(stage))


def test_the_index_says_of_every_field_what_the_tables_say(study: Study, truth: pd.DataFrame) -> None:
    index = read_index(study).set_index(c.KEY)
    assert list(index.index) == sorted(truth.index)
    told = truth.loc[index.index]
    for column in (c.BATCH, c.PLATE, c.WELL, c.SITE, c.COMPOUND):
        assert list(index[column]) == list(told[column]), column
    np.testing.assert_allclose(index[c.CONCENTRATION], told[c.CONCENTRATION], rtol=1e-12)  # mM became uM
    assert set(index.loc[index[c.PERT_TYPE] == c.NEGATIVE_CONTROL, c.COMPOUND]) == {"DMSO"}
    assert set(index.loc[index[c.PERT_TYPE] == c.POSITIVE_CONTROL, c.TREATMENT]) == {"taxol@0.3"}
    rightly = ~told["Mislabelled"] & index[c.MOA].notna()
    assert list(index.loc[rightly, c.MOA]) == list(told.loc[rightly, "True_MOA"])
    assert index.loc[told["Novel"], c.MOA].isna().all()


def test_further_metadata_columns_are_carried_through(study: Study, load_data: pd.DataFrame) -> None:
    index = read_index(study).set_index(c.KEY)
    fields, _ = read_embeddings(study)
    for table in (index, fields.set_index(c.KEY)):
        for column in ("Metadata_Passage", "Metadata_AbsTime"):
            assert list(table[column]) == list(load_data.loc[table.index, column])
    assert index["Metadata_Plate_Map_Name"].nunique() == 2


def test_pixels_are_those_of_the_named_files_in_the_tables_order(
    study: Study, folder: Path, load_data: pd.DataFrame
) -> None:
    reader = ShardReader(study.storage, study.require("shard"))
    assert tuple(reader.channels) == CHANNELS
    index = read_index(study)
    kinds = set()
    for row in index.groupby(c.PLATE).head(2).to_dict(orient="records"):
        named = load_data.loc[row[c.KEY]]
        paths = [Path(str(named[f"PathName_Orig{channel}"])) for channel in CHANNELS]
        images = [
            tifffile.imread(
                folder / "raw/images" / "/".join(path.parts[-3:]) / named[f"FileName_Orig{channel}"],
                key=int(named[f"Frame_Orig{channel}"]),
            )
            for path, channel in zip(paths, CHANNELS, strict=True)
        ]
        stored = reader.pixels(row[c.SHARD], int(row[c.OFFSET]), int(row[c.SIZE]), row[c.SHA256])
        np.testing.assert_array_equal(stored, np.stack(images))
        kinds.add(named["FileName_OrigDNA"].endswith(".ome.tiff"))
    assert kinds == {True, False}


def test_every_channel_has_its_quality_measures(study: Study) -> None:
    index = read_index(study)
    measures = [{name for name in map(str, index) if name.endswith(f"_{channel}")} for channel in CHANNELS]
    for channel, found in zip(CHANNELS, measures, strict=True):
        assert {f"QC_{name}_{channel}" for name in ("FocusScore", "Mean", "P01", "P99", "Saturated")} <= found
    assert all(index[f"QC_Mean_{name}"].gt(0).all() for name in CHANNELS)


def test_compounds_that_the_network_never_saw_are_scored(study: Study) -> None:
    evaluation: dict[str, Any] = json.loads(study.storage.read("profiles/main/evaluation.json"))
    for guard in ("nsc", "nscb"):
        held_out = evaluation[guard]["held_out"]
        assert held_out["total"] > 0, guard
        assert held_out["compounds"] == 3, "one of each mechanism"
        assert 0.0 <= held_out["accuracy"] <= 1.0
    treatment = evaluation["classification"]["treatment"]
    assert sorted(evaluation["classification"]["labels"])[:2] == ["Actin disruptors", "DMSO"]
    assert treatment["count"] > 0


def test_the_report_shows_five_channels_and_plates_of_384_wells(study: Study) -> None:
    html = study.storage.read("reports/main/index.html").decode()
    dots = re.findall(r'class="dot" style="background: (\w+)"></span>(\w+): \1</span>', html)
    legend = {name: colour for colour, name in dots}
    assert tuple(legend) == CHANNELS
    assert len(set(legend.values())) == len(CHANNELS)
    for channel in CHANNELS:
        assert f"{channel}: mean intensity" in html
        assert f"{channel}: focus" in html
    plates = sorted(read_index(study)[c.PLATE].unique())
    maps = re.findall(
        r'<svg viewBox="0 0 (\d+) (\d+)" role="img" aria-label="Plate (\w+)">(.*?)</svg>', html, re.S
    )
    assert {plate for *_, plate, _ in maps} == set(plates)
    assert {(width, height) for width, height, *_ in maps} == {(str(24 * 12 + 14), str(16 * 12 + 12))}
    assert all(">P</text>" in drawing and ">24</text>" in drawing for *_, drawing in maps)
    assert "2 batches" in html
    texts = re.sub(r"<(style|script).*?</\1>|<svg.*?</svg>|data:[^\"]*", "", html, flags=re.S)
    assert " week" not in texts.replace("in BBBC021 a week", "")


def test_a_second_run_finds_everything_complete(folder: Path) -> None:
    done = hcs_ray("run", folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("complete") == len(STAGES) - 1
