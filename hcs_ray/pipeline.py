"""The pipeline: its stages in their order, what each reads, writes and follows from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class StageSpec:
    """What a stage reads and writes; ``{name}`` in the folder is the run's name."""

    folder: str
    inputs: tuple[str, ...]
    sections: tuple[str, ...]
    flat: bool = False
    grows: bool = False
    prefix: str = ""  # of its files, in a folder that it shares with another stage
    foreign: tuple[str, ...] = ()  # the prefixes of others in its folder
    unread: tuple[str, ...] = ()  # keys of its sections that do not change what it writes
    optional: tuple[str, ...] = ()  # stages whose result it reads where they are complete
    labelled: bool = False  # it leaves out the fields that `labels.exclude` names
    shows: tuple[str, ...] = ()  # the same, but it passes over what is stale: it says so, and goes on


# The pipeline in its order, and the sweep beside it.
STAGES: Mapping[str, StageSpec] = {
    "shard": StageSpec("shards", (), ("screen", "shards"), grows=True),
    "split": StageSpec("splits", ("shard",), ("split",), flat=True),
    "train": StageSpec("runs/{name}", ("shard", "split"), ("model", "train"), labelled=True),
    "embed": StageSpec("embeddings/{name}", ("shard", "train"), ("embed",)),
    "profile": StageSpec(
        "profiles/{name}", ("embed", "split"), ("profile",), foreign=("folds", "comparison"), labelled=True
    ),
    "map": StageSpec("maps", ("embed",), ("map",), flat=True),
    "outliers": StageSpec(
        "outliers/{name}", ("shard", "split", "embed"), ("outliers",), optional=("map",), labelled=True
    ),
    "report": StageSpec(
        "reports/{name}",
        ("shard",),
        ("report",),
        grows=True,
        unread=("report.before",),  # the records of that run are inputs
        shows=("split", "train", "embed", "profile", "map", "outliers", "folds", "compare"),
    ),
    "tune": StageSpec("sweeps/{name}", ("shard", "split"), ("model", "train"), labelled=True),
}
# What no pipeline waits for; where it is there, a report shows it.
EXTRAS: Mapping[str, StageSpec] = {
    "folds": StageSpec("profiles/{name}", ("shard",), ("profile",), prefix="folds", labelled=True),
    "compare": StageSpec(
        "profiles/{name}",
        ("embed", "split"),
        ("profile",),
        prefix="comparison",
        unread=("profile.normalization",),
        labelled=True,
    ),
}


def spec_of(stage: str) -> StageSpec:
    """What a stage of the pipeline, or beside it, reads and writes."""
    return STAGES.get(stage) or EXTRAS[stage]
