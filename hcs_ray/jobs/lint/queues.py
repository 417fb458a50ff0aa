"""The rules of queues: Kueue's own, and the autoscaler beside it."""

from __future__ import annotations

from collections.abc import Iterator

from hcs_ray.jobs.findings import Finding
from hcs_ray.jobs.kinds import STAGE
from hcs_ray.jobs.lint.job import Job

KUEUE = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"
_OTHERS = ("volcano.sh/queue-name", "yunikorn.apache.org/queue")
_MOST_GROUPS = 17
_RESERVED = ("head", "submitter")  # Kueue's names of the other pod sets
_ALL_OR_NONE = ("train", "tune")  # stages whose workers begin together


def queue_findings(job: Job) -> Iterator[Finding]:
    """Every rule of its queue that a job breaks; none without a queue."""
    queues = [job.labels[key] for key in (KUEUE, *_OTHERS) if job.labels[key]]
    if len(queues) > 1:
        yield queues[1].error("another queue has the job already", "keep one queue's label")
    if not job.labels[KUEUE]:
        elastic = job.node.at("metadata.annotations")[ELASTIC]
        if elastic:
            yield elastic.error(
                "it is of jobs in a queue of Kueue", f"set the label {KUEUE}, or leave it out"
            )
        return
    if job.spec["clusterSelector"]:
        yield job.spec["clusterSelector"].error("Kueue ignores such a job", "give it a cluster of its own")
        return
    yield from _kueue(job)


def _kueue(job: Job) -> Iterator[Finding]:
    elastic = job.node.at("metadata.annotations")[ELASTIC]
    if not job.spec["shutdownAfterJobFinishes"]:
        yield job.spec["shutdownAfterJobFinishes"].error(
            "a job in a queue gives its cluster back", "shutdownAfterJobFinishes: true"
        )
    if job.autoscales and elastic.value != "true":
        yield job.cluster["enableInTreeAutoscaling"].error(
            "Kueue admits a fixed number of pods",
            "add the component queue (no autoscaling), or queue-elastic",
        )
    if len(job.workers) > _MOST_GROUPS:
        yield job.cluster["workerGroupSpecs"].error(
            f"Kueue takes at most {_MOST_GROUPS} worker groups", "merge groups"
        )
    for group in job.workers:
        if group["groupName"].value in _RESERVED:
            yield group["groupName"].error("Kueue has pods of that name already", "rename the group")
        sizes = {group[key].value for key in ("minReplicas", "replicas", "maxReplicas")}
        if not job.autoscales and len(sizes) > 1:
            yield group["replicas"].error(
                "without autoscaling minReplicas, replicas and maxReplicas are one number", "make them equal"
            )
    yield from _waste(job)


def _waste(job: Job) -> Iterator[Finding]:
    """Quota that is held and not used."""
    stage, elastic = job.labels[STAGE].value, job.node.at("metadata.annotations")[ELASTIC]
    if elastic.value == "true" and stage in _ALL_OR_NONE:
        yield elastic.warning(
            f"{stage} needs all its workers at once, and half of them would hold quota and wait",
            "take the component queue",
        )
    if not job.autoscales and stage == "study" and job.gpus:
        yield job.labels[KUEUE].warning(
            f"its {job.gpus} GPUs are held while stages run that use none",
            "hcs-ray submit STUDY --queue makes one job a stage; or take the component queue-elastic",
        )
