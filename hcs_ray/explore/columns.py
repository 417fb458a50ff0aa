"""What fields can be coloured and summed up by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray import joined as j
from hcs_ray.contracts import InputError
from hcs_ray.shards.quality import FLAG

Kind = Literal["category", "number"]

_CAMERA: Final = "camera units"
_SHARE: Final = "share"
_TITLES: Final = {
    c.SOURCE: "Source", c.BATCH: "Batch", c.PLATE: "Plate", c.WELL: "Well", c.SITE: "Site",
    c.REPLICATE: "Replicate", c.COMPOUND: "Compound", c.CONCENTRATION: "Concentration",
    c.TREATMENT: "Treatment", c.MOA: "Mechanism of action", c.PERT_TYPE: "Kind of well", c.SIDE: "Side",
    j.PREDICTED: "Predicted mechanism", j.PROBABILITY: "Probability of the prediction",
    j.IS_RIGHT: "Prediction is right", j.OUTLIER_SCORE: "Outlier score", j.OUTLIER_RANK: "Outlier rank",
    j.OUTLIER_REASON: "Outlier reason",
}  # fmt: skip
_UNITS: Final = {c.CONCENTRATION: "µM", j.OUTLIER_SCORE: "z-score"}
_MEASURES: Final = {  # of QC_<Measure>_<Channel>: its title and unit
    "FocusScore": ("Focus", ""), "Saturated": ("Saturated pixels", _SHARE), "Zero": ("Black pixels", _SHARE),
    "Mean": ("Mean intensity", _CAMERA), "SD": ("Standard deviation", _CAMERA),
    "P01": ("1st percentile", _CAMERA), "P50": ("Median", _CAMERA), "P99": ("99th percentile", _CAMERA),
    "Background": ("Background", _CAMERA), "IlluminationResidual": ("Residual of illumination", _SHARE),
    "WellSpread": ("Spread within the well", _SHARE), "DetailCorrelation": ("Detail shared", "correlation"),
    "NucleusCount": ("Nuclei", "count"), "CellArea": ("Area of cells", _SHARE),
    "Debris": ("Area of debris", _SHARE),
}  # fmt: skip
_COUNTED: Final = (c.SITE, c.REPLICATE)  # whole numbers that name, not measure


@dataclass(frozen=True)
class ColumnInfo:
    """A column of ``Scene.fields``, what people call it, and what it holds; ``unit`` may be empty."""

    name: str
    title: str
    kind: Kind
    unit: str


def column_infos(fields: pd.DataFrame) -> list[ColumnInfo]:
    """The columns that say something of a field: metadata, predictions, outliers, quality; none all empty."""
    metadata = [name for name in c.metadata_columns(fields.columns) if name != c.SMILES]
    rest = [name for name in _TITLES if name in fields.columns and name not in metadata]
    quality = [str(name) for name in fields.columns if str(name).startswith(c.QC_PREFIX)]
    listed = [*metadata, *rest, *quality]
    return [_info(fields, name) for name in listed if fields[name].notna().any()]


def number_column(infos: Sequence[ColumnInfo], name: str) -> ColumnInfo:
    """The column of this name; `InputError` where there is none, or it holds no numbers."""
    numbers = {info.name: info for info in infos if info.kind == "number"}
    if name not in numbers:
        raise InputError(f"no column of numbers {name}; there are {', '.join(numbers)}")
    return numbers[name]


def _info(fields: pd.DataFrame, name: str) -> ColumnInfo:
    title, unit = _TITLES.get(name, name), _UNITS.get(name, "")
    if name.startswith(FLAG):
        title = f"Flag: {name.removeprefix(FLAG)}"
    elif name.startswith(c.QC_PREFIX):
        measure, _, channel = name.removeprefix(c.QC_PREFIX).partition("_")
        called, unit = _MEASURES.get(measure, (measure, ""))
        title = f"{called}, {channel}" if channel else called
    elif name not in _TITLES:
        title = name.removeprefix(c.METADATA_PREFIX).replace("_", " ")
    column = fields[name]
    is_number = pd.api.types.is_numeric_dtype(column) and not pd.api.types.is_bool_dtype(column)
    return ColumnInfo(name, title, "number" if is_number and name not in _COUNTED else "category", unit)
