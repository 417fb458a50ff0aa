"""The files of a screen in BBBC021's layout: a TIFF a channel, and three tables."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

from hcs_ray.screen.synthetic.cells import FieldPlan
from hcs_ray.screen.synthetic.layout import Plate, Screen, Treatment, Well, has_moa_label
from hcs_ray.screen.synthetic.nuisance import Pixels
from hcs_ray.screen.synthetic.settings import digest

IMAGE_TABLE: Final = "BBBC021_v1_image.csv"
MOA_TABLE: Final = "BBBC021_v1_moa.csv"
COMPOUND_TABLE: Final = "BBBC021_v1_compound.csv"
WAVELENGTHS: Final = ("w1", "w2", "w4")  # DAPI, tubulin, actin
_IMAGE_HEADER: Final = (
    'TableNumber,ImageNumber,"Image_FileName_DAPI","Image_PathName_DAPI","Image_FileName_Tubulin",'
    '"Image_PathName_Tubulin","Image_FileName_Actin","Image_PathName_Actin","Image_Metadata_Plate_DAPI",'
    '"Image_Metadata_Well_DAPI",Replicate,"Image_Metadata_Compound",Image_Metadata_Concentration'
)


class Bbbc021Files:
    """How this layout lies in a folder; see `hcs_ray.screen.synthetic.generate.Files`."""

    def folder(self, plate: Plate) -> str:
        """A folder below the screen's, called as the plate."""
        return plate.name

    def write(self, folder: Path, field: FieldPlan, images: Sequence[Pixels]) -> None:
        """One uncompressed TIFF a channel."""
        import tifffile

        names = file_names(field.config.seed, field.plate, field.well, field.site)
        for name, image in zip(names, images, strict=True):
            tifffile.imwrite(folder / name, image, photometric="minisblack", metadata=None, software=False)

    def tables(self, screen: Screen) -> dict[str, Callable[[], str]]:
        """The three tables by name, the image table last."""
        return {
            MOA_TABLE: lambda: moa_table(screen),
            COMPOUND_TABLE: lambda: compound_table(screen),
            IMAGE_TABLE: lambda: image_table(screen),
        }

    def section(self, folder: str) -> dict[str, Any]:
        """The section ``screen`` of a study that reads the screen from a folder."""
        return {"kind": "bbbc021", "folder": folder}


def file_names(seed: int, plate: Plate, well: Well, site: int) -> tuple[str, str, str]:
    """The names of a field's three files; the prefix varies by week, and in one week by plate."""
    week = f"Week{plate.week}_"
    styles = (f"{week}{15 + plate.week}0607_", "", f"{week}7__", f"{week}4sites_")
    style = (plate.week - 1) % len(styles)
    prefix = styles[0] if style == 2 and plate.number % 3 == 0 else styles[style]
    stem = f"{well.name}_s{site}_"
    first, second, third = (
        f"{prefix}{stem}{wave}{_uuid(seed, plate.name, stem + wave)}.tif" for wave in WAVELENGTHS
    )
    return first, second, third


def _uuid(seed: int, *names: str) -> str:
    return str(uuid.UUID(bytes=digest(seed, "uuid", *names)[:16], version=4)).upper()


def image_table(screen: Screen) -> str:
    """One row a field, in the real table's order: by compound, concentration, plate, well and site."""
    places = [
        ((*_identity(well.said), plate.week, plate.number, well.name, site), plate, well)
        for plate in screen.plates
        for well in plate.wells
        for site in range(1, screen.config.sites + 1)
    ]
    places.sort(key=lambda item: item[0])
    rows = (_image_row(screen, plate, well, order[-1]) for order, plate, well in places)
    return _text(_IMAGE_HEADER, rows)


def _image_row(screen: Screen, plate: Plate, well: Well, site: int) -> str:
    sites = screen.config.sites
    wells = screen.config.assay.wells
    number = ((plate.number - 1) * len(wells) + wells.index(well.name)) * sites + site
    path = f"Week{plate.week}/{plate.name}"
    files = ",".join(f'"{name}","{path}"' for name in file_names(screen.config.seed, plate, well, site))
    said = well.said
    return (
        f'{plate.week},{number},{files},"{plate.name}","{well.name}",{plate.replicate},'
        f'"{said.compound.name}",{_decimals(said.concentration_um)}'
    )


def moa_table(screen: Screen) -> str:
    """One row a treatment with a known mechanism: the doses that act, and DMSO."""
    labelled = {_identity(item): item for item in _treatments(screen) if has_moa_label(item)}
    rows = (
        f'"{name}",{_decimals(concentration)},"{labelled[name, concentration].compound.moa}"'
        for name, concentration in sorted(labelled)
    )
    return _text('"compound",concentration,"moa"', rows)


def compound_table(screen: Screen) -> str:
    """One row a compound; the drawn compounds have no structures."""
    names = sorted({item.compound.name for item in _treatments(screen)})
    return _text('"compound","smiles"', (f'"{name}",""' for name in names))


def _treatments(screen: Screen) -> Iterator[Treatment]:
    return (well.said for plate in screen.plates for well in plate.wells)


def _identity(item: Treatment) -> tuple[str, Decimal]:
    return item.compound.name, item.concentration_um


def _decimals(concentration_um: Decimal) -> str:
    return f"{concentration_um:.6f}"


def _text(header: str, rows: Iterable[str]) -> str:
    return "\n".join([header, *rows]) + "\n"
