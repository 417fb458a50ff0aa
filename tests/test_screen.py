"""The tables of a screen become one field table, or one line that says what is wrong with them."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from hcs_ray import contracts as c
from hcs_ray.config import Bbbc021Screen
from hcs_ray.contracts import InputError
from hcs_ray.screen.bbbc021 import join_tables, open_screen
from hcs_ray.screen.synthetic import SyntheticConfig, generate
from hcs_ray.storage import LocalStorage

IMAGE = "BBBC021_v1_image.csv"
TINY = {
    "weeks": 1,
    "moas": ["Microtubule stabilizers"],
    "compounds_per_moa": 2,
    "doses": 1,
    "active_doses": 1,
}


@pytest.fixture(scope="module")
def fields(shared: Path) -> pd.DataFrame:
    folder = shared / "data" / "bbbc021"
    image = gzip.decompress((folder / f"{IMAGE}.gz").read_bytes())
    moa, compound = ((folder / f"BBBC021_v1_{name}.csv").read_bytes() for name in ("moa", "compound"))
    return join_tables(image, moa, compound, Bbbc021Screen())


def test_the_real_tables_have_the_known_counts(fields: pd.DataFrame) -> None:
    labelled = fields[fields[c.MOA].notna()]
    assert len(fields) == 13_200
    assert fields[c.PLATE].nunique() == 55
    assert fields[c.BATCH].nunique() == 10
    assert fields[[c.PLATE, c.WELL]].drop_duplicates().shape[0] == 3_300
    assert labelled[c.TREATMENT].nunique() == 103
    assert labelled[c.COMPOUND].nunique() == 38
    assert labelled[c.MOA].nunique() == 12
    assert len(labelled) == 2_528
    assert (fields[c.COMPOUND] == "DMSO").sum() == 1_320
    assert fields[c.COMPOUND].nunique() == 113
    assert fields[c.KEY].is_unique
    assert fields[c.KEY].is_monotonic_increasing


def test_the_real_positive_controls_are_told_from_the_treatment_by_their_place(fields: pd.DataFrame) -> None:
    taxol = fields[fields[c.TREATMENT] == "taxol@0.3"]
    controls = taxol[taxol[c.PERT_TYPE] == c.POSITIVE_CONTROL]
    own = taxol[taxol[c.PERT_TYPE] == c.TREATED]
    assert sorted(controls[c.WELL].unique()) == ["B11", "C11", "D11", "E02", "F02", "G02"]
    assert len(controls) == 1_320
    assert set(own[c.WELL]) == {"D05"}
    assert set(own[c.BATCH]) == {"Week1"}
    assert own[[c.PLATE, c.WELL]].drop_duplicates().shape[0] == 3


def test_the_real_concentrations_join_as_decimals(fields: pd.DataFrame) -> None:
    assert fields.loc[fields[c.TREATMENT] == "5-fluorouracil@0.003", c.CONCENTRATION].unique() == [0.003]
    moa_of = fields.drop_duplicates(c.TREATMENT).set_index(c.TREATMENT)[c.MOA]
    assert moa_of["PP-2@3"] == "Epithelial"
    assert pd.isna(moa_of["5-fluorouracil@0.003"])


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One tiny raw screen, never changed by a test."""
    raw = tmp_path_factory.mktemp("screen") / "raw"
    small = {
        "active_doses": 1,
        "plates_per_week": 2,
        "replicates": 2,
        "height_px": 64,
        "width_px": 80,
        "sites": 1,
    }
    config = SyntheticConfig.model_validate({**TINY, **small, "novel_compounds": 0, "toxic_compounds": 0})
    generate(config, raw, workers=1)
    return raw


@pytest.fixture
def raw(drawn: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    import shutil

    return Path(shutil.copytree(drawn, tmp_path / "raw"))


def edit(raw: Path, change: Callable[[pd.DataFrame], pd.DataFrame], name: str = IMAGE) -> None:
    table = pd.read_csv(raw / name, dtype=str, keep_default_na=False)
    change(table).to_csv(raw / name, index=False)


def set_cell(column: str, value: str, row: int = 2) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = value
        return table

    return change


def open_raw(raw: Path) -> pd.DataFrame:
    return open_screen(Bbbc021Screen(), LocalStorage(raw.parent)).fields


def test_a_generated_screen_is_read_and_its_fingerprint_follows_its_files(raw: Path) -> None:
    study = LocalStorage(raw.parent)
    screen = open_screen(Bbbc021Screen(), study)
    assert screen.channels == ("DAPI", "Tubulin", "Actin")
    assert set(screen.fields[c.PERT_TYPE]) == {c.TREATED, c.NEGATIVE_CONTROL, c.POSITIVE_CONTROL}
    assert open_screen(Bbbc021Screen(), study).fingerprint == screen.fingerprint
    image = raw / screen.fields["FileName_OrigDAPI"].iloc[0]
    image.write_bytes(image.read_bytes() + b"more")
    assert open_screen(Bbbc021Screen(), study).fingerprint != screen.fingerprint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_cell("Image_Metadata_Concentration", "0,3"), "row 4: concentration '0,3' is not a number"),
        (set_cell("Image_Metadata_Concentration", "-1"), "row 4: concentration '-1'"),
        (set_cell("Image_Metadata_Concentration", "inf"), "row 4: concentration 'inf'"),
        (set_cell("Image_Metadata_Well_DAPI", "Z99"), "row 4: 'Z99' is not a well"),
        (set_cell("Image_Metadata_Compound", ""), "row 4: no compound"),
        (set_cell("Replicate", "one"), "row 4: Replicate 'one'"),
        (set_cell("Image_FileName_DAPI", "../x_s1_w1.tif"), "row 4: '../x_s1_w1.tif' is not a file name"),
        (set_cell("Image_FileName_Actin", "other_s3_w4.tif"), "row 4: the file names give no single site"),
        (set_cell("Image_PathName_DAPI", "Week9/Week9_1"), "row 4: the folder 'Week9/Week9_1' of DAPI"),
        (lambda table: pd.concat([table, table.iloc[[0]]]), "stands already in row 2"),
        (lambda table: table.drop(columns="Replicate"), "has no column Replicate"),
        (lambda table: table.iloc[:0], "has no rows"),
    ],
)
def test_a_bad_table_names_file_and_row(
    raw: Path, change: Callable[[pd.DataFrame], pd.DataFrame], words: str
) -> None:
    edit(raw, change)
    with pytest.raises(InputError) as caught:
        open_raw(raw)
    assert words in str(caught.value)
    assert IMAGE in str(caught.value)


def test_a_plate_without_a_folder_is_named(raw: Path) -> None:
    def rename(table: pd.DataFrame) -> pd.DataFrame:
        plate = table["Image_Metadata_Plate_DAPI"].iloc[0]
        for column in [str(name) for name in table if "Path" in str(name) or "Plate" in str(name)]:
            table[column] = table[column].str.replace(plate, "Week1_99999")
        return table

    edit(raw, rename)
    with pytest.raises(InputError, match="plate Week1_99999 has no folder"):
        open_raw(raw)


def test_a_missing_image_is_named(raw: Path) -> None:
    missing = next(raw.glob("Week*/*_w2*.tif"))
    missing.unlink()
    with pytest.raises(InputError, match=f"{missing.name} .Tubulin of .* is not there"):
        open_raw(raw)


def test_contradicting_moas_are_refused(raw: Path) -> None:
    def contradict(table: pd.DataFrame) -> pd.DataFrame:
        return pd.concat([table, table.iloc[[0]].assign(moa="Another")])

    edit(raw, contradict, "BBBC021_v1_moa.csv")
    with pytest.raises(InputError, match=r"_moa\.csv row .* Another here"):
        open_raw(raw)


def test_an_empty_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    with pytest.raises(InputError, match=f"{IMAGE}: no such file"):
        open_raw(tmp_path / "raw")
