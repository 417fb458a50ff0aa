"""Wells of a drawn screen as numbers: mechanisms, replicates on plates of a week, weeks and plates apart."""

from __future__ import annotations

import numpy as np
import pandas as pd

from hcs_ray.contracts import (
    BATCH,
    COMPOUND,
    MOA,
    NEGATIVE_CONTROL,
    PERT_TYPE,
    PLATE,
    TREATED,
    TREATMENT,
    WELL,
)
from hcs_ray.profiles.aggregate import Float64


def drawn_wells(
    seed: int,
    *,
    weeks: int = 3,
    plates: int = 2,
    controls: int = 6,
    compounds: int = 4,
    features: int = 8,
    week_effect: float = 2.0,
    plate_effect: float = 0.5,
    moa_effect: float = 3.0,
) -> tuple[pd.DataFrame, Float64]:
    """``compounds`` a week at two doses each, of 4 mechanisms; noise is correlated, the same in every week.

    Wells of a dose lie at one position on all plates of the week, sorted by plate and well.
    """
    random = np.random.default_rng(seed)
    mixing = random.normal(size=(features, features)) / np.sqrt(features)
    moas = moa_effect * random.normal(size=(4, features))
    rows, values = [], []
    for week in range(weeks):
        shift = week_effect * random.normal(size=features)
        for plate in range(plates):
            apart = shift + plate_effect * random.normal(size=features)
            for place in range(controls + 2 * compounds):
                dose = place - controls
                name = "DMSO" if dose < 0 else f"w{week}c{dose // 2}"
                moa = None if dose < 0 else (week + dose // 2) % 4
                rows.append(
                    {
                        BATCH: f"Week{week}",
                        PLATE: f"Week{week}_{plate}",
                        WELL: f"{'ABCDEFGH'[place // 12]}{place % 12 + 1:02d}",
                        COMPOUND: name,
                        TREATMENT: f"{name}@{0 if dose < 0 else dose % 2 + 1}",
                        MOA: None if moa is None else f"moa{moa}",
                        PERT_TYPE: NEGATIVE_CONTROL if dose < 0 else TREATED,
                    }
                )
                effect = 0.0 if moa is None else moas[moa] * (0.6 + 0.4 * (dose % 2))
                values.append(apart + effect + mixing @ random.normal(size=features))
    return pd.DataFrame(rows), np.array(values)
