"""The tables of fields, wells and treatments: their columns, ranks, reasons and evidence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import OutliersConfig
from hcs_ray.outliers.artefacts import WELL_NAME, WORTH_WORDS
from hcs_ray.outliers.calibrate import Finding, threshold
from hcs_ray.outliers.detectors import PREFIX
from hcs_ray.outliers.nearest import Nearest
from hcs_ray.profiles.aggregate import WELLS, Float64, Ints

ARTEFACT: Final = "artefact"
MISLABELLED: Final = "mislabelled"
NOVEL: Final = "novel"
DISTANCE: Final = "distance"
UNUSUAL: Final = "unusual"
SCORE: Final = "score"
RANK: Final = "rank"
REASON: Final = "reason"
EVIDENCE: Final = "evidence"
DRIVERS: Final = "drivers"
NEIGHBOURS: Final = "neighbours"


class Level(NamedTuple):
    """One of the three tables: the column that names a row, and those that describe it."""

    name: str
    identity: str
    columns: tuple[str, ...]
    reason: str  # the reason that is looked for here first


_PLACE: Final = (c.BATCH, c.PLATE, c.WELL, c.PERT_TYPE)
_DRUG: Final = (c.TREATMENT, c.COMPOUND, c.CONCENTRATION, c.MOA)
FIELD: Final = Level("field", c.KEY, (WELL_NAME, *_PLACE, c.SITE, *_DRUG), ARTEFACT)
WELL: Final = Level("well", WELL_NAME, (*_PLACE, *_DRUG), MISLABELLED)
TREATMENT: Final = Level("treatment", c.TREATMENT, (*_DRUG, WELLS), NOVEL)
LEVELS: Final = (FIELD, WELL, TREATMENT)


class Measured(NamedTuple):
    """What is measured of the rows of a level, beside the reasons: further columns, in order."""

    nearest: Nearest
    detectors: Mapping[str, Float64]
    columns: Mapping[str, Any]


def limits(config: OutliersConfig) -> dict[str, float]:
    """The z-score from which each reason is given; ``unusual`` is no reason, but evidence."""
    usual = threshold(config.false_alarms)
    return {
        ARTEFACT: usual,
        MISLABELLED: usual,
        NOVEL: threshold(config.novel_false_alarms),
        UNUSUAL: usual,
    }


def level_table(
    level: Level,
    meta: pd.DataFrame,
    measured: Measured,
    findings: Mapping[str, Finding],
    config: OutliersConfig,
) -> pd.DataFrame:
    """The table of one level, in the order of ``meta``, with the reasons that are found at this level."""
    names = meta[level.identity].to_numpy(dtype=str)
    unusual = _unusual(measured, len(meta))
    everything = {**findings, UNUSUAL: unusual}
    score = np.fmax.reduce([_standing(finding) for finding in everything.values()])
    table = meta[list(dict.fromkeys((level.identity, *level.columns)))].copy()
    table[DISTANCE] = measured.nearest.distance
    for name, values in measured.columns.items():
        table[name] = values
    for name, found in measured.detectors.items():
        table[f"{PREFIX}{name}"] = found
    for reason, finding in everything.items():
        table[reason] = finding.z
    table[SCORE] = score
    table[RANK] = _ranks(score, names)
    _explain(table, everything, config)
    near = [names[row].tolist() for row in measured.nearest.rows]
    table[NEIGHBOURS] = pd.Series(near, index=table.index, dtype=object)
    return table


def _unusual(measured: Measured, rows: int) -> Finding:
    """What the detectors agree on: the median of their scores, 0 without any."""
    if not measured.detectors:
        return Finding(np.zeros(rows), [""] * rows, [()] * rows)
    names = list(measured.detectors)
    z = np.median(np.stack([measured.detectors[name] for name in names]), axis=0)
    words, drivers = [""] * rows, [()] * rows  # type: tuple[list[str], list[tuple[str, ...]]]
    for row in np.flatnonzero(z >= WORTH_WORDS).tolist():
        order = sorted(names, key=lambda name: -measured.detectors[name][row])
        said = ", ".join(f"{name} {measured.detectors[name][row]:.1f}" for name in order)
        words[row] = f"its embedding is unusual: MADs above the median, by detector: {said}"
        drivers[row] = tuple(f"{PREFIX}{name}" for name in order)
    return Finding(z, words, drivers)


def _standing(finding: Finding) -> Float64:
    """The z-scores of what holds; where it does not, no more than 0."""
    return (
        finding.z if finding.holds is None else np.where(finding.holds, finding.z, np.minimum(finding.z, 0))
    )


def _ranks(score: Float64, names: np.ndarray[Any, Any]) -> Ints:
    """1 for the largest score; ties in the order of names."""
    ranks = np.empty(len(score), dtype=np.int64)
    ranks[np.lexsort((names, -score))] = np.arange(1, len(score) + 1)
    return ranks


def _explain(table: pd.DataFrame, findings: Mapping[str, Finding], config: OutliersConfig) -> None:
    """Add reason, evidence and drivers: of what speaks loudest over its limit, given where it has one.

    That a row is unusual is evidence, but no reason, and is said only where there is none.
    """
    limit = limits(config)
    over = {name: _standing(finding) / limit[name] for name, finding in findings.items()}
    reasons: list[Any] = [None] * len(table)
    evidence: list[Any] = [None] * len(table)
    drivers: list[list[str]] = [[]] * len(table)
    loud = np.fmax.reduce(list(over.values())) >= 1
    for row in np.flatnonzero(loud).tolist():
        found = {name: values[row] for name, values in over.items() if values[row] >= 1}
        name = max(found, key=lambda name: (name != UNUSUAL, found[name]))
        reasons[row] = None if name == UNUSUAL else name
        evidence[row], drivers[row] = findings[name].words[row], list(findings[name].drivers[row])
    table[REASON] = pd.array(reasons, dtype="string")
    table[EVIDENCE] = pd.array(evidence, dtype="string")
    table[DRIVERS] = pd.Series(drivers, index=table.index, dtype=object)


def inherit(table: pd.DataFrame, upper: pd.DataFrame, on: str) -> pd.DataFrame:
    """Give rows without a reason that of their well or treatment, unless it is an artefact."""
    given = upper[upper[REASON].notna() & (upper[REASON] != ARTEFACT)].set_index(on)
    heirs = (table[REASON].isna() & table[on].isin(given.index)).to_numpy()
    found, result = given.loc[table.loc[heirs, on]], table.copy()
    drivers = table[DRIVERS].to_numpy(copy=True)
    for row, own in zip(np.flatnonzero(heirs).tolist(), found[DRIVERS], strict=True):
        drivers[row] = list(own)
    result.loc[heirs, REASON] = found[REASON].to_numpy()
    result.loc[heirs, EVIDENCE] = (found.index.astype(str) + ": " + found[EVIDENCE]).to_numpy()
    result[DRIVERS] = pd.Series(drivers, index=table.index, dtype=object)
    return result
