"""What a sweep over maps says before it begins, and what to do with what it has found."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray.config import SweepConfig
from hcs_ray.maps.landmarks import landmarks_used
from hcs_ray.maps.layout import neighbors_used
from hcs_ray.maps.reading import Embeddings
from hcs_ray.study import Study
from hcs_ray.tune.map_objective import USES_LABELS
from hcs_ray.tune.space import Space

_SUPERVISED: Final = "map.supervised"


def beforehand(study: Study, space: Space) -> list[str]:
    """Lines on what will be tried, and, loudly, on what uses labels.

    Raises:
        InputError: a trial's layout would be refused, so that the sweep could never be complete.
    """
    fields, config = len(Embeddings(study)), space.config.map
    laid_out = min(
        landmarks_used(fields, config.model_copy(update={"densmap": densmap, "landmarks": landmarks}))
        for densmap in _tried(space, "map.densmap")
        for landmarks in _tried(space, "map.landmarks")
    )
    lines = [f"  layouts of {fields} fields; each process compiles UMAP once, which takes some seconds"]
    clipped = [count for count in _tried(space, "map.neighbors") if count > laid_out - 1]
    if clipped:
        words = " and ".join(f"{count:g}" for count in sorted(clipped))
        used = neighbors_used(laid_out, config.model_copy(update={"neighbors": max(clipped)}))
        lines.append(f"  map.neighbors {words}: of {laid_out} fields laid out, all {used} others are taken")
    lines += [
        f"  CAUTION: {name} uses labels; a map chosen by it has seen every label, and shows what it was "
        "chosen for"
        for name in _asked(space.sweep)
        if name in USES_LABELS
    ]
    if "moa" in _tried(space, _SUPERVISED):
        lines.append("  CAUTION: map.supervised moa: such layouts are told the MoAs, and are marked")
    return lines


def uses_labels(study: Study, values: Mapping[str, Any], sweep: SweepConfig) -> bool:
    """Whether a trial's layout was told labels, or chosen by them."""
    supervised = {_SUPERVISED: study.config.map.supervised, **sweep.fixed, **values}[_SUPERVISED]
    return supervised != "none" or any(name in USES_LABELS for name in _asked(sweep))


def next_map(study: Study, best: pd.Series[Any], sweep: SweepConfig) -> str:
    """The command that draws the best trial's map."""
    values = {name: best[name] for name in sweep.space if not pd.isna(best[name])}
    settings = " ".join(f"--set {key}={_plain(value)}" for key, value in {**sweep.fixed, **values}.items())
    caution = " (CAUTION: it uses labels)" if uses_labels(study, values, sweep) else ""
    return f"Next{caution}: hcs-ray map {study.storage.url} --name {study.name} --force {settings}"


def _asked(sweep: SweepConfig) -> list[str]:
    return list(dict.fromkeys([*(goal.name for goal in sweep.metric), *sweep.stop.reached]))


def _tried(space: Space, key: str) -> tuple[Any, ...]:
    """Every listed value of a key, the ends of its range, or the study's one."""
    swept = space.sweep.space.get(key)
    return swept.ends if swept is not None else (getattr(space.config.map, key.rpartition(".")[2]),)


def _plain(value: Any) -> str:
    """As YAML has it: the leaderboard holds all numbers as float."""
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.10g}"
    return str(value)
