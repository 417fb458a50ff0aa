"""Do the replicates of a treatment find one another? Normalised mean average precision of a run's wells.

Computed from ``profiles/NAME/well.parquet`` by the rules of `hcs_ray.profiles.retrieval`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import ProfileConfig
from hcs_ray.contracts import InputError
from hcs_ray.profiles import retrieval
from hcs_ray.profiles.aggregate import exclude_controls
from hcs_ray.profiles.chance import bootstrap_weights, percentile_interval
from hcs_ray.report.answers import Answer

VALUE: Final = "normalized_map"
LEAKED: Final = "leaked"
_QUESTION: Final = (
    "Do a treatment's wells on other plates look more alike than wells of other treatments of its batch? "
    "(normalised: 0 is a random order, 1 a perfect one)"
)


@dataclass(frozen=True)
class Replicates:
    """``treatments`` has a row a treatment with replicates: its compound, MoA, `VALUE` and `LEAKED`."""

    treatments: pd.DataFrame
    held_out: Answer
    overall: Answer


def replicates(wells: pd.DataFrame, config: ProfileConfig, leaked: Collection[str]) -> Replicates | str:
    """From ``well.parquet``; in words why not, where no treatment has replicates on other plates."""
    features = np.stack(list(wells[c.EMBEDDING])).astype(np.float64)
    meta, values = exclude_controls(wells.drop(columns=c.EMBEDDING), features)
    try:
        design = retrieval.Design.of(meta, config.seed)
    except InputError as error:
        return str(error)
    unit = retrieval.directions(values, config.metric)
    found = retrieval.average_precisions(design.meta, unit, design.positives, design.negatives)
    score = found.groupby(c.TREATMENT)["normalized_average_precision"].mean().rename(VALUE)
    whose = meta[[c.TREATMENT, c.COMPOUND, c.MOA]].drop_duplicates(c.TREATMENT)
    table = whose.merge(score, on=c.TREATMENT, validate="one_to_one").sort_values(
        c.TREATMENT, ignore_index=True
    )
    table[LEAKED] = table[c.COMPOUND].isin(list(leaked))
    null = None
    if len(design.null_positives) and len(design.null_negatives):
        places = retrieval.average_precisions(design.meta, unit, design.null_positives, design.null_negatives)
        null = float(places["normalized_average_precision"].mean())
    return Replicates(
        table,
        _answer("Replicate mAP, held-out", table[~table[LEAKED]], null, config),
        _answer("Replicate mAP, all treatments", table, null, config),
    )


def _answer(title: str, table: pd.DataFrame, null: float | None, config: ProfileConfig) -> Answer:
    sums = table.groupby(c.COMPOUND)[VALUE].agg(["sum", "size"]).to_numpy(dtype=np.float64)
    if not len(sums):
        return Answer(
            title, _QUESTION, "–", None, None, None, "not scored", "No such treatment has replicates."
        )
    mean = float(table[VALUE].mean())
    interval = _interval(sums, config)
    limit = max(null or 0.0, 0.0)
    above = interval is not None and interval[0] > limit
    return Answer(
        title=title,
        question=_QUESTION,
        text=f"{mean:.2f}",
        share=min(max(mean, 0.0), 1.0),
        interval=None if interval is None else (max(interval[0], 0.0), min(interval[1], 1.0)),
        chance=(0.0, limit),
        verdict="above chance" if above else "not above chance",
        reading=_reading(above, null, interval, len(table), len(sums)),
        leaked=int(table[LEAKED].sum()),
        total=len(table),
        axis=("0", "0.5", "1"),
    )


def _interval(sums: Any, config: ProfileConfig) -> tuple[float, float] | None:
    """95 % of the means when compounds are drawn with all their treatments; None for fewer than two."""
    if len(sums) < 2:
        return None
    draws = np.concatenate(
        [weights @ sums for weights in bootstrap_weights(len(sums), config.resamples, config.seed)]
    )
    return percentile_interval(draws[:, 0] / draws[:, 1])


def _reading(
    above: bool, null: float | None, interval: tuple[float, float] | None, treatments: int, compounds: int
) -> str:
    place = (
        "a random order gives 0; no two treatments share a position, so what the position alone gives "
        "cannot be told"
        if null is None
        else f"the position on the plate alone gives {null:.2f}"
    )
    verdict = "Above chance" if above else "Not above chance"
    words = (
        f"{verdict}: {place}. {treatments} treatments of {compounds} compound{'s' if compounds != 1 else ''}."
    )
    if interval is None:
        return f"{words} One compound alone gives no interval."
    return f"{words} 95 % interval over compounds: {interval[0]:.2f} to {interval[1]:.2f}."


def by_mechanism(found: Replicates) -> dict[tuple[str, bool], tuple[float, int]]:
    """Mechanism and whether it leaked -> the mean of its treatments, and their number."""
    labelled = found.treatments[found.treatments[c.MOA].notna()]
    groups = labelled.groupby([c.MOA, LEAKED])[VALUE].agg(["mean", "size"])
    return {
        (str(moa), bool(leaked)): (float(row["mean"]), int(row["size"]))
        for (moa, leaked), row in zip(groups.index, c.rows_of(groups), strict=True)
    }
