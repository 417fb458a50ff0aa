"""Any screen with a `load_data.csv` opens as it is meant: its images, channels and plates."""

from __future__ import annotations

import gzip
import io
import re
import threading
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import LoadDataScreen
from hcs_ray.config.screens import LoadDataColumns
from hcs_ray.screen.load_data import open_load_data
from hcs_ray.storage import open_storage
from tests.conftest import REPOSITORY
from tests.jump_screen import (
    BARCODES,
    CHANNELS,
    FIRST,
    JUMP,
    MAP,
    SIMPLE,
    THERE,
    edit,
    frame,
    opened,
    picture,
    read,
    refused,
    save,
    set_cell,
    write_jump,
    write_plate,
    write_simple,
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_jump(tmp_path / "raw", "BR00117035", "BR00117036")


# --- the whole of JUMP's layout -------------------------------------------------------------------


def test_a_jump_screen_opens_with_plate_maps_and_compounds(raw: Path) -> None:
    screen = opened(raw)
    wells = screen.fields.set_index(c.WELL)[lambda table: table[c.PLATE] == "BR00117036"]
    assert screen.channels == CHANNELS
    assert list(screen.fields[c.KEY])[:2] == ["BR00117035_A01_s1", "BR00117035_B02_s1"]
    assert list(wells[c.COMPOUND]) == ["DMSO", "taxol", "AMG900"]
    assert list(wells[c.TREATMENT]) == ["DMSO@0", "taxol@10", "AMG900@0.5"]
    assert list(wells[c.PERT_TYPE]) == [c.NEGATIVE_CONTROL, c.TREATED, c.POSITIVE_CONTROL]
    assert list(wells[c.MOA].isna()) == [True, False, False]
    assert set(wells[c.BATCH]) == {"2021_Batch2"}
    assert set(wells["Metadata_Plate_Map_Name"]) == {"MAP-2"}
    assert screen.absent == {}
    assert len(screen.tables) == 2 + 2 + 2 + 1
    assert (read(screen, 2) == np.stack([picture(2), picture(12), picture(22)])).all()


def test_the_second_generated_screen_opens_and_says_what_was_drawn(tmp_path: Path) -> None:
    from hcs_ray.screen.synthetic import SyntheticConfig
    from hcs_ray.screen.synthetic.generate import generate, screen_section

    config = SyntheticConfig.preset("cellpainting")
    generate(config, tmp_path / "raw", workers=1)
    screen = opened(tmp_path / "raw", LoadDataScreen.model_validate(screen_section(config, "raw")))
    truth = pd.read_parquet(tmp_path / "raw" / "truth.parquet").sort_values(c.KEY)
    assert list(screen.fields[c.KEY]) == list(truth[c.KEY])
    assert list(screen.fields[c.COMPOUND]) == list(truth[c.COMPOUND])
    assert list(screen.fields[c.CONCENTRATION]) == list(truth[c.CONCENTRATION])
    assert screen.nuclear_channel == "DNA"
    assert all(read(screen, row).shape == read(screen).shape for row in range(0, len(truth), 30))


def test_wells_joined_by_plate_and_well_as_in_jumps_own_metadata(tmp_path: Path) -> None:
    raw = write_simple(tmp_path, Metadata_Source="source_4")
    edit(raw / "load_data.csv", lambda table: table.drop(columns="Metadata_Compound"))
    well = {
        "Metadata_Source": "source_4",
        "Metadata_Plate": "P1",
        "Metadata_Well": "A01",
        "Metadata_JCP2022": "J1",
    }
    save(raw / "well.csv", frame(well, well | {"Metadata_Plate": "P2"}))
    (raw / "well.csv.gz").write_bytes(gzip.compress((raw / "well.csv").read_bytes()))
    save(
        raw / "control.csv",
        frame({"Metadata_JCP2022": "J1", "Metadata_pert_type": "negcon", "Metadata_Name": "DMSO"}),
    )
    screen = opened(raw, SIMPLE, treatments=["well.csv.gz", "control.csv"], columns={"compound": "Name"})
    row = screen.fields.iloc[0]
    assert (row[c.COMPOUND], row[c.TREATMENT], row[c.PERT_TYPE]) == ("DMSO", "DMSO", c.NEGATIVE_CONTROL)
    assert (row[c.SOURCE], row[c.BATCH]) == ("source_4", "Batch1")
    assert np.isnan(row[c.CONCENTRATION])


@pytest.mark.parametrize("well", ["A1", "h12", "P24", "AF48"])
def test_plates_of_every_format(tmp_path: Path, well: str) -> None:
    screen = opened(write_simple(tmp_path, Metadata_Well=well), SIMPLE)
    assert screen.fields[c.WELL].iloc[0] == {"A1": "A01", "h12": "H12"}.get(well, well)


# --- channels -------------------------------------------------------------------------------------


def test_channels_are_chosen_and_ordered(raw: Path) -> None:
    screen = opened(raw, channels=["Mito", "DNA"])
    assert screen.channels == ("Mito", "DNA")
    assert (read(screen) == np.stack([picture(20), picture(0)])).all()
    refused(raw, "screen.channels: there is no AGP", "DNA, ER, Mito", channels=["AGP"])


@pytest.mark.parametrize(
    ("name", "found"), [("hoechst_33342", True), ("DAPI", True), ("w1 Nuclei", True), ("Actin", False)]
)
def test_the_nuclear_channel_is_guessed_by_its_name(tmp_path: Path, name: str, found: bool) -> None:
    raw = write_simple(tmp_path)
    edit(raw / "load_data.csv", lambda table: table.rename(columns={"FileName_DNA": f"FileName_Orig{name}"}))
    screen = opened(raw, SIMPLE)
    assert screen.channels == (name,)
    assert screen.nuclear_channel == (name if found else None)
    refused(
        raw, f"screen.nuclear_channel: there is no DNA among {name}", config=SIMPLE, nuclear_channel="DNA"
    )


@given(st.lists(st.text(max_size=40), min_size=2, max_size=2, unique=True))
def test_safe_names_are_safe_and_differ(names: list[str]) -> None:
    first, second = map(c.safe_name, names)
    assert first != second
    assert re.fullmatch(r"([A-Za-z0-9_][A-Za-z0-9_-]*)?", first)
    assert len(first) <= 120


@pytest.mark.parametrize("name", ["Week1_22123", "BR00117035__2021-05-02T16_02_51-Measurement1", "P_1"])
def test_usual_plate_names_are_safe_as_they_are(name: str) -> None:
    assert c.safe_name(name) == name


def test_two_columns_for_one_channel_are_refused(tmp_path: Path) -> None:
    refused(write_simple(tmp_path, URL_OrigDNA="x.tif"), "both DNA and OrigDNA as channel DNA", config=SIMPLE)


# --- where images lie -----------------------------------------------------------------------------


def test_the_longest_prefix_says_where_a_folder_lies(raw: Path) -> None:
    (raw / "images" / "2021_Batch1").rename(raw / "moved")
    assert len(opened(raw).absent) == 3
    longest = {THERE: "images", f"{THERE}/2021_Batch1": "moved", f"{THERE}/2021": "nowhere"}
    assert opened(raw, path_prefixes=longest).absent == {}


def test_a_folder_of_another_machine_names_the_key_to_set(raw: Path) -> None:
    refused(raw, f"{FIRST} row 2: FileName_OrigDNA is in", THERE, "screen.path_prefixes", path_prefixes={})


@pytest.mark.parametrize("path", ["C:\\screen\\P1", "\\\\server\\screen\\P1"])
def test_windows_folders_are_mapped(tmp_path: Path, path: str) -> None:
    raw = write_simple(tmp_path, PathName_DNA=path)
    refused(raw, "screen.path_prefixes", config=SIMPLE)
    screen = opened(raw, SIMPLE, path_prefixes={path.removesuffix("\\P1"): "images"})
    assert screen.fields["FileName_OrigDNA"].tolist() == ["images/P1/dna.tif"]
    assert (read(opened(raw, SIMPLE, path_prefixes={path: "."})) == picture(1)).all()


def test_images_outside_are_read_only_where_a_prefix_or_url_says_so(tmp_path: Path) -> None:
    raw, outside = write_simple(tmp_path / "raw"), tmp_path / "other disk"
    outside.mkdir()
    (raw / "dna.tif").rename(outside / "dna.tif")
    edit(raw / "load_data.csv", lambda table: table.assign(PathName_DNA=str(outside)))
    refused(raw, "screen.path_prefixes", config=SIMPLE)
    mapped = opened(raw, SIMPLE, path_prefixes={str(outside): str(outside)})
    assert (read(mapped) == picture(1)).all()
    by_url = (outside / "dna.tif").as_uri()
    edit(raw / "load_data.csv", lambda table: table.assign(URL_DNA=by_url))
    assert (read(opened(raw, SIMPLE)) == picture(1)).all()
    (outside / "dna.tif").unlink()
    assert len(opened(raw, SIMPLE, path_prefixes={str(outside): str(outside)}).absent) == 1


def test_a_url_below_the_folder_is_a_path_in_it(tmp_path: Path) -> None:
    raw = write_simple(tmp_path / "my screen")
    edit(raw / "load_data.csv", lambda table: table.assign(URL_DNA=(raw / "dna.tif").as_uri()))
    assert opened(raw, SIMPLE).fields["FileName_OrigDNA"].tolist() == ["dna.tif"]


@pytest.mark.parametrize("url", ["gs://bucket/x.tif", "ftp://host/x.tif"])
def test_other_stores_are_refused(tmp_path: Path, url: str) -> None:
    refused(write_simple(tmp_path, URL_DNA=url), "images are read from folders, s3://", config=SIMPLE)


def test_pages_of_an_ome_tiff_are_channels(tmp_path: Path) -> None:
    raw = write_simple(
        tmp_path, Frame_DNA="1", FileName_OrigER="f.ome.tiff", Frame_OrigER="0", FileName_DNA="f.ome.tiff"
    )
    tifffile.imwrite(
        raw / "f.ome.tiff", np.stack([picture(1), picture(2)]), photometric="minisblack", ome=True
    )
    assert (read(opened(raw, SIMPLE, channels=["ER", "DNA"])) == np.stack([picture(1), picture(2)])).all()
    edit(raw / "load_data.csv", lambda table: table.assign(Series_DNA="1"))
    refused(raw, "row 2: Frame_DNA '1' of Series_DNA '1'", config=SIMPLE)
    edit(raw / "load_data.csv", lambda table: table.drop(columns="Frame_DNA"))
    assert opened(raw, SIMPLE).fields["FileName_OrigDNA"].tolist() == ["f.ome.tiff#1"]


def test_images_are_read_from_a_zip_that_nobody_unpacked(tmp_path: Path) -> None:
    raw = write_simple(tmp_path, PathName_DNA="plates/P1.zip::week 1", FileName_DNA="a.tif")
    (raw / "plates").mkdir()
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, picture(5))
    with zipfile.ZipFile(raw / "plates" / "P1.zip", "w") as archive:
        archive.writestr("week 1/a.tif", buffer.getvalue())
    screen = opened(raw, SIMPLE)
    assert screen.absent == {}
    assert (read(screen) == picture(5)).all()


def test_a_missing_image_is_told_by_its_field(raw: Path) -> None:
    (raw / "images/2021_Batch2/BR00117036/B02-ER.tiff").unlink()
    absent = opened(raw).absent
    assert list(absent) == ["BR00117036_B02_s1"]
    assert "BR00117036/B02-ER.tiff (ER of BR00117036_B02_s1) is not there" in absent["BR00117036_B02_s1"]


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "web").mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_images_are_read_from_the_web(tmp_path: Path, web: str) -> None:
    tifffile.imwrite(tmp_path / "web" / "a.tif", picture(7))
    screen = opened(write_simple(tmp_path / "raw", URL_DNA=f"{web}/a.tif"), SIMPLE)
    assert screen.absent == {}
    assert (read(screen) == picture(7)).all()


def test_tables_and_images_are_read_from_s3(tmp_path: Path, s3: str) -> None:
    raw = write_jump(tmp_path / "raw", "BR1")
    folder, bucket = open_storage(f"{s3}/load-data/workspace"), open_storage(f"{s3}/load-data/elsewhere")
    edit(
        next(raw.rglob("load_data.csv")),
        lambda table: table.assign(URL_OrigDNA=f"{s3}/load-data/elsewhere/" + table["FileName_OrigDNA"]),
    )
    for path in raw.rglob("*"):
        if path.is_file():
            place = path.relative_to(raw).as_posix()
            (
                bucket.write(path.name, path.read_bytes())
                if "DNA" in path.name
                else folder.write(place, path.read_bytes())
            )
    screen = open_load_data(JUMP, folder)
    assert screen.absent == {}
    assert screen.fields["FileName_OrigDNA"].str.startswith("s3://").all()
    assert (read(screen, 1) == np.stack([picture(1), picture(11), picture(21)])).all()


# --- plates ---------------------------------------------------------------------------------------


def test_a_plates_digest_follows_from_its_own_rows_and_images_alone(raw: Path) -> None:
    before = opened(raw).plates
    write_plate(raw, "BR3")
    edit(
        raw / BARCODES,
        lambda t: pd.concat([t, frame({"Assay_Plate_Barcode": "BR3", "Plate_Map_Name": "MAP-1"})]),
    )
    edit(next(raw.rglob("BR3/load_data.csv")), lambda table: table.assign(Metadata_New="1.5"))
    more = opened(raw).plates
    assert {plate: more[plate] for plate in before} == before
    image = raw / "images/2021_Batch1/BR00117035/B02-ER.tiff"
    image.write_bytes(image.read_bytes() + b"0")
    edit(raw / MAP.replace("Batch1", "Batch2").replace("MAP-1", "MAP-2"), set_cell("mmoles_per_liter", "3"))
    after = opened(raw).plates
    assert [plate for plate in more if after[plate] != more[plate]] == ["BR00117035", "BR00117036"]


def test_only_the_chosen_plates_need_their_plate_maps(raw: Path) -> None:
    (raw / MAP).unlink()
    refused(raw, "the plate map 'MAP-1' is not in")
    screen = opened(raw, plates=["BR00117036"])
    assert set(screen.fields[c.PLATE]) == {"BR00117036"} == set(screen.plates)
    refused(raw, "BR00117039", plates=["BR00117039"])


# --- docs/screens.md --------------------------------------------------------------------------------


def test_the_manual_describes_every_key_and_its_example_opens(tmp_path: Path) -> None:
    text = (REPOSITORY / "docs" / "screens.md").read_text()
    keys = {*LoadDataScreen.model_fields, *LoadDataColumns.model_fields} - {"kind"}
    assert sorted(key for key in keys if f"`{key}`" not in text and f"`columns.{key}`" not in text) == []
    blocks = dict(re.findall(r"```\w* ?([\w./-]+)\n(.*?)```", text, re.DOTALL))
    example = yaml.safe_load(blocks.pop("study.yaml"))["screen"]
    for path, content in blocks.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content.replace("<TAB>", "\t"))
    screen = opened(tmp_path / "raw", LoadDataScreen.model_validate(example))
    assert list(screen.fields[c.TREATMENT]) == ["DMSO@0", "DMSO@0", "taxol@0.3"]
    assert list(screen.fields[c.PERT_TYPE]) == [c.NEGATIVE_CONTROL, c.NEGATIVE_CONTROL, c.POSITIVE_CONTROL]
    assert screen.channels == ("DNA", "ER")
    assert len(screen.absent) == 3  # the manual has no images
