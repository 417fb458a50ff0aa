"""Submitting a stage of a study: look, show, check, make."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Final

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs.bind import Run, new_submission
from hcs_ray.jobs.findings import errors_of
from hcs_ray.jobs.gather import list_facts, list_if_allowed
from hcs_ray.jobs.held import PARTS, run_of, stage_of
from hcs_ray.jobs.kinds import (
    CLUSTER_QUEUE,
    LOCAL_QUEUE,
    NODE,
    QUEUE,
    RAY_JOB,
    RESOURCE_QUOTA,
    ROOT,
    SUBMITTING,
    Object,
    annotation,
    created,
    label,
    name_of,
    uid_of,
)
from hcs_ray.jobs.kube import Kube
from hcs_ray.jobs.lint import ClusterLimits, lint
from hcs_ray.jobs.lint.job import Job, Pod, is_gpu
from hcs_ray.jobs.lint.limits import gpu_hours
from hcs_ray.jobs.lint.node import Node
from hcs_ray.jobs.making import dry_run, make, ray_job_of
from hcs_ray.jobs.manifests import Manifest
from hcs_ray.jobs.place import image_of
from hcs_ray.jobs.prepare import Shape, prepare
from hcs_ray.jobs.ship import impatient
from hcs_ray.jobs.state import state_of
from hcs_ray.jobs.words import Say, table
from hcs_ray.lease import holder_of
from hcs_ray.study import Study

_BROKEN_OFF: Final = timedelta(minutes=20)  # longer than any preflight takes


@dataclass(frozen=True)
class Order:
    """What is submitted of a study.

    Args:
        sweep: of ``tune``: the sweep file's text.
        arguments: further arguments of the entrypoint.
        preflight: whether a pod looks first.
        max_gpu_hours: more than this, at most, is refused.
    """

    stage: str
    shape: Shape
    sweep: str | None = None
    arguments: tuple[str, ...] = ()
    preflight: bool = True
    max_gpu_hours: float | None = None

    def manifests(self, study: Study) -> list[Manifest]:
        """What one submission of it would make.

        Raises:
            InputError: the study and the job set contradict each other.
        """
        run = Run(self.stage, study.name, new_submission(), self.sweep, self.arguments)
        return prepare(study, run, self.shape)


def submit(kube: Kube, study: Study, order: Order, say: Say) -> str:
    """Submit a stage, and return its job's name.

    Raises:
        InputError: the lint finds errors.
        HcsError: the run is going on already, the preflight failed, or the cluster refuses.
    """
    manifests = order.manifests(study)
    look(kube, manifests, order, say)
    refuse_twice(kube, study, order.stage, say)
    return name_of(make(kube, manifests, order.preflight, say))


def rehearse(kube: Kube | None, study: Study, order: Order, say: Say) -> list[str]:
    """A submission that makes nothing: linted, and, with a cluster, checked by its API server; the names.

    Raises:
        InputError: the lint finds errors.
        KubeError: the API server refuses an object.
    """
    manifests = order.manifests(study)
    look(kube, manifests, order, say)
    if kube is None:
        return [f"{manifest['kind'].lower()}/{name_of(manifest)}" for manifest in manifests]
    return dry_run(kube, manifests, order.preflight)


def look(kube: Kube | None, manifests: list[Manifest], order: Order, say: Say) -> None:
    """Lint a job, within the cluster's limits where they may be read, and show what it will take."""
    job = ray_job_of(manifests)
    findings = lint(manifests, limits=limits_of(kube) if kube else None, max_gpu_hours=order.max_gpu_hours)
    for finding in findings:
        say(str(finding))
    if errors := errors_of(findings):
        more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
        raise InputError(f"the job has errors: {errors[0]}{more}")
    say(needs(job))
    if kube is not None:
        say(f"context {kube.context}, namespace {kube.namespace}")


def limits_of(kube: Kube) -> ClusterLimits:
    """What the cluster has and allows, as far as it may be read."""
    return ClusterLimits(
        nodes=list_if_allowed(kube, NODE),
        resource_quotas=list_if_allowed(kube, RESOURCE_QUOTA),
        local_queues=list_if_allowed(kube, LOCAL_QUEUE),
        cluster_queues=list_if_allowed(kube, CLUSTER_QUEUE),
    )


# --- what it takes ----------------------------------------------------------------------------------------


def needs(ray_job: Manifest) -> str:
    """What a job will take, as a short table."""
    job = Job(Node("", ray_job))
    rows = [("PODS", "", "CPU", "MEMORY", "GPU")]
    rows += [_row(pod) for pod in job.pods if pod.most]
    rows.append(("at most", "", _number(job.total("cpu")), _gib(job.total("memory")), str(job.gpus)))
    queue = label(ray_job, QUEUE)
    most = gpu_hours(ray_job)
    lines = [
        f"{name_of(ray_job)}: {stage_of(ray_job)} {run_of(ray_job)} of {annotation(ray_job, ROOT)}",
        table(rows),
        f"image {image_of(ray_job)}{f', queue {queue}' if queue else ''}",
        f"{_deadline(ray_job)}{f'; at most {most:g} GPU-hours' if most else ''}",
    ]
    return "\n".join(lines)


def _row(pod: Pod) -> tuple[str, str, str, str, str]:
    name = str(pod.group["groupName"].value or pod.role)
    least = pod.group["minReplicas"].value if pod.role == "worker" else pod.most
    count = str(pod.most) if least == pod.most else f"{least or 0}-{pod.most}"
    gpus = sum((pod.amount(kind) for kind in pod.kinds if is_gpu(kind)), Decimal(0))
    return name, count, _number(pod.amount("cpu")), _gib(pod.amount("memory")), _number(gpus)


def _number(amount: Decimal) -> str:
    return f"{float(amount):g}"


def _gib(size: Decimal) -> str:
    return f"{size / 2**30:.4g}Gi"


def _deadline(ray_job: Manifest) -> str:
    seconds, retries = ray_job["spec"].get("activeDeadlineSeconds"), ray_job["spec"].get("backoffLimit", 0)
    if not seconds:
        return "no deadline"
    hours = f"at most {seconds / 3600:g} h"
    return f"{retries + 1} attempts of {hours} each" if retries else f"one attempt of {hours}"


# --- who is at it already ---------------------------------------------------------------------------------


def refuse_twice(kube: Kube, study: Study, stage: str, say: Say) -> None:
    """Refuse a run that goes on already: it would only fail, holding pods while it finds that out.

    Raises:
        HcsError: it names the job, or the holder of the lease.
    """
    for job in going_on(kube, study, stage, say):
        where = f"{name_of(job)} --namespace {kube.namespace}"
        raise HcsError(
            f"{name_of(job)} of this run is going on; hcs-ray status {where} shows it; "
            f"end it with hcs-ray stop {where}, or take another --name"
        )
    storage = impatient(study.storage)
    try:
        for part in PARTS.get(stage, (stage,)):
            place = study.place(part)
            if (by := holder_of(storage, place.lease)) is not None:
                raise _HeldError(
                    f"{storage.url}/{place.folder} is being written by {by}; wait for it, stop it, "
                    "or take another --name"
                )
    except _HeldError:
        raise
    except HcsError as error:
        say(f"who else writes this run is not known from here: {error}")


class _HeldError(HcsError):
    """Somebody holds the run's lease."""


def going_on(kube: Kube, study: Study, stage: str, say: Say) -> list[Object]:
    """The jobs that work at a stage of this very run; what broken submissions have left of it is deleted."""
    found = []
    for facts in list_facts(kube):
        job = facts.job
        if job is None or not _is_same(job, study, stage):
            continue
        if annotation(job, SUBMITTING) and _is_old(job):
            say(f"{name_of(job)}: its submission broke off; deleted")
            kube.delete(RAY_JOB, name_of(job), uid_of(job))
        elif not state_of(facts).final:
            found.append(job)
    return found


def _is_same(job: Object, study: Study, stage: str) -> bool:
    mine, theirs = PARTS.get(stage, (stage,)), PARTS.get(stage_of(job), (stage_of(job),))
    same_run = (annotation(job, ROOT), run_of(job)) == (study.storage.url, study.name)
    return same_run and bool(set(mine) & set(theirs))


def _is_old(job: Object) -> bool:
    made = created(job)
    return made is not None and datetime.now(UTC) - made > _BROKEN_OFF
