"""The three tables of a screen as BBBC021 writes them, the files' names, and the truth."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Final

from hcs_ray.contracts import BATCH, PLATE, SITE, TRUTH_FORMAT, WELL
from hcs_ray.screen.synthetic.cells import FieldPlan, field_plan, sample_cells, truth_of
from hcs_ray.screen.synthetic.layout import WELLS, Plate, Screen, Treatment, Well, has_moa_label
from hcs_ray.screen.synthetic.settings import digest

IMAGE_TABLE: Final = "BBBC021_v1_image.csv"
MOA_TABLE: Final = "BBBC021_v1_moa.csv"
COMPOUND_TABLE: Final = "BBBC021_v1_compound.csv"
TRUTH_TABLE: Final = "truth.parquet"
WAVELENGTHS: Final = ("w1", "w2", "w4")  # DAPI, tubulin, actin
_IMAGE_HEADER: Final = (
    'TableNumber,ImageNumber,"Image_FileName_DAPI","Image_PathName_DAPI","Image_FileName_Tubulin",'
    '"Image_PathName_Tubulin","Image_FileName_Actin","Image_PathName_Actin","Image_Metadata_Plate_DAPI",'
    '"Image_Metadata_Well_DAPI",Replicate,"Image_Metadata_Compound",Image_Metadata_Concentration'
)


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
    number = ((plate.number - 1) * len(WELLS) + WELLS.index(well.name)) * sites + site
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


def fields_of(screen: Screen, plate: Plate, start: int, stop: int) -> list[FieldPlan]:
    """The plans of a plate's fields from ``start`` to before ``stop``, counted by well and site."""
    sites = screen.config.sites
    places = (divmod(number, sites) for number in range(start, stop))
    return [field_plan(screen.config, plate, plate.wells[well], site + 1) for well, site in places]


def truth_rows(fields: Iterable[FieldPlan]) -> list[dict[str, object]]:
    """The truth of these fields, found by placing their cells again without drawing them."""
    rows: list[dict[str, object]] = []
    for field in fields:
        row = truth_of(field, sample_cells(field))
        place = {BATCH: f"Week{field.plate.week}", PLATE: field.plate.name}
        rows.append({**place, WELL: field.well.name, SITE: field.site, **row})
    return rows


def write_truth(rows: list[dict[str, object]], path: Path) -> None:
    """Writes the truth as parquet, its format's version in the schema's metadata under ``format``."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    table = pa.Table.from_pylist(rows)
    kind = table.schema.get_field_index("Artefact_Kind")  # all null where nothing is planted
    table = table.set_column(kind, "Artefact_Kind", table.column(kind).cast(text))
    pq.write_table(table.replace_schema_metadata({"format": str(TRUTH_FORMAT)}), path)
