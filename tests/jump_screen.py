"""A small screen in the layout of JUMP and the Cell Painting Gallery, and one of a single table and image."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import tifffile

from hcs_ray.config import LoadDataScreen
from hcs_ray.contracts import InputError
from hcs_ray.screen import Screen
from hcs_ray.screen.load_data import open_load_data
from hcs_ray.storage import LocalStorage

THERE = "/home/ubuntu/bucket/projects/cpg"  # where the tables' images lay on another machine
CHANNELS = ("DNA", "ER", "Mito")
WELLS = {  # what the plate map says: sample, "millimolar"
    "A01": ("", ""),
    "B02": ("BRD-1", "10"),
    "P24": ("BRD-2", "0.5"),
}
_COMPOUND_COLUMNS = ("broad_sample", "pert_iname", "moa", "pert_type", "control_type")
COMPOUNDS = [
    dict(zip(_COMPOUND_COLUMNS, cells, strict=True))
    for cells in (
        ("NA", "DMSO", "NA", "control", "negcon"),
        ("BRD-1", "taxol", "tubulin", "trt", "NA"),
        ("BRD-2", "AMG900", "Aurora kinase inhibitor", "control", "poscon_diverse"),
    )
]
JUMP = LoadDataScreen.model_validate(
    {
        "load_data": ["load_data_csv/*/*/load_data.csv"],
        "barcode_platemap": "platemaps/*/barcode_platemap.csv",
        "treatments": ["compounds.tsv"],
        "columns": {
            "compound": "pert_iname",
            "concentration": "mmoles_per_liter",
            "moa": "moa",
            "pert_type": "pert_type",
        },
        "path_prefixes": {THERE: "images"},
    }
)
SIMPLE = LoadDataScreen()
Table = pd.DataFrame
Change = Callable[[Table], Table]


def frame(*rows: dict[str, Any]) -> Table:
    return pd.DataFrame(rows, dtype="str")


def save(path: Path, table: Table, separator: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table.to_csv(path, sep=separator, index=False)


def load(path: Path, separator: str = ",") -> Table:
    return pd.read_csv(path, dtype=str, keep_default_na=False, sep=separator)


def edit(path: Path, change: Change) -> None:
    separator = "\t" if path.suffix in (".txt", ".tsv") else ","
    save(path, change(load(path, separator)), separator)


def set_cell(column: str, value: str, row: int = 1) -> Change:
    return lambda table: table.assign(**{column: table[column].where(table.index != row, value)})


def picture(number: int, shape: tuple[int, ...] = (16, 24)) -> npt.NDArray[np.uint16]:
    return (np.arange(np.prod(shape), dtype=np.uint16).reshape(shape) + 1000 * number).astype(np.uint16)


def write_plate(raw: Path, plate: str, batch: str = "2021_Batch1") -> None:
    """A plate as the Cell Painting Gallery has it: its images and its `load_data.csv`."""
    rows = []
    for number, well in enumerate(WELLS):
        row = {"Metadata_Plate": plate, "Metadata_Well": well, "Metadata_Site": "1", "Metadata_Batch": batch}
        for channel in CHANNELS:
            name = f"{well}-{channel}.tiff"
            image = raw / "images" / batch / plate / name
            image.parent.mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(image, picture(number + 10 * CHANNELS.index(channel)))
            row |= {f"FileName_Orig{channel}": name, f"PathName_Orig{channel}": f"{THERE}/{batch}/{plate}/"}
            row |= {f"FileName_Illum{channel}": "x.npy", f"PathName_Illum{channel}": "/nowhere"}
        rows.append(row)
    save(raw / "load_data_csv" / batch / plate / "load_data.csv", frame(*rows))


def write_jump(raw: Path, *plates: str) -> Path:
    """A screen in JUMP's layout: two batches, one plate map each."""
    for number, plate in enumerate(plates):
        write_plate(raw, plate, f"2021_Batch{number % 2 + 1}")
    for number in {0, len(plates) // 2 and 1}:
        folder, name = raw / "platemaps" / f"2021_Batch{number + 1}", f"MAP-{number + 1}"
        mine = plates[number::2]
        save(
            folder / "barcode_platemap.csv",
            frame(*({"Assay_Plate_Barcode": plate, "Plate_Map_Name": name} for plate in mine)),
        )
        cells = [
            {"plate_map_name": name, "well_position": well, "broad_sample": sample, "mmoles_per_liter": dose}
            for well, (sample, dose) in WELLS.items()
        ]
        save(folder / "platemap" / f"{name}.txt", frame(*cells), "\t")
    save(raw / "compounds.tsv", frame(*COMPOUNDS), "\t")
    return raw


def write_simple(raw: Path, **columns: str) -> Path:
    """One table and one field, described by the table alone."""
    raw.mkdir(parents=True, exist_ok=True)
    tifffile.imwrite(raw / "dna.tif", picture(1))
    row = {"Metadata_Plate": "P1", "Metadata_Well": "A1", "Metadata_Site": "1", "Metadata_Compound": "DMSO"}
    save(raw / "load_data.csv", frame(row | {"FileName_DNA": "dna.tif"} | columns))
    return raw


def opened(raw: Path, config: LoadDataScreen = JUMP, **changes: Any) -> Screen:
    changed = LoadDataScreen.model_validate(config.model_dump() | changes)
    return open_load_data(changed, LocalStorage(raw))


def columns(**names: str | None) -> dict[str, Any]:
    return JUMP.columns.model_dump() | names


def refused(raw: Path, *words: str, config: LoadDataScreen = JUMP, **changes: Any) -> str:
    with pytest.raises(InputError) as caught:
        opened(raw, config, **changes)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, message
    return message


def read(screen: Screen, row: int = 0) -> npt.NDArray[np.uint16]:
    return screen.source.read(screen.fields.to_dict("records")[row]).pixels  # type: ignore[arg-type]


# Tables of the first batch, below the folder of `write_jump`.
FIRST = "load_data_csv/2021_Batch1/BR00117035/load_data.csv"
BARCODES = "platemaps/2021_Batch1/barcode_platemap.csv"
MAP = "platemaps/2021_Batch1/platemap/MAP-1.txt"
COMPOUND_TABLE = "compounds.tsv"
