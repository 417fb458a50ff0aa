"""The files of a Cell Painting screen as JUMP keeps them: Harmony's images, ``load_data.csv``, plate maps.

The image folders are those of another machine, as they are in real ``load_data.csv``; ``PATH_PREFIX`` is what
they begin with there.
"""

from __future__ import annotations

import csv
import io
import uuid
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from hcs_ray.contracts import NEGATIVE_CONTROL, POSITIVE_CONTROL, TREATED
from hcs_ray.screen.synthetic.assays import Assay
from hcs_ray.screen.synthetic.cells import FieldPlan
from hcs_ray.screen.synthetic.layout import Compound, Plate, Screen, Well, day_of
from hcs_ray.screen.synthetic.nuisance import Pixels
from hcs_ray.screen.synthetic.settings import digest

LOAD_DATA: Final = "load_data.csv"
BARCODES: Final = "barcode_platemap.csv"
PLATEMAPS: Final = "platemap"
COMPOUNDS: Final = "compounds.csv"
IMAGES: Final = "images"
PATH_PREFIX: Final = "/home/ubuntu/bucket/projects/hcs_ray"
_NUMBERS: Final = {"Mito": 1, "AGP": 2, "RNA": 3, "ER": 4, "DNA": 5}  # of the microscope's channels
_TILE: Final = 64
_SMILES: Final = {"DMSO": "CS(C)=O"}  # the drawn compounds have no structures


@dataclass(frozen=True)
class Container:
    """How a plate's images are stored: a file a channel, or one OME-TIFF a field with a page a channel."""

    kind: Literal["tiff", "ome"]
    options: dict[str, Any]


_CONTAINERS: Final = (
    Container("tiff", {"tile": (_TILE, _TILE), "compression": "zlib", "predictor": True}),
    Container("ome", {"tile": (_TILE, _TILE), "compression": "zlib", "predictor": True}),
    Container("tiff", {"rowsperstrip": 24, "compression": "lzw", "byteorder": ">"}),
)


class PaintingFiles:
    """How this layout lies in a folder; see `hcs_ray.screen.synthetic.generate.Files`."""

    def folder(self, plate: Plate) -> str:
        """The folder that the microscope made of a measurement."""
        return f"{IMAGES}/{plate.batch}/{plate.name}__{day_of(plate.week)}T16_16_46-Measurement1"

    def write(self, folder: Path, field: FieldPlan, images: Sequence[Pixels]) -> None:
        """TIFFs in ``Images``, as the plate's container is."""
        import numpy as np
        import tifffile

        places = _places(field.plate, field.well, field.site, field.config.assay.channels)
        planes = dict(zip(places.values(), images, strict=True))
        container = container_of(field.plate)
        (folder / "Images").mkdir(exist_ok=True)
        for name in dict.fromkeys(name for name, _ in planes):
            pages = np.stack([planes[place] for place in sorted(planes) if place[0] == name])
            tifffile.imwrite(
                folder / "Images" / name,
                pages if container.kind == "ome" else pages[0],
                photometric="minisblack",
                metadata=_ome(field, list(places)) if container.kind == "ome" else None,
                ome=container.kind == "ome",
                software=False,
                **container.options,
            )

    def tables(self, screen: Screen) -> dict[str, Callable[[], str]]:
        """Plate maps, which plate has which, the compounds, and last ``load_data.csv``."""
        maps = {platemap(plate): plate for plate in screen.plates}
        return {
            **{
                f"{PLATEMAPS}/{name}.txt": partial(platemap_table, screen, plate)
                for name, plate in maps.items()
            },
            BARCODES: lambda: barcode_table(screen),
            COMPOUNDS: lambda: compound_table(screen),
            LOAD_DATA: lambda: load_data_table(screen),
        }

    def section(self, folder: str) -> dict[str, Any]:
        """The section ``screen`` of a study that reads the screen from a folder."""
        return {
            "kind": "load_data",
            "folder": folder,
            "load_data": [LOAD_DATA],
            "barcode_platemap": BARCODES,
            "platemaps": PLATEMAPS,
            "treatments": [COMPOUNDS],
            "columns": {
                "batch": "Metadata_Batch",
                "compound": "pert_iname",
                "concentration": "mmoles_per_liter",
                "moa": "moa",
                "smiles": "smiles",
                "pert_type": "pert_type",
            },
            "concentration_unit": "mM",
            "path_prefixes": {f"{PATH_PREFIX}/{IMAGES}": IMAGES},
        }


def container_of(plate: Plate) -> Container:
    """A plate's container: all kinds occur among few plates, and more than one in a batch."""
    return _CONTAINERS[(plate.week + plate.number) % len(_CONTAINERS)]


def platemap(plate: Plate) -> str:
    """The name of the plate map of a plate's layout."""
    return f"HCS-{plate.week:03d}-LM{plate.layout + 1:03d}"


def broad_sample(compound: Compound) -> str:
    """A registry number in the form that Broad's compound management gives; a solvent has none."""
    if compound.kind == "dmso":
        return ""
    number = int.from_bytes(digest(0, "sample", compound.name)[:8], "big") % 10**8
    return f"BRD-K{number:08d}-001-01-{number % 9 + 1}"


def _places(plate: Plate, well: Well, site: int, channels: Iterable[str]) -> dict[str, tuple[str, int]]:
    """The file and the page, from 0, of each channel."""
    stem = f"r{ord(well.name[0]) - ord('A') + 1:02d}c{well.name[1:]}f{site:02d}"
    if container_of(plate).kind == "ome":
        return {channel: (f"{stem}.ome.tiff", _NUMBERS[channel] - 1) for channel in channels}
    return {channel: (f"{stem}p01-ch{_NUMBERS[channel]}sk1fk1fl1.tiff", 0) for channel in channels}


def _ome(field: FieldPlan, channels: list[str]) -> dict[str, Any]:
    """OME's metadata without what would differ from run to run."""
    return {
        "axes": "CYX",
        "Channel": {"Name": sorted(channels, key=_NUMBERS.__getitem__)},
        "Name": field.key,
        "UUID": str(uuid.UUID(bytes=digest(field.config.seed, "ome", field.key)[:16], version=4)),
        "Creator": "hcs_ray",
    }


def load_data_table(screen: Screen) -> str:
    """One row a field, in the order of plates, wells and sites."""
    channels = screen.config.assay.channels
    header = [
        *(f"{kind}_Orig{channel}" for channel in channels for kind in ("FileName", "PathName", "Frame")),
        "Metadata_Batch",
        "Metadata_Plate",
        "Metadata_Well",
        "Metadata_Site",
        "Metadata_Passage",
        "Metadata_AbsTime",
    ]
    rows = (
        [*_image_cells(plate, well, site, channels), *_metadata_cells(plate, well, site)]
        for plate in screen.plates
        for well in plate.wells
        for site in range(1, screen.config.sites + 1)
    )
    return _csv(header, rows)


def _image_cells(plate: Plate, well: Well, site: int, channels: Iterable[str]) -> list[object]:
    folder = f"{PATH_PREFIX}/{PaintingFiles().folder(plate)}/Images"
    places = _places(plate, well, site, channels).values()
    return [cell for name, page in places for cell in (name, folder, page)]


def _metadata_cells(plate: Plate, well: Well, site: int) -> list[object]:
    passage = f"P{3 + 2 * plate.week}"
    return [plate.batch, plate.name, well.name, site, passage, f"{day_of(plate.week)} 16:16:46"]


def barcode_table(screen: Screen) -> str:
    """Which plate map each plate has."""
    return _csv(
        ["Assay_Plate_Barcode", "Plate_Map_Name"], ([plate.name, platemap(plate)] for plate in screen.plates)
    )


def platemap_table(screen: Screen, plate: Plate) -> str:
    """What the wells of a plate's layout are said to hold, in millimoles per litre."""
    header = ["plate_map_name", "well_position", "broad_sample", "mmoles_per_liter", "pert_type"]
    rows = ([platemap(plate), *_treatment_cells(screen.config.assay, well)] for well in plate.wells)
    return _csv(header, rows, "\t")


def _treatment_cells(assay: Assay, well: Well) -> list[object]:
    compound = well.said.compound
    role = POSITIVE_CONTROL if well.name in assay.taxol_wells else TREATED
    role = NEGATIVE_CONTROL if compound.kind == "dmso" else role
    millimolar = f"{well.said.concentration_um.scaleb(-3).normalize():f}" if compound.kind != "dmso" else ""
    return [well.name, broad_sample(compound), millimolar, role]


def compound_table(screen: Screen) -> str:
    """What a registry number stands for; a mechanism belongs to the compound, whatever its dose."""
    compounds = {
        well.said.compound.name: well.said.compound for plate in screen.plates for well in plate.wells
    }
    rows = (
        [broad_sample(item), name, item.moa if item.kind == "labelled" else "", _SMILES.get(name, "")]
        for name, item in sorted(compounds.items())
    )
    return _csv(["broad_sample", "pert_iname", "moa", "smiles"], rows)


def _csv(header: Sequence[str], rows: Iterable[Sequence[object]], separator: str = ",") -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()
