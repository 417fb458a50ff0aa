"""The truth of a screen, beside the tables that a user would have: one row a field."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from hcs_ray.contracts import BATCH, PLATE, SITE, TRUTH_FORMAT, WELL
from hcs_ray.screen.synthetic.cells import FieldPlan, field_plan, sample_cells, truth_of
from hcs_ray.screen.synthetic.layout import Plate, Screen

TRUTH_TABLE: Final = "truth.parquet"


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
        place = {BATCH: field.plate.batch, PLATE: field.plate.name}
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
