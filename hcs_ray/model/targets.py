"""The table of a run's fields, as the loader, the network and the metrics share it: one row a field.

It is the index with the side of each field's well, and with the columns named here.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import ModelConfig, TrainConfig
from hcs_ray.contracts import InputError

LABEL: Final = "label"  # int64, class of the MoA head; NONE where the field has none to learn
TREATMENT_LABEL: Final = "treatment_label"  # int64, class of the treatment head, or NONE
DOMAIN_LABEL: Final = "domain_label"  # int64, plate or week for the adversary, or NONE
PLATE_NUMBER: Final = "plate_number"  # int64, of the plate, by which control-anchored statistics are kept
LISTED: Final = "listed"  # bool: in the lists of fields to learn from or to be judged by
ANCHOR: Final = "anchor"  # bool: a negative control that may anchor the batches of its plate
EXCLUDED: Final = "excluded"  # bool: left out by labels: teaches nothing, chooses nothing, anchors nothing
NONE: Final = -1

_DOMAIN = {"plate": c.PLATE, "batch": c.BATCH}


@dataclass(frozen=True)
class Targets:
    """The table, and the names behind its numbers."""

    fields: pd.DataFrame
    classes: tuple[str, ...]
    treatments: tuple[str, ...]  # empty: there is no treatment head
    domains: tuple[str, ...]  # empty: there is no adversary


def targets(
    fields: pd.DataFrame, model: ModelConfig, train: TrainConfig, excluded: Collection[str] = ()
) -> Targets:
    """Number what the heads learn.

    Args:
        fields: The index with `contracts.SIDE`, in its order.
        model: Whether negative controls are a class.
        train: Which heads there are, and what they see.
        excluded: Keys of fields that labels leave out. Those of the test side are tested all the same, so
            that leaving out what is hard does not look like progress.

    Raises:
        InputError: fewer than two classes to learn, or nothing to tell apart for a head.
    """
    control = fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL
    kept = ~fields[c.KEY].isin(excluded)
    trained = (fields[c.SIDE] == c.TRAIN) & kept
    names = fields[c.MOA].where(~control, fields[c.COMPOUND] if model.dmso_class else None)
    names = names.where(fields[c.SIDE] != c.UNUSED)
    classes = tuple(sorted(names[trained].dropna().unique()))
    if len(classes) < 2:
        raise InputError(f"the training side has {len(classes)} classes; a network needs two")
    treatment = fields[c.TREATMENT].where(_weakly_labelled(fields, train) & ~control & kept)
    domain = fields[_DOMAIN.get(train.adversary.target, c.PLATE)].where(_unlearned(fields, train) & kept)
    treatments, domains = (tuple(sorted(column.dropna().unique())) for column in (treatment, domain))
    _check_heads(train, treatments, domains)
    plates = {name: number for number, name in enumerate(sorted(fields[c.PLATE].unique()))}
    numbered = fields.copy()
    numbered[LABEL] = _numbers(names, classes)
    numbered[TREATMENT_LABEL] = _numbers(treatment, treatments)
    numbered[DOMAIN_LABEL] = _numbers(domain, domains)
    numbered[PLATE_NUMBER] = fields[c.PLATE].map(plates).astype("int64")
    numbered[ANCHOR] = control & kept
    numbered[EXCLUDED] = ~kept
    return Targets(numbered, classes, treatments, domains)


def side_table(fields: pd.DataFrame, side: str, *, anchored: bool) -> pd.DataFrame:
    """The fields that train, or that a network is judged by; with the negative controls of their plates.

    Those controls have `LISTED` false, so they are in no list of an epoch, and no label of theirs is learned;
    they are there where batches are ``anchored``.
    """
    if side == c.TRAIN:
        trains = (fields[c.SIDE] == c.TRAIN) & (fields[LABEL] != NONE) & ~fields[EXCLUDED]
        listed = trains | (fields[[TREATMENT_LABEL, DOMAIN_LABEL]] != NONE).any(axis=1)
    else:
        listed = (fields[c.SIDE] == side) & (fields[LABEL] != NONE)
        listed &= ~fields[EXCLUDED] | (side == c.TEST)
    kept = listed
    if anchored:
        kept = listed | (fields[ANCHOR] & fields[c.PLATE].isin(fields.loc[listed, c.PLATE]))
    table = fields.assign(**{LISTED: listed})[kept].reset_index(drop=True)
    if side == c.TRAIN:  # weakly labelled fields of other sides teach no MoA
        table[LABEL] = table[LABEL].where(table[c.SIDE] == c.TRAIN, NONE)
    return table


def _weakly_labelled(fields: pd.DataFrame, train: TrainConfig) -> pd.Series[bool]:
    """Fields whose treatment is learned; of positive controls those whose side trains.

    Of a compound that is held out nothing is learned, nor of labelled wells that the split has left out.
    """
    if train.treatment.weight == 0:
        return pd.Series(False, index=fields.index)
    held_out = fields[c.SIDE].isin((c.VALIDATION, c.TEST)) & (fields[c.PERT_TYPE] != c.NEGATIVE_CONTROL)
    kept_away = fields[c.COMPOUND].isin(fields.loc[held_out, c.COMPOUND])
    kept_away |= (fields[c.SIDE] == c.UNUSED) & fields[c.MOA].notna()
    spare = (fields[c.PERT_TYPE] == c.POSITIVE_CONTROL) & (fields[c.SIDE] != c.TRAIN)
    return ~spare if train.treatment.fields == "all" else ~(spare | kept_away)


def _unlearned(fields: pd.DataFrame, train: TrainConfig) -> pd.Series[bool]:
    """Fields whose plate or week the adversary learns: negative controls of training plates, or all."""
    if train.adversary.target == "none":
        return pd.Series(False, index=fields.index)
    trained = fields[c.SIDE] == c.TRAIN
    if train.adversary.fields == "all":
        return trained
    return trained & (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL)


def _check_heads(train: TrainConfig, treatments: tuple[str, ...], domains: tuple[str, ...]) -> None:
    if train.treatment.weight > 0 and len(treatments) < 2:
        raise InputError(f"train.treatment: there are {len(treatments)} treatments to tell apart")
    if train.adversary.target != "none" and len(domains) < 2:
        raise InputError(
            f"train.adversary.target {train.adversary.target}: its fields lie on {len(domains)} of them, "
            "and it takes two to tell apart; see train.adversary.fields"
        )


def _numbers(names: pd.Series[str], known: tuple[str, ...]) -> pd.Series[int]:
    return names.map({name: number for number, name in enumerate(known)}).fillna(NONE).astype("int64")
