"""Track A: leave-one-compound-out, a training a compound, scored in the spaces of the compounds left out.

Fold c's network has seen nothing of compound c: not in training, not in the choice of the epoch. It embeds
every labelled field and every negative control, and only c's treatments are queries among them. Distances are
never taken between embeddings of two networks; what is summed over the folds is hits.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import StudyConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.profiles.aggregate import BATCHES, Floats, check_table, to_wells
from hcs_ray.profiles.classify import PREDICTED, Classification, class_probabilities, classify
from hcs_ray.profiles.exclusions import LOST, evaluate_kept, unanswered
from hcs_ray.profiles.fold_figures import MISSING, UNTRAINED, UNTRAINED_REASON, Outcome
from hcs_ray.profiles.neighbours import DROPPED, NEIGHBOUR_BATCHES, Guard
from hcs_ray.profiles.normalize import normalize
from hcs_ray.profiles.score import GUARDS, LEAKED, Settings, evaluate_wells
from hcs_ray.profiles.score import Evaluation as SpaceEvaluation
from hcs_ray.screen.splits import divide, read_wells, scored_compounds
from hcs_ray.stage import StageRecord
from hcs_ray.study import Study
from hcs_ray.tables import read_index

FIELDS_FILE: Final = "fields.parquet"  # what a training with final="labelled" leaves in its folder
TRIAL: Final = "trial"


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


def fold_keys(study: Study) -> frozenset[str]:
    """The labelled fields and the negative controls, which every fold embeds."""
    fields = read_index(study, [c.KEY, c.MOA, c.PERT_TYPE])
    used = fields[c.MOA].notna() | (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL)
    return frozenset(fields.loc[used, c.KEY])


def fold_study(study: Study, compound: str) -> Study:
    """The study with ``split.leave_out`` set; all else, ``leave_out_batches`` included, as it is."""
    split = study.config.split.model_copy(update={"leave_out": compound})
    return replace(study, config=study.config.model_copy(update={"split": split}))


def evaluate(
    study: Study,
    folds: Sequence[Fold],
    record: StageRecord | None = None,
    used: Collection[str] = (),
    excluded: Collection[str] = (),
) -> Evaluation:
    """NSC, NSCB and the MoA head's accuracy of the compounds left out, summed over their folds.

    A compound without a fold, or whose fold cannot be used, is named with the reason, and its treatments stay
    in the denominators as wrong ones. Treatments that cannot be judged at all (`find_neighbours`, or a MoA
    without a training compound) are dropped as queries and counted; they stay candidates.

    Args:
        study: With the configuration that all folds share; ``split.leave_out`` may name any compound or none.
        folds: Of one setting: at most one a compound, each with ``<folder>/fields.parquet``.
        record: Of the finished sweep, whose hashes the files are checked by; none: while it is being written.
        used: Compounds whose label all folds have used, by the weights that they began from: leaked.
        excluded: Keys of fields that are left out of a second evaluation, ``without_excluded``.

    Raises:
        InputError: two folds of one compound, or one of no compound of the screen.
        HcsError: no fold can be used, a file is damaged, or the storage cannot be reached.
    """
    screen = _Screen.of(study, record, frozenset(excluded))
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
    queries, kept = (
        {guard: _pooled(screen, guard, found, missing).assign(guard=guard) for guard in GUARDS}
        for found in ({name: space.queries for name, space in spaces.items()}, _kept(spaces))
    )
    head = _classified(study.config, spaces)
    rules = next(iter(spaces.values())).rules
    outcome = Outcome(
        study.config, queries, head, rules, len(spaces), missing, frozenset(used),
        kept if screen.leaves_out else None,
    )  # fmt: skip
    table = pd.concat(list(queries.values()), ignore_index=True)
    table.insert(0, TRIAL, table[c.COMPOUND].map(trials))
    return Evaluation(outcome.summary(), _with_predictions(table, head))


@dataclass(frozen=True)
class _Screen:
    """What is known of the screen without any network.

    Attributes:
        study: With the configuration that all folds share.
        record: Of the finished sweep, where it is.
        excluded: Keys of fields that are left out of the second evaluation.
        keys: Of the labelled fields and negative controls, which every fold embeds.
        sides: Compound -> one row a well, with its side in the fold of that compound; sorted by compound.
        trained: Compound -> the MoAs with a training compound in its fold.
    """

    study: Study
    record: StageRecord | None
    excluded: frozenset[str]
    keys: frozenset[str]
    sides: Mapping[str, pd.DataFrame]
    trained: Mapping[str, frozenset[str]]

    @property
    def leaves_out(self) -> bool:
        """Whether there is a second evaluation."""
        return bool(self.excluded) or self.study.config.profile.minimum_fields > 1

    @classmethod
    def of(cls, study: Study, record: StageRecord | None, excluded: frozenset[str]) -> _Screen:
        wells = read_wells(study)
        labels = wells[[c.PLATE, c.WELL, c.MOA]]
        sides: dict[str, pd.DataFrame] = {}
        trained: dict[str, frozenset[str]] = {}
        for compound in scored_compounds(wells):
            table = divide(wells, fold_study(study, compound).config.split)
            sides[compound] = table.merge(labels, on=[c.PLATE, c.WELL], validate="1:1")
            training = sides[compound][c.SIDE] == c.TRAIN
            trained[compound] = frozenset(sides[compound].loc[training, c.MOA].dropna())
        return cls(study, record, excluded, fold_keys(study), sides, trained)


@dataclass(frozen=True)
class _Space:
    """What one fold's network says.

    Attributes:
        queries: Guard -> `find_neighbours` of all treatments in this space.
        kept: The same, asked of the fields that are not excluded; None where that cannot be.
        fields: The fields of the compound left out that its head is judged by, with ``Probability_*``.
        rules: How treatments were made from wells.
    """

    queries: Mapping[Guard, pd.DataFrame]
    kept: Mapping[Guard, pd.DataFrame] | None
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
    meta, features = fields.drop(columns=[c.SIDE, c.EMBEDDING]), np.stack(fields[c.EMBEDDING].to_list())
    wells, profiles = to_wells(meta, features, config.well_aggregate)
    normalized = normalize(wells, profiles, config.normalization, config.shrinkage).features
    # Intervals and nulls are drawn of all folds together, so one draw is enough here.
    found = evaluate_wells(wells, normalized, config.treatment_aggregate, Settings(config.metric, 1))
    kept = _without(screen, found, meta, features)
    own = meta[(meta[c.COMPOUND] == compound) & (meta[c.PERT_TYPE] == c.TREATED) & meta[c.MOA].notna()]
    own = own[own[c.MOA].isin(screen.trained[compound])].reset_index(drop=True)
    check_table(own, class_probabilities(own)[1])
    return _Space(_queries(found), kept, own, found.rules)


def _queries(found: SpaceEvaluation) -> dict[Guard, pd.DataFrame]:
    return {"NSC": found.nsc.queries, "NSCB": found.nscb.queries}


def _without(
    screen: _Screen, whole: SpaceEvaluation, meta: pd.DataFrame, features: Floats
) -> dict[Guard, pd.DataFrame] | None:
    """The queries of a space without the excluded fields; None where their wells cannot be normalised."""
    if not screen.leaves_out:
        return None
    config = screen.study.config.profile.model_copy(update={"resamples": 1})
    left = ~meta[c.KEY].isin(screen.excluded).to_numpy(dtype=bool)
    try:
        wells, profiles = to_wells(meta[left], features[left], config.well_aggregate, config.minimum_fields)
        return _queries(evaluate_kept(whole, wells, profiles, config))
    except InputError:
        return None


def _kept(spaces: Mapping[str, _Space]) -> dict[str, Mapping[Guard, pd.DataFrame]]:
    """The queries without excluded fields; a space in which they cannot be asked answers none."""
    return {
        name: space.kept
        or {guard: unanswered(table).assign(**{LOST: True}) for guard, table in space.queries.items()}
        for name, space in spaces.items()
    }


def _read_fields(screen: _Screen, fold: Fold) -> pd.DataFrame:
    from pyarrow import ArrowInvalid

    path = f"{fold.folder}/{FIELDS_FILE}"
    try:
        fields = pd.read_parquet(io.BytesIO(_read_file(screen, fold, path)))
    except ArrowInvalid as error:
        raise InputError(f"{path} is damaged: {str(error).splitlines()[0]}") from None
    keys = set(fields[c.KEY])
    if keys != screen.keys or len(fields) != len(keys):
        odd = min(keys ^ screen.keys, default="one key twice")
        raise InputError(f"{path} has not just the labelled fields and negative controls, as for {odd}")
    return fields.sort_values(c.KEY, ignore_index=True)


def _read_file(screen: _Screen, fold: Fold, path: str) -> bytes:
    storage = screen.study.storage
    there = storage.size(path) is not None if screen.record is None else path in screen.record.outputs
    if not there:
        raise InputError(f"trial {fold.trial} has left no {FIELDS_FILE}: it failed, or has not ended")
    return storage.read(path) if screen.record is None else screen.record.read(storage, path)


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
    screen: _Screen,
    guard: Guard,
    spaces: Mapping[str, Mapping[Guard, pd.DataFrame]],
    missing: Mapping[str, str],
) -> pd.DataFrame:
    """Each compound's treatments as queries in its own fold's space; those of missing folds as unanswered."""
    # Which treatments there are, and which of them can be queries, is the same in every space.
    template = unanswered(next(iter(spaces.values()))[guard])
    parts = []
    for compound in screen.sides:
        table = spaces[compound][guard] if compound in spaces else template
        own = table[table[c.COMPOUND] == compound].drop(columns=LEAKED)
        own[MISSING] = missing.get(compound)
        own[UNTRAINED] = ~own[c.MOA].isin(screen.trained[compound])
        own[DROPPED] = own[DROPPED].mask(own[DROPPED].isna() & own[UNTRAINED], UNTRAINED_REASON)
        parts.append(own.astype({MISSING: object, DROPPED: object}))
    return pd.concat(parts).sort_values(c.TREATMENT, ignore_index=True)


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
