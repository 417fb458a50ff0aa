"""Our rules for a job as a whole: its command, its deadlines, its images."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from importlib.metadata import version

from hcs_ray.jobs.findings import Finding
from hcs_ray.jobs.lint.job import UNBOUNDED, Job
from hcs_ray.jobs.lint.names import DNS_1123, is_label
from hcs_ray.jobs.lint.node import Node

_POSITIVE = {
    "activeDeadlineSeconds": "Ray waits for ever for what nobody has",
    "preRunningDeadlineSeconds": "a cluster that does not start is given up",
    "ttlSecondsAfterFinished": "a finished job is kept for a while",
    "backoffLimit": "a lost head is a new cluster, where the run goes on",
}
_LONGEST_IDLE_S = 600
_LARGEST_CONFIG_MAP = 2**20
_RAY_CONTAINERS = ("ray-head", "ray-worker", "ray-job-submitter")


def our_findings(job: Job) -> Iterator[Finding]:
    """Every rule of ours for a job that it breaks."""
    yield from _lifetime(job)
    yield from _command(job)
    yield from _ray(job)
    yield from _images(job)
    yield from _shape(job)


def config_map_findings(manifest: Node) -> Iterator[Finding]:
    """A ConfigMap that etcd would not take."""
    size = sum(len(str(text).encode()) for text in (manifest["data"].value or {}).values())
    if size > _LARGEST_CONFIG_MAP:
        yield manifest["data"].error(f"it has {size} bytes, and may have 1048576", "shorten the files")


def study_findings(job: Job, config_maps: set[str]) -> Iterator[Finding]:
    """A study that does not reach the pods: kustomize does not follow its hashes into a RayJob by itself."""
    for pod in job.pods:
        for volume in pod.spec["volumes"]:
            name = volume.at("configMap.name")
            if volume["name"].value == "study" and name.value not in config_maps:
                yield name.error(
                    "there is no such ConfigMap beside the job, and its pods would wait for ever",
                    "generate it, with a nameReference for RayJob (k8s/base/name-references.yaml)",
                )


def _lifetime(job: Job) -> Iterator[Finding]:
    for key, why in _POSITIVE.items():
        if (job.spec[key].value or 0) <= 0:
            yield job.spec[key].error(f"it is set, and above 0: {why}", "write it")
    if not job.spec["shutdownAfterJobFinishes"]:
        yield job.spec["shutdownAfterJobFinishes"].error("a cluster left over costs money", "write true")
    kept, least = job.spec["ttlSecondsAfterFinished"], "minReplicas" if job.autoscales else "replicas"
    if (kept.value or 0) > _LONGEST_IDLE_S and any(group[least] for group in job.workers):
        yield kept.warning(
            "no autoscaler ends these workers, which idle so long after the job's end",
            f"write at most {_LONGEST_IDLE_S}",
        )


def _command(job: Job) -> Iterator[Finding]:
    entrypoint = job.spec["entrypoint"]
    try:
        words = shlex.split(entrypoint.value or "")
    except ValueError:
        words = []
    if not words or shlex.join(words) != entrypoint.value:
        yield entrypoint.error(
            "it is pasted into a shell line, so it is one plain command, quoted as a shell wants it",
            "put what needs a shell into a script of the image",
        )
    name = name_of(words)
    if name is None:
        yield entrypoint.error(
            "without --name a retry, which is a new cluster, does not go on with the run", "write --name main"
        )
    elif name == job.node.at("metadata.name").value:
        yield entrypoint.error(
            "the RayJob's name is another one for every submission, so its run never goes on",
            "name the run by itself: --name main",
        )


def name_of(words: list[str]) -> str | None:
    """The value of ``--name`` in a command."""
    for number, word in enumerate(words):
        if word == "--name" and number + 1 < len(words):
            return words[number + 1]
        if word.startswith("--name="):
            return word.removeprefix("--name=")
    return None


def _ray(job: Job) -> Iterator[Finding]:
    if not job.cluster:
        return
    asked, ours = job.cluster["rayVersion"], version("ray")
    if str(asked.value).split(".")[:2] != ours.split(".")[:2]:
        yield asked.error(f"hcs_ray runs on Ray {ours}, and so does its image", f"write {ours}")
    elif asked.value != ours:
        yield asked.warning(f"here is Ray {ours}; the image must have {asked.value}", f"write {ours}")
    if job.cluster.at("authOptions.mode").value != "token":
        yield job.cluster.at("authOptions.mode").error("without it Ray is open to everybody", "write token")
    if job.mode == "K8sJobMode" and not job.spec["submitterPodTemplate"]:
        yield job.spec["submitterPodTemplate"].error(
            "the submitter that KubeRay makes by itself meets neither quotas nor Pod Security", "write it"
        )


def _images(job: Job) -> Iterator[Finding]:
    images = [item["image"] for pod in job.pods for item in pod.containers]
    if job.cluster.at("autoscalerOptions.image").value is not None:
        images.append(job.cluster.at("autoscalerOptions.image"))
    for image in images:
        if not _is_pinned(str(image.value or "")):
            yield image.error(
                f"{image.value or 'no image'}: every pod has the same image, today and tomorrow",
                "write a tag other than latest, or a digest (cluster.image)",
            )
    ray = [
        item["image"]
        for pod in job.pods
        for item in pod.containers
        if item["name"].value in _RAY_CONTAINERS or item.path == pod.main.path
    ]
    for image in ray:
        if image.value != ray[0].value:
            yield image.error(
                f"{image.value} is another image than {ray[0].value}, and Ray must be the same",
                "take one image (cluster.image)",
            )


def _is_pinned(image: str) -> bool:
    if re.fullmatch(r"[^@\s]+@sha256:[0-9a-f]{64}", image):
        return True
    tag = image.rpartition("/")[2].partition(":")[2]
    return bool(re.fullmatch(r"\w[\w.-]*", tag)) and tag != "latest"


def _shape(job: Job) -> Iterator[Finding]:
    for group in job.workers:
        name, least, now, most = (
            group[key] for key in ("groupName", "minReplicas", "replicas", "maxReplicas")
        )
        if not DNS_1123.fullmatch(str(name.value)):
            yield name.error("it is part of pods' names", "lower-case letters, digits and dashes")
        if most.value in (None, UNBOUNDED):
            yield most.error("without it a cluster may grow for ever", "write the largest number of pods")
        elif now.value is not None and not (least.value or 0) <= now.value <= most.value:
            yield now.error("it lies between minReplicas and maxReplicas", "change one of the three")
    for key in sorted(job.labels.keys):
        if not is_label(key, str(job.labels[key].value)):
            yield job.labels[key].error("it is no label", "letters, digits, dashes, dots and _; at most 63")
