"""Fields that are left out, with reasons, and what the scores are without them, with the same denominator.

A treatment that loses all its fields is not forgotten: it stays a query, and counts as wrong. Otherwise
leaving out what is hard would look like progress.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from hcs_ray.config import ProfileConfig
from hcs_ray.contracts import COMPOUND, KEY, MOA, PERT_TYPE, QC_PREFIX, TREATED, TREATMENT, InputError
from hcs_ray.profiles.aggregate import Floats
from hcs_ray.profiles.neighbours import CORRECT, DROPPED, NEIGHBOURS
from hcs_ray.profiles.normalize import normalize
from hcs_ray.profiles.score import (
    LEAKED,
    SAME_BATCH,
    Evaluation,
    Gauge,
    Score,
    evaluate_wells,
    score_queries,
)
from hcs_ray.profiles.tally import Settings

FLAG_PREFIX: Final = f"{QC_PREFIX}Flag_"
LOST: Final = "lost"  # of a query: no field of its treatment was kept, so it counts as wrong


@dataclass(frozen=True)
class Exclusions:
    """Keys of fields that are left out, each with its reasons: names of QC flags, or labels of a person."""

    reasons: Mapping[str, tuple[str, ...]]

    @classmethod
    def join(cls, parts: Iterable[Exclusions]) -> Exclusions:
        """All of several; a field that is in two has the reasons of both."""
        joined: dict[str, tuple[str, ...]] = {}
        for part in parts:
            for key, why in part.reasons.items():
                joined[key] = (
                    *joined.get(key, ()),
                    *(reason for reason in why if reason not in joined.get(key, ())),
                )
        return cls(dict(sorted(joined.items())))

    def restrict(self, keys: Iterable[str]) -> Exclusions:
        """Those of some fields only."""
        there = set(keys)
        return Exclusions({key: why for key, why in self.reasons.items() if key in there})

    @property
    def counts(self) -> dict[str, int]:
        """Fields of each reason; one with two reasons counts in both."""
        reasons = pd.Series([reason for why in self.reasons.values() for reason in why], dtype=object)
        return {str(name): int(count) for name, count in reasons.value_counts().sort_index().items()}


def flag_columns(columns: Iterable[object], wanted: Sequence[str] | str) -> list[str]:
    """The columns ``QC_Flag_*`` that ``profile.exclude`` names: "all", "none", or a list of them.

    InputError: one that the index does not have.
    """
    there = [str(name) for name in columns if str(name).startswith(FLAG_PREFIX)]
    if isinstance(wanted, str):
        return there if wanted == "all" else []
    for name in wanted:
        if name not in there:
            known = ", ".join(there) or "none"
            raise InputError(f"profile.exclude: the index has no flag {name}; there are: {known}")
    return list(wanted)


def flagged(index: pd.DataFrame, columns: Sequence[str]) -> Exclusions:
    """The fields of an index that one of some flags is set for."""
    reasons: dict[str, tuple[str, ...]] = {}
    for column in columns:
        for key in index.loc[index[column].isin([True]), KEY]:
            reasons[str(key)] = (*reasons.get(str(key), ()), column)
    return Exclusions(dict(sorted(reasons.items())))


def with_denominator_of(whole: Evaluation, part: Evaluation | None, settings: Settings) -> Evaluation:
    """The evaluation of the fields that are left, asked just what the evaluation of all fields was asked.

    Its queries are those of ``whole``; one whose treatment is not in ``part`` counts as wrong (``lost``), and
    one that ``part`` could not score is not dropped but counts as it was found there. None as ``part``: no
    treatment is left at all.
    """
    nsc = _same_queries(whole.nsc, part.nsc if part else None, settings)
    nscb = _same_queries(whole.nscb, part.nscb if part else None, settings)
    return Evaluation(nsc, nscb, Gauge.of(nsc.queries, settings), whole.rules)


def evaluate_kept(
    whole: Evaluation,
    wells: pd.DataFrame,
    features: Floats,
    config: ProfileConfig,
    used: Collection[str] = (),
) -> Evaluation:
    """`with_denominator_of` the wells (N, F) of the fields that are left, not normalised yet.

    InputError: they cannot be normalised, as where a plate has lost its negative controls.
    """
    settings = Settings(config.metric, config.resamples, config.seed)
    normalized = normalize(wells, features, config.normalization, config.shrinkage).features
    scored = (wells[PERT_TYPE] == TREATED) & wells[MOA].notna()
    part = None
    if scored.any():
        part = evaluate_wells(wells, normalized, config.treatment_aggregate, Settings(config.metric, 1), used)
    return with_denominator_of(whole, part, settings)


def lost_treatments(evaluation: Evaluation) -> list[str]:
    """The queries of `with_denominator_of` that lost all their fields, by name; they count as wrong."""
    scored = evaluation.nsc.scored
    return [str(name) for name in scored.loc[scored[LOST], TREATMENT]]


def kept_figures(evaluation: Evaluation) -> dict[str, Any]:
    """Scores of `with_denominator_of` in plain JSON types, without the lists of queries."""
    return {
        guard.guard.lower(): {
            **guard.figures(),
            "leaked": int(guard.scored[LEAKED].sum()),
            "held_out": guard.held_out.to_dict(),
            "lost_counted_as_wrong": int(guard.scored[LOST].sum()),
        }
        for guard in (evaluation.nsc, evaluation.nscb)
    } | evaluation.gauge.to_dict()


def unanswered(queries: pd.DataFrame) -> pd.DataFrame:
    """Queries without their neighbours: none is correct, and none counts in the null."""
    figures = {"distance": float("nan"), "same_batch_expected": float("nan"), "candidates": 0}
    nothing = dict.fromkeys(NEIGHBOURS, None)
    return queries.assign(**nothing, **figures, **dict.fromkeys((CORRECT, SAME_BATCH, "tied"), False))


def _same_queries(whole: Score, part: Score | None, settings: Settings) -> Score:
    asked = whole.queries.drop(columns=LEAKED)
    found = asked.iloc[:0] if part is None else part.queries.drop(columns=LEAKED)
    there = asked[TREATMENT].isin(found[TREATMENT])
    answered = found[found[TREATMENT].isin(asked[TREATMENT])].assign(**{LOST: False})
    parts = [answered, unanswered(asked[~there]).assign(**{LOST: True})]
    queries = pd.concat([table for table in parts if len(table)], ignore_index=True)
    queries = queries.sort_values(TREATMENT, ignore_index=True)
    queries[DROPPED] = asked.sort_values(TREATMENT)[DROPPED].to_numpy()
    leaked = set(whole.queries.loc[whole.queries[LEAKED], COMPOUND])
    return score_queries(_typed(queries), whole.guard, settings, leaked)


def _typed(queries: pd.DataFrame) -> pd.DataFrame:
    """Columns as `find_neighbours` has them, whatever rows were put together."""
    kinds = dict.fromkeys((CORRECT, SAME_BATCH, "tied", "matchable", LOST), bool)
    return queries.astype({**kinds, "candidates": "int64", DROPPED: object})
