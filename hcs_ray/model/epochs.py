"""What an epoch consists of: one global list of fields, cut into batches that the ranks share.

The list follows from (seed, epoch) and the table of fields alone. It is cut into global batches, and each of
those is dealt out in shares that differ by at most one field, so every rank makes the same steps, and what a
run sees depends neither on the number of workers nor on where it was resumed.
"""

from __future__ import annotations

import dataclasses
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import TrainConfig
from hcs_ray.contracts import InputError
from hcs_ray.model import targets as t

Positions = npt.NDArray[np.int64]
_NOBODY: Positions = np.empty(0, np.int64)
_NOBODY.flags.writeable = False
_ANCHORS = 2**32  # tells the places of anchors from all else that is drawn of a seed


@dataclass(frozen=True)
class Share:
    """A rank's part of one global batch; rows are positions in the table of fields."""

    rows: Positions  # may be empty: a rank without a part still makes the step
    batch: int  # entries of the whole global batch
    anchors: Positions = dataclasses.field(default_factory=lambda: _NOBODY)  # control fields read beside them
    step: int = 0  # number of the global batch in its list


def epoch_list(fields: pd.DataFrame, config: TrainConfig, epoch: int) -> Positions:
    """(N,) int64, the positions of an epoch's fields in order; a pure function of (seed, epoch, table).

    ``shuffled`` holds every listed field once, of positive controls `positive_controls_per_epoch` at most.
    The balanced lists are as long and draw from the same fields, but from every group (class, plate, or
    pair of both) equally often, up to one: in rounds of one field a group, each group going through its
    fields in random order, again and again. So a field comes back only after all the others of its group.
    The class of a field is that of its MoA or, where it has none to learn, of its treatment.

    With ``plates_per_batch`` the same entries are put in the order of `_by_plates`.
    """
    rng = np.random.default_rng([config.seed, epoch])
    positions = _shuffled(fields, config.positive_controls_per_epoch, rng)
    if config.sampling != "shuffled":
        positions = _balanced(positions, _groups(fields, config.sampling)[positions], rng)
    if config.plates_per_batch is not None:
        piece = -(-config.global_batch // config.plates_per_batch)
        plates = pd.factorize(fields[c.PLATE])[0][positions]
        positions = _by_plates(positions, plates, piece, config.global_batch, rng)
    return positions


def _shuffled(fields: pd.DataFrame, controls: int, rng: np.random.Generator) -> Positions:
    listed = fields[t.LISTED].to_numpy(bool)
    control = (fields[c.PERT_TYPE] == c.POSITIVE_CONTROL).to_numpy(bool)
    chosen = rng.permutation(np.flatnonzero(listed & control))[:controls]
    return rng.permutation(np.concatenate([np.flatnonzero(listed & ~control), chosen]).astype(np.int64))


def _groups(fields: pd.DataFrame, sampling: str) -> npt.NDArray[np.int64]:
    """(rows of the table,) int64, the number of each row's group."""
    by: dict[str, Any] = {}
    if sampling in ("class_balanced", "plate_and_class_balanced"):
        label = fields[t.LABEL].to_numpy(np.int64)
        by["learns_moa"] = label != t.NONE
        by["class"] = np.where(by["learns_moa"], label, fields[t.TREATMENT_LABEL].to_numpy(np.int64))
    if sampling in ("plate_balanced", "plate_and_class_balanced"):
        by["plate"] = pd.factorize(fields[c.PLATE])[0]
    return np.asarray(pd.DataFrame(by).groupby(list(by), sort=True).ngroup(), np.int64)


def _balanced(positions: Positions, groups: npt.NDArray[np.int64], rng: np.random.Generator) -> Positions:
    """As many entries, from groups in turn; ``positions`` are in random order, ``groups`` are theirs."""
    groups = np.unique(groups, return_inverse=True)[1]
    sizes = np.bincount(groups)
    quota, extra = divmod(len(positions), max(len(sizes), 1))
    quotas = quota + (rng.permutation(len(sizes)) < extra)
    cycles = -(-quotas // sizes)  # how often a group's fields are gone through, the last time not to the end
    ordered = positions[np.argsort(groups, kind="stable")]
    first = np.cumsum(sizes) - sizes
    # One segment a (group, cycle), each in an order of its own: a random order, sorted stably by segment.
    lengths = np.repeat(sizes, cycles)
    member = _counting(lengths) + np.repeat(np.repeat(first, cycles), lengths)
    segment = np.repeat(np.arange(len(lengths)), lengths)
    mixed = rng.permutation(len(member))
    drawn = ordered[member[mixed[np.argsort(segment[mixed], kind="stable")]]]
    turn = _counting(cycles * sizes)
    kept = turn < np.repeat(quotas, cycles * sizes)
    drawn, turn = drawn[kept], turn[kept]
    mixed = rng.permutation(len(drawn))
    mixed = mixed[np.argsort(turn[mixed], kind="stable")]
    return np.asarray(drawn[mixed], np.int64)


def _counting(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """0, 1, ... for each length, one after another."""
    return np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)


def _by_plates(
    positions: Positions, plates: npt.NDArray[np.int64], piece: int, batch: int, rng: np.random.Generator
) -> Positions:
    """The same entries, so that a batch holds those of few plates; the order within a plate is kept.

    Each plate's entries are cut into pieces of ``piece`` = ceil(batch / p), the last one with the rest (less
    than 2 piece), and the pieces are put in random order, the longer last ones behind the others. Then the
    full batches are put in random order. What holds: where every plate has at least ``piece`` entries, no
    batch is of more than p + 1 plates; where p divides the batch, only batches that take part in a longer
    last piece, one a plate, are of more than p.
    """
    order = np.argsort(plates, kind="stable")
    counts = np.bincount(plates)
    counts = counts[counts > 0]
    pieces = np.maximum(counts // piece, 1)
    last = np.repeat(pieces, counts) - 1
    number = np.minimum(_counting(counts) // piece, last)
    number_of_all = number + np.repeat(np.cumsum(pieces) - pieces, counts)
    place = rng.permutation(int(pieces.sum()))[number_of_all]
    longer = (number == last) & (np.repeat(counts % piece, counts) != 0)
    arranged = positions[order[np.lexsort((place, longer))]]
    full = len(arranged) // batch * batch
    mixed = rng.permutation(arranged[:full].reshape(-1, batch), axis=0).ravel()
    return np.concatenate([mixed, arranged[full:]])


def shares(positions: Positions, global_batch: int, rank: int, world: int, start: int = 0) -> list[Share]:
    """A rank's share of every global batch of a list, from the cursor ``start`` (in samples) on.

    A share is dealt by stride, so those of a batch differ by at most one. Every rank gets as many shares;
    the last batch may be short.

    Raises:
        InputError: ``start`` is neither where a batch begins nor the end of the list.
    """
    if not 0 <= start <= len(positions) or (start % global_batch and start != len(positions)):
        raise InputError(
            f"cursor {start}: no batch of {global_batch} begins there in a list of {len(positions)} fields; "
            "a training goes on with the fields and the train.global_batch that it began with"
        )
    return [
        Share(
            positions[i + rank : i + global_batch : world],
            min(global_batch, len(positions) - i),
            step=i // global_batch,
        )
        for i in range(start, len(positions), global_batch)
    ]


def with_anchors(
    shares: list[Share], fields: pd.DataFrame, anchor_fields: int, seed: tuple[int, ...] | None
) -> list[Share]:
    """The shares with up to ``anchor_fields`` control fields of each plate that they hold rows of.

    They are drawn from (seed, plate, step): a plate's anchors stand in a circle, in random order, of which
    a step takes the next ones from a random place on. So all ranks that hold a plate in a step have the
    same ones, wherever a run was resumed. Without a seed they are always the same, spread evenly over the
    plate's anchors in the order of their keys. A share's anchors stand in the order of the plates' names.

    Raises:
        InputError: a plate has no anchor; names it.
    """
    codes, names = pd.factorize(fields[c.PLATE], sort=True)
    held = [np.unique(codes[share.rows]).tolist() for share in shares]
    circles = _circles(fields, names[sorted(set().union(*held))], anchor_fields, seed)
    steps = max((share.step for share in shares), default=-1) + 1
    places = np.zeros(steps) if seed is None else np.random.default_rng([*seed, _ANCHORS]).random(steps)
    anchored = []
    for share, plates in zip(shares, held, strict=True):
        drawn = [_arc(circles[names[plate]], anchor_fields, float(places[share.step])) for plate in plates]
        anchored.append(dataclasses.replace(share, anchors=np.concatenate([_NOBODY, *drawn])))
    return anchored


def _circles(
    fields: pd.DataFrame, plates: pd.Index[str], anchor_fields: int, seed: tuple[int, ...] | None
) -> dict[str, Positions]:
    """The anchors of each plate, in the order in which they are taken."""
    order = _by_plate_and_key(fields, t.ANCHOR)
    grouped = fields[c.PLATE].iloc[order].groupby(fields[c.PLATE].iloc[order].to_numpy()).indices
    if bare := [str(plate) for plate in plates if plate not in grouped]:
        raise InputError(
            f"plate {bare[0]}: no negative control can anchor it ({len(bare)} plates have none); "
            "leave such plates out, or set model.normalization: batch"
        )
    circles = {str(plate): order[grouped[plate]] for plate in plates}
    if seed is None:
        return {plate: rows[_spread(len(rows), anchor_fields)] for plate, rows in circles.items()}
    return {
        plate: np.random.default_rng([*seed, zlib.crc32(plate.encode())]).permutation(rows)
        for plate, rows in circles.items()
    }


def _spread(among: int, taken: int) -> Positions:
    taken = min(among, taken)
    return np.arange(taken) * among // taken


def _arc(circle: Positions, length: int, place: float) -> Positions:
    """``length`` neighbours on a circle, or all of a smaller one; ``place`` is in [0, 1)."""
    first = int(place * len(circle))
    return np.concatenate([circle[first:], circle[:first]])[:length]


def plate_order(fields: pd.DataFrame) -> Positions:
    """(N,) int64, the positions of the listed fields, by plate and then by key."""
    return _by_plate_and_key(fields, t.LISTED)


def _by_plate_and_key(fields: pd.DataFrame, which: str) -> Positions:
    rows = fields[[c.PLATE, c.KEY]].reset_index(drop=True)[fields[which].to_numpy(bool)]
    return rows.sort_values([c.PLATE, c.KEY]).index.to_numpy(np.int64)
