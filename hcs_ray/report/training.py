"""How the network was trained, and which compounds it was trained, chosen and judged by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.report.chart import Chart
from hcs_ray.report.figures import curves

SIDES: Final = (c.TRAIN, c.VALIDATION, c.TEST)
_WRITTEN_OUT: Final = 6  # compounds of a cell named one by one


@dataclass(frozen=True)
class SideRow:
    """The compounds of one mechanism on each side, in the order of `SIDES`: their number and names."""

    moa: str
    cells: tuple[tuple[int, str], ...]


@dataclass(frozen=True)
class Training:
    """The chosen epoch and the curves."""

    epoch: int
    epochs: int
    score: float
    train_fields: int
    validation_fields: int
    classes: tuple[str, ...]
    pictures: tuple[Chart, ...]


def training(metrics: Mapping[str, Any], history: pd.DataFrame, classes: Sequence[str]) -> Training:
    """From ``metrics.json`` and ``metrics.csv``; ``classes`` are the network's, empty where not known."""
    selected = metrics["selected"]
    epoch = int(selected["epoch"])
    return Training(
        epoch=epoch,
        epochs=len(history),
        score=float(selected[metrics["score"]]),
        train_fields=int(metrics["train_fields"]),
        validation_fields=int(metrics["validation_fields"]),
        classes=tuple(classes),
        pictures=(
            curves(
                "loss", "Loss", history, {"train_loss": "training", "validation_loss": "validation"}, epoch
            ),
            curves(
                "balanced-accuracy",
                "Balanced accuracy on validation compounds",
                history,
                {
                    "validation_balanced_accuracy": "fields",
                    "validation_treatment_balanced_accuracy": "treatments",
                },
                epoch,
                chance=1 / len(classes) if classes else None,
            ),
        ),
    )


def side_rows(index: pd.DataFrame, split: pd.DataFrame) -> list[SideRow]:
    """Compounds of each mechanism on each side; negative controls, divided by plates, last."""
    wells = index[[c.PLATE, c.WELL, c.MOA, c.PERT_TYPE]].drop_duplicates()
    table = split.merge(wells, on=[c.PLATE, c.WELL], validate="one_to_one")
    control = table[c.PERT_TYPE] == c.NEGATIVE_CONTROL
    rows = [
        SideRow(str(moa), tuple(_named(group[group[c.SIDE] == side][c.COMPOUND]) for side in SIDES))
        for moa, group in table[table[c.MOA].notna() & ~control].groupby(c.MOA, sort=True)
    ]
    controls = table[control]
    for compound, group in controls.groupby(c.COMPOUND, sort=True):
        counts = (int(group[group[c.SIDE] == side][c.PLATE].nunique()) for side in SIDES)
        cells = tuple((count, "plate" if count == 1 else "plates") for count in counts)
        rows.append(SideRow(f"{compound} (control)", cells))
    return rows


def _named(compounds: pd.Series[Any]) -> tuple[int, str]:
    names = sorted(compounds.unique())
    more = f" and {len(names) - _WRITTEN_OUT} more" if len(names) > _WRITTEN_OUT else ""
    return len(names), ", ".join(names[:_WRITTEN_OUT]) + more


def sides_table(index: pd.DataFrame, split: pd.DataFrame) -> pd.DataFrame:
    """A row a compound and side, with its MoA and its wells there."""
    wells = index[[c.PLATE, c.WELL, c.MOA]].drop_duplicates()
    table = split[[c.PLATE, c.WELL, c.COMPOUND, c.SIDE]].merge(wells, on=[c.PLATE, c.WELL])
    counted = table.groupby([c.COMPOUND, c.MOA, c.SIDE], dropna=False).size().rename("wells")
    return counted.reset_index()
