"""How many trials fit on a cluster at a time, so that none waits for workers that others hold.

A trial's own process only waits, and takes no CPU; each of its workers takes what the ``train`` section says.
What limits the trials is a share of the head node's own resource, so that trials that wait for each other
(HyperBand, PBT) count only while they run.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hcs_ray.config import StudyConfig, SweepConfig
from hcs_ray.contracts import InputError

HEAD: Final = "node:__internal_head__"  # of which every Ray cluster has 1
_MOST: Final = 100  # trials at a time: the processes of trials live on the head node
CLEANER_SHARE: Final = 0.001  # of it, which each run's cleaner takes (`hcs_ray.tune.places`), and Ray Train's
_UNITS: Final = {"CPU": "CPUs", "GPU": "GPUs"}

Resources = Mapping[str, float]


@dataclass(frozen=True)
class Fit:
    """How many trials run at a time, and why, in words."""

    trials: int
    words: str

    @property
    def share(self) -> float:
        """Of the head node's resource, for one trial; what Ray Train takes of it is left over.

        Up to 18 trials it is exact: one more would not fit.
        """
        left = 1 - max(0.05, 4 * CLEANER_SHARE * self.trials)
        return math.floor(1e4 * left / self.trials) / 1e4


def fit_trials(nodes: Sequence[Resources], worker: Resources, workers: int, wanted: int) -> int:
    """How many trials of so many workers fit on the nodes at a time, at most ``wanted``; maybe none.

    A worker lies on one node; the workers of a trial may lie on several.
    """
    places = 0
    for node in nodes:
        here = [math.floor(node.get(name, 0.0) / need + 1e-9) for name, need in worker.items() if need > 0]
        places += min(here, default=workers * wanted)
    return min(places // workers, wanted, _MOST)


def capacity(sweep: SweepConfig, config: StudyConfig, trials: int) -> Fit:
    """What fits on the cluster that this process has joined.

    Raises:
        InputError: not even one trial fits.
    """
    worker, workers = _needs(sweep, config)
    nodes = _nodes()
    wanted = trials if sweep.concurrency == "auto" else min(sweep.concurrency, trials)
    found = fit_trials(nodes, worker, workers, wanted)
    there = {name: sum(node.get(name, 0.0) for node in nodes) for name in worker}
    if found == 0 and os.environ.get("RAY_ADDRESS") and sweep.concurrency != "auto":
        return Fit(
            1, f"1 trial at a time, once the cluster has grown: {_words(there)}, {_each(worker, workers)}"
        )
    if found == 0:
        raise InputError(
            f"no trial fits: Ray has {_words(there)}, and a trial takes {_each(worker, workers)}. "
            "Give it fewer workers, or less for each (resources), or, where the cluster grows by itself, a "
            "number as concurrency"
        )
    return Fit(found, f"{found} trial{'s'[: found > 1]} at a time: {_words(there)}, {_each(worker, workers)}")


def _needs(sweep: SweepConfig, config: StudyConfig) -> tuple[dict[str, float], int]:
    """What a worker takes, and how many a trial has; an elastic one as many as it may."""
    if sweep.objective == "map":
        return {"CPU": 1.0}, 1
    from hcs_ray.train.driver import resources

    return resources(config.train), config.train.most_workers


def trial_resources(sweep: SweepConfig, fit: Fit) -> dict[str, float]:
    """What Tune sets aside for a trial's own process."""
    return {"CPU": 1.0 if sweep.objective == "map" else 0.0, HEAD: fit.share}


def _nodes() -> list[Resources]:
    import ray

    nodes: Any = ray.nodes  # untyped
    return [node["Resources"] for node in nodes() if node["Alive"]]


def _words(amounts: Resources) -> str:
    return ", ".join(f"{amount:g} {_UNITS.get(name, name)}" for name, amount in amounts.items())


def _each(worker: Resources, workers: int) -> str:
    return " and ".join(f"{amount * workers:g} {name}" for name, amount in worker.items()) + " each"
