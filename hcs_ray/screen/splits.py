"""`hcs-ray split`: which compounds a network learns from, and which it is judged by.

A compound has one side, so that a well of the test shows a compound that was never seen. Negative controls
are divided by whole plates. Positive-control wells train where their compound does, and are never tested.

``split.leave_out`` names one compound to test instead: a fold of a leave-one-compound-out validation.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import SplitConfig
from hcs_ray.contracts import InputError, Progress
from hcs_ray.study import Study
from hcs_ray.tables import read_index, read_split

SPLIT_COLUMNS = (c.COMPOUND, c.PLATE, c.WELL, c.SIDE, c.FOLD, c.SEED)


def split(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``splits/NAME.parquet``, one row a well."""
    claim = study.claim("split")
    if force or not study.is_complete("split", claim):
        progress(0, 1)
        table = divide(read_wells(study), study.config.split)
        with study.writing("split", claim, force) as writer:
            writer.write_table(f"{study.name}.parquet", table)
        progress(1, 1)
    return report(read_split(study))


def report(table: pd.DataFrame) -> dict[str, Any]:
    """Wells and compounds a side."""
    used = table[table[c.SIDE] != c.UNUSED]
    return {
        str(side): {"wells": len(rows), "compounds": int(rows[c.COMPOUND].nunique())}
        for side, rows in used.groupby(c.SIDE)
    }


def read_wells(study: Study) -> pd.DataFrame:
    """What `divide` takes: one row a well of the index."""
    columns = [c.COMPOUND, c.PLATE, c.WELL, c.MOA, c.PERT_TYPE]
    return read_index(study, [*columns, c.BATCH]).drop_duplicates(columns)


def scored_compounds(wells: pd.DataFrame) -> list[str]:
    """The compounds with a labelled well that is no control, sorted: those that `leave_out` may name."""
    treated = wells[(wells[c.PERT_TYPE] == c.TREATED) & wells[c.MOA].notna()]
    return sorted(str(name) for name in treated[c.COMPOUND].unique())


def divide(wells: pd.DataFrame, config: SplitConfig) -> pd.DataFrame:
    """Sides of all wells.

    With ``leave_out`` that compound's labelled wells are the test, its positive-control wells are unused. Of
    every MoA with three more compounds or above, some validate; a smaller one trains whole, unless all are
    so small: then one of two validates. They are drawn for each compound anew, so that none validates in all
    folds. Negative controls train or validate; there is no test share. ``leave_out_batches`` takes all other
    wells of that compound's batches out before anything is dealt; of a compound that is also a positive
    control, the batches of its other wells.

    Args:
        wells: One row a well, with compound, plate, well, MoA (null where unknown) and perturbation type,
            and with the batch where ``leave_out_batches`` asks for it.

    Returns:
        `SPLIT_COLUMNS`, sorted by plate and well; ``fold`` is null without folds and for unlabelled wells.

    Raises:
        InputError: no well is labelled, the compound left out is not among those that can be scored, or
            without it (and its batches) nothing is left to train on.
    """
    if not wells[c.MOA].notna().any():
        raise InputError("no well has a MoA: there is nothing to split")
    if config.leave_out is None:
        dealt = _deal_wells(wells, config, np.random.default_rng(config.seed))
    else:
        dealt = _deal_others(wells, config, config.leave_out)
    table = wells.sort_values([c.PLATE, c.WELL], ignore_index=True)
    control = table[c.PERT_TYPE] == c.NEGATIVE_CONTROL
    side = table[c.COMPOUND].map(dealt.sides).where(table[c.MOA].notna(), c.UNUSED)
    side = side.where(~control, table[c.PLATE].map(dealt.plate_sides))
    positive = table[c.PERT_TYPE] == c.POSITIVE_CONTROL
    side = side.where(~positive | (side == c.TRAIN), c.UNUSED)
    if dealt.batches:
        side = side.where((side == c.TEST) | ~table[c.BATCH].isin(dealt.batches), c.UNUSED)
    table[c.SIDE] = side
    fold = table[c.COMPOUND].map(dealt.folds).where(table[c.MOA].notna())
    table[c.FOLD] = fold.where(~control, table[c.PLATE].map(dealt.plate_folds)).astype("Int64")
    table[c.SEED] = config.seed
    return table[list(SPLIT_COLUMNS)]


@dataclass(frozen=True)
class _Dealt:
    """Sides and folds of labelled compounds and, for negative controls, of plates; batches out of use."""

    sides: Mapping[str, str]
    folds: Mapping[str, int]
    plate_sides: Mapping[str, str]
    plate_folds: Mapping[str, int]
    batches: frozenset[str] = field(default_factory=frozenset)


def _deal_wells(wells: pd.DataFrame, config: SplitConfig, rng: np.random.Generator) -> _Dealt:
    sides: dict[str, str] = {}
    folds: dict[str, int] = {}
    for _, rows in wells[wells[c.MOA].notna()].groupby(c.MOA, sort=True):
        compounds = [str(name) for name in rng.permutation(sorted(rows[c.COMPOUND].unique()))]
        _deal(compounds, config, sides, folds)
    plates = [str(plate) for plate in rng.permutation(sorted(wells[c.PLATE].unique()))]
    return _Dealt(sides, folds, *_deal_plates(plates, config))


def _deal_others(wells: pd.DataFrame, config: SplitConfig, compound: str) -> _Dealt:
    """Tests one compound; deals what is not of it (nor of its batches) to training and validation."""
    _require_scored(wells, compound)
    batches = left_out_batches(wells, compound) if config.leave_out_batches else frozenset()
    others = wells[wells[c.COMPOUND] != compound]
    if batches:
        others = others[~others[c.BATCH].isin(batches)]
    labelled = others[others[c.MOA].notna()]
    if labelled.empty:
        without = f" and {', '.join(sorted(batches))}" if batches else ""
        raise InputError(f"split.leave_out: without {compound}{without} no labelled well is left to train on")
    rng = np.random.default_rng([config.seed, *compound.encode()])
    # A compound that is left with its positive-control wells could only train, as they are never judged.
    judged = others[others[c.PERT_TYPE] != c.POSITIVE_CONTROL]
    dealt = _deal_wells(judged, config.model_copy(update={"folds": None}), rng)
    controls = dict.fromkeys((str(name) for name in labelled[c.COMPOUND].unique()), c.TRAIN)
    sides = {**controls, **dealt.sides, compound: c.TEST}
    if c.VALIDATION not in sides.values():
        sides |= _one_of_two(judged, rng)
    all_compounds = dict.fromkeys((str(name) for name in wells[c.COMPOUND].unique()), c.UNUSED)
    plates = dict.fromkeys((str(name) for name in wells[c.PLATE].unique()), c.UNUSED)
    return _Dealt(all_compounds | sides, {}, plates | dict(dealt.plate_sides), {}, batches)


def _one_of_two(wells: pd.DataFrame, rng: np.random.Generator) -> dict[str, str]:
    """A compound of each MoA with two validates; one of two MoAs does not, so that both of them train."""
    pairs = wells[wells[c.MOA].notna()].drop_duplicates([c.COMPOUND, c.MOA])
    single = pairs[~pairs.duplicated(c.COMPOUND, keep=False)]
    sides: dict[str, str] = {}
    for moa, rows in pairs.groupby(c.MOA, sort=True):
        free = sorted(single.loc[single[c.MOA] == moa, c.COMPOUND])
        if len(rows) > 1 and free:
            sides[str(rng.choice(free))] = c.VALIDATION
    return sides


def _require_scored(wells: pd.DataFrame, compound: str) -> None:
    names = scored_compounds(wells)
    if compound in names:
        return
    nearest = difflib.get_close_matches(compound, names, n=1, cutoff=0.0)
    hint = f"; the nearest is {nearest[0]}" if nearest else ""
    known = compound in set(wells[c.COMPOUND])
    what = "has no labelled well that is no control" if known else "is no compound of this screen"
    raise InputError(f"split.leave_out: {compound} {what}{hint}")


def left_out_batches(wells: pd.DataFrame, compound: str) -> frozenset[str]:
    """Where the wells lie by which a compound is scored: not those where it is a positive control.

    InputError: a well without batch, which could lie in any.
    """
    if (lost := wells[c.BATCH].isna()).any():
        plate, well = wells.loc[lost, [c.PLATE, c.WELL]].iloc[0]
        raise InputError(f"split.leave_out_batches: plate {plate} well {well} has no {c.BATCH}")
    own = wells[(wells[c.COMPOUND] == compound) & (wells[c.PERT_TYPE] == c.TREATED) & wells[c.MOA].notna()]
    return frozenset(str(batch) for batch in own[c.BATCH].unique())


def _deal(
    compounds: Sequence[str], config: SplitConfig, sides: dict[str, str], folds: dict[str, int]
) -> None:
    """Sides of the compounds of one MoA, in a drawn order; at least one trains.

    A compound of two MoAs (by dose) keeps the side it was first given.
    """
    if config.folds is not None:
        start = len(folds)  # so that small MoAs do not all begin with the same fold
        dealt = {name: (start + i) % config.folds for i, name in enumerate(compounds)}
        for name, fold in dealt.items():
            folds.setdefault(name, fold)
        given = {name: _side_of_fold(folds[name], config) for name in compounds}
    else:
        given = dict(zip(compounds, _holdout_sides(len(compounds), config), strict=True))
    given |= {name: sides[name] for name in compounds if name in sides}
    if c.TRAIN not in given.values():
        free = [name for name in compounds if name not in sides]
        spare = [name for name in free if given[name] == c.VALIDATION] or free[:1]
        given |= dict.fromkeys(spare, c.TRAIN)
    sides |= given


def _holdout_sides(number: int, config: SplitConfig) -> list[str]:
    """One compound trains; of two, the second is tested; of three and more, some validate.

    With a compound left out, the test is elsewhere and both of two train.
    """
    validating = max(1, round(number * config.validation_fraction)) if number >= 3 else 0
    if config.leave_out is not None:
        validating = min(validating, number - 1)
        return [c.TRAIN] * (number - validating) + [c.VALIDATION] * validating
    tested = min(max(1, round(number * config.test_fraction)), number - 1) if number >= 2 else 0
    tested = max(1, min(tested, number - 1 - validating)) if number >= 3 else tested
    validating = min(validating, number - 1 - tested)
    trained = number - tested - validating
    return [c.TRAIN] * trained + [c.TEST] * tested + [c.VALIDATION] * validating


def _deal_plates(plates: Sequence[str], config: SplitConfig) -> tuple[dict[str, str], dict[str, int]]:
    """Sides and folds of whole plates, for the negative controls."""
    if config.folds is not None:
        folds = {plate: i % config.folds for i, plate in enumerate(plates)}
        return {plate: _side_of_fold(fold, config) for plate, fold in folds.items()}, folds
    return dict(zip(plates, _holdout_sides(len(plates), config), strict=True)), {}


def _side_of_fold(fold: int, config: SplitConfig) -> str:
    assert config.folds is not None
    if fold == config.test_fold:
        return c.TEST
    return c.VALIDATION if fold == (config.test_fold + 1) % config.folds else c.TRAIN
