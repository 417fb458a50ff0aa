"""Track A: leave-one-compound-out, a training a compound, scored in the spaces of the compounds left out.

Fold c's network has seen nothing of compound c: not in training, not in the choice of the epoch. It embeds
every labelled field and every negative control, and only c's treatments are queries among them. Distances are
never taken between embeddings of two networks; what is summed over the folds is hits.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import StudyConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.profiles.aggregate import BATCHES, check_table, to_wells
from hcs_ray.profiles.classify import PREDICTED, Classification, class_probabilities, classify
from hcs_ray.profiles.neighbours import (
    CORRECT,
    DROPPED,
    NEIGHBOUR,
    NEIGHBOUR_BATCHES,
    NEIGHBOUR_COMPOUND,
    NEIGHBOUR_MOA,
    Guard,
)
from hcs_ray.profiles.normalize import normalize
from hcs_ray.profiles.score import LEAKED, Settings, evaluate_wells
from hcs_ray.screen.splits import divide, left_out_batches, read_wells, scored_compounds
from hcs_ray.study import Study
from hcs_ray.tables import read_index
from hcs_ray.tune.fold_figures import MISSING, UNTRAINED, UNTRAINED_REASON, Outcome

if TYPE_CHECKING:
    from hcs_ray.train import TrainJob

FIELDS_FILE: Final = "fields.parquet"  # what a training with final="labelled" leaves in its folder
TRIAL: Final = "trial"
_GUARDS: Final[tuple[Guard, ...]] = ("NSC", "NSCB")


@dataclass(frozen=True)
class Fold:
    """One training: the compound that it left out, the trial's name, and its folder below the study."""

    compound: str
    trial: str
    folder: str


@dataclass(frozen=True)
class Evaluation:
    """``summary`` in plain JSON types; ``treatments``: a row a labelled treatment and guard (NSC, NSCB).

    The table has the columns of `find_neighbours`, ``guard``, ``trial``, ``missing``, ``untrained``, and the
    MoA head's ``predicted`` (null where its fold is missing or its MoA untrained).
    """

    summary: dict[str, Any]
    treatments: pd.DataFrame


def compounds(study: Study) -> list[str]:
    """The compounds that have a fold, sorted: all with a labelled well that is no control."""
    return scored_compounds(read_wells(study))


def fold_study(study: Study, compound: str) -> Study:
    """The study with ``split.leave_out`` set; all else, ``leave_out_batches`` included, as it is."""
    split = study.config.split.model_copy(update={"leave_out": compound})
    return replace(study, config=study.config.model_copy(update={"split": split}))


def prepare_fold(study: Study, folder: str, group: str | None = None) -> TrainJob:
    """The training of the fold that ``split.leave_out`` names; the study's own split is not touched.

    Args:
        study: With the configuration of the trial.
        folder: Of the trial, below the study; `Fold.folder` later.
        group: Of its W&B run.

    Raises:
        InputError: as `divide`, no compound is named, or a head of weak labels would learn from what is left
            out.
    """
    split = study.config.split
    if split.leave_out is None:
        raise InputError("split.leave_out names no compound; sweep over it to make the folds")
    from hcs_ray.train import prepare  # torch and Ray, which an evaluation does without

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


def evaluate(study: Study, folds: Sequence[Fold]) -> Evaluation:
    """NSC, NSCB and the MoA head's accuracy of the compounds left out, summed over their folds.

    A compound without a fold, or whose fold cannot be used, is named with the reason, and its treatments stay
    in the denominators as wrong ones. Treatments that cannot be judged at all (`find_neighbours`, or a MoA
    without a training compound) are dropped as queries and counted; they stay candidates.

    Args:
        study: With the configuration that all folds share; ``split.leave_out`` may name any compound or none.
        folds: Of one setting: at most one a compound, each with ``<folder>/fields.parquet``.

    Raises:
        InputError: two folds of one compound, or one of no compound of the screen.
        HcsError: no fold can be used, or the storage cannot be reached.
    """
    screen = _Screen.of(study)
    by_compound = _by_compound(folds, screen.sides)
    spaces: dict[str, _Space] = {}
    missing: dict[str, str] = {}
    for compound in screen.sides:
        try:
            spaces[compound] = _read_space(screen, compound, by_compound.get(compound))
        except InputError as error:
            missing[compound] = str(error)
    if not spaces:
        name, why = next(iter(missing.items()), ("none", "the screen has no labelled compound"))
        raise HcsError(f"no fold can be evaluated; the first, {name}: {why}")
    trials = {fold.compound: fold.trial for fold in folds}
    queries = {guard: _pooled(screen, guard, spaces, missing).assign(guard=guard) for guard in _GUARDS}
    head = _classified(study.config, spaces)
    rules = next(iter(spaces.values())).rules
    outcome = Outcome(study.config, queries, head, rules, evaluated=len(spaces), missing=missing)
    table = pd.concat(list(queries.values()), ignore_index=True)
    table.insert(0, TRIAL, table[c.COMPOUND].map(trials))
    return Evaluation(outcome.summary(), _with_predictions(table, head))


@dataclass(frozen=True)
class _Screen:
    """What is known of the screen without any network.

    Attributes:
        study: With the configuration that all folds share.
        keys: Of the labelled fields and negative controls, which every fold embeds.
        sides: Compound -> one row a well, with its side in the fold of that compound; sorted by compound.
        trained: Compound -> the MoAs with a training compound in its fold.
    """

    study: Study
    keys: frozenset[str]
    sides: Mapping[str, pd.DataFrame]
    trained: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, study: Study) -> _Screen:
        fields = read_index(study, [c.KEY, c.MOA, c.PERT_TYPE])
        used = fields[c.MOA].notna() | (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL)
        wells = read_wells(study)
        labels = wells[[c.PLATE, c.WELL, c.MOA]]
        sides: dict[str, pd.DataFrame] = {}
        trained: dict[str, frozenset[str]] = {}
        for compound in scored_compounds(wells):
            table = divide(wells, fold_study(study, compound).config.split)
            sides[compound] = table.merge(labels, on=[c.PLATE, c.WELL], validate="1:1")
            training = sides[compound][c.SIDE] == c.TRAIN
            trained[compound] = frozenset(sides[compound].loc[training, c.MOA].dropna())
        return cls(study, frozenset(fields.loc[used, c.KEY]), sides, trained)


@dataclass(frozen=True)
class _Space:
    """What one fold's network says.

    Attributes:
        queries: Guard -> `find_neighbours` of all treatments in this space.
        fields: The fields of the compound left out that its head is judged by, with ``Probability_*``.
        rules: How treatments were made from wells.
    """

    queries: Mapping[Guard, pd.DataFrame]
    fields: pd.DataFrame
    rules: dict[str, Any]


def _by_compound(folds: Sequence[Fold], known: Collection[str]) -> dict[str, Fold]:
    found: dict[str, Fold] = {}
    for fold in folds:
        if fold.compound not in known:
            raise InputError(f"trial {fold.trial}: {fold.compound} is no compound that can be left out")
        if fold.compound in found:
            raise InputError(
                f"{fold.compound} is left out by two trials, {found[fold.compound].trial} and {fold.trial}; "
                "evaluate one setting at a time"
            )
        found[fold.compound] = fold
    return found


def _read_space(screen: _Screen, compound: str, fold: Fold | None) -> _Space:
    """`InputError` where the fold is missing, damaged, or not what the configuration makes it."""
    if fold is None:
        raise InputError("no trial left it out")
    fields = _read_fields(screen, fold)
    _require_sides(screen.sides[compound], fields, fold)
    config = screen.study.config.profile
    meta = fields.drop(columns=[c.SIDE, c.EMBEDDING])
    wells, profiles = to_wells(meta, np.stack(fields[c.EMBEDDING].to_list()), config.well_aggregate)
    normalized = normalize(wells, profiles, config.normalization, config.shrinkage).features
    # Intervals and nulls are drawn of all folds together, so one draw is enough here.
    found = evaluate_wells(wells, normalized, config.treatment_aggregate, Settings(config.metric, 1))
    own = meta[(meta[c.COMPOUND] == compound) & (meta[c.PERT_TYPE] == c.TREATED) & meta[c.MOA].notna()]
    own = own[own[c.MOA].isin(screen.trained[compound])].reset_index(drop=True)
    check_table(own, class_probabilities(own)[1])
    return _Space({"NSC": found.nsc.queries, "NSCB": found.nscb.queries}, own, found.rules)


def _read_fields(screen: _Screen, fold: Fold) -> pd.DataFrame:
    from pyarrow import ArrowInvalid

    storage, path = screen.study.storage, f"{fold.folder}/{FIELDS_FILE}"
    if storage.size(path) is None:
        raise InputError(f"trial {fold.trial} has left no {FIELDS_FILE}: it failed, or has not ended")
    try:
        fields = pd.read_parquet(io.BytesIO(storage.read(path)))
    except ArrowInvalid as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    keys = set(fields[c.KEY])
    if keys != screen.keys or len(fields) != len(keys):
        odd = min(keys ^ screen.keys, default="one key twice")
        raise InputError(f"{path} has not just the labelled fields and negative controls, as for {odd}")
    return fields.sort_values(c.KEY, ignore_index=True)


def _require_sides(sides: pd.DataFrame, fields: pd.DataFrame, fold: Fold) -> None:
    """The fold must have been trained with the sides that the configuration gives it: this guards leaks."""
    places = [c.PLATE, c.WELL]
    ours = fields[places].merge(sides[[*places, c.SIDE]], on=places, how="left", validate="many_to_one")
    differs = (ours[c.SIDE] != fields[c.SIDE]).to_numpy()
    if differs.any():
        row = int(differs.argmax())
        raise InputError(
            f"trial {fold.trial} had {fields[c.KEY].iloc[row]} as {fields[c.SIDE].iloc[row]}, and with "
            f"{fold.compound} left out it is {ours[c.SIDE].iloc[row]}: another configuration; run it again"
        )


def _pooled(
    screen: _Screen, guard: Guard, spaces: Mapping[str, _Space], missing: Mapping[str, str]
) -> pd.DataFrame:
    """Each compound's treatments as queries in its own fold's space; those of missing folds as unanswered."""
    # Which treatments there are, and which of them can be queries, is the same in every space.
    template = _unanswered(next(iter(spaces.values())).queries[guard])
    parts = []
    for compound in screen.sides:
        table = spaces[compound].queries[guard] if compound in spaces else template
        own = table[table[c.COMPOUND] == compound].drop(columns=LEAKED)
        own[MISSING] = missing.get(compound)
        own[UNTRAINED] = ~own[c.MOA].isin(screen.trained[compound])
        own[DROPPED] = own[DROPPED].mask(own[DROPPED].isna() & own[UNTRAINED], UNTRAINED_REASON)
        parts.append(own.astype({MISSING: object, DROPPED: object}))
    return pd.concat(parts).sort_values(c.TREATMENT, ignore_index=True)


def _unanswered(queries: pd.DataFrame) -> pd.DataFrame:
    """The queries without their neighbours: none is correct, and none counts in the null."""
    nothing = dict.fromkeys((NEIGHBOUR, NEIGHBOUR_COMPOUND, NEIGHBOUR_MOA, NEIGHBOUR_BATCHES), None)
    figures = {"distance": np.nan, "same_batch_expected": np.nan, "candidates": 0}
    return queries.assign(**nothing, **figures, **dict.fromkeys((CORRECT, "same_batch", "tied"), False))


def _classified(config: StudyConfig, spaces: Mapping[str, _Space]) -> Classification | None:
    """The MoA heads' answers to the compounds left out; a class that a fold did not learn has probability 0.

    None where no fold has a treatment of a MoA that it learned.
    """
    tables = [space.fields for space in spaces.values() if len(space.fields)]
    if not tables:
        return None
    classes = sorted({name for table in tables for name in class_probabilities(table)[0]})
    columns = [f"{c.PROBABILITY_PREFIX}{name}" for name in classes]
    chances = np.concatenate([table.reindex(columns=columns, fill_value=0.0) for table in tables])
    meta = pd.concat(tables, ignore_index=True)
    return classify(meta, chances, classes, config.profile.resamples, config.profile.seed)


def _with_predictions(table: pd.DataFrame, head: Classification | None) -> pd.DataFrame:
    answers = (
        {}
        if head is None
        else dict(zip(head.treatments[c.TREATMENT], head.treatments[PREDICTED], strict=True))
    )
    lists = {name: table[name].map(_plain).astype(object) for name in (BATCHES, NEIGHBOUR_BATCHES)}
    return table.assign(**lists, **{PREDICTED: table[c.TREATMENT].map(answers).astype(object)})


def _plain(batches: Any) -> list[str] | None:
    return list(batches) if isinstance(batches, tuple) else None
