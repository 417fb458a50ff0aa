"""How many worker pods a stage needs, and of what size: derived from its study.

Train workers and embedding actors have a pod each, so that a lost node costs one of them; small ones share a
core. A plate that is sharded takes one core.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from hcs_ray.config import StudyConfig, SweepConfig
from hcs_ray.contracts import InputError

Group = Literal["cpu", "gpu"]


@dataclass(frozen=True)
class Pods:
    """Worker pods of one group.

    Args:
        most: so many at most.
        cpus: whole cores of each.
        gpus: of each.
        always: they are there from the start to the end, instead of coming and going with the work.
        resources: Ray's other resources that each must offer.
    """

    most: int
    cpus: int
    gpus: int = 0
    always: bool = False
    resources: Mapping[str, float] | None = None


@dataclass(frozen=True)
class Given:
    """What the manifests have, for what no study says: how many pods to shard on, and cores of each."""

    pods: int
    cpus: int


def pods_of(
    stage: str, study: StudyConfig, given: Given, sweep: SweepConfig | None = None
) -> dict[Group, Pods]:
    """The worker pods of a stage by group; a group that is not named has none.

    Raises:
        InputError: the sweep cannot run on workers.
    """
    if stage == "shard":
        return {"cpu": _shard(study, given)}
    if stage == "train":
        return _train(study)
    if stage == "tune":
        return _tune(study, sweep, given)
    if stage == "embed":
        return _embed(study)
    if stage == "analyse":
        return {}
    return _largest(({"cpu": _shard(study, given)}, _train(study), _embed(study)))


def _shard(study: StudyConfig, given: Given) -> Pods:
    plates = study.screen.plates
    most = given.pods if plates is None else min(given.pods, math.ceil(len(set(plates)) / given.cpus))
    return Pods(max(1, most), given.cpus)


def _train(study: StudyConfig) -> dict[Group, Pods]:
    train = study.train
    return _workers(train.most_workers, train.cpus_per_worker, train.use_gpu, train.resources_per_worker)


def _embed(study: StudyConfig) -> dict[Group, Pods]:
    return _workers(study.embed.workers, study.embed.cpus_per_worker, study.embed.use_gpu)


def _tune(study: StudyConfig, sweep: SweepConfig | None, given: Given) -> dict[Group, Pods]:
    """Pods for as many trials at a time as ``concurrency`` says; ``auto`` takes what the manifests have."""
    if sweep is None:
        raise InputError("--stage tune needs a sweep: --sweep tune_configs/lr_asha.yaml")
    if sweep.objective == "map":
        raise InputError(
            "objective map: its trials run on the head node, which takes no work on a cluster; "
            "run hcs-ray tune with the study's bucket on one machine"
        )
    resources = sweep.resources.model_dump(exclude_none=True)
    train = study.train.model_copy(update=resources)
    found = _workers(
        _at_a_time(sweep) * train.most_workers,
        train.cpus_per_worker,
        train.use_gpu,
        train.resources_per_worker,
    )
    ((group, pods),) = found.items()
    most = max(pods.most, given.pods) if sweep.concurrency == "auto" else pods.most
    return {group: Pods(most, pods.cpus, pods.gpus, always=True, resources=pods.resources)}


def _at_a_time(sweep: SweepConfig) -> int:
    """Trials at a time; of ``auto`` at least one."""
    if sweep.concurrency == "auto":
        return 1
    crossed = any(space.kind in ("grid", "compounds") for space in sweep.space.values())
    return sweep.concurrency if crossed else min(sweep.concurrency, sweep.samples)


def _workers(
    workers: int, cpus: float, use_gpu: bool, resources: Mapping[str, float] | None = None
) -> dict[Group, Pods]:
    cores = math.ceil(cpus)
    if use_gpu:
        return {"gpu": Pods(workers, cores, 1, resources=resources or None)}
    in_a_pod = math.floor(cores / cpus + 1e-9)
    return {"cpu": Pods(math.ceil(workers / in_a_pod), cores, resources=resources or None)}


def _largest(stages: tuple[dict[Group, Pods], ...]) -> dict[Group, Pods]:
    """Of each group the most and the largest pods that a stage wants: stages come one after the other."""
    found: dict[Group, Pods] = {}
    for stage in stages:
        for group, pods in stage.items():
            before = found.get(group, pods)
            found[group] = Pods(
                max(before.most, pods.most),
                max(before.cpus, pods.cpus),
                max(before.gpus, pods.gpus),
                resources={**(before.resources or {}), **(pods.resources or {})} or None,
            )
    return found
