"""Making a job's objects on a cluster so that nothing half-made stays, wherever the making breaks off.

The RayJob is made suspended, marked, and outside its queue: it cannot run. Its ConfigMap, which it owns, is
next, and one patch sets it free at the end. Before that its owner is the preflight's Job, if there is one,
which Kubernetes deletes an hour after its end with all that it owns: what a killed submission has left goes
by itself. After any other failure everything is deleted at once.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Final

from hcs_ray.contracts import HcsError
from hcs_ray.jobs.kinds import (
    JOB,
    QUEUE,
    RAY_JOB,
    SUBMITTING,
    Kind,
    Object,
    creatable,
    label,
    name_of,
    uid_of,
)
from hcs_ray.jobs.kube import Kube, KubeError
from hcs_ray.jobs.manifests import Manifest
from hcs_ray.jobs.place import labels_of
from hcs_ray.jobs.preflight_job import await_preflight, preflight_job
from hcs_ray.jobs.words import Say

_RELEASED: Final = None  # in a merge patch: the field goes


def make(kube: Kube, manifests: list[Manifest], preflight: bool, say: Say) -> Object:
    """Make a bound job, after its preflight, and return the RayJob that runs.

    Raises:
        HcsError: the preflight failed, or the cluster refuses; nothing is left but what the line names.
    """
    job = ray_job_of(manifests)
    others = [manifest for manifest in manifests if manifest is not job]
    with _making(kube) as made:
        anchor = made.create(preflight_job(job)) if preflight else None
        if anchor is not None:
            for manifest in others:
                made.create(_owned(manifest, anchor))
            say("preflight: a pod like the job's head looks at image, storage and inputs")
            await_preflight(kube, anchor, say)
        held = made.create(_held(job, anchor))
        for manifest in others:
            if anchor is None:
                made.create(_owned(manifest, held))
            else:
                changes = {"metadata": {"ownerReferences": [_reference(held)]}}
                kube.patch(creatable(manifest), name_of(manifest), changes)
        free = kube.patch(RAY_JOB, name_of(job), _freed(job))
    if anchor is not None:
        with contextlib.suppress(KubeError):  # Kubernetes deletes it in an hour
            kube.delete(JOB, name_of(anchor), uid_of(anchor))
    return free


def dry_run(kube: Kube, manifests: list[Manifest], preflight: bool) -> list[str]:
    """Let the API server check every object, admission and all, and make none; their names.

    Raises:
        KubeError: it refuses one.
    """
    asked = [*([preflight_job(ray_job_of(manifests))] if preflight else []), *manifests]
    for manifest in asked:
        kube.create(manifest, dry_run=True)
    return [f"{manifest['kind'].lower()}/{name_of(manifest)}" for manifest in asked]


def ray_job_of(manifests: list[Manifest]) -> Manifest:
    """The RayJob among the objects of a submission."""
    return next(manifest for manifest in manifests if manifest["kind"] == "RayJob")


@dataclass
class _Making:
    """What was made so far."""

    kube: Kube
    made: list[tuple[Kind, str, str]] = field(default_factory=list)

    def create(self, manifest: Manifest) -> Object:
        kind, name = creatable(manifest), name_of(manifest)
        self.made.append((kind, name, ""))  # before: an answer may be lost
        found = self.kube.create(manifest)
        self.made[-1] = (kind, name, uid_of(found))
        return found

    def undo(self) -> list[str]:
        """Delete it all, the last first; what could not be deleted."""
        left = []
        for kind, name, uid in reversed(self.made):
            try:
                self.kube.delete(kind, name, uid or None)
            except KubeError:
                left.append(f"{kind.name.lower()}/{name}")
        return left


@contextlib.contextmanager
def _making(kube: Kube) -> Iterator[_Making]:
    made = _Making(kube)
    try:
        yield made
    except HcsError as error:
        left = made.undo()
        if not left:
            raise
        told = f"{error}; left behind: {', '.join(left)} (hcs-ray gc)"
        raise HcsError(told) from None
    except BaseException:
        made.undo()
        raise


def _owned(manifest: Manifest, owner: Object) -> Manifest:
    owned = copy.deepcopy(manifest)
    owned["metadata"]["ownerReferences"] = [_reference(owner)]
    return owned


def _reference(owner: Object) -> Object:
    return {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": name_of(owner),
        "uid": uid_of(owner),
    }


def _held(job: Manifest, anchor: Object | None) -> Manifest:
    """The RayJob as it cannot run yet: nor can Kueue, which has not its queue, let it."""
    held = _owned(job, anchor) if anchor is not None else copy.deepcopy(job)
    held["spec"]["suspend"] = True
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    held["metadata"].setdefault("annotations", {})[SUBMITTING] = now
    labels_of(held).pop(QUEUE, None)
    return held


def _freed(job: Manifest) -> Manifest:
    """The changes that let it run, or hand it to its queue."""
    metadata: Object = {"annotations": {SUBMITTING: _RELEASED}, "ownerReferences": _RELEASED}
    if queue := label(job, QUEUE):
        metadata["labels"] = {QUEUE: queue}
    return {"metadata": metadata, "spec": {"suspend": bool(job["spec"].get("suspend", False))}}
