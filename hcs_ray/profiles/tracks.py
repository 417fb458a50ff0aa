"""Which labels a network has used, told by the stage records and split files, and what to call its scores.

The rules, which stand in the output:

- A compound has leaked where its MoA label was used to train, to validate (whether or not an epoch was chosen
  by that), or to choose among networks: by a sweep whose metric its fields were in, or by any of that in a
  network whose weights this one began from (`model.weights`), and so on back.
- Weights of a network of ours whose records are not to be found may have used every label: all have leaked.
  Weights from elsewhere are named; what they have seen is not in our records.
- A map fitted with labels (`map`, supervised) is no part of any score: profiles are made of embeddings only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from hcs_ray import contracts as c
from hcs_ray.config import LEAVE_OUT, ModelConfig, SweepConfig, TrainConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.profiles.ancestors import find_ancestor, is_ours
from hcs_ray.stage import StageRecord, read_record, record_digest
from hcs_ray.study import Study, sweep_of
from hcs_ray.tables import read_index

Track = Literal["A", "B", "C", "supervised", "not known"]

RULES: Final = {
    "leaked": "the MoA label of the query's compound was used in training, in validation, or in a choice of "
    "the checkpoint, the epoch or the hyperparameters, by this network or by one whose weights it began from",
    "headline": "leaked queries are not in it",
    "not_in_the_records": "what people chose by looking at scores, and what weights from elsewhere have seen",
}
_TITLES: Final[Mapping[Track, str]] = {
    "A": "track A: supervised, leave-one-compound-out; every compound is a query in the space of a network "
    "that did not learn from it",
    "B": "track B: weak labels; the network learned to tell treatments apart, and no MoA label",
    "C": "track C: frozen features; the network learned nothing from this screen",
    "supervised": "supervised, with the compounds of one split held out (not track A, where every compound "
    "is held out in its turn: hcs-ray profile --folds)",
    "not known": "not known: profiles of another's making; which labels their network has used is not in the "
    "table",
}
_REASONS: Final = {c.TRAIN: "in training, by {}", c.VALIDATION: "in validation, by {}"}


@dataclass(frozen=True)
class Provenance:
    """What is known of the labels that embeddings have used.

    ``used`` has each leaked compound with the reason; ``notes`` what the records cannot tell.
    """

    track: Track
    used: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def only(self, compounds: Iterable[str]) -> Provenance:
        """Of some compounds: those of the screen that have a MoA."""
        there = set(compounds)
        return replace(self, used={name: why for name, why in self.used.items() if name in there})

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, with the rules in words."""
        return {
            "track": self.track,
            "title": _TITLES[self.track],
            "leaked_compounds": dict(sorted(self.used.items())),
            "notes": list(self.notes),
            "rules": RULES,
        }


def provenance(study: Study) -> Provenance:
    """Of this run's embeddings, of all compounds with a label that was used.

    InputError: the embeddings are not complete, or the split that their network was trained with is gone.
    """
    run = study.require("embed").config.get("run")
    source = replace(study, run=run)
    record, _ = source.model()
    name = sweep_of(run) if run else None
    found = _of_network(replace(source, name=name or study.name), record, (), frozenset())
    return Provenance(_track(record), found.used, found.notes)


def provenance_of_folds(study: Study, sweep: StageRecord) -> Provenance:
    """Of a leave-one-compound-out sweep: its folds have used what the weights that they began from have used.

    The compound left out is out of each fold's own training and of the choice of its epoch
    (`hcs_ray.profiles.folds` checks the sides), so nothing else leaks.
    """
    found = _of_weights(study, sweep, frozenset())
    return Provenance("A", found.used, found.notes)


@dataclass(frozen=True)
class _Found:
    """Compounds with reasons, and notes."""

    used: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def and_also(self, other: _Found) -> _Found:
        """The first reason of a compound stays."""
        return _Found({**other.used, **self.used}, tuple(dict.fromkeys((*self.notes, *other.notes))))


def _track(record: StageRecord) -> Track:
    return "supervised" if _learns_moa(record) else "B"


def _learns_moa(record: StageRecord) -> bool:
    """Whether the backbone learns from MoA labels; with ``train.moa_weight`` 0 only its head does.

    In a sweep, whether any of its trials does.
    """
    weights = [TrainConfig.model_validate(_whole(record, "train")).moa_weight]
    if (sweep := _sweep(record)) is not None:
        swept = sweep.space.get("train.moa_weight")
        fixed = sweep.fixed.get("train.moa_weight")
        weights = [*swept.ends] if swept else [fixed] if fixed is not None else weights
    return any(weight > 0 for weight in weights)


def _of_network(study: Study, record: StageRecord, behind: tuple[str, ...], seen: frozenset[str]) -> _Found:
    """What a training or a sweep has used; ``behind`` says through which networks it is reached."""
    here = f"{record.stage} {record.name}"
    through = f"; {' of '.join(behind)} began from its weights" if behind else ""
    sides = _sides(study, record)
    found = _Found()
    if _learns_moa(record) or _chooses(record):
        found = _Found(
            {
                name: f"{_REASONS[side].format(here)}{through}"
                for name, side in sides.items()
                if side in _REASONS
            }
        )
    tested = [goal.name for goal in _metrics(record) if "test" in goal.name]
    if tested:
        why = f"in a choice, as {here} ranked its trials by {tested[0]}{through}"
        found = found.and_also(_Found({name: why for name, side in sides.items() if side == c.TEST}))
    return found.and_also(_of_weights(study, record, seen, (here, *behind)))


def _chooses(record: StageRecord) -> bool:
    """Whether a choice was made by how MoA labels are told: of the epoch, of the rate, or among trials."""
    train = TrainConfig.model_validate(_whole(record, "train"))
    by_epoch = train.choose == "best" or train.stop_after is not None or train.schedule == "plateau"
    return by_epoch or any(goal.name != "train_loss" for goal in _metrics(record))


def _metrics(record: StageRecord) -> tuple[Any, ...]:
    sweep = _sweep(record)
    return () if sweep is None or sweep.compounds is not None else sweep.metric


def _sweep(record: StageRecord) -> SweepConfig | None:
    told = record.config.get("sweep")
    return None if told is None else SweepConfig.model_validate(told)


def _whole(record: StageRecord, section: str) -> dict[str, Any]:
    found: dict[str, Any] = record.config[section]
    return found


def _sides(study: Study, record: StageRecord) -> dict[str, str]:
    """Compound -> its most telling side in the split that a network was trained with.

    Positive-control wells train where their compound does; a compound of two sides has that of training.
    """
    sweep = _sweep(record)
    if sweep is not None and LEAVE_OUT in sweep.space:
        raise InputError(f"{record.stage} {record.name}: each of its trials learned from a split of its own")
    place = study.place("split")
    if record_digest(study.storage, place) != record.inputs.get(place.record):
        raise InputError(
            f"{study.storage.url}/{place.record} is not the split that {record.stage} {record.name} learned "
            "from, so which labels were used cannot be told"
        )
    split = read_record(study.storage, place)
    assert split is not None  # its digest was just compared
    table = split.read_table(study.storage, f"{place.folder}/{place.name}.parquet")
    order = {side: number for number, side in enumerate((c.TRAIN, c.VALIDATION, c.TEST, c.UNUSED))}
    first = table.assign(order=table[c.SIDE].map(order)).sort_values("order").drop_duplicates(c.COMPOUND)
    return {str(name): str(side) for name, side in zip(first[c.COMPOUND], first[c.SIDE], strict=True)}


def _of_weights(
    study: Study, record: StageRecord, seen: frozenset[str], behind: tuple[str, ...] = ()
) -> _Found:
    """What the network has used whose weights a training began from."""
    weights = ModelConfig.model_validate(_whole(record, "model")).weights
    if weights is None:
        return _Found()
    digest = record.inputs.get(f"weights {weights}")
    if digest is None:
        note = f"{weights} comes from a model hub: what it was trained with is not in our records"
        return _Found(notes=(note,))
    if digest in seen:
        return _Found()
    return _of_file(study, weights, digest, seen | {digest}, behind or (f"{record.stage} {record.name}",))


def _of_file(
    study: Study, weights: str, digest: str, seen: frozenset[str], behind: tuple[str, ...]
) -> _Found:
    ancestor = find_ancestor(study, weights, digest)
    if ancestor is None:
        if is_ours(weights, study.config.storage):
            through = " of ".join(behind)
            why = f"{through} began from {weights}, which has no record: it may have used any label"
            return _Found(dict.fromkeys(_labelled(study), why))
        note = f"{weights} is no network of ours: what it was trained with is not in our records"
        return _Found(notes=(note,))
    try:
        return _of_network(ancestor.study, ancestor.record, behind, seen)
    except HcsError as error:
        why = f"{weights}: which labels it has used cannot be told ({error})"
        return _Found(dict.fromkeys(_labelled(study), why))


def _labelled(study: Study) -> list[str]:
    index = read_index(study, [c.COMPOUND, c.MOA])
    return sorted(str(name) for name in index.loc[index[c.MOA].notna(), c.COMPOUND].unique())
