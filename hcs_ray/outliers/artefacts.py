"""Artefacts: fields whose image quality is off for their plate and treatment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.outliers.evidence import LEAST_SPREAD, NORMAL_MAD, Finding
from hcs_ray.profiles.aggregate import Float64

WELL_NAME: Final = "well"  # the column with "<plate>_<well>"
_LEAST: Final = 1e-12  # below every measure that is not zero


@dataclass(frozen=True)
class QualityRule:
    """A quality measure (in the columns ``QC_<Measure>_<Channel>``) that artefacts move to one side."""

    measure: str
    side: int
    words: str
    share: bool = False  # compared as it is; other measures by their logarithm

    @property
    def least_spread(self) -> float:
        return 0.002 if self.share else LEAST_SPREAD


QUALITY_RULES: Final = (
    QualityRule("FocusScore", -1, "focus score"),
    QualityRule("Saturated", +1, "share of saturated pixels", share=True),
    QualityRule("Mean", -1, "mean intensity"),
    QualityRule("P99", +1, "99th percentile"),
    QualityRule("P01", +1, "1st percentile"),
)


def quality_of(fields: pd.DataFrame, index: pd.DataFrame) -> pd.DataFrame:
    """The ``QC_*`` columns, row-aligned with ``fields``."""
    rows = index.set_index(c.KEY)
    missing = ~fields[c.KEY].isin(rows.index)
    if missing.any():
        raise InputError(f"{fields[c.KEY][missing].iloc[0]} is not in the index of the shards; embed again")
    columns = [name for name in rows.columns if str(name).startswith(c.QC_PREFIX)]
    return rows.loc[fields[c.KEY], columns].reset_index(drop=True)


def find_artefacts(fields: pd.DataFrame, quality: pd.DataFrame) -> Finding:
    """Fields whose image quality differs from what their plate and treatment lead to expect.

    Expected is the plate's median, plus the median deviation of the treatment's other wells, since phenotypes
    change images too. Deviations are in MADs of their plate; the largest of all rules and channels counts.
    """
    best, words = np.full(len(fields), np.nan), np.full(len(fields), "", dtype=object)
    for rule in QUALITY_RULES:
        prefix = f"{c.QC_PREFIX}{rule.measure}_"
        for column in quality.columns[quality.columns.str.startswith(prefix)]:
            z = rule.side * _unexpected(fields, quality[column].astype(float), rule)
            better = (z > best) | np.isnan(best)
            direction = "above" if rule.side > 0 else "below"
            text = f"{rule.words} of {column.removeprefix(prefix)} {{:.1f}} MADs {direction} "
            best = np.where(better, z, best)
            words[better] = [text.format(value) + "what its plate and replicates show" for value in z[better]]
    return Finding(best, words.tolist())


def _unexpected(fields: pd.DataFrame, values: pd.Series[float], rule: QualityRule) -> Float64:
    """Deviation of a measure (N,) from its plate's median and its treatment's other wells, in plate MADs."""
    level = values if rule.share else pd.Series(np.log(values.clip(lower=_LEAST)))
    level = level - level.groupby(fields[c.PLATE]).transform("median")
    wells = level.groupby([fields[WELL_NAME], fields[c.TREATMENT]]).median()
    others = wells.groupby(level=1).transform(_median_of_others).droplevel(1)
    residual = level - fields[WELL_NAME].map(others)
    spread = residual.abs().groupby(fields[c.PLATE]).transform("median") / NORMAL_MAD
    return (residual / spread.clip(lower=rule.least_spread)).to_numpy(dtype=np.float64)


def _median_of_others(values: pd.Series[float]) -> Float64:
    """For each value (n,), the median of the others; 0 for a single one."""
    known = values.to_numpy(dtype=np.float64)
    if len(known) == 1:
        return np.zeros(1)
    return np.array([np.median(np.delete(known, row)) for row in range(len(known))])


def of_groups(artefacts: Finding, fields: pd.DataFrame, by: str, groups: pd.DataFrame) -> Finding:
    """The artefact score of ``groups`` (wells or treatments, one row each): the median of their fields."""
    table = pd.DataFrame({"z": artefacts.z, "by": fields[by], c.KEY: fields[c.KEY], "words": artefacts.words})
    worst = table.sort_values("z", ascending=False, kind="stable").drop_duplicates("by").set_index("by")
    median = table.groupby("by")["z"].median()
    words = (worst[c.KEY] + ": " + worst["words"]).loc[groups[by]]
    return Finding(median.loc[groups[by]].to_numpy(dtype=np.float64), words.tolist())
