"""What the field view reads and looks up of a field, and what is known of it in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError
from hcs_ray.explore import fields as field_data
from hcs_ray.explore.scene import Scene

_FLAG: Final = f"{c.QC_PREFIX}Flag_"
_STRIP: Final = 8


@dataclass(frozen=True)
class Found:
    """What was read and looked up for a field; where it cannot be read, ``problem`` says why."""

    row: int
    limits: list[tuple[float, float]]
    relatives: tuple[list[int], ...]
    problem: str = ""


def find(scene: Scene, row: int, corrected: bool, percentiles: tuple[float, float]) -> Found:
    """Read a field and look up what it is compared with, which there is also where it cannot be read."""
    relatives = (
        scene.neighbours(row, _STRIP),
        scene.same_well(row)[:_STRIP],
        scene.same_treatment(row, _STRIP),
        scene.controls_beside(row, _STRIP),
    )
    try:
        planes = field_data.planes(scene, row, corrected)
    except HcsError as error:
        return Found(row, [], relatives, str(error))
    return Found(row, field_data.percentile_limits(planes, *percentiles), relatives)


def facts(about: dict[str, Any]) -> list[list[str]]:
    """What is known of a field, as pairs of a term and text; what is not known is left out."""

    def known(name: str) -> bool:
        return name in about and not pd.isna(about[name])

    found: list[list[str]] = []
    if about[c.PERT_TYPE] == c.NEGATIVE_CONTROL:
        found.append(["Mechanism", "negative control"])
    else:
        found.append(["Mechanism", str(about[c.MOA]) if known(c.MOA) else "no label"])
    if known("predicted_moa"):
        verdict = ("right" if about["is_right"] else "wrong") if known("is_right") else ""
        side = f"; {about[c.SIDE]} side of the split" if known(c.SIDE) else ""
        found.append(
            [
                "Prediction",
                f"{about['predicted_moa']}, probability {about['probability']:.2f}"
                f"{f' ({verdict})' if verdict else ''}{side}",
            ]
        )
    if known("unreadable"):
        found.append(["Not embedded", str(about["unreadable"])])
    if known("outlier_rank"):
        reason = str(about["outlier_reason"]) if known("outlier_reason") else "no reason: ordinary"
        found.append(
            ["Outlier", f"rank {about['outlier_rank']:,}, score {about['outlier_score']:.2f}; {reason}"]
        )
    if known("outlier_evidence") and about["outlier_evidence"]:
        found.append(["Evidence", str(about["outlier_evidence"])])
    flags = [name.removeprefix(_FLAG) for name, value in about.items() if name.startswith(_FLAG) and value]
    found.append(["Quality flags", ", ".join(flags) or "none"])
    found.append(["Key", str(about[c.KEY])])
    return found
