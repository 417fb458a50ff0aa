"""What was screened: counts, and a typical picture of each mechanism."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.palette import NO_LABEL, mechanism_labels
from hcs_ray.report.pictures import FieldPictures, Picture
from hcs_ray.report.plates import flagged, measures

_SHEET_PX = 360  # longest side of a picture


@dataclass(frozen=True)
class Counts:
    """The size of a screen; ``compounds`` are without negative controls."""

    fields: int
    wells: int
    plates: int
    batches: int
    compounds: int
    treatments: int
    labelled_treatments: int
    mechanisms: int
    field_px: str
    channels: tuple[str, ...]
    flagged: int


@dataclass(frozen=True)
class Example:
    """A field that is typical of what its label says."""

    label: str
    treatment: str
    where: str
    picture: Picture


def counts(index: pd.DataFrame, channels: Sequence[str], field_px: Sequence[int]) -> Counts:
    """From the index of the shards."""
    treated = index[index[c.PERT_TYPE] != c.NEGATIVE_CONTROL]
    return Counts(
        fields=len(index),
        wells=len(index[[c.PLATE, c.WELL]].drop_duplicates()),
        plates=int(index[c.PLATE].nunique()),
        batches=int(index[c.BATCH].nunique()),
        compounds=int(treated[c.COMPOUND].nunique()),
        treatments=int(treated[c.TREATMENT].nunique()),
        labelled_treatments=int(treated[treated[c.MOA].notna()][c.TREATMENT].nunique()),
        mechanisms=int(treated[c.MOA].nunique()),
        field_px=" × ".join(str(side) for side in field_px),
        channels=tuple(channels),
        flagged=int(flagged(index).sum()),
    )


def quality_vectors(fields: pd.DataFrame, channels: Sequence[str]) -> npt.NDArray[np.float32]:
    """Mean intensity and focus of each channel (N, 2 C), each in units of its spread."""
    values = fields[[measure.column for measure in measures(channels)]].to_numpy(dtype=np.float32)
    spread = values.std(axis=0)
    return np.asarray((values - values.mean(axis=0)) / np.where(spread > 0, spread, 1), dtype=np.float32)


def typical_fields(fields: pd.DataFrame, vectors: npt.NDArray[np.float32]) -> pd.DataFrame:
    """For each label (negative controls first) the field whose vector (N, F) is nearest to its median.

    Fields without a quality flag come first where a label has any; the columns of ``fields``, and ``label``.
    """
    table = fields.assign(label=mechanism_labels(fields))
    table = table[table["label"] != NO_LABEL]
    clean = ~flagged(table)
    rows = []
    for label in _controls_first(table):
        mine = table[table["label"] == label]
        mine = mine[clean[mine.index]] if clean[mine.index].any() else mine
        own = vectors[fields.index.get_indexer(mine.index)]
        distances = np.linalg.norm(own - np.median(own, axis=0), axis=1)
        rows.append(mine.iloc[[int(distances.argmin())]])
    return pd.concat(rows) if rows else table


def examples(typical: pd.DataFrame, pictures: FieldPictures) -> list[Example]:
    """Their pictures."""
    return [
        Example(
            label=str(row["label"]),
            treatment=str(row[c.TREATMENT]),
            where=f"{row[c.PLATE]} {row[c.WELL]} site {row[c.SITE]}",
            picture=pictures.picture(
                str(row[c.KEY]), _SHEET_PX, f"A typical field of {row['label']}: {row[c.TREATMENT]}"
            ),
        )
        for _, row in typical.iterrows()
    ]


def _controls_first(table: pd.DataFrame) -> list[str]:
    control = table[c.PERT_TYPE] == c.NEGATIVE_CONTROL
    controls = sorted(table[control]["label"].unique())
    return [*controls, *sorted(set(table[~control]["label"]) - set(controls))]
