"""The figures of a leave-one-compound-out validation, and the rules that must stand beside them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd

from hcs_ray.config import StudyConfig
from hcs_ray.contracts import COMPOUND, MOA, TREATMENT
from hcs_ray.profiles.classify import PREDICTED, Classification
from hcs_ray.profiles.exclusions import LOST
from hcs_ray.profiles.neighbours import CORRECT, DROPPED, Guard
from hcs_ray.profiles.score import LEAKED, Gauge, Score, Settings, score_queries

MISSING: Final = "missing"  # why a treatment's fold gave no answer; null where it did
UNTRAINED: Final = "untrained"  # its MoA has no compound to learn from in its fold
UNTRAINED_REASON: Final = "no compound of its MoA trains in its fold"


@dataclass(frozen=True)
class Outcome:
    """All folds together.

    Attributes:
        config: What the folds share.
        queries: Guard -> a row a labelled treatment, found in the space of its own compound's fold; with
            `MISSING` and `UNTRAINED`.
        head: What the MoA heads say of the compounds left out; None where none says anything.
        rules: How treatments were made from wells.
        evaluated: Number of folds.
        missing: Compound -> why it has no fold that can be used.
        used: Compounds whose label every fold has used, by the weights that it began from.
        kept: As ``queries``, without the excluded fields; None where none is.
    """

    config: StudyConfig
    queries: Mapping[Guard, pd.DataFrame]
    head: Classification | None
    rules: Mapping[str, Any]
    evaluated: int
    missing: Mapping[str, str]
    used: frozenset[str] = frozenset()
    kept: Mapping[Guard, pd.DataFrame] | None = None

    def summary(self) -> dict[str, Any]:
        """Plain JSON types; treatments of missing folds are in every ``total``, as wrong ones."""
        profile = self.config.profile
        settings = Settings(profile.metric, profile.resamples, profile.seed)
        expected = self.evaluated + len(self.missing)
        return {
            "track": "A",
            "folds": {"expected": expected, "evaluated": self.evaluated, "missing": dict(self.missing)},
            **self._scores(self.queries, settings),
            "without_excluded": self._scores(self.kept, settings) if self.kept else None,
            "moa_head": _head_figures(self.queries["NSC"], self.head, self.used),
            "rules": {**rules(self.config), **self.rules},
        }

    def _scores(self, queries: Mapping[Guard, pd.DataFrame], settings: Settings) -> dict[str, Any]:
        scores = {
            guard.lower(): _scored(score_queries(table, guard, settings, self.used))
            for guard, table in queries.items()
        }
        return {**scores, **Gauge.of(queries["NSC"], settings).to_dict()}


def _scored(score: Score) -> dict[str, Any]:
    """The figures of a score; ``held_out`` are those of compounds that have not leaked, usually all."""
    figures = score.figures()
    figures[LEAKED] = int(score.scored[LEAKED].sum())
    figures["held_out"] = score.held_out.to_dict()
    asked = score.scored
    answered = asked[asked[MISSING].isna()]
    figures["of_evaluated_folds"] = {"correct": int(answered[CORRECT].sum()), "total": len(answered)}
    figures["missing_counted_as_wrong"] = len(asked) - len(answered)
    if LOST in asked:
        figures["lost_counted_as_wrong"] = int(asked[LOST].sum())
    figures["dropped_by_reason"] = score.queries[DROPPED].value_counts().sort_index().to_dict()
    return figures


def _head_figures(
    queries: pd.DataFrame, head: Classification | None, used: Collection[str]
) -> dict[str, Any]:
    """Hits of the heads among all treatments of trained MoAs; those of missing folds count as wrong.

    ``held_out`` are those of compounds that have not leaked, usually all.
    """
    judged = queries[~queries[UNTRAINED]]
    right, details = set[str](), None
    if head is not None:
        right = set(head.treatments.loc[head.treatments[PREDICTED] == head.treatments[MOA], TREATMENT])
        details = {k: v for k, v in head.to_dict().items() if k != "predictions"}
    hits = judged[TREATMENT].isin(right)
    held_out = ~judged[COMPOUND].isin(list(used))
    return {
        **_share(hits),
        "held_out": _share(hits[held_out]),
        LEAKED: int((~held_out).sum()),
        "missing_counted_as_wrong": int(judged[MISSING].notna().sum()),
        "dropped": dict.fromkeys(queries.loc[queries[UNTRAINED], TREATMENT], UNTRAINED_REASON),
        "of_evaluated_folds": details,
    }


def _share(hits: pd.Series[bool]) -> dict[str, Any]:
    correct, total = int(hits.sum()), len(hits)
    return {"correct": correct, "total": total, "accuracy": correct / total if total else None}


def rules(config: StudyConfig) -> dict[str, Any]:
    """What papers leave unsaid."""
    return {
        "left_out": "the compound and every field of its batches, controls included"
        if config.split.leave_out_batches
        else "the compound; other compounds and controls of its batches train",
        "pixels": _pixels(config),
        "epoch": _epoch(config),
        "spaces": "a compound's treatments are queries in its own fold's space only",
        "hyperparameters": "the study's, in every fold; the scores have leaked if these compounds chose them",
        "missing_folds": "their treatments count as wrong",
        "untrained_moas": "their treatments are dropped as queries and stay candidates",
        "well_from_fields": config.profile.well_aggregate,
        "normalization": config.profile.normalization,
    }


def _pixels(config: StudyConfig) -> str:
    weak = config.train.treatment
    if weak.weight > 0 and weak.fields == "all" and not config.split.leave_out_batches:
        return "every compound is seen, with weak labels (train.treatment.fields: all)"
    return "none of what is left out is seen in training"


def _epoch(config: StudyConfig) -> str:
    train = config.train
    if train.choose == "best":
        return "by the validation compounds of the fold, which the one left out is not among"
    budget = f"a fixed budget of {train.epochs} epochs"
    if train.stop_after is None:
        return budget
    return f"{budget}, or until validation compounds stopped it after {train.stop_after} without gain"
