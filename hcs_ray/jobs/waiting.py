"""Why pods wait, and why they died: pure, from pods and events to one line a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from hcs_ray.jobs.kinds import JOB_NAME, Object, condition, instant, label, status_of, uid_of

_RECENT: Final = timedelta(minutes=15)
_LONGEST: Final = 300  # characters of somebody else's message
# What a container waits for in the ordinary course of things.
_ORDINARY: Final = ("", "ContainerCreating", "PodInitializing")
_LOST: Final = "Failed"


def role(pod: Object) -> str:
    """What a pod is in a job: ``head``, ``gpu worker``, ``submitter``."""
    if label(pod, "ray.io/node-type") == "head":
        return "head"
    if label(pod, "ray.io/node-type") == "worker":
        return f"{label(pod, 'ray.io/group')} worker".strip()
    return "submitter" if label(pod, JOB_NAME) or label(pod, "job-name") else "pod"


def waits(pods: Iterable[Object], events: Sequence[Object]) -> list[str]:
    """Why pods are not running yet, one line a reason, with how many pods have it."""
    found: Counter[tuple[str, str]] = Counter()
    for pod in pods:
        if (why := why_waiting(pod, events)) is not None:
            found[role(pod), why] += 1
    return [f"{_pods(count, who)}: {why}" for (who, why), count in found.items()]


def losses(pods: Iterable[Object]) -> list[str]:
    """Why pods died, one line a reason, with how many pods have it."""
    found: Counter[tuple[str, str]] = Counter()
    for pod in pods:
        if (why := why_lost(pod)) is not None:
            found[role(pod), why] += 1
    return [f"{_pods(count, who)} lost: {why}" for (who, why), count in found.items()]


def why_waiting(pod: Object, events: Sequence[Object] = ()) -> str | None:
    """Why a pod is not running yet; None where it is, or has been."""
    if pod["metadata"].get("deletionTimestamp") or status_of(pod).get("phase") in ("Succeeded", _LOST):
        return None
    scheduled = condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"no node takes it: {short(scheduled.get('message') or scheduled.get('reason'))}"
    for container in _containers(pod):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason", "") not in _ORDINARY:
            message = waiting.get("message") or _last_end(container)
            return f"{waiting['reason']} ({container['name']}){f': {short(message)}' if message else ''}"
    if status_of(pod).get("phase") == "Running":
        return None
    trouble = warnings(events, {uid_of(pod)})
    return trouble[0] if trouble else "its containers are being started"


def why_lost(pod: Object) -> str | None:
    """Why a pod died; None where it did not."""
    status = status_of(pod)
    if status.get("phase") != _LOST:
        return None
    disrupted = condition(pod, "DisruptionTarget")
    if disrupted.get("status") == "True":
        return short(f"{disrupted.get('reason')}: {disrupted.get('message')}")
    for container in _containers(pod):
        if (end := _end(container)) is not None:
            return end
    return short(f"{status.get('reason') or _LOST}: {status.get('message') or 'no reason is given'}")


def warnings(events: Sequence[Object], uids: set[str], now: datetime | None = None) -> list[str]:
    """What the events warn of about some objects, the newest first; with ``now``, recent ones only."""
    about = [
        event
        for event in events
        if event.get("type") == "Warning" and event.get("involvedObject", {}).get("uid") in uids
    ]
    told = sorted(about, key=_time_of, reverse=True)
    recent = [event for event in told if now is None or now - _when(event, now) <= _RECENT]
    return [short(f"{event.get('reason')}: {event.get('message')}") for event in recent]


def short(message: Any) -> str:
    """Somebody else's message as one line of a bearable length."""
    line = " ".join(str(message or "no reason is given").split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]} ..."


def _containers(pod: Object) -> list[Object]:
    status = status_of(pod)
    return [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]


def _end(container: Object) -> str | None:
    """How a container ended badly."""
    ended = (container.get("state") or {}).get("terminated") or {}
    if not ended.get("exitCode"):
        return None
    reason = ended.get("reason") or "Error"
    name = container["name"]
    if reason == "OOMKilled":
        return f"OOMKilled: {name} needed more memory than its limit"
    message = f": {short(ended['message'])}" if ended.get("message") else ""
    return f"{reason} ({name}, exit code {ended['exitCode']}){message}"


def _last_end(container: Object) -> str:
    return _end({"name": container["name"], "state": container.get("lastState")}) or ""


def _time_of(event: Object) -> str:
    series = event.get("series") or {}
    times = (series.get("lastObservedTime"), event.get("lastTimestamp"), event.get("eventTime"))
    return str(next(filter(None, times), event["metadata"].get("creationTimestamp") or ""))


def _when(event: Object, now: datetime) -> datetime:
    return instant(_time_of(event)) or now


def _pods(count: int, who: str) -> str:
    return who if count == 1 else f"{count} {who}s"
