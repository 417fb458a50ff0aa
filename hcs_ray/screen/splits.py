"""`hcs-ray split`: which compounds a network learns from, and which it is judged by.

A compound has one side, so that a well of the test shows a compound that was never seen. Negative controls
are divided by whole plates. Positive-control wells train where their compound does, and are never tested.
"""

from __future__ import annotations

from collections.abc import Sequence
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
        index = read_index(study, [c.COMPOUND, c.PLATE, c.WELL, c.MOA, c.PERT_TYPE])
        table = divide(index.drop_duplicates(), study.config.split)
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


def divide(wells: pd.DataFrame, config: SplitConfig) -> pd.DataFrame:
    """Sides of all wells.

    Args:
        wells: One row a well, with compound, plate, well, MoA (null where unknown) and perturbation type.

    Returns:
        `SPLIT_COLUMNS`, sorted by plate and well; ``fold`` is null without folds and for unlabelled wells.

    Raises:
        InputError: no well is labelled.
    """
    labelled = wells[wells[c.MOA].notna()]
    if labelled.empty:
        raise InputError("no well has a MoA: there is nothing to split")
    rng = np.random.default_rng(config.seed)
    sides: dict[str, str] = {}
    folds: dict[str, int] = {}
    for _, rows in labelled.groupby(c.MOA, sort=True):
        compounds = [str(name) for name in rng.permutation(sorted(rows[c.COMPOUND].unique()))]
        _deal(compounds, config, sides, folds)
    plates = [str(plate) for plate in rng.permutation(sorted(wells[c.PLATE].unique()))]
    plate_side, plate_fold = _deal_plates(plates, config)
    table = wells.sort_values([c.PLATE, c.WELL], ignore_index=True)
    control = table[c.PERT_TYPE] == c.NEGATIVE_CONTROL
    side = table[c.COMPOUND].map(sides).where(table[c.MOA].notna(), c.UNUSED)
    side = side.where(~control, table[c.PLATE].map(plate_side))
    positive = table[c.PERT_TYPE] == c.POSITIVE_CONTROL
    table[c.SIDE] = side.where(~positive | (side == c.TRAIN), c.UNUSED)
    fold = table[c.COMPOUND].map(folds).where(table[c.MOA].notna())
    table[c.FOLD] = fold.where(~control, table[c.PLATE].map(plate_fold)).astype("Int64")
    table[c.SEED] = config.seed
    return table[list(SPLIT_COLUMNS)]


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
    """One compound trains; of two, the second is tested; of three and more, some validate."""
    tested = min(max(1, round(number * config.test_fraction)), number - 1) if number >= 2 else 0
    validating = max(1, round(number * config.validation_fraction)) if number >= 3 else 0
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
