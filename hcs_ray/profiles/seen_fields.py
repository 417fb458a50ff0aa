"""What fields tell while they stream by: which are left out, how the held-out ones are classified."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import ProfileConfig
from hcs_ray.profiles.classify import PREDICTED, Classification, class_probabilities, classify
from hcs_ray.profiles.exclusions import Exclusions


@dataclass
class SeenFields:
    """The fields as they stream by: which are left out, and those whose classification is judged.

    ``flagged`` ones may have no embedding. ``test_wells`` (plate, well) are the held-out ones; fields of
    ``used`` compounds are not judged.
    """

    flagged: Exclusions
    used: Collection[str]
    test_wells: pd.MultiIndex
    total: int = 0
    there: set[str] = field(default_factory=set)
    left: list[pd.Series[int]] = field(default_factory=list)
    judged: list[pd.DataFrame] = field(default_factory=list)
    leaked: set[str] = field(default_factory=set)

    def all_of(self, meta: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Counts the fields of a chunk and keeps what is judged of them; leaves none out."""
        self.total += len(meta)
        kept = self.kept(meta)
        self.there |= set(meta.loc[~kept, c.KEY])
        self.left.append(meta.assign(left=kept.astype(int)).groupby([c.PLATE, c.WELL])["left"].sum())
        test = pd.MultiIndex.from_frame(meta[[c.PLATE, c.WELL]]).isin(self.test_wells)
        rows = meta[test & (meta[c.PERT_TYPE] == c.TREATED).to_numpy()]
        leaked = rows[c.COMPOUND].isin(list(self.used))
        self.leaked |= set(rows.loc[leaked, c.COMPOUND])
        self.judged.append(rows[~leaked])
        return np.ones(len(meta), dtype=bool)

    def kept(self, meta: pd.DataFrame) -> npt.NDArray[np.bool_]:
        """Which fields of a chunk are not left out."""
        return ~meta[c.KEY].isin(self.flagged.reasons.keys()).to_numpy(dtype=bool)

    def excluded(self) -> Exclusions:
        """The embedded fields that are left out."""
        return self.flagged.restrict(self.there)

    def wells_left(self) -> pd.Series[int]:
        """How many fields each well keeps."""
        return pd.concat(self.left).groupby(level=[0, 1]).sum()

    def classified(self, config: ProfileConfig, kept: bool) -> dict[str, Any] | None:
        """Classification of the held-out fields, or of those that are kept; None where there are none."""
        rows = pd.concat(self.judged, ignore_index=True)
        total = rows[c.TREATMENT].nunique()
        if kept:
            rows = rows[self.kept(rows)].reset_index(drop=True)
        if rows.empty:
            return None
        classes, probabilities = class_probabilities(rows)
        found = classify(rows, probabilities, classes, config.resamples, config.seed)
        return (
            _correct_of(found, total) if kept else found.to_dict() | {"leaked_left_out": sorted(self.leaked)}
        )


def _correct_of(found: Classification, total: int) -> dict[str, Any]:
    """Treatments told rightly, of all that were held out: those without a field left are wrong."""
    correct = int((found.treatments[PREDICTED] == found.treatments[c.MOA]).sum())
    lost = total - len(found.treatments)
    return {"correct": correct, "total": total, "accuracy": correct / total, "lost_counted_as_wrong": lost}
