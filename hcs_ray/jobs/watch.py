"""How a job fares: its state, what it has taken and how far its study is; now, or until it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from hcs_ray.config.cluster import Prices
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs.gather import facts_of, list_facts
from hcs_ray.jobs.held import Part, parts_of, run_of, stage_of, study_of
from hcs_ray.jobs.kinds import (
    OURS,
    PRICES,
    RAY_JOB,
    ROOT,
    Object,
    annotation,
    created,
    instant,
    name_of,
    status_of,
)
from hcs_ray.jobs.kube import Kube, KubeError
from hcs_ray.jobs.state import Facts, JobState, state_of
from hcs_ray.jobs.usage import Usage, usage_of
from hcs_ray.jobs.words import Say, age, table

_LOOK_EVERY_S: Final = 10.0  # at pods, which a watch of the job does not tell of
_PATIENCE_S: Final = 600.0  # with an API server that is away
_PASSING: Final = (0, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Report:
    """How a job fares.

    Args:
        parts: its stages by the study's records; None where those cannot be read.
        unread: why they cannot.
    """

    name: str
    job: Object
    state: JobState
    usage: Usage
    now: datetime
    prices: Prices | None = None
    parts: list[Part] | None = None
    unread: str = ""

    @property
    def about(self) -> str:
        """``train main of s3://bucket/study``."""
        root = annotation(self.job, ROOT)
        return f"{stage_of(self.job)} {run_of(self.job)}{f' of {root}' if root else ''}"

    @property
    def lines(self) -> str:
        """All of it, for people."""
        status = status_of(self.job)
        began, ended = created(self.job), instant(status.get("endTime"))
        took = f", took {age(began, ended)}" if began and ended else ""
        rows = [
            ("state", self.state.line),
            ("since", f"{began:%Y-%m-%d %H:%M} UTC, {age(began, self.now)} ago{took}" if began else ""),
            ("cluster", _cluster(status)),
            ("used", self.usage.words(self.prices)),
            ("progress", f"not known: {self.unread}" if self.parts is None else _progress(self.parts)),
        ]
        told = [f"  {head:<9} {text}" for head, text in rows if text]
        return "\n".join([f"{self.name}: {self.about}", *told])

    @property
    def figures(self) -> dict[str, Any]:
        """All of it, for programs."""
        money = None
        if self.prices is not None:
            money = {"cost": round(self.usage.cost(self.prices), 4), "currency": self.prices.currency}
        return {
            **_about(self.job),
            **state_figures(self.state),
            "created": self.job["metadata"].get("creationTimestamp"),
            "ended": status_of(self.job).get("endTime"),
            "cpu_hours": round(self.usage.cpu_hours, 4),
            "gpu_hours": round(self.usage.gpu_hours, 4),
            "at_least": self.usage.at_least,
            "money": money,
            "parts": None if self.parts is None else {part.stage: part.state for part in self.parts},
            "unread": self.unread,
        }


def state_figures(state: JobState) -> dict[str, Any]:
    """A state, for programs."""
    return {
        "state": state.state,
        "reason": state.reason,
        "final": state.final,
        "attempt": state.attempt,
        "attempts": state.attempts,
    }


def report(kube: Kube, name: str) -> Report:
    """How a job fares now.

    Raises:
        InputError: there is no such job.
    """
    facts, now = facts_of(kube, name), datetime.now(UTC)
    if facts.job is None:
        raise InputError(
            f"no job {name} in namespace {kube.namespace} (context {kube.context}); hcs-ray list shows all"
        )
    parts, unread = None, ""
    try:
        parts = parts_of(study_of(kube, facts.job), stage_of(facts.job))
    except HcsError as error:
        unread = str(error)
    priced = annotation(facts.job, PRICES)
    prices = Prices.model_validate_json(priced) if priced else None
    usage = usage_of(facts.job, facts.pods, now)
    return Report(name, facts.job, state_of(facts, now), usage, now, prices, parts, unread)


def newest(kube: Kube) -> str:
    """The job that was submitted last.

    Raises:
        InputError: there is none.
    """
    jobs = kube.list(RAY_JOB, OURS)
    if not jobs:
        raise InputError(f"no jobs in namespace {kube.namespace} (context {kube.context})")
    return name_of(max(jobs, key=lambda job: (str(created(job)), name_of(job))))


def jobs_table(kube: Kube) -> tuple[str, list[dict[str, Any]]]:
    """Every job of the namespace, the newest first: for people, and for programs."""
    now = datetime.now(UTC)
    rows, figures = [("JOB", "STAGE", "RUN", "STATE", "ATTEMPT", "AGE", "STUDY", "WHY")], []
    for facts in list_facts(kube):
        job, state = facts.job, state_of(facts, now)
        assert job is not None
        about = {
            "job": name_of(job),
            "stage": stage_of(job),
            "run": run_of(job),
            "root": annotation(job, ROOT),
        }
        figures.append({**about, **state_figures(state), "created": job["metadata"].get("creationTimestamp")})
        tries = f"{state.attempt}/{state.attempts}"
        words = (state.state, tries, age(created(job), now), about["root"], state.reason)
        rows.append((about["job"], about["stage"], about["run"], *words))
    return table(rows), figures


def wait(kube: Kube, name: str, tell: Callable[[JobState], None], every_s: float = _LOOK_EVERY_S) -> JobState:
    """The state in which a job ends; each one on the way is told once."""
    last = None
    for facts in follow(kube, name, every_s):
        state = state_of(facts)
        if state != last:
            tell(state)
        if state.final:
            return state
        last = state
    raise AssertionError("a job is followed until it ends")


def wait_until_running(kube: Kube, name: str, say: Say) -> bool:
    """Wait for a job's program to begin, and say each state on the way; False where it ends without."""
    last = None
    for facts in follow(kube, name):
        state = state_of(facts)
        if state != last:
            say(f"{name}: {state.line}")
        if state.final or state.state in ("running", "ending"):
            return not state.final
        last = state
    raise AssertionError("a job is followed until it ends")


def follow(kube: Kube, name: str, every_s: float = _LOOK_EVERY_S) -> Iterator[Facts]:
    """A job again and again: at each change of it, and else every so many seconds.

    An API server that is away for a while, as in its upgrades, is waited for.

    Raises:
        KubeError: it is away for long, or refuses.
    """
    reached = time.monotonic()
    while True:
        try:
            facts = facts_of(kube, name)
            reached = time.monotonic()
            yield facts
            if facts.job is not None:
                _until_changed(kube, facts.job, every_s)
        except KubeError as error:
            if error.code not in _PASSING or time.monotonic() - reached > _PATIENCE_S:
                raise
            time.sleep(min(every_s, 5.0))


def _until_changed(kube: Kube, job: Object, every_s: float) -> None:
    version = job["metadata"]["resourceVersion"]
    next(kube.watch(RAY_JOB, name=name_of(job), since=version, seconds=every_s), None)


def _about(job: Object) -> dict[str, str]:
    return {"job": name_of(job), "stage": stage_of(job), "run": run_of(job), "root": annotation(job, ROOT)}


def _cluster(status: Object) -> str:
    name = status.get("rayClusterName")
    cluster = status.get("rayClusterStatus") or {}
    if not name:
        return ""
    ready, desired = cluster.get("readyWorkerReplicas") or 0, cluster.get("desiredWorkerReplicas") or 0
    state = f", {cluster['state']}" if cluster.get("state") else ""
    return f"{name}{state}, {ready} of {desired} workers ready"


def _progress(parts: list[Part]) -> str:
    return "; ".join(str(part) for part in parts)
