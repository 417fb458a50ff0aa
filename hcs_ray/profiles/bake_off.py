"""All normalisations side by side: the biology that each keeps against the batch effects that it removes.

What chooses among them (`choose`) is measured before and apart from what the MoA labels say, on a table from
which they are removed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray.config import ProfileConfig
from hcs_ray.contracts import MOA, NEGATIVE_CONTROL, PERT_TYPE, SMILES, InputError, Progress, rows_of
from hcs_ray.profiles import retrieval
from hcs_ray.profiles.aggregate import Float64, Floats, exclude_controls, to_treatments
from hcs_ray.profiles.batch_gauges import (
    Bools,
    Predictability,
    halves,
    hidden,
    lisi,
    plate_predictability,
    week_predictability,
)
from hcs_ray.profiles.controls import is_control
from hcs_ray.profiles.normalize import METHODS, Method, normalize
from hcs_ray.profiles.score import Settings, Tally, evaluate

METHOD: Final = "method"
REPLICATE_MAP: Final = "replicate_map_normalized"
WEEK_EXCESS: Final = "week_excess"
CANDIDATE: Final = "candidate"
CHOSEN: Final = "chosen"
SKIPPED: Final = "skipped"

_TIE: Final = 0.001
RULE: Final = (
    "Of the normalisations under which negative controls tell their week no better than under none (excess "
    "over chance of a linear probe, on plates that it has not seen), the one under which replicates find one "
    f"another best (normalised mean average precision; positives: {retrieval.POSITIVES}; negatives: "
    f"{retrieval.NEGATIVES}). Of those within {_TIE} of the best the simplest, in the order "
    f"{', '.join(METHODS)}. The rule was fixed before any NSC, and is given no MoA label and no score made "
    "with one."
)
_LABELS: Final = (MOA, SMILES)  # no measure of the choice may see them


@dataclass(frozen=True)
class Comparison:
    """``table`` has a row a normalisation, in the order of METHODS; ``stated`` what each says of itself.

    Attributes:
        table: `comparison.parquet`.
        chosen: By RULE.
        stated: Normalisation -> `Normalized.stated`.
        design: How it was measured, in plain JSON types.
    """

    table: pd.DataFrame
    chosen: Method
    stated: Mapping[str, Mapping[str, Any]]
    design: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        plain = json.loads(json.dumps([_plain(row) for row in rows_of(self.table)]))
        methods = {row.pop(METHOD): row for row in plain}
        for name, stated in self.stated.items():
            methods[name]["stated"] = dict(stated)
        return {
            "format": 1,
            "rule": RULE,
            "chosen": self.chosen,
            "methods": methods,
            **self.design,
        }


def bake_off(
    meta: pd.DataFrame,
    features: Floats,
    config: ProfileConfig,
    leaked: Collection[str] = (),
    progress: Progress = lambda done, total: None,
) -> Comparison:
    """Every normalisation of wells (N, F), measured and scored.

    Args:
        meta: One row a well, with all columns of wells.
        features: Not normalised.
        config: Of which ``normalization`` plays no part.
        leaked: Compounds whose MoA labels the network has used; beside the scores of all compounds stand
            those of the others.
        progress: Counts normalisations.

    Raises:
        InputError: no treatment has replicates on other plates, or no negative controls.
    """
    gauges, profiles, stated, design = gauge(
        meta.drop(columns=list(_LABELS), errors="ignore"), features, config, progress
    )
    chosen = choose(gauges)
    scores = biology(meta, profiles, config, leaked)
    table = gauges.merge(scores, on=METHOD, how="left", validate="1:1")
    table[CANDIDATE] = table[METHOD].isin(candidates(gauges))
    table[CHOSEN] = table[METHOD] == chosen
    return Comparison(table, chosen, stated, {**design, "leaked_compounds": sorted(leaked)})


def choose(gauges: pd.DataFrame) -> Method:
    """The normalisation of RULE, from its name, REPLICATE_MAP and WEEK_EXCESS alone."""
    rivals = gauges[gauges[METHOD].isin(candidates(gauges))]
    best = rivals[REPLICATE_MAP].max()
    level = set(rivals.loc[rivals[REPLICATE_MAP] >= best - _TIE, METHOD])
    return next(method for method in METHODS if method in level)


def candidates(gauges: pd.DataFrame) -> list[str]:
    """Those that could be made, and that leave no more of the week in the controls than ``none`` does.

    All that could be made where the week cannot be gauged: there is one, or they have one plate each.
    """
    made = gauges[gauges[REPLICATE_MAP].notna()]
    limit = made.loc[made[METHOD] == "none", WEEK_EXCESS].iloc[0]
    if math.isnan(limit):
        return [str(name) for name in made[METHOD]]
    return [str(name) for name in made.loc[made[WEEK_EXCESS] <= limit + 1e-12, METHOD]]


def gauge(
    meta: pd.DataFrame, features: Floats, config: ProfileConfig, progress: Progress
) -> tuple[pd.DataFrame, dict[Method, Float64], dict[str, Mapping[str, Any]], dict[str, Any]]:
    """What the choice is made by, a row a normalisation, of a table without labels.

    Also the profiles of treatments (T, K) under each that could be made, what each states, and the design.
    """
    if not is_control(meta).any():
        raise InputError(
            f"no well is a negative control ({PERT_TYPE} = {NEGATIVE_CONTROL}): without any, nothing tells "
            "what is left of batches"
        )
    treated = exclude_controls(meta, np.arange(len(meta), dtype=np.float64)[:, None])
    rows = treated[1][:, 0].astype(np.intp)
    design = retrieval.Design.of(treated[0], config.seed)
    parts = halves(meta)
    table: list[dict[str, Any]] = []
    profiles: dict[Method, Float64] = {}
    stated: dict[str, Mapping[str, Any]] = {}
    for number, method in enumerate(METHODS):
        progress(number, len(METHODS))
        try:
            made = normalize(meta, features, method, config.shrinkage)
            left = _left_of_batches(meta, features, method, config.shrinkage, parts)
        except InputError as error:
            table.append({METHOD: method, SKIPPED: str(error)})
            continue
        found = retrieval.replicates(
            design, made.features[rows], config.metric, config.resamples, config.seed
        )
        table.append({METHOD: method, SKIPPED: None, **_replicate_columns(found), **left})
        profiles[method] = to_treatments(treated[0], made.features[rows], config.treatment_aggregate)[1]
        stated[method] = made.stated
    progress(len(METHODS), len(METHODS))
    return pd.DataFrame(table), profiles, stated, _design(design, parts, config)


def biology(
    meta: pd.DataFrame, profiles: Mapping[Method, Float64], config: ProfileConfig, leaked: Collection[str]
) -> pd.DataFrame:
    """NSC, NSCB and the same-week share of nearest neighbours, a row a normalisation: told, never used."""
    treated, rows = exclude_controls(meta, np.zeros((len(meta), 1)))
    treatments, _ = to_treatments(treated, rows, config.treatment_aggregate)
    if MOA not in treatments.columns or treatments[MOA].isna().all():
        return pd.DataFrame({METHOD: list(profiles)})
    settings = Settings(config.metric, config.resamples, config.seed)
    table = []
    for method, values in profiles.items():
        found = evaluate(treatments, values, settings, leaked)
        table.append(
            {
                METHOD: method,
                **_tally("nsc", found.nsc.overall),
                **_tally("nsc_held_out", found.nsc.held_out),
                **_tally("nscb", found.nscb.overall),
                **_tally("nscb_held_out", found.nscb.held_out),
                "same_week_share": found.same_batch_share,
                "same_week_expected": found.same_batch_expected,
            }
        )
    return pd.DataFrame(table)


def _left_of_batches(
    meta: pd.DataFrame, features: Floats, method: Method, shrinkage: float | None, parts: list[Bools]
) -> dict[str, Any]:
    """The gauges of batch effects, averaged over the halves of the controls."""
    found = []
    for part in parts:
        fitted = hidden(meta, part) if len(parts) > 1 else meta
        values, wells = normalize(fitted, features, method, shrinkage).features[part], meta[part]
        mixed, at_random = lisi(wells, values)
        found.append(
            {
                **_probe("week", week_predictability(wells, values)),
                **_probe("plate", plate_predictability(wells, values)),
                "lisi_weeks": mixed,
                "lisi_weeks_mixed": at_random,
            }
        )
    return {name: float(np.mean([one[name] for one in found])) for name in found[0]}


def _probe(label: str, found: Predictability | None) -> dict[str, float]:
    names = (f"{label}_accuracy", f"{label}_chance", f"{label}_excess")
    values = (found.accuracy, found.chance, found.excess) if found else (math.nan,) * 3
    return dict(zip(names, values, strict=True))


def _replicate_columns(found: retrieval.Replicates) -> dict[str, Any]:
    return {
        "replicate_map": found.mean_average_precision,
        REPLICATE_MAP: found.normalized,
        "position_map_normalized": math.nan
        if found.position_normalized is None
        else found.position_normalized,
        "replicates_retrieved": found.retrieved,
        "replicated_treatments": found.treatments,
    }


def _tally(name: str, found: Tally) -> dict[str, Any]:
    low, high = found.interval or (math.nan, math.nan)
    return {
        f"{name}_correct": found.correct,
        f"{name}_total": found.total,
        f"{name}_low": low,
        f"{name}_high": high,
    }


def _design(design: retrieval.Design, parts: list[Bools], config: ProfileConfig) -> dict[str, Any]:
    seen = (
        "each half of a plate's negative controls, as the other half normalises it; the two averaged"
        if len(parts) > 1
        else "all negative controls, to which the normalisations were fitted: some plate has fewer than four"
    )
    return {
        "replicates": {
            "positives": retrieval.POSITIVES,
            "negatives": retrieval.NEGATIVES,
            "null_positives": retrieval.NULL_POSITIVES,
            "null_negatives": retrieval.NULL_NEGATIVES,
            "wells": len(design.meta),
            "pairs": [len(design.positives), len(design.negatives)],
            "null_pairs": [len(design.null_positives), len(design.null_negatives)],
        },
        "batch_effects": {
            "controls": int(sum(part.sum() for part in parts)),
            "measured_on": seen,
            "probe": "ridge on standardised features; balanced accuracy; the week's leaves whole plates out, "
            "the plate's leaves well positions out (a plate cannot be left out of its own label)",
            "lisi": "weeks among a control's nearest, against weeks mixed at random",
        },
        "settings": {
            "metric": config.metric,
            "treatment_from_wells": config.treatment_aggregate,
            "shrinkage": config.shrinkage,
            "resamples": config.resamples,
            "seed": config.seed,
        },
    }


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    """JSON types: no NaN, no numpy."""
    return {
        name: None
        if value is None or value != value
        else value.item()
        if isinstance(value, np.generic)
        else value
        for name, value in row.items()
    }
