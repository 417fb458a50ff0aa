"""BBBC021's wells from its own tables, and the CellProfiler profiles that Ljosa et al. 2013 published."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path

import numpy as np
import pandas as pd

from hcs_ray.contracts import (
    BATCH,
    COMPOUND,
    MOA,
    NEGATIVE_CONTROL,
    PERT_TYPE,
    PLATE,
    POSITIVE_CONTROL,
    TREATED,
    TREATMENT,
    WELL,
    treatment_name,
)
from hcs_ray.profiles.aggregate import Float64

TAXOL_CONTROL_WELLS = ("B11", "C11", "D11", "E02", "F02", "G02")


def bbbc021_wells(shared: Path) -> pd.DataFrame:
    """Every well of BBBC021 from its own tables, with the field's column names."""
    folder = shared / "data" / "bbbc021"
    images = pd.read_csv(folder / "BBBC021_v1_image.csv.gz", dtype={"Image_Metadata_Concentration": str})
    names = {
        "Image_Metadata_Plate_DAPI": PLATE,
        "Image_Metadata_Well_DAPI": WELL,
        "Image_Metadata_Compound": COMPOUND,
    }
    wells = images.rename(columns=names).drop_duplicates([PLATE, WELL])
    moa = pd.read_csv(folder / "BBBC021_v1_moa.csv", dtype={"concentration": str})
    mechanism = {_treatment(c, x): m for c, x, m in moa.itertuples(index=False)}
    doses = zip(wells[COMPOUND], wells["Image_Metadata_Concentration"], strict=True)
    wells[TREATMENT] = [_treatment(compound, dose) for compound, dose in doses]
    wells[MOA] = wells[TREATMENT].map(mechanism)
    wells[BATCH] = wells[PLATE].str.split("_").str[0]
    taxol = (wells[TREATMENT] == "taxol@0.3") & wells[WELL].isin(TAXOL_CONTROL_WELLS)
    wells[PERT_TYPE] = np.select(
        [wells[COMPOUND] == "DMSO", taxol], [NEGATIVE_CONTROL, POSITIVE_CONTROL], default=TREATED
    )
    return wells[[BATCH, PLATE, WELL, COMPOUND, TREATMENT, MOA, PERT_TYPE]].reset_index(drop=True)


def cellprofiler_wells(shared: Path, wells: pd.DataFrame) -> tuple[pd.DataFrame, Float64]:
    """The 632 wells that were published, with their 516 CellProfiler features."""
    table = pd.read_csv(shared / "data" / "bbbc021" / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz")
    keys = table.iloc[:, :2].set_axis([PLATE, WELL], axis=1)
    meta = keys.merge(wells, on=[PLATE, WELL], how="left", validate="1:1")
    return meta, table.iloc[:, 2:].to_numpy(dtype=np.float64)


def _treatment(compound: str, concentration: str) -> str:
    return treatment_name(compound, Decimal(concentration))
