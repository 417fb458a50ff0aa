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

import pandas as pd

from hcs_ray.contracts import COMPOUND, MOA, TREATMENT
from hcs_ray.profiles.aggregate import BATCHES, Floats, How, control_wells, exclude_controls, to_treatments
from hcs_ray.profiles.neighbours import CORRECT, DROPPED, Guard, Metric, find_all, find_neighbours
from hcs_ray.profiles.tally import Settings, Tally, share_interval, tally

__all__ = ["Evaluation", "Score", "Settings", "Tally", "evaluate", "evaluate_wells", "score", "score_queries"]

GUARDS: Final[tuple[Guard, ...]] = ("NSC", "NSCB")
LEAKED: Final = "leaked"
SAME_BATCH: Final = "same_batch"


@dataclass(frozen=True)
class Score:
    """NSC or NSCB with all that must be stated beside it.

    ``queries`` holds one row a labelled treatment: the columns of ``find_neighbours`` and ``leaked``.
    ``overall`` counts every query that was not dropped, ``held_out`` those of compounds whose labels were not
    used. Dropped queries always stay candidates. ``dropped_moas`` gives the reason for each MoA dropped as a
    whole.
    """

    guard: Guard
    metric: Metric
    queries: pd.DataFrame
    overall: Tally
    held_out: Tally

    @property
    def scored(self) -> pd.DataFrame:
        """The queries that were not dropped."""
        return self.queries[self.queries[DROPPED].isna()]

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

    @property
    def by_moa(self) -> dict[str, dict[str, int]]:
        """Correct and total of each MoA with a query, the leaked ones too."""
        counts = self.scored.groupby(MOA, sort=True)[CORRECT].agg(["sum", "size"])
        return {
            str(moa): {"correct": int(row["sum"]), "total": int(row["size"])}
            for moa, row in counts.iterrows()
        }

    def figures(self) -> dict[str, Any]:
        """All queries in plain JSON types, without their list, and without what is known of leaks.

        ``unmatchable`` queries stay in the denominator though no candidate of their MoA is left to them;
        ``tied`` ones have equally near neighbours of several MoAs.
        """
        return {
            **self.overall.to_dict(),
            "guard": self.guard,
            "metric": self.metric,
            "candidates": len(self.queries),
            "by_moa": self.by_moa,
            "dropped": self.dropped,
            "dropped_moas": self.dropped_moas,
            "dropped_stay_candidates": True,
            "unmatchable": int((~self.scored["matchable"].astype(bool)).sum()),
            "tied": int(self.scored["tied"].sum()),
        }

    def to_dict(self) -> dict[str, Any]:
        """`figures`, those of held-out compounds under ``held_out``, and the list of queries."""
        return {
            **self.figures(),
            "leaked": int(self.scored[LEAKED].sum()),
            "held_out": self.held_out.to_dict(),
            "queries": query_records(self.queries),
        }


@dataclass(frozen=True)
class Gauge:
    """How far nearest neighbours (under NSC) come from a batch of their query: a sign of batch leak.

    ``expected`` is that share for neighbours drawn by chance among the candidates, ``interval`` the 95 %
    bootstrap interval of the share over compounds.
    """

    share: float | None
    expected: float | None
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, queries: pd.DataFrame, settings: Settings) -> Gauge:
        """From the queries of NSC that have a neighbour."""
        found = queries[queries["candidates"] > 0]
        if found.empty:
            return cls(None, None, None)
        share, expected = float(found[SAME_BATCH].mean()), float(found["same_batch_expected"].mean())
        return cls(share, expected, share_interval(found, SAME_BATCH, settings))

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, under the names that ``evaluation.json`` has on top."""
        return {
            "same_batch_share": self.share,
            "same_batch_expected": self.expected,
            "same_batch_interval": list(self.interval) if self.interval else None,
        }


@dataclass(frozen=True)
class Evaluation:
    """NSC, NSCB and the gauge of batch leak.

    ``rules`` states how treatments were made from wells and how those in several batches are handled.
    """

    nsc: Score
    nscb: Score
    gauge: Gauge
    rules: dict[str, Any]

    @property
    def same_batch_share(self) -> float | None:
        return self.gauge.share

    @property
    def same_batch_expected(self) -> float | None:
        return self.gauge.expected

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "nsc": self.nsc.to_dict(),
            "nscb": self.nscb.to_dict(),
            **self.gauge.to_dict(),
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
    settings = settings or Settings()
    tables = find_all(meta, features, GUARDS, settings.metric)
    nsc, nscb = (score_queries(tables[guard], guard, settings, trained_compounds) for guard in GUARDS)
    several = nsc.queries[TREATMENT][nsc.queries[BATCHES].map(len) > 1].tolist()
    stated = {"same_batch": "at least one batch in common", "in_several_batches": several}
    return Evaluation(nsc, nscb, Gauge.of(nsc.queries, settings), {**(rules or {}), **stated})


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
    overall = tally(marked, (), settings)
    return Score(guard, settings.metric, marked, overall, tally(held_out, trained_compounds, settings))


def query_records(queries: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain JSON types: null for what is missing, lists for tuples."""
    plain = queries.astype(object).where(queries.notna(), None)
    return [
        {str(column): list(value) if isinstance(value, tuple) else value for column, value in row.items()}
        for row in plain.to_dict(orient="records")
    ]
