"""NSC and NSCB: does a treatment's nearest neighbour, of another compound, share its mechanism of action?

Definitions of Ljosa et al. 2013 (https://doi.org/10.1177/1087057113503553) and Ando et al. 2017
(https://doi.org/10.1101/161422). NSC leaves out neighbours of the query's compound; NSCB also those of
its batch. Mechanisms are not spread evenly over batches, so a batch effect alone can lift NSC above chance;
NSCB guards against that.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray.contracts import COMPOUND, MOA, TREATMENT
from hcs_ray.profiles.aggregate import (
    BATCHES,
    Float64,
    Floats,
    How,
    Ints,
    control_wells,
    exclude_controls,
    to_treatments,
)
from hcs_ray.profiles.chance import Null, bootstrap_weights, percentile_interval, permuted_labels
from hcs_ray.profiles.neighbours import (
    CORRECT,
    DROPPED,
    NEIGHBOUR_COMPOUND,
    NEIGHBOUR_MOA,
    Guard,
    Metric,
    find_neighbours,
)

LEAKED: Final = "leaked"


@dataclass(frozen=True)
class Settings:
    """How neighbours are found and intervals drawn (from ``resamples`` draws for a seed)."""

    metric: Metric = "cosine"
    resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class Tally:
    """Hits among the scored queries, which are of ``compounds`` compounds.

    ``interval`` is the 95 % bootstrap interval of the accuracy over compounds (None for fewer than two),
    ``null`` the number of correct queries when labels are permuted among compounds (None without a query).
    """

    correct: int
    total: int
    compounds: int
    interval: tuple[float, float] | None
    null: Null | None

    @property
    def accuracy(self) -> float | None:
        """Correct of total; None without a query."""
        return self.correct / self.total if self.total else None

    @property
    def above_chance(self) -> bool:
        """Whether more are correct than the 97.5 percentile under permuted labels."""
        return self.null is not None and self.null.exceeded_by(self.correct)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "correct": self.correct,
            "total": self.total,
            "accuracy": self.accuracy,
            "interval": list(self.interval) if self.interval else None,
            "compounds": self.compounds,
            "null_correct": self.null.to_dict() if self.null else None,
            "above_chance": self.above_chance,
        }


@dataclass(frozen=True)
class Score:
    """NSC or NSCB with all that must be stated beside it.

    ``queries`` holds one row a labelled treatment: the columns of ``find_neighbours`` and ``leaked``.
    ``overall`` counts every query that was not dropped, ``held_out`` those of compounds that were not trained
    on. Dropped queries always stay candidates. ``dropped_moas`` gives the reason for each MoA dropped as a
    whole.
    """

    guard: Guard
    metric: Metric
    queries: pd.DataFrame
    overall: Tally
    held_out: Tally

    @property
    def dropped_moas(self) -> dict[str, str]:
        """The MoAs none of whose treatments is a query, with the reason."""
        lost = self.queries.groupby(MOA)[DROPPED].agg(
            lambda why: "; ".join(sorted(set(why))) if why.notna().all() else ""
        )
        return {str(moa): str(why) for moa, why in lost.items() if why}

    @property
    def dropped(self) -> dict[str, str]:
        """The treatments that are no queries, with the reason."""
        lost = self.queries[self.queries[DROPPED].notna()]
        return {str(name): str(why) for name, why in zip(lost[TREATMENT], lost[DROPPED], strict=True)}

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; the counts over all queries on top, those of held-out ones under ``held_out``.

        ``unmatchable`` queries stay in the denominator though no candidate of their MoA is left to them;
        ``tied`` ones have equally near neighbours of several MoAs.
        """
        scored = self.queries[self.queries[DROPPED].isna()]
        return {
            **self.overall.to_dict(),
            "guard": self.guard,
            "metric": self.metric,
            "candidates": len(self.queries),
            "leaked": int(scored[LEAKED].sum()),
            "held_out": self.held_out.to_dict(),
            "dropped": self.dropped,
            "dropped_moas": self.dropped_moas,
            "dropped_stay_candidates": True,
            "unmatchable": int((~scored["matchable"]).sum()),
            "tied": int(scored["tied"].sum()),
            "queries": _records(self.queries),
        }


@dataclass(frozen=True)
class Evaluation:
    """NSC, NSCB and the gauge of batch leak.

    ``same_batch_share`` is the share of nearest neighbours under NSC that have a batch in common with their
    query, ``same_batch_expected`` that share for neighbours drawn by chance among the candidates. ``rules``
    states how treatments were made from wells and how those in several batches are handled.
    """

    nsc: Score
    nscb: Score
    same_batch_share: float | None
    same_batch_expected: float | None
    rules: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "nsc": self.nsc.to_dict(),
            "nscb": self.nscb.to_dict(),
            "same_batch_share": self.same_batch_share,
            "same_batch_expected": self.same_batch_expected,
            "rules": self.rules,
        }


def evaluate_wells(
    meta: pd.DataFrame,
    features: Floats,
    how: How,
    settings: Settings | None = None,
    trained_compounds: Collection[str] = (),
) -> Evaluation:
    """Scores of wells (N, F): without control wells, made treatments by mean or median, then ``evaluate``."""
    treatments, profiles = to_treatments(*exclude_controls(meta, features), how)
    controls = control_wells(meta)
    rules = {
        "treatment_from_wells": how,
        "control_wells": "left out before wells become treatments",
        "scored_by_other_wells": controls[TREATMENT][controls["others"] > 0].tolist(),
        "only_control_wells": controls[TREATMENT][controls["others"] == 0].tolist(),
    }
    return evaluate(treatments, profiles, settings, trained_compounds, rules)


def evaluate(
    meta: pd.DataFrame,
    features: Floats,
    settings: Settings | None = None,
    trained_compounds: Collection[str] = (),
    rules: dict[str, Any] | None = None,
) -> Evaluation:
    """NSC, NSCB and the gauge for treatments (N, F), one row each; ``rules`` says how they were made."""
    nsc = score(meta, features, "NSC", settings, trained_compounds)
    nscb = score(meta, features, "NSCB", settings, trained_compounds)
    several = nsc.queries[TREATMENT][nsc.queries[BATCHES].map(len) > 1].tolist()
    stated = {"same_batch": "at least one batch in common", "in_several_batches": several}
    found = nsc.queries[nsc.queries["candidates"] > 0]
    return Evaluation(
        nsc,
        nscb,
        float(found["same_batch"].mean()) if len(found) else None,
        float(found["same_batch_expected"].mean()) if len(found) else None,
        {**(rules or {}), **stated},
    )


def score(
    meta: pd.DataFrame,
    features: Floats,
    guard: Guard,
    settings: Settings | None = None,
    trained_compounds: Collection[str] = (),
) -> Score:
    """NSC or NSCB of treatments (N, F), one row each; queries of ``trained_compounds`` are marked as leaked.

    InputError as ``find_neighbours``.
    """
    settings = settings or Settings()
    queries = find_neighbours(meta, features, guard, settings.metric)
    return score_queries(queries, guard, settings, trained_compounds)


def score_queries(
    queries: pd.DataFrame, guard: Guard, settings: Settings, trained_compounds: Collection[str] = ()
) -> Score:
    """The score of a table of ``find_neighbours``, or of rows of several, each found in a space of its own.

    The null permutes labels among compounds, a compound's treatments keeping one label; for ``held_out``
    those of ``trained_compounds`` stay, since training has tied them to their features and only the others
    are exchangeable. It counts every query with a candidate: a dropped one of an unmatchable MoA cannot be
    right, so it adds nothing to the observed count and the two compare exactly.
    """
    marked = queries.assign(**{LEAKED: queries[COMPOUND].isin(list(trained_compounds))})
    held_out = marked[~marked[LEAKED]]
    overall = _tally(marked, (), settings)
    return Score(guard, settings.metric, marked, overall, _tally(held_out, trained_compounds, settings))


def _tally(queries: pd.DataFrame, fixed: Collection[str], settings: Settings) -> Tally:
    """The hits of some queries; ``fixed`` compounds keep their labels in the null."""
    scored = queries[queries[DROPPED].isna()]
    correct = int(scored[CORRECT].sum())
    return Tally(
        correct,
        len(scored),
        scored[COMPOUND].nunique(),
        _interval(scored, settings),
        Null.of(correct, _permuted_hits(queries, fixed, settings)) if len(scored) else None,
    )


def _interval(scored: pd.DataFrame, settings: Settings) -> tuple[float, float] | None:
    """95 % of accuracies when compounds, with all their queries, are drawn with replacement."""
    sums = scored.groupby(COMPOUND)[CORRECT].agg(["sum", "size"]).to_numpy(dtype=np.float64)
    if len(sums) < 2:
        return None
    draws = [weights @ sums for weights in bootstrap_weights(len(sums), settings.resamples, settings.seed)]
    hits, totals = np.concatenate(draws).T
    return percentile_interval(hits / totals)


def _permuted_hits(queries: pd.DataFrame, fixed: Collection[str], settings: Settings) -> Float64:
    """How many queries have their neighbour's label, for each permutation of labels among compounds."""
    found = queries[queries["candidates"] > 0]
    own, other, groups = _label_groups(found)
    labels = pd.factorize(groups[MOA])[0]
    movable = ~groups[COMPOUND].isin(list(fixed)).to_numpy(dtype=bool)
    blocks = permuted_labels(labels, movable, settings.resamples, settings.seed)
    return np.concatenate([(block[:, own] == block[:, other]).sum(axis=1) for block in blocks]).astype(
        np.float64
    )


def _label_groups(found: pd.DataFrame) -> tuple[Ints, Ints, pd.DataFrame]:
    """The group that carries the label of each query and of its neighbour, and the groups.

    A group is a compound, or one compound's treatments of one MoA where its MoA depends on the dose.
    """
    neighbours = found[[NEIGHBOUR_COMPOUND, NEIGHBOUR_MOA]].set_axis([COMPOUND, MOA], axis=1)
    pairs = pd.concat([found[[COMPOUND, MOA]], neighbours], ignore_index=True)
    codes = pairs.groupby([COMPOUND, MOA], sort=True).ngroup().to_numpy(dtype=np.intp)
    groups = pairs.drop_duplicates().sort_values([COMPOUND, MOA]).reset_index(drop=True)
    return codes[: len(found)], codes[len(found) :], groups


def _records(queries: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain JSON types: null for what is missing, lists for tuples."""
    plain = queries.astype(object).where(queries.notna(), None)
    return [
        {str(column): list(value) if isinstance(value, tuple) else value for column, value in row.items()}
        for row in plain.to_dict(orient="records")
    ]
