"""The bake-off of normalisations, and what is left of batches and plates under the one that this run has."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from hcs_ray.contracts import rows_of
from hcs_ray.profiles.bake_off import CANDIDATE, CHOSEN, METHOD, REPLICATE_MAP, SKIPPED, WEEK_EXCESS
from hcs_ray.report.chart import Chart

HEADS: Final = (
    ("Replicate mAP", "do replicates find one another: 0 random order, 1 perfect"),
    ("mAP of the position", "of other treatments at the same position: what the position alone gives"),
    ("Batch told", "balanced accuracy of a probe on control wells, above chance"),
    ("Plate told", "the same of the plate"),
    ("LISI", "batches among a control's nearest wells"),
    ("Same-batch neighbours", "share of nearest neighbours that are of the same batch"),
    ("NSC", "right of scored treatments, with the 95 % interval"),
    ("NSCB", "right of scored treatments, with the 95 % interval"),
)  # fmt: skip


@dataclass(frozen=True)
class Contender:
    """A normalisation; without ``cells`` (in the order of `HEADS`) it was ``skipped`` for a reason."""

    method: str
    chosen: bool
    configured: bool
    candidate: bool
    cells: tuple[str, ...]
    skipped: str


@dataclass(frozen=True)
class BatchGauge:
    """What is left of batches in negative controls: a figure (0 to 1) beside what chance gives."""

    title: str
    share: float
    chance: float
    reading: str


@dataclass(frozen=True)
class BakeOff:
    """All normalisations side by side, and the gauges of the one that the profile was made with."""

    rule: str
    whose: str
    contenders: tuple[Contender, ...]
    chosen: str
    configured: str
    picture: Chart
    gauges: tuple[BatchGauge, ...]
    measured_on: str
    lisi: str


def bake_off(table: pd.DataFrame, document: Mapping[str, Any], picture: bytes, configured: str) -> BakeOff:
    """From ``comparison.parquet``, ``.json`` and ``.svg``."""
    scores = "nsc_held_out" if document["leaked_compounds"] else "nsc"
    rows = rows_of(table)
    ours = next((row for row in rows if row[METHOD] == configured and not _is_skipped(row)), None)
    made = [str(row[METHOD]) for row in rows if not _is_skipped(row)]
    alt = (
        "Normalisations: how well replicates find one another against how well control wells tell their "
        f"batch, and NSCB against same-batch neighbours, of {', '.join(made)}; chosen: {document['chosen']}"
    )
    return BakeOff(
        rule=str(document["rule"]),
        whose="compounds whose labels were not used" if document["leaked_compounds"] else "all compounds",
        contenders=tuple(_contender(row, scores, configured) for row in rows),
        chosen=str(document["chosen"]),
        configured=configured,
        picture=Chart("normalisations", alt, picture),
        gauges=_gauges(ours) if ours else (),
        measured_on=str(document["batch_effects"]["measured_on"]),
        lisi=_lisi(ours) if ours else "",
    )


def _contender(row: Mapping[str, Any], scores: str, configured: str) -> Contender:
    skipped = _is_skipped(row)
    return Contender(
        method=str(row[METHOD]),
        chosen=bool(row[CHOSEN]),
        configured=row[METHOD] == configured,
        candidate=bool(row[CANDIDATE]),
        cells=() if skipped else _cells(row, scores),
        skipped=str(row[SKIPPED]) if skipped else "",
    )


def _is_skipped(row: Mapping[str, Any]) -> bool:
    return isinstance(row[SKIPPED], str)


def _cells(row: Mapping[str, Any], scores: str) -> tuple[str, ...]:
    return (
        _number(row[REPLICATE_MAP], ".3f"),
        _number(row["position_map_normalized"], ".3f"),
        _number(row[WEEK_EXCESS], "+.2f"),
        _number(row["plate_excess"], "+.2f"),
        _number(row["lisi_weeks"], ".2f"),
        _number(row.get("same_week_share", math.nan), ".0%"),
        _hits(row, scores),
        _hits(row, scores.replace("nsc", "nscb")),
    )


def _hits(row: Mapping[str, Any], name: str) -> str:
    total = row.get(f"{name}_total", math.nan)
    if total != total or not total:
        return "–"
    found = f"{row[f'{name}_correct']:.0f}/{total:.0f}"
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return found if low != low else f"{found} ({100 * low:.0f} to {100 * high:.0f} %)"


def _number(value: float, form: str) -> str:
    return "–" if value != value else format(value, form).replace("%", " %")


def _gauges(row: Mapping[str, Any]) -> tuple[BatchGauge, ...]:
    names = {"week": "Batch of control wells told", "plate": "Plate of control wells told"}
    return tuple(
        BatchGauge(
            title, float(row[f"{name}_accuracy"]), float(row[f"{name}_chance"]), _told(name, row)
        )
        for name, title in names.items()
        if row[f"{name}_accuracy"] == row[f"{name}_accuracy"]
    )  # fmt: skip


def _told(name: str, row: Mapping[str, Any]) -> str:
    accuracy, chance = (float(row[f"{name}_{what}"]) for what in ("accuracy", "chance"))
    found = (
        f"A linear probe tells the {name} of {100 * accuracy:.0f} % of control wells; "
        f"chance is {100 * chance:.0f} %."
    )
    if accuracy <= chance:
        return f"{found} Not above chance: no sign of the {name} is left."
    return f"{found} Controls are the same on every plate, so what is above chance is a batch effect."


def _lisi(row: Mapping[str, Any]) -> str:
    return (
        f"Among the nearest wells of a control lie {row['lisi_weeks']:.2f} batches (LISI); mixed at random "
        f"there would be {row['lisi_weeks_mixed']:.2f}, with every batch by itself 1."
    )
