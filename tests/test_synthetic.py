"""A drawn screen lies on the disk as BBBC021 does, tells its truth, and is the same however it was made."""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import laplace

from hcs_ray.contracts import TRUTH_FORMAT, InputError, field_key
from hcs_ray.screen.synthetic import SyntheticConfig, generate
from hcs_ray.screen.synthetic.assays import ASSAYS
from hcs_ray.screen.synthetic.cells import FieldPlan, field_plan, sample_cells, truth_of
from hcs_ray.screen.synthetic.draw import draw_field
from hcs_ray.screen.synthetic.layout import DOSES, plan, treatment
from hcs_ray.screen.synthetic.nuisance import Artefact, ArtefactKind
from hcs_ray.screen.synthetic.phenotypes import NAMES

Row = dict[str, str]
CHANNELS = ("DAPI", "Tubulin", "Actin")
DMSO_WELLS, TAXOL_WELLS = ASSAYS["bbbc021"].dmso_wells, ASSAYS["bbbc021"].taxol_wells
SMALLEST = SyntheticConfig.preset("smallest")


def rows_of(path: Path) -> list[Row]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest screen, drawn by two workers."""
    folder = tmp_path_factory.mktemp("drawn") / "raw"
    seen: list[tuple[int, int]] = []
    generate(SMALLEST, folder, workers=2, progress=lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (102, 102)
    return folder


# --- The layout ----------------------------------------------------------------------------------------


def test_the_presets_have_the_sizes_that_they_promise() -> None:
    demo, real = plan(SyntheticConfig.preset("demo")), plan(SyntheticConfig.preset("bbbc021"))
    assert (len(demo.plates), demo.config.weeks, len(demo.config.moas)) == (9, 3, 6)
    assert 500 <= demo.fields <= 560
    assert demo.config.height_px == demo.config.width_px == 256
    assert (len(real.plates), real.config.weeks, real.fields) == (55, 10, 13_200)
    assert sum(compound.kind == "labelled" for compound in real.compounds) == 38
    assert (real.config.height_px, real.config.width_px) == (1024, 1280)
    assert 90 <= plan(SMALLEST).fields <= 130


def test_tables_have_the_real_headers_and_quoting(raw: Path, shared: Path) -> None:
    folder = shared / "data" / "bbbc021"
    with gzip.open(folder / "BBBC021_v1_image.csv.gz", "rt") as file:
        real = {"BBBC021_v1_image.csv": [next(file), next(file)]}
    for name in ("BBBC021_v1_moa.csv", "BBBC021_v1_compound.csv"):
        real[name] = (folder / name).read_text().splitlines(keepends=True)[:2]
    for name, (header, row) in real.items():
        drawn = (raw / name).read_text().splitlines(keepends=True)[:2]
        assert drawn[0] == header
        quoted = [[cell.startswith('"') for cell in line.split(",")] for line in (row, drawn[1])]
        assert quoted[0] == quoted[1], name


def test_files_are_found_through_the_image_table_alone(raw: Path) -> None:
    rows = rows_of(raw / "BBBC021_v1_image.csv")
    named = set()
    for row, channel in itertools.product(rows, CHANNELS):
        week, folder = row[f"Image_PathName_{channel}"].split("/")
        assert folder == row["Image_Metadata_Plate_DAPI"]
        assert folder.startswith(f"{week}_")
        named.add(raw / folder / row[f"Image_FileName_{channel}"])
    assert named == set(raw.glob("Week*/*.tif"))
    prefixes = {row["Image_FileName_DAPI"].split(row["Image_Metadata_Well_DAPI"] + "_s")[0] for row in rows}
    assert len(prefixes) >= 3
    assert "" in prefixes


def test_images_are_what_the_camera_gives(raw: Path) -> None:
    truth = pq.read_table(raw / "truth.parquet").to_pylist()
    clean = {row["key"] for row in truth if row["Artefact_Kind"] is None}
    for wavelength in ("w1", "w2", "w4"):
        paths = sorted(raw.glob(f"Week*/*_{wavelength}*.tif"))
        images = np.stack([tifffile.imread(path) for path in paths])
        assert images.dtype == np.uint16
        assert images.shape == (102, SMALLEST.height_px, SMALLEST.width_px)
        assert not np.any(images % 16)
        keys = [
            f"{path.parent.name}_" + "".join(re.findall(r"(?:^|_)([B-G]\d\d_s\d)_w", path.name))
            for path in paths
        ]
        whole = [key in clean for key in keys]
        assert sum(whole) == len(clean)
        low, middle, high = np.percentile(images[whole], [1, 50, 99])
        assert 300 < low < 1500  # BBBC021: 688 to 1024, 960 to 4480, 7600 to 14512
        assert 600 < middle < 6000
        assert 4000 < high < 20_000
    with tifffile.TiffFile(paths[0]) as file:
        assert {"DateTime", "Software"}.isdisjoint(tag.name for tag in file.pages[0].tags)  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["demo", "smallest", "bbbc021"])
def test_treatments_are_nested_in_weeks_and_positions(name: str) -> None:
    screen = plan(SyntheticConfig.preset(name))  # type: ignore[arg-type]
    places: dict[tuple[str, Decimal], set[tuple[int, str]]] = {}
    for plate in screen.plates:
        content = {well.name: well.said.compound.name for well in plate.wells}
        assert {content[well] for well in DMSO_WELLS if well in content} == {"DMSO"}
        assert {content[well] for well in TAXOL_WELLS if well in content} == {"taxol"}
        for well in plate.wells:
            if well.name not in DMSO_WELLS + TAXOL_WELLS:
                identity = (well.said.compound.name, well.said.concentration_um)
                places.setdefault(identity, set()).add((plate.week, well.name))
    assert all(len(place) == 1 for place in places.values())
    assert ("taxol", Decimal("0.3")) in places  # also an ordinary treatment, scored by these wells
    weeks: dict[str | None, list[int]] = {}
    for compound in screen.compounds:
        if compound.kind == "labelled":
            weeks.setdefault(compound.moa, []).append(compound.week)
    for moa, found in weeks.items():
        assert (len(set(found)) == 1) == (moa in screen.config.one_week_moas)


def test_only_acting_doses_have_a_mechanism(raw: Path) -> None:
    labelled = {
        (row["compound"], Decimal(row["concentration"])) for row in rows_of(raw / "BBBC021_v1_moa.csv")
    }
    truth = pq.read_table(raw / "truth.parquet").to_pylist()
    moas = {compound.name: compound.moa for compound in plan(SMALLEST).compounds}
    honest = [row for row in truth if not row["Mislabelled"] and row["True_Compound"] != "DMSO"]
    for row in honest:
        known = (row["Metadata_Compound"], Decimal(str(row["Metadata_Concentration"]))) in labelled
        assert known == (row["Dose_Acts"] and moas[row["True_Compound"]] is not None)
    assert {row["Dose_Acts"] for row in honest} == {True, False}
    assert any(row["Novel"] for row in truth)
    assert any(row["Toxic"] for row in truth)


def test_too_many_treatments_are_refused_in_one_line() -> None:
    with pytest.raises(InputError, match=r"week 1 needs \d+ treated wells on a plate and a plate has 48"):
        plan(SyntheticConfig(doses=8, weeks=1, plates_per_week=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"moas": ("Magic", "Microtubule stabilizers")}, "unknown MoA 'Magic'"),
        ({"moas": ("Eg5 inhibitors",)}, "Microtubule stabilizers"),
        ({"plates_per_week": (3, 3)}, "2 numbers for 3 weeks"),
        ({"active_doses": 4}, "exceeds doses"),
        ({"artefact_severity": (0.9, 0.1)}, "from low to high"),
        ({"colour": 1}, "colour"),
    ],
)
def test_settings_that_make_no_screen_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SyntheticConfig.model_validate(settings)


# --- The truth -------------------------------------------------------------------------------------------


def test_the_truth_names_every_field_and_what_is_wrong_with_it(raw: Path) -> None:
    table = pq.read_table(raw / "truth.parquet")
    assert table.schema.metadata == {b"format": str(TRUTH_FORMAT).encode()}
    truth = {row["key"]: row for row in table.to_pylist()}
    said = {}
    for row in rows_of(raw / "BBBC021_v1_image.csv"):
        site = int(row["Image_FileName_DAPI"].split("_s")[1][0])
        key = field_key(row["Image_Metadata_Plate_DAPI"], row["Image_Metadata_Well_DAPI"], site)
        said[key] = (row["Image_Metadata_Compound"], float(row["Image_Metadata_Concentration"]))
    assert said == {
        key: (row["Metadata_Compound"], row["Metadata_Concentration"]) for key, row in truth.items()
    }
    wrong = [row for row in truth.values() if row["Mislabelled"]]
    assert wrong
    assert all(row["True_Compound"] != row["Metadata_Compound"] for row in wrong)
    spoilt = {row["Artefact_Kind"] is not None for row in truth.values() if row["Artefact_Severity"] > 0}
    assert spoilt == {True}
    assert {f"Shape_{name}" for name in NAMES} <= set(table.column_names)


def field_with(config: SyntheticConfig, kind: ArtefactKind | None, severity: float) -> FieldPlan:
    plate = plan(config).plates[0]
    well = next(well for well in plate.wells if well.said.compound.kind == "dmso")
    field = field_plan(config, plate, well, 1)
    return replace(field, artefact=Artefact(kind, severity) if kind else None)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_severer_artefact_is_a_worse_one(seed: int) -> None:
    config = SyntheticConfig.preset("demo", seed=seed)
    severities = (0.05, 0.3, 0.6, 1.0)

    def series(kind: ArtefactKind) -> list[NDArray[np.float64]]:
        return [
            np.stack(draw_field(field_with(config, kind, severity))).astype(float) for severity in severities
        ]

    clean = np.stack(draw_field(field_with(config, None, 0.0))).astype(float)
    sharpness = [float(laplace(image[1]).var()) for image in [clean, *series("out_of_focus")]]
    assert sharpness == sorted(sharpness, reverse=True)
    saturated = [float((image >= 65_520).mean()) for image in series("saturation")]
    assert saturated == sorted(saturated)
    assert saturated[-1] > 0.01
    for kind in ("debris", "bubble"):
        changed = [float(np.abs(image - clean).mean()) for image in series(kind)]
        assert changed == sorted(changed), kind
    cells = [len(sample_cells(field_with(config, "empty", severity))) for severity in severities]
    assert cells == sorted(cells, reverse=True)
    assert cells[-1] == 0


def test_an_empty_field_is_background_and_has_no_shapes() -> None:
    field = field_with(SMALLEST, "empty", 1.0)
    images = draw_field(field)
    assert all(image.std() < 0.25 * image.mean() for image in images)
    assert truth_of(field, sample_cells(field))["Shape_cell_size"] is None


@given(number=st.integers(0, 11), higher=st.integers(1, 3))
def test_the_effect_strengthens_with_the_dose(number: int, higher: int) -> None:
    compound = next(compound for compound in plan(SMALLEST).compounds if compound.kind == "labelled")
    low, high = (
        treatment(compound, DOSES[min(place, len(DOSES) - 1)]) for place in (number, number + higher)
    )
    assert 0.0 < low.strength < high.strength < 1.0
    assert low.acts == (low.strength > 0.5)


# --- The same bytes, however they come about --------------------------------------------------------------


def test_one_worker_and_two_draw_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    generate(SMALLEST, tmp_path / "again", workers=1)
    assert digests(tmp_path / "again") == digests(raw)


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(raw: Path, tmp_path: Path) -> None:
    folder = tmp_path / "raw"
    program = (
        "from pathlib import Path\nfrom hcs_ray.screen.synthetic import SyntheticConfig, generate\n"
        f"generate(SyntheticConfig.preset('smallest'), Path({str(folder)!r}), workers=2)\n"
    )
    run = subprocess.Popen([sys.executable, "-c", program])
    deadline = time.monotonic() + 60
    while not list(folder.glob("Week*")) and time.monotonic() < deadline:
        time.sleep(0.01)
    family = [psutil.Process(run.pid), *psutil.Process(run.pid).children(recursive=True)]
    run.send_signal(signal.SIGKILL)
    run.wait()
    assert not psutil.wait_procs(family[1:], timeout=20)[1], "workers outlived the run that was killed"
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("Week*/*")}
    assert kept
    assert not (folder / "BBBC021_v1_image.csv").exists()
    assert len(list(folder.glob("Week*"))) < 6
    generate(SMALLEST, folder, workers=2)
    assert digests(folder) == digests(raw)
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_a_whole_screen_is_left_alone_and_a_lost_plate_is_drawn_again(tmp_path: Path) -> None:
    tiny = SMALLEST.model_copy(update={"weeks": 1, "height_px": 64, "width_px": 64, "plates_per_week": 2})
    generate(tiny, tmp_path, workers=1)
    whole = digests(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    generate(tiny, tmp_path, workers=1)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    lost = sorted(tmp_path.glob("Week*"))[0]
    for path in lost.iterdir():
        path.unlink()
    lost.rmdir()
    generate(tiny, tmp_path, workers=1)
    assert digests(tmp_path) == whole


def test_another_seed_draws_another_screen() -> None:
    first, second = (
        draw_field(field_with(SMALLEST.model_copy(update={"seed": seed}), None, 0)) for seed in (0, 1)
    )
    assert not np.array_equal(first[0], second[0])


def test_a_screen_with_other_settings_is_refused(raw: Path) -> None:
    with pytest.raises(InputError, match=r"begun with seed=0, not 7"):
        generate(SyntheticConfig.preset("smallest", seed=7), raw)
    with pytest.raises(InputError, match=r"begun with sites=1, not 2"):
        generate(SMALLEST.model_copy(update={"sites": 2}), raw)


def test_folders_that_cannot_take_a_screen_are_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds 'notes.txt', which generate did not write"):
        generate(SMALLEST, tmp_path)
    with pytest.raises(InputError, match="cannot write the screen"):
        generate(SMALLEST, tmp_path / "notes.txt" / "raw")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "generate.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="does not hold the settings of a screen"):
        generate(SMALLEST, tmp_path / "torn")


def test_importing_loads_nothing_heavy() -> None:
    program = (
        "import sys, hcs_ray.screen.synthetic; "
        "print(sorted({'torch', 'ray', 'scipy', 'tifffile', 'pyarrow.parquet'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
