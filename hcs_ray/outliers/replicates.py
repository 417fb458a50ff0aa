"""Mislabelled wells and novel treatments: what the replicates of a treatment say about one another.

Both compare wells with the mean wells of treatments, in a space in which replicates deviate by one standard
deviation in every direction (`space.whitened`): the classifier is linear discriminant analysis (Fisher 1936),
and each well's prediction is made out of fold, by means without the well and without its plate.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.outliers.calibrate import Bools, Finding, z_above
from hcs_ray.outliers.expected import rows_by
from hcs_ray.profiles.aggregate import Float64, Floats, Ints

OWN_REPLICATES: Final = "replicates"  # drivers that are no columns of images
OTHER_TREATMENT: Final = "looks_like"
_LEAST_REPLICATES: Final = 2  # one replicate does not tell which of two is wrong
_LEAST_APART: Final = 1.2  # times chance: below, two treatments look the same, inactive ones above all
_LEAST_TIMES: Final = 1.3  # as far from the replicates as from another treatment; less is no clear word
_PRIOR_WELLS: Final = 3  # a treatment's own spread counts as much as that of all from so many wells on
DEAD_AREA: Final = 0.4  # of the controls' area under cells: below it a treatment has killed most of them
_BLOCK_BYTES: Final = 64_000_000  # of distances at a time


@dataclass(frozen=True)
class Treatments:
    """The treatments of a table of wells, sorted by name (T,), and which of them each well has (W,).

    ``compound`` and ``moa`` are codes, -1 for a MoA that is not known; ``known`` are those with a MoA, and
    the negative controls.
    """

    names: tuple[str, ...]
    code: Ints
    compound: Ints
    moa: Ints
    control: Bools

    @property
    def known(self) -> Bools:
        return np.asarray((self.moa >= 0) | self.control)

    @classmethod
    def of(cls, wells: pd.DataFrame) -> Treatments:
        """From wells with treatment, compound, MoA and role."""
        code, names = pd.factorize(wells[c.TREATMENT], sort=True)
        first = wells.drop_duplicates(c.TREATMENT).set_index(c.TREATMENT).loc[names]
        compound, moa = (pd.factorize(first[column])[0] for column in (c.COMPOUND, c.MOA))
        control = (first[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy(dtype=bool)
        return cls(tuple(map(str, names)), code, compound, np.where(control, -1, moa), control)

    def related(self, to: Ints) -> Bools:
        """Which treatments (T,) share a compound or a MoA with some of them (n,): (n, T)."""
        same_moa = (self.moa[to][:, None] == self.moa) & (self.moa[to] >= 0)[:, None]
        return np.asarray((self.compound[to][:, None] == self.compound) | same_moa)


class Doubts(NamedTuple):
    """What is said of each well (W,): squared distances, and the treatment that it is nearest to elsewhere.

    ``own`` is to its replicates or to a treatment related to its own, whichever is nearer, ``other`` to the
    treatment ``looks_like`` of another compound and MoA; NaN and -1 where the well is not judged.
    ``apart`` is the squared distance between the means of the replicates and of that treatment, over what it
    would be by chance if both were the same.
    """

    own: Float64
    other: Float64
    looks_like: Ints
    replicates: Ints
    apart: Float64


def doubt_labels(treatments: Treatments, plate: Ints, features: Float64, trusted: Bools) -> Doubts:
    """Compare each well (W, K) with the mean wells of all treatments on other plates.

    Wells that are not ``trusted`` belong to no mean. A treatment with fewer than two replicates on other
    plates is compared with those on its own plate as well. A squared distance to a mean of n wells is divided
    by 1 + 1/n, as that of a replicate would be larger.
    """
    wells, kinds = len(features), len(treatments.names)
    weight = trusted.astype(np.float64)
    sums = np.zeros((kinds, features.shape[1]))
    np.add.at(sums, treatments.code, features * weight[:, None])
    counts = np.bincount(treatments.code, weight, kinds).astype(np.float64)
    result = Doubts(
        np.full(wells, np.nan),
        np.full(wells, np.nan),
        np.full(wells, -1),
        np.zeros(wells, dtype=np.int64),
        np.full(wells, np.nan),
    )
    for rows in rows_by(plate):
        here, own = np.unique(treatments.code[rows], return_inverse=True)
        on_plate = np.zeros((len(here), features.shape[1]))
        np.add.at(on_plate, own, features[rows] * weight[rows, None])
        elsewhere, left = sums.copy(), counts.copy()
        elsewhere[here] -= on_plate
        left[here] -= np.bincount(own, weight[rows], len(here))
        step = max(1, _BLOCK_BYTES // (8 * kinds))
        for start in range(0, len(rows), step):
            _doubt(
                treatments,
                features,
                weight,
                (sums, counts),
                (elsewhere, left),
                rows[start : start + step],
                result,
            )
    return result


def _doubt(
    treatments: Treatments,
    features: Float64,
    weight: Float64,
    everywhere: tuple[Float64, Float64],
    elsewhere: tuple[Float64, Float64],
    rows: Ints,
    result: Doubts,
) -> None:
    """Fill in the results of wells of one plate."""
    sums, left = elsewhere
    means = sums / np.maximum(left, 1)[:, None]
    square = _squared(features[rows], means) / (1 + 1 / np.maximum(left, 1))
    square[:, left < 1] = np.inf
    code, at = treatments.code[rows], np.arange(len(rows))
    count = left[code]
    replicates = np.bincount(treatments.code)[code] - 1
    all_but_one = everywhere[1][code] - weight[rows]
    few = count < np.minimum(_LEAST_REPLICATES, all_but_one)
    mean = (everywhere[0][code] - features[rows] * weight[rows, None]) / np.maximum(all_but_one, 1)[:, None]
    same_plate = ((features[rows] - mean) ** 2).sum(axis=1) / (1 + 1 / np.maximum(all_but_one, 1))
    square[at[few], code[few]] = same_plate[few]
    count = np.where(few, all_but_one, count)
    related = treatments.related(code)
    related[at, code] = True
    candidates = np.where(treatments.known & ~related, square, np.inf)
    kin = np.where(related, square, np.inf)
    nearest = candidates.argmin(axis=1)
    other = candidates[at, nearest]
    judged = (replicates >= _LEAST_REPLICATES) & (count >= 1) & np.isfinite(other)
    result.own[rows[judged]] = kin.min(axis=1)[judged]
    result.other[rows[judged]] = other[judged]
    result.looks_like[rows[judged]] = nearest[judged]
    result.replicates[rows] = replicates
    own = np.where(few[:, None], mean, means[code])
    between = ((own - means[nearest]) ** 2).sum(axis=1) / features.shape[1]
    between /= 1 / np.maximum(count, 1) + 1 / np.maximum(left[nearest], 1)
    result.apart[rows[judged]] = between[judged]


def find_mislabelled(doubts: Doubts, treatments: Treatments, words: list[str]) -> Finding:
    """Wells that are nearer to a treatment of another compound and MoA than to their own replicates.

    The score is the difference of the squared distances, twice the log ratio of the likelihoods of both, on
    the scale of all wells that are judged. ``words`` (W,) are added to what is said of a well.
    """
    difference = doubts.own - doubts.other
    judged = np.isfinite(difference)
    z = z_above(difference, judged)
    shared = judged & _shared(doubts, treatments, difference)
    z[shared] = np.minimum(z[shared], 0.0)
    ratio = np.sqrt(doubts.own / np.maximum(doubts.other, 1e-12))
    said = [
        f"{times:.1f} times as far from its {count} replicates as from {treatments.names[at]}{more}"
        if known
        else ""
        for times, count, at, more, known in zip(
            ratio, doubts.replicates, doubts.looks_like, words, judged, strict=True
        )
    ]
    drivers = [(OTHER_TREATMENT, OWN_REPLICATES)] * len(said)
    clear = (ratio >= _LEAST_TIMES) & (doubts.apart >= _LEAST_APART)
    return Finding(z, said, drivers, clear & ~shared)


def _shared(doubts: Doubts, treatments: Treatments, difference: Float64) -> Bools:
    """Whether at least half of a well's replicates are nearer to that other treatment or MoA, too (W,)."""
    kind = np.where(
        treatments.moa >= 0, treatments.moa, treatments.moa.max(initial=0) + 1 + treatments.compound
    )
    looks = np.where(difference > 0, kind[doubts.looks_like], -1)
    together = pd.DataFrame({"own": treatments.code, "looks": looks})
    same = together.groupby(["own", "looks"])["own"].transform("size").to_numpy() - 1
    every = np.bincount(treatments.code)[treatments.code] - 1
    return np.asarray((looks >= 0) & (2 * same >= np.maximum(every, 1)))


class Means(NamedTuple):
    """Treatments' mean wells: (T, K), how many wells (T,), and the mean squared distance to it (T,)."""

    mean: Float64
    wells: Float64
    spread: Float64


def treatment_means(treatments: Treatments, features: Float64, trusted: Bools) -> Means:
    """The mean of each treatment's trusted wells; of all where none is trusted.

    The spread is that of a single well, with the number of wells less one as divisor, shrunk to that of all.
    """
    kinds = len(treatments.names)
    none = np.bincount(treatments.code, trusted, kinds) == 0
    weight = (trusted | none[treatments.code]).astype(np.float64)
    count = np.bincount(treatments.code, weight, kinds)
    mean = np.zeros((kinds, features.shape[1]))
    np.add.at(mean, treatments.code, features * weight[:, None])
    mean /= count[:, None]
    square = ((features - mean[treatments.code]) ** 2).sum(axis=1) * weight
    total = np.bincount(treatments.code, square, kinds)
    several = count > 1
    usual = float(np.median(total[several] / (count[several] - 1))) if several.any() else 1.0
    spread = (total + _PRIOR_WELLS * usual) / (count - 1 + _PRIOR_WELLS)
    return Means(mean, count.astype(np.float64), np.maximum(spread, 1e-12))


def find_novel(treatments: Treatments, means: Means, area: Floats) -> Finding:
    """Treatments without MoA whose wells agree and lie far from every known one, the controls included.

    The score is log(b / a): b the squared distance to the nearest known treatment (of a treatment with a MoA:
    of another compound), divided by 1/n + 1/m for means of n and m wells, a the squared deviation of the
    treatment's own wells; on the scale of what it is for treatments with a MoA. NaN for those, for controls,
    for a single well, and where no treatment has a MoA. ``area`` (T,) is that under cells, relative to the
    controls': a treatment that leaves less than ``DEAD_AREA`` is toxic rather than novel, and ranks below all
    others.
    """
    kinds = len(treatments.names)
    there, nearest = np.full(kinds, np.inf), np.full(kinds, -1)
    known = np.flatnonzero(treatments.known)
    step = max(1, _BLOCK_BYTES // (8 * max(len(known), 1)))
    for start in range(0, kinds if known.size else 0, step):
        rows = np.arange(start, min(start + step, kinds))
        square = _squared(means.mean[rows], means.mean[known])
        square /= 1 / means.wells[rows][:, None] + 1 / means.wells[known]
        # Of a known treatment the other doses are left out, since all would be unknown if it was novel; an
        # unknown one whose compound is known at another dose is as near to a known MoA as that is.
        same = treatments.compound[rows][:, None] == treatments.compound[known]
        square[same & treatments.known[rows][:, None]] = np.inf
        there[rows], nearest[rows] = square.min(axis=1), known[square.argmin(axis=1)]
    labelled = treatments.known & ~treatments.control
    score = np.log(np.maximum(there, 1e-12) / means.spread)
    score[~np.isfinite(score)] = np.nan
    judged = ~treatments.known & (means.wells > 1) & labelled.any()
    z = np.where(judged, z_above(score, labelled), np.nan)
    dead = area < DEAD_AREA
    words = [
        f"cells cover {share:.0%} of what they cover on the controls of its plates: toxic rather than novel"
        if gone
        else f"its {count:.0f} wells agree, and {treatments.names[at]}, the nearest known treatment, "
        f"is {np.sqrt(ratio):.1f} times as far as chance would have it"
        for share, gone, count, at, ratio in zip(
            area, dead, means.wells, nearest, np.exp(np.nan_to_num(score)), strict=True
        )
    ]
    drivers = [("QC_CellArea",) if gone else (OTHER_TREATMENT, OWN_REPLICATES) for gone in dead]
    return Finding(np.where(dead, np.minimum(z, 0.0) - 10.0, z), words, drivers, (score > 0) & ~dead)


def _squared(rows: Float64, means: Float64) -> Float64:
    """Squared Euclidean distances (n, m)."""
    square = (rows**2).sum(axis=1)[:, None] + (means**2).sum(axis=1) - 2 * rows @ means.T
    return np.asarray(np.maximum(square, 0.0))
