"""The second layout: five channels, 384 wells, JUMP's tables; and the first one stays what it was."""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
from collections import Counter
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import tifffile
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from hcs_ray.contracts import InputError, field_key
from hcs_ray.screen.synthetic import SyntheticConfig, generate, screen_section
from hcs_ray.screen.synthetic.cells import field_plan
from hcs_ray.screen.synthetic.draw import draw_field
from hcs_ray.screen.synthetic.layout import Treatment, Well, dmso, plan, treatment
from hcs_ray.screen.synthetic.phenotypes import MOA_EFFECTS
from tests.command import hcs_ray, refused

CHANNELS = ("DNA", "ER", "RNA", "AGP", "Mito")
PAINTING = SyntheticConfig.preset("cellpainting")
FIELDS = 112


def rows_of(path: Path, separator: str = ",") -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=separator))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The screen, drawn by two workers."""
    folder = tmp_path_factory.mktemp("painted") / "raw"
    generate(PAINTING, folder, workers=2)
    return folder


def page_of(raw: Path, row: dict[str, str], channel: str) -> tuple[Path, int]:
    """The file and page of a channel, on this machine."""
    ((there, here),) = screen_section(PAINTING, "raw")["path_prefixes"].items()
    folder = row[f"PathName_Orig{channel}"]
    assert folder.startswith(there)
    return raw / here / folder.removeprefix(there).strip("/") / row[f"FileName_Orig{channel}"], int(
        row[f"Frame_Orig{channel}"]
    )


def test_every_image_is_found_through_the_table_and_no_other_is_there(raw: Path) -> None:
    rows = rows_of(raw / "load_data.csv")
    assert len(rows) == FIELDS
    named = {page_of(raw, row, channel) for row in rows for channel in CHANNELS}
    assert len(named) == FIELDS * len(CHANNELS)
    assert {path for path, _ in named} == set(raw.rglob("*.tiff"))
    pages = Counter(path for path, _ in named)
    assert set(pages.values()) == {1, len(CHANNELS)}, (
        "some plates have a file a channel, one has a file a field"
    )


def test_images_are_16_bits_in_files_of_several_kinds(raw: Path) -> None:
    kinds, low_bits = set(), set()
    for path in sorted(raw.rglob("*.tiff"))[::7]:
        with tifffile.TiffFile(path) as file:
            page = file.pages.first
            kinds.add(
                (
                    tifffile.COMPRESSION(page.compression).name,
                    page.is_tiled,
                    file.is_ome,
                    page.predictor,
                    file.byteorder,
                )
            )
            assert {"DateTime", "Software"}.isdisjoint(tag.name for tag in page.tags)
            for each in file.pages:
                image = each.asarray()
                assert image.dtype == np.uint16
                assert image.shape == (PAINTING.height_px, PAINTING.width_px)
                low_bits |= set(np.unique(image % 16).tolist())
    assert kinds == {
        ("ADOBE_DEFLATE", True, False, 2, "<"),
        ("ADOBE_DEFLATE", True, True, 2, "<"),
        ("LZW", False, False, 1, ">"),
    }
    assert low_bits == set(range(16))


def test_ome_pages_are_in_the_microscope_s_order(raw: Path) -> None:
    row = next(row for row in rows_of(raw / "load_data.csv") if row["FileName_OrigDNA"].endswith(".ome.tiff"))
    path, _ = page_of(raw, row, "DNA")
    with tifffile.TiffFile(path) as file:
        names = [part.split('"')[0] for part in str(file.ome_metadata).split(' Name="')[2:]]
    assert [names[page_of(raw, row, channel)[1]] for channel in CHANNELS] == list(CHANNELS)


def test_the_tables_join_to_what_the_truth_says(raw: Path) -> None:
    truth = {row["key"]: row for row in pq.read_table(raw / "truth.parquet").to_pylist()}
    maps = {
        row["Assay_Plate_Barcode"]: row["Plate_Map_Name"] for row in rows_of(raw / "barcode_platemap.csv")
    }
    compounds = {row["broad_sample"]: row for row in rows_of(raw / "compounds.csv")}
    wells = {
        (name, row["well_position"]): row
        for name in maps.values()
        for row in rows_of(raw / "platemap" / f"{name}.txt", "\t")
    }
    assert {row["plate_map_name"] for row in wells.values()} == set(maps.values())
    for row in rows_of(raw / "load_data.csv"):
        true = truth.pop(field_key(row["Metadata_Plate"], row["Metadata_Well"], int(row["Metadata_Site"])))
        assert row["Metadata_Batch"] == true["Metadata_Batch"]
        well = wells[maps[row["Metadata_Plate"]], row["Metadata_Well"]]
        compound = compounds[well["broad_sample"]]
        assert compound["pert_iname"] == true["Metadata_Compound"]
        micromolar = Decimal(well["mmoles_per_liter"] or 0) * 1000
        assert float(micromolar) == true["Metadata_Concentration"]
        assert (well["pert_type"] == "negcon") == (true["Metadata_Compound"] == "DMSO")
        assert (well["broad_sample"] == "") == (true["Metadata_Compound"] == "DMSO")
        if not true["Mislabelled"] and compound["moa"]:
            assert compound["moa"] == true["True_MOA"]
    assert not truth


def test_plates_have_384_wells_and_names_that_say_nothing(raw: Path) -> None:
    rows = rows_of(raw / "load_data.csv")
    wells = {row["Metadata_Well"] for row in rows}
    assert {"A01", "P24"} <= wells, "the corners of 384 wells"
    assert {well[0] for well in wells} - set("ABCDEFGH")
    assert {int(well[1:]) for well in wells} - set(range(13))
    assert all(row["Metadata_Plate"].startswith("BR00117") for row in rows)
    assert len({row["Metadata_Passage"] for row in rows}) == PAINTING.weeks
    assert not any("week" in row["Metadata_Batch"].lower() for row in rows)


# --- The channels --------------------------------------------------------------------------------------

CLEAN = PAINTING.model_copy(
    update={
        "moas": tuple(MOA_EFFECTS),
        "compounds_per_moa": 1,
        "artefact_rate": 0.0,
        "nuisance_strength": 0.0,
    }
)
WELLS = ("B02", "C05", "D09", "E12", "F20", "G03", "H08", "J11")


def features(held: Treatment) -> NDArray[np.float64]:
    """Brightness and texture on two scales of each channel: (wells, channels, 5)."""
    plate = plan(CLEAN).plates[0]
    fields = [draw_field(field_plan(CLEAN, plate, Well(well, held, held), 1)) for well in WELLS]
    return np.array([[measured(image.astype(np.float64)) for image in field] for field in fields])


def measured(image: NDArray[np.float64]) -> list[float]:
    fine, coarse = gaussian_filter(image, 1.5), gaussian_filter(image, 4)
    return [image.mean(), image.std(), np.percentile(image, 99), (image - fine).std(), (fine - coarse).std()]


@pytest.mark.parametrize(
    ("channel", "moa"),
    [
        ("DNA", "Aurora kinase inhibitors"),
        ("ER", "Protein synthesis"),
        ("RNA", "Protein degradation"),
        ("AGP", "Kinase inhibitors"),
        ("Mito", "Microtubule destabilizers"),
    ],
)
def test_every_channel_tells_a_mechanism(channel: str, moa: str) -> None:
    compound = next(compound for compound in plan(CLEAN).compounds if compound.moa == moa)
    treated, control = features(treatment(compound, compound.doses[-1])), features(dmso())
    spread = np.sqrt((treated.var(axis=0) + control.var(axis=0)) / 2)
    effect = (np.abs(treated.mean(axis=0) - control.mean(axis=0)) / spread).max(axis=1)
    assert effect[CHANNELS.index(channel)] > 2.0


def test_no_channel_repeats_another(raw: Path) -> None:
    rows = [row for row in rows_of(raw / "load_data.csv") if row["Metadata_Well"] == "A01"]
    for row in rows:
        images = [
            tifffile.imread(path, key=page) for path, page in (page_of(raw, row, name) for name in CHANNELS)
        ]
        alike = np.asarray(np.corrcoef(np.stack(images).reshape(len(CHANNELS), -1).astype(np.float64)))
        assert np.abs(alike[~np.eye(len(CHANNELS), dtype=bool)]).max() < 0.95


# --- The same bytes, however they come about -----------------------------------------------------------


def test_one_worker_and_two_draw_the_same_bytes_and_a_lost_plate_again(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    generate(PAINTING, folder, workers=1)
    whole = digests(raw)
    assert digests(folder) == whole
    kept = {path: path.stat().st_mtime_ns for path in (folder / "images").glob("*1/*/Images/*")}
    shutil.rmtree(next((folder / "images").glob("*2/*")))
    (folder / ".platemap.partial").mkdir()
    (folder / "platemap" / ".HCS-001-LM001.txt.1.tmp").write_text("torn")
    generate(PAINTING, folder, workers=2)
    assert digests(folder) == whole
    assert kept
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_a_folder_of_the_other_layout_is_refused(raw: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match='begun with layout="cellpainting", not "bbbc021"'):
        generate(SyntheticConfig.preset("smallest"), raw)
    tiny = SyntheticConfig.preset("smallest").model_copy(update={"weeks": 1, "sites": 1, "height_px": 64})
    generate(tiny, tmp_path, workers=1)
    assert "layout" not in json.loads((tmp_path / "generate.json").read_text())
    with pytest.raises(InputError, match='begun with layout="bbbc021", not "cellpainting"'):
        generate(tiny.model_copy(update={"layout": "cellpainting"}), tmp_path)


def test_the_command_prints_the_section_that_reads_the_screen(raw: Path) -> None:
    import yaml

    done = hcs_ray("generate", raw, "--size", "cellpainting")
    assert done.returncode == 0, done.stderr
    assert "complete" in done.stderr
    assert yaml.safe_load(done.stdout) == {"screen": screen_section(PAINTING, "raw")}
    assert "cellpainting" in refused("generate", raw, "--size", "huge")


# --- The first layout ----------------------------------------------------------------------------------


def test_the_first_layout_is_what_it_was(tmp_path: Path) -> None:
    """Tables byte for byte, pixels by their sums: the last bits of the latter differ between machines."""
    generate(SyntheticConfig.preset("smallest"), tmp_path, workers=2)
    assert {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(tmp_path.iterdir())
        if path.suffix in (".csv", ".json")
    } == {
        "BBBC021_v1_compound.csv": "8095022e67588ccf",
        "BBBC021_v1_image.csv": "1a89f858910ed502",
        "BBBC021_v1_moa.csv": "c1437ea6c64a0efb",
        "generate.json": "f31842c10e618bb5",
    }
    sums = [
        sum(
            int(tifffile.imread(path).sum(dtype=np.int64))
            for path in sorted(tmp_path.rglob(f"*_{wave}*.tif"))
        )
        for wave in ("w1", "w2", "w4")
    ]
    np.testing.assert_allclose(sums, [2879532992, 7643786656, 4308577632], rtol=1e-4)
