"""The tables of one run joined, one row a field: what was made is there, what was not is said."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.maps import X, Y, read_map
from hcs_ray.outliers.find import EVIDENCE, FIELD, RANK, REASON, SCORE, read_outliers
from hcs_ray.profiles.classify import class_probabilities
from hcs_ray.stage import read_record
from hcs_ray.study import Study
from hcs_ray.tables import Features, read_embeddings, read_index, read_split, read_unreadable

PREDICTED: Final = "predicted_moa"
PROBABILITY: Final = "probability"
IS_RIGHT: Final = "is_right"
UNREADABLE: Final = "unreadable"
OUTLIER_SCORE: Final = "outlier_score"
OUTLIER_RANK: Final = "outlier_rank"
OUTLIER_REASON: Final = "outlier_reason"
OUTLIER_EVIDENCE: Final = "outlier_evidence"
_OUTLIER: Final = {
    SCORE: OUTLIER_SCORE, RANK: OUTLIER_RANK, REASON: OUTLIER_REASON, EVIDENCE: OUTLIER_EVIDENCE
}  # fmt: skip


@dataclass
class Joined:
    """``fields`` in the order of keys, ``embeddings`` (N, F) float32 beside it, NaN where there is none.

    ``missing`` names each stage that is not taken along, and says why.
    """

    study: Study
    fields: pd.DataFrame
    embeddings: Features
    missing: dict[str, str] = field(default_factory=dict)

    def add(self, stage: str, join: Callable[[Joined], None]) -> None:
        """Take a stage along where it is whole and follows from the present ones."""
        if read_record(self.study.storage, self.study.place(stage)) is None:
            self.missing[stage] = f"not run: hcs-ray {stage}"
            return
        try:
            self.study.require(stage)
            join(self)
        except HcsError as error:
            self.missing[stage] = str(error)

    def places(self, keys: pd.Series[str], stage: str) -> npt.NDArray[np.intp]:
        """The rows of ``fields`` with these keys."""
        known = pd.Index(self.fields[c.KEY])
        found: npt.NDArray[np.intp] = known.get_indexer(pd.Index(keys))
        if (found < 0).any():
            raise InputError(f"{stage}: has a field that is not in the index: {keys[found < 0].iloc[0]}")
        return found

    def put(self, stage: str, table: pd.DataFrame, columns: dict[str, str]) -> None:
        """Add columns of a table with keys, under other names; fields that it lacks have no value there."""
        rows = self.places(table[c.KEY], stage)
        placed = table[list(columns)].set_axis(rows).reindex(range(len(self.fields)))
        self.fields = pd.concat([self.fields, placed.rename(columns=columns)], axis=1)


def join(study: Study, stages: Collection[str] | None = None) -> Joined:
    """Everything of a run, or of some of its stages: split, embed, map, outliers.

    Raises:
        InputError: there are no shards, or they are not complete.
    """
    index = read_index(study).sort_values(c.KEY, ignore_index=True)
    joined = Joined(study, index, np.empty((len(index), 0), np.float32))
    for stage, adding in _STAGES.items():
        if stages is None or stage in stages:
            joined.add(stage, adding)
    return joined


def _split(joined: Joined) -> None:
    sides = read_split(joined.study)[[c.PLATE, c.WELL, c.SIDE]]
    joined.fields = joined.fields.merge(sides, how="left", on=[c.PLATE, c.WELL], validate="many_to_one")


def _embed(joined: Joined) -> None:
    meta, embeddings = read_embeddings(joined.study)
    joined.embeddings = embeddings
    rows = joined.places(meta[c.KEY], "embed")
    if len(embeddings) < len(joined.fields) or not np.array_equal(rows, np.arange(len(rows))):
        joined.embeddings = np.full((len(joined.fields), embeddings.shape[1]), np.nan, np.float32)
        joined.embeddings[rows] = embeddings
    if any(str(name).startswith(c.PROBABILITY_PREFIX) for name in meta.columns):
        predictions = _predictions(meta)
        joined.put("embed", predictions, {name: name for name in predictions.columns if name != c.KEY})
    unreadable = read_unreadable(joined.study)
    if unreadable is not None and len(unreadable):
        joined.put("embed", unreadable, {"reason": UNREADABLE})


def _predictions(meta: pd.DataFrame) -> pd.DataFrame:
    """The most probable class, its probability, and whether it is right: NA where there is no truth.

    The truth of a negative control is its compound's name, where that is a class. A MoA that is no class is
    always wrong, as in the scores.
    """
    classes, probabilities = class_probabilities(meta)
    best = probabilities.argmax(axis=1)
    predicted = np.array(classes, dtype=object)[best]
    control = meta[c.PERT_TYPE] == c.NEGATIVE_CONTROL
    truth = meta[c.MOA].astype(object).where(~control, meta[c.COMPOUND].where(meta[c.COMPOUND].isin(classes)))
    right = pd.Series(predicted == truth.to_numpy(dtype=object), index=meta.index, dtype="boolean")
    return pd.DataFrame(
        {
            c.KEY: meta[c.KEY],
            PREDICTED: predicted,
            PROBABILITY: probabilities[np.arange(len(best)), best].astype(np.float32),
            IS_RIGHT: right.where(truth.notna()),
        }
    )


def _map(joined: Joined) -> None:
    joined.put("map", read_map(joined.study), {X: X, Y: Y})


def _outliers(joined: Joined) -> None:
    joined.put("outliers", read_outliers(joined.study)[FIELD.name], _OUTLIER)
    joined.fields[OUTLIER_RANK] = joined.fields[OUTLIER_RANK].astype("Int64")


_STAGES: Final[dict[str, Callable[[Joined], None]]] = {
    "split": _split,
    "embed": _embed,
    "map": _map,
    "outliers": _outliers,
    "profile": lambda _: None,  # nothing of its is a field's; whether it is there is said
}
