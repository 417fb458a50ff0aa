"""Artefacts: fields whose image, or whose embedding, is unlike what their plate and replicates show.

Four kinds of evidence, each on the scale of ordinary fields (`z_above`):

- the image: the Mahalanobis distance of the quality columns' deviations (`deviations`), from which what the
  number of cells explains is taken away, since a field with more cells than expected is no artefact;
- fewer cells than expected, one-sided;
- fine detail that is more alike in all channels than expected, one-sided: what shows in all of them at one
  place, a rim or dust, lies on the glass;
- the embedding: far from the treatment's other wells, and from the nearest fields too. The smaller of both
  counts: a mislabelled well is near to others, a rare phenotype to its own.

The root of the sum of the squares of what is above 0 is the score, once more on the scale of the controls.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.outliers.calibrate import Bools, Finding, log, z_above
from hcs_ray.outliers.expected import Column, Deviations, of_other_wells, spread_of
from hcs_ray.profiles.aggregate import Float64, Floats, Ints

WELL_NAME: Final = "well"  # the column with "<plate>_<well>"
CLASS_DISTANCE: Final = "class_distance"  # drivers that are no quality columns
NEIGHBOUR_DISTANCE: Final = "distance"
SHRINKAGE: Final = 0.2  # of the correlations of deviations towards none: some of them are nearly copies
_ORDINARY: Final = 3.0  # deviations are cut there where a covariance is estimated
_COUNT_REACH: Final = 4.0  # more missing cells than these standard deviations explain no more of the image
_LEAST_LEFT: Final = 0.3  # of a column's spread that the number of cells can leave
_PRIOR_FIELDS: Final = 1  # a treatment's own level counts as much as that of all from so many fields on
WORTH_WORDS: Final = 1.2  # z-scores below are never evidence
_NAMED: Final = 3  # columns in the evidence
_FEWER: Final = ("QC_NucleusCount", "QC_CellArea")
_ALIKE: Final = "QC_DetailCorrelation_"


class Evidence(NamedTuple):
    """One kind of evidence: z (N,), and how much each column had to do with it (N, Q)."""

    z: Float64
    share: Float64


def quality_of(fields: pd.DataFrame, index: pd.DataFrame) -> pd.DataFrame:
    """The ``QC_*`` columns, row-aligned with ``fields``."""
    rows = index.set_index(c.KEY)
    missing = ~fields[c.KEY].isin(rows.index)
    if missing.any():
        raise InputError(f"{fields[c.KEY][missing].iloc[0]} is not in the index of the shards; embed again")
    columns = [name for name in rows.columns if str(name).startswith(c.QC_PREFIX)]
    return rows.loc[fields[c.KEY], columns].reset_index(drop=True)


def find_artefacts(
    deviations: Deviations, controls: Bools, embedding: Sequence[Floats], treatment: Ints
) -> Finding:
    """Which fields are artefacts, in standard deviations of the controls (N,).

    ``embedding`` holds distances (N,), `class_distance` and that to the nearest fields, each taken over what
    is usual for the field's treatment, by number (N,). Without any the image alone counts; NaN where there is
    nothing to go by.
    """
    image = quality_evidence(deviations, controls)
    parts = [part.z for part in image]
    if embedding:
        over = [by_role(over_replicates(log(distance), treatment), controls) for distance in embedding]
        parts.append(np.nan_to_num(np.fmin.reduce(over)))
    if not parts:
        return Finding(np.full(len(controls), np.nan), [""] * len(controls), [()] * len(controls))
    stacked = np.maximum(np.stack(parts), 0.0)
    z = z_above(np.sqrt((stacked**2).sum(axis=0)), controls)
    far = stacked[-1] if embedding else np.zeros(len(controls))
    words, drivers = [""] * len(z), [()] * len(z)  # type: tuple[list[str], list[tuple[str, ...]]]
    for row in np.flatnonzero(z >= WORTH_WORDS).tolist():
        words[row], drivers[row] = _explained(deviations, image, far, row)
    return Finding(z, words, drivers)


def _explained(
    deviations: Deviations, image: Sequence[Evidence], far: Float64, row: int
) -> tuple[str, tuple[str, ...]]:
    """What drove a row's score, the stronger kind of evidence first, in words and as columns."""
    said: list[tuple[float, str, tuple[str, ...]]] = []
    strongest = max(image, key=lambda part: part.z[row], default=None)
    if strongest is not None and strongest.z[row] >= min(1.0, far[row]):
        named = _strongest(strongest.share[row])
        words = in_words([(deviations.columns[at], deviations.z[row, at]) for at in named])
        said.append((strongest.z[row], words, tuple(deviations.columns[at].name for at in named)))
    if far[row] >= 1 or not said:
        words = (
            f"embedding {far[row]:.1f} SDs farther than usual from its replicates and from every other field"
        )
        said.append((far[row], words, (CLASS_DISTANCE, NEIGHBOUR_DISTANCE)))
    said.sort(key=lambda item: -item[0])
    return "; ".join(words for _, words, _ in said), tuple(name for _, _, names in said for name in names)


def quality_evidence(deviations: Deviations, controls: Bools) -> list[Evidence]:
    """The evidence of the image, of cells and of likeness; what there are no columns for is left out."""
    varies = np.flatnonzero(np.abs(deviations.z).max(axis=0, initial=0.0) > 0)
    if not varies.size:
        return []
    z = deviations.z[:, varies]
    names = [deviations.columns[at].name for at in varies]
    counts = [number for number, name in enumerate(names) if name in _FEWER]
    alike = [number for number, name in enumerate(names) if name.startswith(_ALIKE)]
    found = []
    if counts:
        fewer = -z[:, counts].mean(axis=1)
        fewer /= max(spread_of(fewer), 1e-3)
        found.append(_one_sided(fewer, -z, counts, varies, deviations, controls))
        z = _without(z, np.minimum(fewer, _COUNT_REACH))
    if alike:
        found.append(_one_sided(z[:, alike].mean(axis=1), z, alike, varies, deviations, controls))
    squares = z * (z @ np.linalg.inv(_covariance(z)))
    share = np.zeros(deviations.z.shape)
    share[:, varies] = squares
    found.append(Evidence(by_role(log(np.sqrt(np.maximum(squares.sum(axis=1), 0))), controls), share))
    return found


def _one_sided(
    values: Float64, z: Float64, columns: list[int], varies: Ints, deviations: Deviations, controls: Bools
) -> Evidence:
    """Evidence of what is above 0 in some of the columns that vary."""
    share = np.zeros(deviations.z.shape)
    share[:, varies[columns]] = np.maximum(z[:, columns], 0)
    return Evidence(by_role(np.maximum(values, 0.0), controls), share)


def class_distance(features: Floats, well: Ints, treatment: Ints) -> Float64:
    """How far an embedding (N, K) is from the median of the treatment's other wells (N,): Mahalanobis.

    NaN where there is no other well.
    """
    values = features.astype(np.float64)
    expected, others = of_other_wells(values, well, treatment)
    residual = (values - expected) / np.sqrt(1.0 + 1.25 / np.maximum(others, 1))[:, None]
    known = np.isfinite(residual).all(axis=1)
    if not known.any():
        return np.full(len(features), np.nan)
    spread = np.median(np.abs(residual[known]), axis=0)
    z = residual / np.maximum(spread, 1e-6 * max(spread.max(), 1e-12))
    distance = np.full(len(features), np.nan)
    inverse = np.linalg.inv(_covariance(z[known]))
    distance[known] = np.sqrt(np.maximum((z[known] * (z[known] @ inverse)).sum(axis=1), 0))
    return distance


def by_role(values: Float64, controls: Bools) -> Float64:
    """Controls on the scale of controls, other rows on theirs, or on that of controls if it is wider."""
    return np.where(
        controls, z_above(values, controls), np.minimum(z_above(values, ~controls), z_above(values, controls))
    )


def over_replicates(values: Float64, treatment: Ints) -> Float64:
    """Values (N,) less what their treatment's median exceeds that of all by, shrunk to 0 for few fields.

    A network draws what it has learned apart: fields of a strong phenotype differ more among themselves.
    """
    known = pd.Series(values)
    excess = np.maximum(known.groupby(treatment).transform("median").to_numpy() - np.nanmedian(values), 0.0)
    rows = np.bincount(treatment)[treatment]
    return np.asarray(values - excess * rows / (rows + _PRIOR_FIELDS))


def _without(z: Float64, factor: Float64) -> Float64:
    """Deviations (N, Q) less what a factor (N,) explains, in their own new standard deviations."""
    ordinary, cut = np.clip(z, -_ORDINARY, _ORDINARY), np.clip(factor, -_ORDINARY, _ORDINARY)
    slope = cut @ ordinary / max(float(cut @ cut), 1e-12)
    left = z - factor[:, None] * slope
    before, after = (np.array([spread_of(column) for column in each.T]) for each in (z, left))
    # A column that hardly ever varies, saturation say, keeps the scale that its least spread gives it.
    return np.asarray(left / np.where(before > _LEAST_LEFT, np.maximum(after, _LEAST_LEFT), 1.0))


def _covariance(z: Float64) -> Float64:
    """The covariance (Q, Q) of ordinary deviations, shrunk towards the identity."""
    ordinary = np.clip(z, -_ORDINARY, _ORDINARY)
    covariance = (1 - SHRINKAGE) * ordinary.T @ ordinary / len(z)
    lacking = np.maximum(1 - SHRINKAGE - np.diagonal(covariance), 0.0)  # of columns that hardly ever vary
    return np.asarray(covariance + np.diag(SHRINKAGE + lacking))


def _strongest(share: Float64) -> list[int]:
    """The columns (at most three) that matter, the first always, others if they have a third of its share."""
    order = np.argsort(-share, kind="stable")[:_NAMED]
    return [int(at) for at in order if share[at] > share[order[0]] / 3 or at == order[0]]


def in_words(named: Sequence[tuple[Column, float]]) -> str:
    """For a person: how far columns are from what was expected."""
    parts = [f"{column.words} {abs(z):.1f} MADs {'above' if z > 0 else 'below'}" for column, z in named]
    return f"{', '.join(parts)} what its plate and replicates show"


def of_groups(artefacts: Finding, fields: pd.DataFrame, by: str, groups: pd.DataFrame) -> Finding:
    """The artefact score of ``groups`` (wells or treatments, one row each): the median of their fields."""
    table = pd.DataFrame({"z": artefacts.z, "by": fields[by], c.KEY: fields[c.KEY], "words": artefacts.words})
    table["drivers"] = pd.Series(list(artefacts.drivers), index=table.index, dtype=object)
    worst = table.sort_values("z", ascending=False, kind="stable").drop_duplicates("by").set_index("by")
    median = table.groupby("by")["z"].median()
    rows = worst.loc[groups[by]]
    z = median.loc[groups[by]].to_numpy(dtype=np.float64)
    return Finding(z, (rows[c.KEY] + ": " + rows["words"]).tolist(), rows["drivers"].tolist())
