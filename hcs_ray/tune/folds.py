"""The training of a fold of a leave-one-compound-out validation, which sees nothing of the compound left out.

What the folds are worth is told by `hcs_ray.profiles.folds`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import StudyConfig
from hcs_ray.contracts import InputError
from hcs_ray.screen.splits import divide, left_out_batches, read_wells
from hcs_ray.study import Study

if TYPE_CHECKING:
    from hcs_ray.train import TrainJob


def prepare_fold(study: Study, folder: str, group: str | None = None) -> TrainJob:
    """The training of the fold that ``split.leave_out`` names; the study's own split is not touched.

    Args:
        study: With the configuration of the trial.
        folder: Of the trial, below the study; `Fold.folder` of its evaluation.
        group: Of its W&B run.

    Raises:
        InputError: as `divide`, no compound is named, or a head of weak labels would learn from what is left
            out.
    """
    split = study.config.split
    if split.leave_out is None:
        raise InputError("split.leave_out names no compound; sweep over it to make the folds")
    from hcs_ray.train import prepare  # torch and Ray

    wells = read_wells(study)
    hidden = _hidden(wells, study.config)
    # Unlabelled wells are of no use to a fold but for weak labels: not for those of what is left out.
    dropped = wells[hidden & wells[c.MOA].isna() & (wells[c.PERT_TYPE] != c.NEGATIVE_CONTROL)]
    sides = divide(wells, split)
    places = pd.MultiIndex.from_frame(sides[[c.PLATE, c.WELL]])
    sides = sides[~places.isin(pd.MultiIndex.from_frame(dropped[[c.PLATE, c.WELL]]))]
    job = prepare(study, folder, sides=sides, final="labelled", group=group)
    _require_unseen(job.fields, study.config)
    return job


def _hidden(table: pd.DataFrame, config: StudyConfig) -> pd.Series[bool]:
    """Wells or fields that no training may see: the compound's, unless as weak labels, and its batches'."""
    split, treatment = config.split, config.train.treatment
    assert split.leave_out is not None
    shown = treatment.weight > 0 and treatment.fields == "all" and not split.leave_out_batches
    hidden = (table[c.COMPOUND] == split.leave_out) & (not shown)
    if split.leave_out_batches:
        hidden |= table[c.BATCH].isin(left_out_batches(table, split.leave_out))
    return hidden


def _require_unseen(fields: pd.DataFrame, config: StudyConfig) -> None:
    """Whatever head is on, nothing that is left out may be in the lists of an epoch."""
    from hcs_ray.model.targets import LISTED, side_table

    table = side_table(fields, c.TRAIN, anchored=False)
    seen = table[table[LISTED] & table[c.KEY].isin(fields.loc[_hidden(fields, config), c.KEY])]
    if len(seen):
        raise InputError(
            f"split.leave_out {config.split.leave_out}: {len(seen)} fields that are left out would be seen, "
            f"the first {seen[c.KEY].iloc[0]}; set train.treatment.fields to train, or its weight to 0"
        )
