"""Ending a job, and clearing away what jobs have left."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from hcs_ray.contracts import InputError
from hcs_ray.jobs.gather import facts_of, list_facts
from hcs_ray.jobs.kinds import (
    CONFIG_MAP,
    JOB,
    OURS,
    POD,
    PREFLIGHT,
    RAY_CLUSTER,
    RAY_JOB,
    STAGE,
    SUBMITTING,
    Kind,
    Object,
    Objects,
    annotation,
    created,
    instant,
    label,
    name_of,
    owners,
    status_of,
    uid_of,
)
from hcs_ray.jobs.kube import Kube, KubeError
from hcs_ray.jobs.state import JobState, state_of
from hcs_ray.jobs.words import age, table

_GRACE: Final = timedelta(minutes=10)  # what is younger may still be in the making
_CONFLICT: Final = 409  # another uid
_MADE_BY: Final = "ray.io/originated-from-crd"


def stop(kube: Kube, name: str) -> JobState:
    """End a job by deleting it; one that has ended is left as it is. Its state as it was.

    KubeRay asks Ray to stop the program before it lets the object go, and the cluster goes with it.
    Suspending keeps the object, but kills the pods with no word to Ray, and Kueue undoes it at once. Nothing
    of the run is lost: the study's storage has it, and the next submission goes on from there.

    Raises:
        InputError: there is no such job.
    """
    facts = facts_of(kube, name)
    if facts.job is None:
        raise InputError(f"no job {name} in namespace {kube.namespace}; hcs-ray list shows all")
    state = state_of(facts)
    if not state.final:
        kube.delete(RAY_JOB, name, uid_of(facts.job))
    return state


@dataclass(frozen=True)
class Leftover:
    """An object that nobody needs any more, and why."""

    kind: Kind
    name: str
    uid: str
    why: str
    since: datetime | None


def leftovers(kube: Kube, older_than: timedelta, now: datetime | None = None) -> list[Leftover]:
    """What can be cleared away: jobs that ended so long ago, and of whatever age what belongs to no job."""
    now = now or datetime.now(UTC)
    jobs = kube.list(RAY_JOB)
    clusters = kube.list(RAY_CLUSTER)
    checks = kube.list(JOB, OURS)
    alive = {uid_of(item) for item in (*jobs, *clusters, *checks)}
    return [
        *_ended_jobs(kube, older_than, now),
        *_clusters(clusters, {uid_of(job) for job in jobs}, now),
        *_config_maps(kube, [*jobs, *clusters, *checks, *kube.list(POD, OURS)], alive, now),
        *_preflights(checks, older_than, now),
    ]


def clear(kube: Kube, found: Iterable[Leftover]) -> int:
    """Delete leftovers; how many were there. What has been made anew under an old name stays."""
    deleted = 0
    for item in found:
        try:
            deleted += kube.delete(item.kind, item.name, item.uid)
        except KubeError as error:
            if error.code != _CONFLICT:
                raise
    return deleted


def leftover_table(found: list[Leftover], now: datetime | None = None) -> str:
    """Leftovers, for people."""
    at = now or datetime.now(UTC)
    rows = [(item.kind.name, item.name, age(item.since, at), item.why) for item in found]
    return table([("KIND", "NAME", "AGE", "WHY"), *rows])


def _ended_jobs(kube: Kube, older_than: timedelta, now: datetime) -> Iterator[Leftover]:
    for facts in list_facts(kube):
        job, state = facts.job, state_of(facts, now)
        if job is None or job["metadata"].get("deletionTimestamp"):
            continue
        ended = instant(status_of(job).get("endTime")) or created(job)
        if annotation(job, SUBMITTING) and _older(created(job), _GRACE, now):
            yield _leftover(RAY_JOB, job, "its submission broke off; it never ran")
        elif state.final and _older(ended, older_than, now):
            yield _leftover(RAY_JOB, job, state.state)


def _clusters(clusters: Objects, jobs: set[str], now: datetime) -> Iterator[Leftover]:
    """Clusters that outlived their job; those that somebody made by hand are no business of ours."""
    for cluster in clusters:
        ours = label(cluster, STAGE) and label(cluster, _MADE_BY) == "RayJob"
        if ours and not jobs & set(owners(cluster)) and _orphaned(cluster, now):
            yield _leftover(RAY_CLUSTER, cluster, "its job is gone")


def _config_maps(kube: Kube, users: Objects, alive: set[str], now: datetime) -> Iterator[Leftover]:
    """Studies that nobody mounts; after kubectl apply -k they have no owner."""
    used = {name for user in users for name in _mounted(user.get("spec"))}
    for found in kube.list(CONFIG_MAP, f"{OURS},{STAGE}"):
        if name_of(found) not in used and not alive & set(owners(found)) and _orphaned(found, now):
            yield _leftover(CONFIG_MAP, found, "no job has it mounted")


def _preflights(checks: Objects, older_than: timedelta, now: datetime) -> Iterator[Leftover]:
    for job in checks:
        if label(job, PREFLIGHT) and _older(created(job), older_than, now):
            yield _leftover(JOB, job, "a preflight of long ago")


def _mounted(spec: Any) -> Iterator[str]:
    """The names of all ConfigMaps that are volumes anywhere in a spec."""
    if isinstance(spec, dict):
        held = spec.get("configMap")
        if isinstance(held, dict) and "name" in held:
            yield str(held["name"])
        for inner in spec.values():
            yield from _mounted(inner)
    elif isinstance(spec, list):
        for inner in spec:
            yield from _mounted(inner)


def _orphaned(found: Object, now: datetime) -> bool:
    return not found["metadata"].get("deletionTimestamp") and _older(created(found), _GRACE, now)


def _older(when: datetime | None, than: timedelta, now: datetime) -> bool:
    return when is not None and now - when >= than


def _leftover(kind: Kind, found: Object, why: str) -> Leftover:
    return Leftover(kind, name_of(found), uid_of(found), why, created(found))
