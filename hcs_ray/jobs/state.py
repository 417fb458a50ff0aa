"""What a job is doing, from everything that the API server says of it: one state, one reason. Pure.

Two controllers report on a RayJob, and contradict each other. ``jobStatus`` is Ray's word on the program,
``jobDeploymentStatus`` KubeRay's on the cluster around it: Complete only means that KubeRay has finished.
So success is what Ray calls SUCCEEDED, and an end is what KubeRay will not change again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal

from hcs_ray.jobs.kinds import (
    QUEUE,
    SUBMITTING,
    Object,
    annotation,
    condition,
    created,
    label,
    status_of,
    uid_of,
)
from hcs_ray.jobs.waiting import losses, role, short, waits, warnings

State = Literal[
    "submitting",  # its ConfigMap is being made, or was not: it does not run
    "queued",  # Kueue holds it
    "suspended",
    "starting",  # its cluster, or the program on it
    "running",
    "ending",  # Ray has finished, KubeRay winds up
    "retrying",
    "stopping",
    "succeeded",
    "failed",
    "stopped",  # by somebody, in Ray
    "invalid",  # KubeRay refuses it for good
    "unknown",  # the API does not say enough
    "gone",
]
_ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")
_TAKEN_UP: Final = timedelta(minutes=1)  # by an operator that runs
_PROGRAM: Final = "hcs-ray: "  # how our commands begin the line that says why they failed


@dataclass(frozen=True)
class Facts:
    """What the API server says of a job; what may not be read is left out."""

    job: Object | None
    cluster: Object | None = None
    submitter: Object | None = None  # the Kubernetes Job that submits to Ray
    pods: Sequence[Object] = ()
    events: Sequence[Object] = ()
    workload: Object | None = None  # of Kueue


@dataclass(frozen=True)
class JobState:
    """What a job is doing.

    Args:
        reason: why, in one line; empty where there is nothing to say.
        final: whether it stays like that.
        attempt: which one this is or was, from 1.
        attempts: how many there may be; each is a cluster of its own.
    """

    state: State
    reason: str = ""
    final: bool = False
    attempt: int = 1
    attempts: int = 1

    @property
    def line(self) -> str:
        """Both as one line: ``queued: preempted by ...``."""
        tries = f" (attempt {self.attempt} of {self.attempts})" if self.attempt > 1 else ""
        return f"{self.state}{tries}{f': {self.reason}' if self.reason else ''}"


def state_of(facts: Facts, now: datetime | None = None) -> JobState:
    """The one state of a job."""
    job = facts.job
    if job is None:
        return JobState("gone", "there is no such job any more; its results are where the study lies", True)
    status = status_of(job)
    found = _final(facts, status) or _live(facts, job, status, now or datetime.now(UTC))
    failed = int(status.get("failed") or 0)
    attempts = int(job["spec"].get("backoffLimit") or 0) + 1
    attempt = failed + (0 if found.final and found.state == "failed" else 1)
    attempt = max(1, min(attempt, attempts)) if found.final else max(1, attempt)
    return JobState(found.state, found.reason, found.final, attempt, max(attempts, attempt))


# --- ended ------------------------------------------------------------------------------------------------


def _final(facts: Facts, status: Object) -> JobState | None:
    deployment, ray = status.get("jobDeploymentStatus", ""), status.get("jobStatus", "")
    if deployment == "ValidationFailed":
        message = short(status.get("message") or _newest(facts) or status.get("reason"))
        return JobState("invalid", f"KubeRay refuses it: {message}", True)
    if deployment not in ("Complete", "Failed"):
        return None
    if ray == "SUCCEEDED":
        note = "" if deployment == "Complete" else f"though KubeRay calls it Failed: {_why(facts, status)}"
        return JobState("succeeded", note, True)
    if ray == "STOPPED":
        return JobState("stopped", f"somebody stopped it in Ray: {_why(facts, status)}", True)
    if ray == "FAILED" or deployment == "Failed":
        note = f"; Ray's last word was {ray}" if ray in ("PENDING", "RUNNING") else ""
        return JobState("failed", f"{_why(facts, status)}{note}", True)
    said = f"Ray's last word was {ray}" if ray else "Ray said nothing"
    return JobState("unknown", f"KubeRay calls it Complete, but {said}; look at the study's records", True)


def _why(facts: Facts, status: Object) -> str:
    """Why a job ended: our own program's line where there is one, else what KubeRay and the pods say."""
    message = str(status.get("message") or "")
    ours = [line for line in message.splitlines() if _PROGRAM in line]
    if ours:
        return short(ours[-1].partition(_PROGRAM)[2])
    reason = status.get("reason") or ""
    lines = [line for line in message.splitlines() if line.strip()]
    last = f" ... {lines[-1]}" if len(lines) > 1 else ""
    told = short(": ".join(filter(None, (reason, f"{lines[0] if lines else ''}{last}"))))
    return "; ".join([told, *losses(facts.pods)])


# --- under way --------------------------------------------------------------------------------------------


def _live(facts: Facts, job: Object, status: Object, now: datetime) -> JobState:
    deployment, suspend = status.get("jobDeploymentStatus", ""), bool(job["spec"].get("suspend"))
    if job["metadata"].get("deletionTimestamp"):
        return JobState("stopping", "it is being deleted, and its cluster with it")
    if since := annotation(job, SUBMITTING):
        return JobState("submitting", f"since {since}; it does not run before it is whole")
    if deployment == "Retrying":
        return JobState("retrying", f"the last attempt failed: {_why(facts, status)}; a new cluster follows")
    if deployment == "Suspending" or (suspend and deployment in ("", "Initializing", "Running", "Suspended")):
        return _suspended(facts, job, deployment)
    if deployment == "":
        return JobState("starting", _not_taken_up(facts, job, now))
    if deployment in ("Initializing", "Waiting", "Suspended"):
        return JobState("starting", _starting(facts, now))
    if deployment == "Running":
        return _running(facts, status, now)
    return JobState("unknown", f"KubeRay says {deployment}, which this version of hcs-ray does not know")


def _running(facts: Facts, status: Object, now: datetime) -> JobState:
    ray = status.get("jobStatus", "")
    if ray in _ENDED:
        return JobState("ending", f"Ray says {ray}; KubeRay winds up")
    if ray in ("", "PENDING"):
        return JobState("starting", _starting(facts, now) or "Ray starts the program")
    if ray != "RUNNING":
        return JobState("unknown", f"Ray says {ray}, which this version of hcs-ray does not know")
    if since := status.get("jobStatusCheckFailureStartTime"):
        trouble = [*losses(facts.pods), *waits(facts.pods, facts.events)]
        return JobState("running", "; ".join([f"KubeRay has not reached its head since {since}", *trouble]))
    return JobState("running", "; ".join([*_still_waiting(facts), *losses(facts.pods)]))


def _still_waiting(facts: Facts) -> list[str]:
    """Workers that a running job waits for; the submitter's pod is not one."""
    return waits([pod for pod in facts.pods if role(pod) != "submitter"], facts.events)


def _starting(facts: Facts, now: datetime) -> str:
    waiting = waits(facts.pods, facts.events)
    if waiting:
        return "; ".join(waiting)
    # Pods that a quota or Pod Security forbids are never made: only their maker's events tell.
    trouble = warnings(facts.events, {uid_of(item) for item in _makers(facts)}, now)
    return trouble[0] if trouble else ""


def _makers(facts: Facts) -> list[Object]:
    return [item for item in (facts.job, facts.cluster, facts.submitter) if item]


def _not_taken_up(facts: Facts, job: Object, now: datetime) -> str:
    if told := _newest(facts):
        return told
    if now - (created(job) or now) > _TAKEN_UP:
        return "KubeRay has not taken it up: does its operator run, and watch this namespace?"
    return "KubeRay has not taken it up yet"


def _newest(facts: Facts) -> str:
    about = {uid_of(item) for item in _makers(facts)}
    return next(iter(warnings(facts.events, about)), "")


# --- held -------------------------------------------------------------------------------------------------


def _suspended(facts: Facts, job: Object, deployment: str) -> JobState:
    queue = label(job, QUEUE)
    if not queue:
        going = "its cluster is being deleted" if deployment == "Suspending" else ""
        return JobState("suspended", going or "until somebody sets spec.suspend to false")
    if facts.workload is None:
        return JobState("queued", f"in {queue}; why is not known, as there is no Workload that may be read")
    return JobState("queued", f"in {queue}: {_why_queued(facts.workload)}")


def _why_queued(workload: Object) -> str:
    """Kueue's reason why a job waits."""
    if workload["spec"].get("active") is False:
        return "Kueue has deactivated it; it will not start before its Workload's spec.active is true"
    checks = [
        check for check in status_of(workload).get("admissionChecks") or () if check["state"] != "Ready"
    ]
    evicted, preempted = condition(workload, "Evicted"), condition(workload, "Preempted")
    quota = condition(workload, "QuotaReserved")
    told = []
    if evicted.get("status") == "True":
        by = preempted if preempted.get("status") == "True" else evicted
        verb = "preempted" if by is preempted else "evicted"
        told.append(f"{verb} ({by.get('reason')}): {short(by.get('message'))}")
    if quota.get("status") == "False" and quota.get("message"):
        told.append(short(quota["message"]))
    told += [
        f"admission check {check['name']}: {short(check.get('message') or check['state'])}"
        for check in checks
    ]
    if not told and condition(workload, "Admitted").get("status") == "True":
        return "admitted; it starts"
    return "; ".join(told) or "Kueue has not looked at it yet"
