"""The nearest neighbour of each treatment among those of other compounds (and other batches)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import BATCH, COMPOUND, MOA, NEGATIVE_CONTROL, PERT_TYPE, TREATMENT, InputError
from hcs_ray.profiles.aggregate import BATCHES, Float64, Floats, Ints, check_table, require_columns
from hcs_ray.profiles.chance import EQUAL, Bools

Guard = Literal["NSC", "NSCB"]
Metric = Literal["cosine", "correlation"]

NEIGHBOUR: Final = "neighbour"
NEIGHBOUR_COMPOUND: Final = "neighbour_compound"
NEIGHBOUR_MOA: Final = "neighbour_moa"
NEIGHBOUR_BATCHES: Final = "neighbour_batches"
NEIGHBOURS: Final = (NEIGHBOUR, NEIGHBOUR_COMPOUND, NEIGHBOUR_MOA, NEIGHBOUR_BATCHES)
CORRECT: Final = "correct"
DROPPED: Final = "dropped"

_AT_ONCE: Final = 2_000_000  # pairs of treatments compared at once


def find_neighbours(
    meta: pd.DataFrame, features: Floats, guard: Guard, metric: Metric = "cosine"
) -> pd.DataFrame:
    """The nearest candidate of each labelled treatment, one row each, sorted by treatment.

    ``meta`` (N rows, features (N, F)) needs Metadata_Treatment (unique), _Compound, _MOA and _Batches
    (collections of names) or _Batch. Rows without MoA are neither queries nor candidates. NSC leaves out
    candidates of the query's compound, NSCB also those that share a batch with it. Of candidates as near as
    1e-12 the first by name is taken.

    Columns: the four, ``neighbour`` with its ``_compound``, ``_moa`` and ``_batches`` (null without
    candidate), ``distance``, ``correct``, ``same_batch`` (they share one), ``same_batch_expected`` (share of
    candidates that do), ``candidates``, ``matchable`` (one of them has the MoA), ``tied`` (one as near has
    another MoA), ``dropped``: null, or why this is no query: a MoA none of whose treatments is matchable, or
    no candidate. InputError: no label at all, negative controls, a repeated treatment, a profile without
    direction, a treatment without batch.
    """
    return find_all(meta, features, (guard,), metric)[guard]


def find_all(
    meta: pd.DataFrame, features: Floats, guards: Sequence[Guard], metric: Metric = "cosine"
) -> dict[Guard, pd.DataFrame]:
    """`find_neighbours` under several guards; each distance is computed once."""
    if unknown := next((guard for guard in guards if guard not in get_args(Guard)), None):
        raise InputError(f"guard {unknown!r} is unknown; one of {', '.join(get_args(Guard))}")
    labelled, values = _labelled(meta, features)
    search = _Search.of(labelled, _directions(labelled, values, metric))
    step = max(1, _AT_ONCE // len(labelled))
    blocks = [search.block(slice(start, start + step), guards) for start in range(0, len(labelled), step)]
    tables: dict[Guard, pd.DataFrame] = {}
    for guard in guards:
        found = pd.concat([block[guard] for block in blocks], ignore_index=True)
        queries = _with_neighbours(labelled, found)
        queries[DROPPED] = pd.Series(_why_dropped(queries, guard), dtype=object)
        tables[guard] = queries
    return tables


@dataclass(frozen=True)
class _Search:
    """Labelled treatments as arrays: unit vectors (N, F), codes (N,), membership of batches (N, batches)."""

    unit: Float64
    compound: Ints
    moa: Ints
    batches: npt.NDArray[np.float32]

    @classmethod
    def of(cls, labelled: pd.DataFrame, unit: Float64) -> _Search:
        compound, moa = (pd.factorize(labelled[column])[0] for column in (COMPOUND, MOA))
        return cls(unit, compound, moa, _membership(labelled[BATCHES]))

    def block(self, rows: slice, guards: Sequence[Guard]) -> dict[Guard, pd.DataFrame]:
        """What is found for the queries of some rows; ``nearest`` is a row number, -1 without candidate."""
        distance = 1.0 - self.unit[rows] @ self.unit.T
        overlap = self.batches[rows] @ self.batches.T > 0
        others = self.compound[rows, None] != self.compound
        same_moa = self.moa[rows, None] == self.moa
        return {
            guard: self._found(distance, others & ~overlap if guard == "NSCB" else others, overlap, same_moa)
            for guard in guards
        }

    def _found(self, distance: Float64, eligible: Bools, overlap: Bools, same_moa: Bools) -> pd.DataFrame:
        count = eligible.sum(axis=1)
        least, nearest, near = _nearest(distance, eligible)
        others = near & (self.moa != self.moa[nearest][:, None])
        return pd.DataFrame(
            {
                "nearest": np.where(count > 0, nearest, -1),
                "distance": least,
                "same_batch_expected": (eligible & overlap).sum(axis=1) / np.maximum(count, 1),
                "candidates": count,
                "matchable": (eligible & same_moa).any(axis=1),
                "tied": others.any(axis=1),
                "same_batch": overlap[np.arange(len(nearest)), nearest] & (count > 0),
            }
        )


def _nearest(distance: Float64, eligible: Bools) -> tuple[Float64, Ints, Bools]:
    """Least distance (NaN without candidate), first candidate that has it, and all that have it."""
    allowed = np.where(eligible, distance, np.inf)
    least = allowed.min(axis=1)
    near = eligible & (allowed <= least[:, None] + EQUAL)
    return np.where(np.isfinite(least), least, np.nan), near.argmax(axis=1), near


def _labelled(meta: pd.DataFrame, features: Floats) -> tuple[pd.DataFrame, Float64]:
    """The labelled rows sorted by treatment, with the columns a search needs."""
    check_table(meta, features)
    require_columns(meta, (TREATMENT, COMPOUND))
    if MOA not in meta.columns:
        raise InputError(f"the table of profiles has no column {MOA}")
    if PERT_TYPE in meta.columns and (meta[PERT_TYPE] == NEGATIVE_CONTROL).any():
        raise InputError(f"negative controls are no treatments: leave out {PERT_TYPE} = {NEGATIVE_CONTROL}")
    table = meta.reset_index(drop=True)
    table[BATCHES] = pd.Series(_batches(meta), dtype=object)
    table = table.loc[table[MOA].notna(), [TREATMENT, COMPOUND, MOA, BATCHES]].sort_values(TREATMENT)
    repeated = table[TREATMENT][table[TREATMENT].duplicated()]
    if len(repeated):
        raise InputError(
            f"treatment {repeated.iloc[0]} has several rows; aggregate wells to treatments first"
        )
    if table.empty:
        raise InputError(f"no treatment has a {MOA}: neighbours cannot be scored without labels")
    rows = table.index.to_numpy()
    return table.reset_index(drop=True), features[rows].astype(np.float64)


def _batches(meta: pd.DataFrame) -> list[tuple[str, ...]]:
    """The batches of each row: from Metadata_Batches, else the one of Metadata_Batch."""
    if BATCHES in meta.columns:
        found = [_names(value) for value in meta[BATCHES]]
    else:
        require_columns(meta, (BATCH,))
        found = [(str(value),) for value in meta[BATCH]]
    if () in found:
        raise InputError(f"treatment {meta[TREATMENT].iloc[found.index(())]} lies in no batch")
    return found


def _names(value: Any) -> tuple[str, ...]:
    """A collection of names, or one name, sorted; nothing for null."""
    if isinstance(value, str):
        return (value,)
    return tuple(sorted({str(name) for name in value})) if isinstance(value, Iterable) else ()


def _membership(batches: pd.Series[Any]) -> npt.NDArray[np.float32]:
    """1 where the treatment (row) lies in the batch (column); float32, for a matrix product of overlaps."""
    pairs = batches.explode()
    codes, names = pd.factorize(pairs)
    membership = np.zeros((len(batches), len(names)), dtype=np.float32)
    membership[pairs.index.to_numpy(dtype=np.intp), codes] = 1.0
    return membership


def _directions(labelled: pd.DataFrame, values: Float64, metric: Metric) -> Float64:
    """Rows of unit length (N, F), first centred each on its own mean for the correlation."""
    if metric not in get_args(Metric):
        raise InputError(f"distance {metric!r} is unknown; one of {', '.join(get_args(Metric))}")
    centered = values - values.mean(axis=1, keepdims=True) if metric == "correlation" else values
    length = np.linalg.norm(centered, axis=1, keepdims=True)
    flat = np.flatnonzero(length[:, 0] <= EQUAL * np.abs(values).max(axis=1))
    if flat.size:
        name = labelled[TREATMENT].iloc[int(flat[0])]
        raise InputError(f"treatment {name}: all features are equal or zero, so it has no {metric} distance")
    return np.asarray(centered / length, dtype=np.float64)


def _with_neighbours(labelled: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Queries with the columns of what was found, the nearest row replaced by its names."""
    nearest = found["nearest"].to_numpy()
    names = labelled.rename(
        columns={
            TREATMENT: NEIGHBOUR,
            COMPOUND: NEIGHBOUR_COMPOUND,
            MOA: NEIGHBOUR_MOA,
            BATCHES: NEIGHBOUR_BATCHES,
        }
    ).reindex(nearest)
    queries = pd.concat([labelled, names.reset_index(drop=True), found.drop(columns="nearest")], axis=1)
    queries[CORRECT] = (queries[MOA] == queries[NEIGHBOUR_MOA]).to_numpy(dtype=bool)
    return queries


def _why_dropped(queries: pd.DataFrame, guard: Guard) -> list[str | None]:
    """Per query: null, or why it is none: for a MoA as a whole, or for the lack of any candidate."""
    reasons: dict[Any, str] = {}
    for moa, group in queries.groupby(MOA):
        if not group["matchable"].any():
            reasons[moa] = _why_unmatchable(group, guard)
    candidates = zip(queries[MOA], queries["candidates"], strict=True)
    return [reasons.get(moa, None if count else "no candidate is left") for moa, count in candidates]


def _why_unmatchable(group: pd.DataFrame, guard: Guard) -> str:
    """Why no treatment of a MoA can find another of it."""
    if group[COMPOUND].nunique() < 2:
        return "only one compound"
    if guard == "NSCB" and len(set(group[BATCHES].explode())) < 2:
        return f"all its treatments lie in one batch ({group[BATCHES].iloc[0][0]})"
    return "no second compound in another batch"
