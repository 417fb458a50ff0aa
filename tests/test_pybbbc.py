"""A pybbbc preparation becomes the fields that the raw screen has, with the pixels that float16 holds."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tifffile
import xxhash
from scipy.ndimage import gaussian_filter

from hcs_ray import contracts as c
from hcs_ray.config import Bbbc021Screen, PybbbcScreen
from hcs_ray.contracts import InputError
from hcs_ray.screen import BadImageError, Screen, file_column
from hcs_ray.screen.bbbc021_tables import CHANNELS
from hcs_ray.screen.float16 import Half, to_integers
from hcs_ray.screen.sources import open_screen
from hcs_ray.screen.synthetic import SyntheticConfig, generate
from hcs_ray.storage import LocalStorage, open_storage
from tests.test_float16 import to_half

TABLES = [f"BBBC021_v1_{name}.csv" for name in ("image", "moa", "compound")]
PLANES = ("Actin", "Tubulin", "DAPI")


def scaled_like_pybbbc(channel: npt.NDArray[Any], sites: npt.NDArray[Any]) -> Half:
    """Its steps on a plate's channel, (N, H, W): by site divided by the smoothed mean, then percentiles."""
    frames = to_half(channel).astype(np.float32)
    for site in np.unique(sites):
        smooth = gaussian_filter(frames[sites == site].mean(axis=0), sigma=500)
        floor = np.percentile(smooth[smooth > 0], 0.02)
        frames[sites == site] /= np.maximum(smooth, floor) / floor
    low, high = np.percentile(frames, [0.1, 99.9])
    return np.asarray(np.clip((frames - low) / (high - low), 0, 1), np.float16)


def prepare(screen: Screen, raw: Path, folder: Path, scaled: bool = True) -> None:
    """One file a plate in pybbbc's layout: site after site, in the table's order within a site."""
    folder.mkdir(parents=True)
    text = h5py.string_dtype("utf-8")
    for plate, rows in screen.fields.groupby(c.PLATE):
        rows = rows.sort_values([c.SITE, c.COMPOUND, c.WELL])
        pixels = np.stack(
            [[tifffile.imread(raw / path) for path in rows[file_column(name)]] for name in PLANES], axis=1
        )
        sites = rows[c.SITE].to_numpy()
        kept = [
            scaled_like_pybbbc(np.minimum(pixels[:, plane], 65504), sites)  # no pixel becomes infinite
            if scaled
            else to_half(pixels[:, plane])
            for plane in range(3)
        ]
        with h5py.File(folder / f"{plate}.h5", "w") as file:
            file.attrs["timestamp"] = "2021-03-04 05:06:07"
            file["images"] = np.stack(kept, axis=1)
            file["site"] = sites.astype(np.uint8)
            file["replicate"] = rows[c.REPLICATE].to_numpy().astype(np.uint8)
            file["concentration"] = rows[c.CONCENTRATION].to_numpy().astype(np.float16)
            moa = rows[c.MOA].where(rows[c.COMPOUND] != "DMSO", "DMSO").fillna("null")
            for name, values in (
                ("well", rows[c.WELL]),
                ("plate", rows[c.PLATE]),
                ("compound", rows[c.COMPOUND]),
                ("moa", moa),
            ):
                file.create_dataset(name, data=list(values), dtype=text)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pybbbc") / "raw"
    small = {
        "weeks": 1, "moas": ["Microtubule stabilizers"], "compounds_per_moa": 2, "doses": 1,
        "active_doses": 1, "plates_per_week": 2, "replicates": 2, "height_px": 64, "width_px": 80, "sites": 2,
        "novel_compounds": 0, "toxic_compounds": 0,
    }  # fmt: skip
    generate(SyntheticConfig.model_validate(small), folder, workers=1)
    return folder


@pytest.fixture(scope="module")
def original(raw: Path) -> Screen:
    return open_screen(Bbbc021Screen(), LocalStorage(raw.parent))


@pytest.fixture(scope="module")
def prepared(raw: Path, original: Screen, tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    """Scaled (as pybbbc does) -> folder of the files, without tables."""
    top = tmp_path_factory.mktemp("prepared")
    for scaled in (True, False):
        prepare(original, raw, top / str(scaled) / "hdf5", scaled)
    return {scaled: top / str(scaled) for scaled in (True, False)}


def open_folder(folder: Path, **options: Any) -> Screen:
    return open_screen(PybbbcScreen(folder=str(folder), **options), LocalStorage(folder.parent / "study"))


@pytest.fixture
def copy(prepared: dict[bool, Path], tmp_path: Path) -> Path:
    """A scaled preparation that a test may damage."""
    return Path(shutil.copytree(prepared[True], tmp_path / "copy"))


def with_tables(folder: Path, raw: Path) -> Path:
    for name in TABLES:
        shutil.copy(raw / name, folder / name)
    return folder


def rows_of(screen: Screen) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in screen.fields.to_dict("records")]


def no_places(fields: pd.DataFrame) -> pd.DataFrame:
    return fields.drop(columns=[file_column(channel) for channel in CHANNELS])


@pytest.mark.parametrize("tables", [False, True])
def test_the_fields_are_those_of_the_raw_screen(
    copy: Path, raw: Path, original: Screen, tables: bool
) -> None:
    screen = open_folder(with_tables(copy, raw) if tables else copy)
    assert screen.channels == ("DAPI", "Tubulin", "Actin")
    assert screen.absent == {}
    assert len(screen.tables) == 3 * tables
    pd.testing.assert_frame_equal(no_places(screen.fields), no_places(original.fields))


def test_raw_values_come_back_as_the_tiffs_have_them(prepared: dict[bool, Path], original: Screen) -> None:
    screen = open_folder(prepared[False])
    assert screen.camera_maximum == 65520
    for ours, theirs in zip(rows_of(screen), rows_of(original), strict=True):
        pixels, true = screen.source.read(ours).pixels, original.source.read(theirs).pixels
        np.testing.assert_array_equal(pixels, to_integers(to_half(true), scaled=False))
        np.testing.assert_array_equal(pixels[true <= 2048], true[true <= 2048])


def test_scaled_values_become_16_bits_of_the_same_picture(
    prepared: dict[bool, Path], original: Screen
) -> None:
    screen = open_folder(prepared[True])
    assert screen.camera_maximum == 65535
    row = rows_of(screen)[3]
    read = screen.source.read(row)
    pixels = read.pixels
    with h5py.File(prepared[True] / "hdf5" / f"{row[c.PLATE]}.h5") as file:
        wells, sites = file["well"].asstr()[:], file["site"][:]
        index = int(np.flatnonzero((wells == row[c.WELL]) & (sites == row[c.SITE]))[0])
        stored = file["images"][index][[2, 1, 0]]
    assert pixels.dtype == np.uint16
    assert pixels.flags.c_contiguous
    np.testing.assert_array_equal(pixels, np.rint(stored.astype(np.float64) * 65535))
    assert read.digests == tuple(xxhash.xxh3_128_hexdigest(plane.tobytes()) for plane in stored)
    true = original.source.read(rows_of(original)[3]).pixels
    for plane, channel in zip(pixels, true, strict=True):
        assert np.corrcoef(plane.ravel(), channel.ravel())[0, 1] > 0.98


def test_many_threads_and_a_pickled_source_read_the_same(prepared: dict[bool, Path]) -> None:
    screen = open_folder(prepared[True])
    rows = rows_of(screen)
    alone = [screen.source.read(row).digests for row in rows]
    source = pickle.loads(pickle.dumps(screen.source))
    with ThreadPoolExecutor(8) as pool:
        assert [raw.digests for raw in pool.map(source.read, rows)] == alone


def test_a_preparation_is_read_from_a_bucket(s3: str, prepared: dict[bool, Path]) -> None:
    store = open_storage(f"{s3}/prepared")
    for path in (prepared[True] / "hdf5").iterdir():
        store.write(f"hdf5/{path.name}", path.read_bytes())
    local, remote = open_folder(prepared[True]), open_screen(PybbbcScreen(folder=f"{s3}/prepared"), store)
    assert remote.plates == local.plates
    row = rows_of(remote)[-1]
    np.testing.assert_array_equal(remote.source.read(row).pixels, local.source.read(row).pixels)


def test_chosen_plates_stay_what_they_are(copy: Path, raw: Path) -> None:
    whole = open_folder(copy)
    plate, other = sorted(whole.plates)
    assert open_folder(copy, plates=(plate,)).plates == {plate: whole.plates[plate]}
    with pytest.raises(InputError, match=f"has no plate {plate}x; the nearest is {plate}"):
        open_folder(copy, plates=(f"{plate}x",))
    with_tables(copy, raw)
    (copy / "hdf5" / f"{other}.h5").unlink()
    with pytest.raises(
        InputError, match=rf"has no {other}\.h5 \(1 of 2 plates have no file\).*screen\.plates"
    ):
        open_folder(copy)
    assert list(open_folder(copy, plates=(plate,)).plates) == [plate]


def test_the_file_that_points_to_the_others_is_no_plate(copy: Path) -> None:
    plates = open_folder(copy).plates
    shutil.copy(next((copy / "hdf5").iterdir()), copy / "bbbc021.h5")
    assert open_folder(copy).plates == plates


def test_a_file_in_the_folder_itself_comes_before_one_below(copy: Path) -> None:
    path = first_file(copy)
    shutil.copy(path, copy / path.name)
    places = open_folder(copy).fields[file_column("DAPI")]
    assert places.str.startswith(f"{path.name}::").sum() == places.str.contains(path.stem).sum() > 0


def test_a_file_that_was_made_again_changes_its_plate(copy: Path) -> None:
    before = open_folder(copy).plates
    plate, other = sorted(before)
    with h5py.File(copy / "hdf5" / f"{plate}.h5", "a") as file:
        file.attrs["timestamp"] = "2022-03-04 05:06:07"
    after = open_folder(copy).plates
    assert after[plate] != before[plate]
    assert after[other] == before[other]


def test_the_real_concentrations_come_back_from_float16(shared: Path) -> None:
    table = pd.read_csv(shared / "data" / "bbbc021" / "BBBC021_v1_image.csv.gz", dtype=str)
    for text in table["Image_Metadata_Concentration"].unique():
        again = Decimal(str(np.float16(float(text))))
        assert c.format_concentration(again) == c.format_concentration(Decimal(text))


# --- What is refused ---


def first_file(folder: Path) -> Path:
    return sorted((folder / "hdf5").iterdir())[0]


def setting(name: str, row: int, value: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        file[name][row] = value

    return change


def replacing(name: str, values: Any) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        del file[name]
        if values is not None:
            file[name] = values

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (replacing("images", None), "has no data set images; is it one of pybbbc's plates?"),
        (
            replacing("images", np.zeros((4, 3, 8, 8), np.float32)),
            "images is float32 (4, 3, 8, 8), not",
        ),
        (
            replacing("images", np.zeros((4, 2, 8, 8), np.float16)),
            "images is float16 (4, 2, 8, 8), not",
        ),
        (replacing("site", np.ones(3, np.uint8)), "site has shape (3,)"),
        (replacing("well", None), "has no data set well"),
        (replacing("site", None), "has no data set site"),
        (lambda file: file["well"].__setitem__(1, file["well"][0]), "stands there twice"),
        (setting("plate", 0, "Week9_1"), "holds plate Week9_1, its name says Week1_"),
        (setting("well", 2, "Q99"), "row 2: 'Q99' is not a well"),
        (setting("concentration", 2, np.nan), "row 2: concentration nan is not a number"),
        (setting("compound", 2, ""), "row 2: no compound"),
    ],
)
def test_a_file_of_another_kind_is_refused_by_name(
    copy: Path, change: Callable[[h5py.File], None], words: str
) -> None:
    with h5py.File(first_file(copy), "a") as file:
        change(file)
    with pytest.raises(InputError) as caught:
        open_folder(copy)
    assert first_file(copy).stem in str(caught.value)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("size", [0, 100, 5000, -1000])
def test_a_truncated_file_is_one_line(copy: Path, size: int) -> None:
    path = first_file(copy)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(
        InputError, match=rf"{path.name}: not a readable HDF5 file \(.*prepare the plate again"
    ):
        open_folder(copy)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (setting("compound", 3, "another"), "row 3: another "),
        (setting("concentration", 3, 77), "row 3: .* 77.0 uM; the tables say "),
        (setting("site", 3, 9), "row 3: .*_s9 stands in no table"),
    ],
)
def test_a_file_that_contradicts_the_tables_is_refused(
    copy: Path, raw: Path, change: Callable[[h5py.File], None], words: str
) -> None:
    with h5py.File(first_file(copy), "a") as file:
        change(file)
    with pytest.raises(InputError, match=words):
        open_folder(with_tables(copy, raw))


def test_a_field_without_a_row_is_absent(copy: Path, raw: Path) -> None:
    path = first_file(copy)
    with h5py.File(path, "a") as file:
        expected = f"{path.stem}_{file['well'].asstr()[0]}_s{file['site'][0]}"
        for name in list(file):
            kind, values = file[name].dtype, file[name][1:]
            del file[name]
            file.create_dataset(name, data=values, dtype=kind)
    screen = open_folder(with_tables(copy, raw))
    assert screen.absent == {expected: f"{copy}/{path.stem}.h5: has no row for {expected}"}
    with pytest.raises(BadImageError, match=f"{expected}: has no image of DAPI"):
        screen.source.read(next(row for row in rows_of(screen) if row[c.KEY] == expected))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_saturated_pixel_has_spoilt_a_scaled_channel_and_is_refused(raw: Path, copy: Path) -> None:
    camera = np.full((4, 64, 80), 1600, np.uint16)
    camera[2, 5, 5] = 65520
    spoilt = scaled_like_pybbbc(camera, np.ones(4))
    assert np.isnan(spoilt).all()
    path = first_file(copy)
    with h5py.File(path, "a") as file:
        file["images"][:, 1] = spoilt[0]
    screen = open_folder(copy)
    row = next(row for row in rows_of(screen) if row[c.PLATE] == path.stem)
    with pytest.raises(BadImageError, match=r"Tubulin: a pixel is not a number .*\(5120 of 5120\)"):
        screen.source.read(row)


@pytest.mark.parametrize(
    ("scaled", "value", "words"),
    [
        (True, np.nan, "is not a number"),
        (True, np.inf, "is above 1 in a file that is scaled to 0 .. 1"),
        (True, 1.5, "is above 1 in a file that is scaled to 0 .. 1"),
        (True, -0.25, "is negative"),
        (False, np.nan, "is not a number"),
        (False, 100.5, "is no whole number in a file of raw values"),
        (False, -1, "is negative"),
    ],
)
def test_a_pixel_that_cannot_be_is_refused_by_file_row_and_channel(
    prepared: dict[bool, Path], tmp_path: Path, scaled: bool, value: float, words: str
) -> None:
    folder = Path(shutil.copytree(prepared[scaled], tmp_path / "copy"))
    path = first_file(folder)
    with h5py.File(path, "a") as file:
        file["images"][5, 1, 40, 30] = value
    screen = open_folder(folder)
    place = f"hdf5/{path.name}::images[5,1]"
    row = next(row for row in rows_of(screen) if row[file_column("Tubulin")] == place)
    with pytest.raises(BadImageError) as caught:
        screen.source.read(row)
    assert str(caught.value).startswith(f"{folder}/hdf5/{path.name}::images[5,1]: Tubulin: a pixel {words}")


def test_raw_plates_beside_scaled_ones_are_refused(prepared: dict[bool, Path], copy: Path) -> None:
    path = first_file(copy)
    shutil.copy(prepared[False] / "hdf5" / path.name, path)
    with pytest.raises(InputError, match=rf"plate {path.stem} holds raw values; choose plates of one kind"):
        open_folder(copy)


def test_some_of_the_tables_are_too_few(copy: Path, raw: Path) -> None:
    with_tables(copy, raw)
    (copy / TABLES[1]).unlink()
    with pytest.raises(InputError, match=r"moa\.csv: is missing; put in all three tables, or none"):
        open_folder(copy)


def test_a_folder_without_files_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no <plate>\.h5, neither here nor in hdf5/"):
        open_folder(tmp_path)
