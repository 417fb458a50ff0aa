"""What stands out, with pictures and evidence: fields, wells and treatments that deserve a second look."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.outliers.find import (
    ARTEFACT,
    EVIDENCE,
    FIELD,
    LEVELS,
    MISLABELLED,
    NEIGHBOURS,
    NOVEL,
    RANK,
    REASON,
    SCORE,
    Level,
)
from hcs_ray.palette import NO_LABEL
from hcs_ray.report.pictures import FieldPictures, Picture

EXPLANATIONS: Final = {
    ARTEFACT: "The image is at fault: out of focus, saturated, debris, a bubble, empty.",
    MISLABELLED: "The well looks like another treatment than its label says, and its replicates do not.",
    NOVEL: "The replicates agree, look like nothing that is known, and have kept their cells.",
}
_THUMBNAIL_PX: Final = 240
_LISTED: Final = 40  # rows of a table
_NEAR: Final = 3  # neighbours that are named


@dataclass(frozen=True)
class Suspect:
    """One row of an outlier table; ``reason`` and ``evidence`` are empty where nothing explains it."""

    rank: int
    score: float
    reason: str
    evidence: str
    treatment: str
    label: str
    where: str
    near: str


@dataclass(frozen=True)
class Card:
    """A suspect with a picture: of the field itself, or of a field of the well or treatment."""

    suspect: Suspect
    picture: Picture


@dataclass(frozen=True)
class Suspects:
    """One level: ``found`` rows have a reason, ``of_reason`` of them the one that is looked for here.

    Shown are ``cards``, and ``listed`` rows in a table.
    """

    level: str
    reason: str
    explanation: str
    rows: int
    found: int
    of_reason: int
    cards: tuple[Card, ...]
    listed: tuple[Suspect, ...]


def suspects(
    tables: Mapping[str, pd.DataFrame], fields: pd.DataFrame, pictures: FieldPictures, thumbnails: int
) -> list[Suspects]:
    """From the tables of ``outliers/NAME/``, level by level; pictures are of ``fields``, which can be read.

    Of the ``thumbnails``, wells and treatments with the reason of their level take up to a quarter each; the
    most outlying fields take the others, with a reason or without.
    """
    named = fields.assign(well=fields[c.PLATE].astype(str) + "_" + fields[c.WELL].astype(str))
    left, found = thumbnails, []
    for level in reversed(LEVELS):
        table = tables[level.name].sort_values(RANK)
        shown = table if level is FIELD else table[table[REASON] == level.reason].head(thumbnails // 4)
        shown = shown.head(left)
        left -= len(shown)
        keys = named.drop_duplicates(level.identity).set_index(level.identity, drop=False)[c.KEY]
        found.append(_level(level, table, shown, keys, pictures))
    return found[::-1]


def plain(table: pd.DataFrame) -> pd.DataFrame:
    """A level's table by rank as a CSV holds it: lists are joined by semicolons."""
    ranked = table.sort_values(RANK, ignore_index=True)
    lists = [name for name in ranked if len(ranked) and isinstance(ranked[name].iloc[0], np.ndarray | list)]
    return ranked.assign(**{str(name): [";".join(map(str, row)) for row in ranked[name]] for name in lists})


def _level(
    level: Level, table: pd.DataFrame, shown: pd.DataFrame, keys: pd.Series[Any], pictures: FieldPictures
) -> Suspects:
    treatment_of = dict(zip(table[level.identity], table[c.TREATMENT], strict=True))
    reasoned = table[table[REASON].notna()]
    return Suspects(
        level=level.name,
        reason=level.reason,
        explanation=EXPLANATIONS[level.reason],
        rows=len(table),
        found=len(reasoned),
        of_reason=int((table[REASON] == level.reason).sum()),
        cards=tuple(
            _card(_suspect(row, treatment_of), str(keys[row[level.identity]]), pictures)
            for row in _rows(shown)
        ),
        listed=tuple(_suspect(row, treatment_of) for row in _rows(reasoned.head(_LISTED))),
    )


def _card(suspect: Suspect, key: str, pictures: FieldPictures) -> Card:
    words = " ".join(word for word in (suspect.where, suspect.treatment) if word)
    alt = f"{words}: {suspect.reason or 'unusual, without a reason'}. {suspect.evidence}"
    return Card(suspect, pictures.picture(key, _THUMBNAIL_PX, alt.strip()))


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    plain = table.astype(object).where(table.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in plain.to_dict(orient="records")]


def _suspect(row: Mapping[str, Any], treatment_of: Mapping[str, str]) -> Suspect:
    near = [str(treatment_of[name]) for name in list(row[NEIGHBOURS])[:_NEAR]]
    return Suspect(
        rank=int(row[RANK]),
        score=float(row[SCORE]),
        reason=str(row[REASON] or ""),
        evidence=str(row[EVIDENCE] or ""),
        treatment=str(row[c.TREATMENT]),
        label=_label(row),
        where=_where(row),
        near=", ".join(dict.fromkeys(near)),
    )


def _label(row: Mapping[str, Any]) -> str:
    if row.get(c.PERT_TYPE) == c.NEGATIVE_CONTROL:
        return "negative control"
    return str(row[c.MOA] or NO_LABEL)


def _where(row: Mapping[str, Any]) -> str:
    place = [str(row[name]) for name in (c.PLATE, c.WELL) if row.get(name) is not None]
    return " ".join([*place, f"site {row[c.SITE]}"] if row.get(c.SITE) is not None else place)
