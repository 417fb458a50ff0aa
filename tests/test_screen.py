"""The tables of a screen become one field table, or one line that says what is wrong with them."""

from __future__ import annotations

import gzip
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import tifffile
import xxhash

from hcs_ray import contracts as c
from hcs_ray.config import Bbbc021Screen
from hcs_ray.contracts import InputError
from hcs_ray.screen import BadImageError, Screen, file_column
from hcs_ray.screen.bbbc021_tables import CHANNELS, join_tables
from hcs_ray.screen.sources import open_screen
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
    return Path(shutil.copytree(drawn, tmp_path / "raw"))


def edit(raw: Path, change: Callable[[pd.DataFrame], pd.DataFrame], name: str = IMAGE) -> None:
    table = pd.read_csv(raw / name, dtype=str, keep_default_na=False)
    change(table).to_csv(raw / name, index=False)


def set_cell(column: str, value: str, row: int = 2) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = value
        return table

    return change


def rename_plate(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(table: pd.DataFrame) -> pd.DataFrame:
        columns = [str(column) for column in table if "Path" in str(column) or "Plate" in str(column)]
        table.loc[2, columns] = name
        return table

    return change


def rows_of(screen: Screen, plate: str | None = None) -> list[dict[str, Any]]:
    rows = [{str(name): value for name, value in row.items()} for row in screen.fields.to_dict("records")]
    return [row for row in rows if plate in (None, row[c.PLATE])]


def open_raw(raw: Path, **options: Any) -> Screen:
    return open_screen(Bbbc021Screen(**options), LocalStorage(raw.parent))


def test_a_generated_screen_is_read(raw: Path) -> None:
    screen = open_raw(raw)
    assert screen.channels == ("DAPI", "Tubulin", "Actin")
    assert set(screen.fields[c.PERT_TYPE]) == {c.TREATED, c.NEGATIVE_CONTROL, c.POSITIVE_CONTROL}
    assert screen.absent == {}
    assert screen.nuclear_channel == "DAPI"
    assert len(screen.tables) == 3
    row = rows_of(screen)[-1]
    read = screen.source.read(row)
    files = [raw / row[file_column(channel)] for channel in CHANNELS]
    np.testing.assert_array_equal(read.pixels, [tifffile.imread(file) for file in files])
    assert read.digests == tuple(xxhash.xxh3_128_hexdigest(file.read_bytes()) for file in files)


def test_a_screen_without_a_positive_control_has_treatments_instead(raw: Path) -> None:
    screen = open_raw(raw, positive_control=None)
    assert set(screen.fields[c.PERT_TYPE]) == {c.TREATED, c.NEGATIVE_CONTROL}


def test_a_plates_digest_follows_its_rows_and_its_images_and_no_other_plate(raw: Path) -> None:
    before = open_raw(raw).plates
    first, second = sorted(before)
    assert open_raw(raw).plates == before
    assert open_raw(raw, plates=(second,)).plates == {second: before[second]}
    image = next((raw / first).glob("*.tif"))
    image.write_bytes(image.read_bytes() + b"more")
    after = open_raw(raw).plates
    assert after[first] != before[first]
    assert after[second] == before[second]

    def rename(table: pd.DataFrame) -> pd.DataFrame:
        chosen = (table["Image_Metadata_Plate_DAPI"] == second) & (table["Image_Metadata_Compound"] == "DMSO")
        table.loc[chosen, "Replicate"] = "7"
        return table

    edit(raw, rename)
    assert open_raw(raw).plates[first] == after[first]
    assert open_raw(raw).plates[second] != before[second]


def test_chosen_plates_have_the_rows_that_they_have_among_all(raw: Path) -> None:
    whole = open_raw(raw).fields
    for plate in whole[c.PLATE].unique():
        part = open_raw(raw, plates=(plate,)).fields
        pd.testing.assert_frame_equal(part, whole[whole[c.PLATE] == plate].reset_index(drop=True))


def test_an_unknown_plate_is_named_with_the_nearest(raw: Path) -> None:
    plate = sorted(open_raw(raw).plates)[0]
    with pytest.raises(InputError, match=f"has no plate {plate}x; the nearest is {plate}"):
        open_raw(raw, plates=(f"{plate}x",))


def pack(raw: Path, plate: str, top: str = "", keep: bool = False) -> Path:
    """A plate's folder as its zip, as the public address has it."""
    path = raw / f"BBBC021_v1_images_{plate}.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for image in sorted((raw / plate).iterdir()):
            archive.write(image, f"{top}{plate}/{image.name}")
    if not keep:
        shutil.rmtree(raw / plate)
    return path


@pytest.mark.parametrize("top", ["", "Week1/"])
def test_a_plate_is_read_from_its_unopened_zip(raw: Path, top: str) -> None:
    unpacked = open_raw(raw)
    plate, other = sorted(unpacked.plates)
    pack(raw, plate, top)
    screen = open_raw(raw)
    assert screen.absent == {}
    assert screen.plates[plate] != unpacked.plates[plate]  # a zip lists its images' CRCs too
    assert screen.plates[other] == unpacked.plates[other]
    places = [file_column(channel) for channel in CHANNELS]
    pd.testing.assert_frame_equal(screen.fields.drop(columns=places), unpacked.fields.drop(columns=places))
    rows = screen.fields[screen.fields[c.PLATE] == plate]
    assert rows[places[0]].str.startswith(f"BBBC021_v1_images_{plate}.zip::{top}{plate}/").all()
    for row in rows_of(screen, plate):
        inside = screen.source.read(row)
        name = row[places[1]].rpartition("/")[2]
        assert inside.pixels.shape == (3, 64, 80)
        assert name.endswith(".tif")


def test_a_zip_and_its_folder_give_the_same_fields(raw: Path) -> None:
    unpacked = open_raw(raw)
    fields = [unpacked.source.read(row) for row in rows_of(unpacked)]
    for plate in unpacked.plates:
        pack(raw, plate)
    packed = open_raw(raw)
    for before, row in zip(fields, rows_of(packed), strict=True):
        after = packed.source.read(row)
        assert after.digests == before.digests
        np.testing.assert_array_equal(after.pixels, before.pixels)


def test_a_half_unpacked_folder_gives_way_to_its_zip(raw: Path) -> None:
    plate = sorted(open_raw(raw).plates)[0]
    pack(raw, plate, keep=True)
    assert not open_raw(raw).fields[file_column("DAPI")].str.contains(".zip").any()
    next((raw / plate).glob("*.tif")).unlink()
    screen = open_raw(raw)
    rows = screen.fields[screen.fields[c.PLATE] == plate]
    assert rows[file_column("DAPI")].str.contains(".zip::", regex=False).all()
    assert screen.absent == {}


def test_another_zip_of_the_same_size_changes_its_plate(raw: Path) -> None:
    plate = sorted(open_raw(raw).plates)[0]
    image = next((raw / plate).glob("*.tif"))
    data = image.read_bytes()
    pack(raw, plate, keep=True)
    (raw / "aside").mkdir()
    kept = (raw / plate).rename(raw / "aside" / plate)
    before = open_raw(raw).plates[plate]
    kept.rename(raw / plate)
    image.write_bytes(data[:-1] + bytes([data[-1] ^ 16]))
    pack(raw, plate)
    assert open_raw(raw).plates[plate] != before


def test_a_zip_that_leads_outside_is_refused(raw: Path) -> None:
    plate = sorted(open_raw(raw).plates)[0]
    path = pack(raw, plate)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../../evil.tif", b"x")
    with pytest.raises(InputError, match=rf"{path.name}: its member '\.\./\.\./evil\.tif' lies outside"):
        open_raw(raw)


def test_a_damaged_member_is_a_bad_image(raw: Path) -> None:
    plate = sorted(open_raw(raw).plates)[0]
    path = pack(raw, plate)
    data = bytearray(path.read_bytes())
    name = str(open_raw(raw).fields[file_column("DAPI")].iloc[0]).partition("::")[2]
    data[data.index(name.encode()) + len(name) + 200] ^= 255
    path.write_bytes(data)
    screen = open_raw(raw)
    with pytest.raises(BadImageError, match="download the zip again"):
        screen.source.read(rows_of(screen)[0])
    assert screen.source.read(rows_of(screen)[1]).pixels.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (set_cell("Image_Metadata_Concentration", "1,000"), "row 4: concentration '1,000' may have"),
        (set_cell("Image_Metadata_Concentration", "-1"), "row 4: concentration '-1'"),
        (set_cell("Image_Metadata_Concentration", "inf"), "row 4: concentration 'inf'"),
        (set_cell("Image_Metadata_Well_DAPI", "Z99"), "row 4: 'Z99' is not a well"),
        (set_cell("Image_Metadata_Compound", ""), "row 4: no compound"),
        (rename_plate("Wěek1_1"), "row 4: plate 'Wěek1_1' is not a name of letters"),
        (rename_plate("../evil"), "row 4: "),
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


def test_a_plate_without_images_is_named_with_what_to_do(raw: Path) -> None:
    plate, other = sorted(open_raw(raw).plates)
    shutil.rmtree(raw / plate)
    with pytest.raises(InputError) as caught:
        open_raw(raw)
    assert f"1 of 2 plates have neither a folder nor a zip among the images, first {plate}" in str(
        caught.value
    )
    assert f"--plates {plate}) or name the plates that you have in screen.plates" in str(caught.value)
    assert set(open_raw(raw, plates=(other,)).fields[c.PLATE]) == {other}


def test_a_missing_image_makes_its_field_absent(raw: Path) -> None:
    whole = open_raw(raw)
    missing = next(raw.glob("Week*/*_w2*.tif"))
    missing.unlink()
    screen = open_raw(raw)
    ((key, line),) = screen.absent.items()
    assert line == f"{missing}: is not there (Tubulin of {key})"
    (row,) = (row for row in rows_of(screen) if row[c.KEY] == key)
    assert row[file_column("Tubulin")].endswith(missing.name)
    assert len(screen.fields) == len(whole.fields)
    assert screen.plates[row[c.PLATE]] != whole.plates[row[c.PLATE]]


@pytest.mark.parametrize("text", ["0,3", "3e-1", "0.300000", " .3 "])
def test_a_concentration_is_read_however_it_is_written(raw: Path, text: str) -> None:
    edit(raw, set_cell("Image_Metadata_Concentration", text))
    rows = pd.read_csv(raw / IMAGE, dtype=str)
    plate, well = rows.loc[2, ["Image_Metadata_Plate_DAPI", "Image_Metadata_Well_DAPI"]]
    fields = open_raw(raw).fields
    row = fields[(fields[c.PLATE] == plate) & (fields[c.WELL] == well)].iloc[0]
    assert row[c.CONCENTRATION] == 0.3
    assert row[c.TREATMENT].endswith("@0.3")


@pytest.mark.parametrize("separator", [";", "\t"])
def test_a_table_may_come_from_a_spreadsheet(raw: Path, separator: str) -> None:
    """A byte order mark, CRLF, another separator."""
    before = open_raw(raw).fields
    table = pd.read_csv(raw / IMAGE, dtype=str, keep_default_na=False)
    text = table.to_csv(index=False, sep=separator, lineterminator="\r\n")
    (raw / IMAGE).write_bytes(b"\xef\xbb\xbf" + text.encode())
    pd.testing.assert_frame_equal(open_raw(raw).fields, before)


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
