"""Which fields a map is laid out by: all, or of a large table a sample that no plate or treatment fills."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import MapConfig
from hcs_ray.contracts import InputError

FEWEST = 4  # fields; below, there is no layout to speak of

Rows = npt.NDArray[np.intp]


def choose_landmarks(fields: pd.DataFrame, config: MapConfig) -> Rows:
    """Positions, ascending, of the fields that are laid out; the same for the same table and seed.

    All of them up to ``config.landmarks``, and with ``config.densmap``, which cannot place others among them.

    Args:
        fields: by key; of more than ``config.landmarks`` with ``Metadata_Plate`` and ``Metadata_Treatment``.

    Raises:
        InputError: fewer than four fields, or more than ``config.densmap_most`` for densMAP.
    """
    wanted = landmarks_used(len(fields), config)
    if wanted == len(fields):
        return np.arange(wanted, dtype=np.intp)
    groups = fields.groupby([c.PLATE, c.TREATMENT], dropna=False, sort=False, observed=True).ngroup()
    return balanced_sample(groups.to_numpy(), wanted, config.seed)


def landmarks_used(fields: int, config: MapConfig) -> int:
    """How many of so many fields are laid out.

    Raises:
        InputError: fewer than four fields, or more than ``config.densmap_most`` for densMAP.
    """
    if fields < FEWEST:
        raise InputError(f"a map needs at least {FEWEST} fields, and there are {fields}")
    if config.densmap and fields > config.densmap_most:
        raise InputError(
            f"map.densmap lays out all fields at once, and {fields} are more than map.densmap_most "
            f"{config.densmap_most}: raise it, or leave densmap off"
        )
    return fields if config.densmap else min(fields, config.landmarks)


def balanced_sample(groups: npt.NDArray[np.integer], count: int, seed: int) -> Rows:
    """``count`` positions, ascending, dealt to groups (N,) in rounds: one of each group, then another.

    So two groups differ by at most one, but where the smaller one has no more; those within a group, and the
    groups of the last round, are drawn by the seed.
    """
    order = np.random.default_rng(seed).permutation(len(groups))
    drawn = pd.Series(groups[order])
    rounds = drawn.groupby(drawn).cumcount().to_numpy()
    return np.sort(order[np.argsort(rounds, kind="stable")[:count]]).astype(np.intp)
