"""Small controllers for the tests' API server: what kubelet and KubeRay would write, as far as told."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tests.api_server import ApiServer
from tests.api_store import Change, Object

NOW_AND_THEN_S = 0.15


@dataclass
class Kubelet:
    """Runs each Job at once, as one pod that prints some lines.

    Attributes:
        succeeds: How the pod ends; None: it does not begin, and waits for its image.
    """

    api: ApiServer
    lines: list[str] = field(default_factory=lambda: ["versions  ok", "inputs    ok"])
    succeeds: bool | None = True
    seen: int = 0

    def __call__(self, change: Change) -> None:
        if change.plural != "jobs" or change.type != "ADDED":
            return
        name = change.object["metadata"]["name"]
        labels = {"batch.kubernetes.io/job-name": name}
        owner = {"uid": change.object["metadata"]["uid"]}
        pod = {"metadata": {"name": f"{name}-x", "labels": labels, "ownerReferences": [owner]}}
        if self.succeeds is None:
            waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling"}}
            pod["status"] = {
                "phase": "Pending", "containerStatuses": [{"name": "preflight", "state": waiting}],
            }  # fmt: skip
            self.api.store.put("pods", pod)
            return
        self.api.store.put("pods", {**pod, "status": {"phase": "Succeeded" if self.succeeds else "Failed"}})
        self.api.logs[f"{name}-x", "preflight"] = self.lines
        kind = "Complete" if self.succeeds else "Failed"
        told = {"type": kind, "status": "True", "message": "Job has reached the specified backoff limit"}
        self.api.store.set_status("jobs", name, conditions=[told])


@dataclass
class KubeRay:
    """Takes each RayJob that may run through the statuses that it is given, by its stage.

    Attributes:
        goes_on: While it is cleared, nothing happens.
    """

    api: ApiServer
    ends: dict[str, tuple[Object, ...]] = field(default_factory=dict)
    began: list[str] = field(default_factory=list)
    goes_on: threading.Event = field(default_factory=threading.Event)
    seen: int = 0

    def __post_init__(self) -> None:
        self.goes_on.set()

    def __call__(self, change: Change) -> None:
        job = change.object
        name = job["metadata"]["name"]
        if change.plural != "rayjobs" or change.type == "DELETED" or name in self.began:
            return
        if job["spec"].get("suspend") or job["metadata"].get("deletionTimestamp"):
            return
        self.began.append(name)
        stage = job["metadata"]["labels"]["hcs-ray/stage"]
        steps = self.ends.get(stage, (running(), succeeded()))
        threading.Thread(target=self._go, args=(name, steps), daemon=True).start()

    def _go(self, name: str, steps: tuple[Object, ...]) -> None:
        for step in steps:
            time.sleep(NOW_AND_THEN_S)
            self.goes_on.wait()
            if name not in self.api.store.names("rayjobs"):
                return
            self.api.store.set_status("rayjobs", name, **step)


def running(**more: Any) -> Object:
    return {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "rayClusterName": "c", **more}


def succeeded(**more: Any) -> Object:
    return {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED", **more}


def failed(message: str, **more: Any) -> Object:
    return {"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "message": message, **more}


def owners(item: Object) -> Iterator[str]:
    for reference in item["metadata"].get("ownerReferences") or ():
        yield reference["uid"]
