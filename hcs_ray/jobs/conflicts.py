"""What a study or a run cannot have on a cluster, each as one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit

from hcs_ray.config import StudyConfig
from hcs_ray.contracts import InputError
from hcs_ray.jobs.kinds import label
from hcs_ray.jobs.place import mounts_of

_LABEL: Final = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_SUBMISSION: Final = re.compile(r"[a-z0-9]([-a-z0-9]{0,24}[a-z0-9])?")
_HERE: Final = ("localhost", "127.0.0.1", "::1", "0.0.0.0")  # noqa: S104
_ELASTIC: Final = "kueue.x-k8s.io/elastic-job"
_READS_RAW: Final = ("shard", "study")
_LEARNS: Final = ("train", "tune", "study")


def check_names(name: str, submission: str) -> None:
    """`InputError` where a run's name cannot be a label, or a submission not part of a RayJob's name."""
    if not _LABEL.fullmatch(name):
        raise InputError(f"--name {name}: on a cluster a run's name begins and ends with a letter or a digit")
    if not _SUBMISSION.fullmatch(submission):
        raise InputError(f"submission {submission}: use lower-case letters, digits and dashes (at most 26)")


def check_study(job: dict[str, Any], study: StudyConfig, stage: str) -> None:
    """`InputError` for the first thing of a study that pods cannot reach, or that contradicts the job."""
    root = study.root or ""
    if not root.startswith("s3://"):
        raise InputError(
            f"root {root or 'beside the file'}: pods share no folder; write root: s3://bucket/..."
        )
    endpoint = study.storage.endpoint
    if endpoint and urlsplit(endpoint).hostname in _HERE:
        raise InputError(f"storage.endpoint {endpoint}: in a pod that is the pod; write the store's own name")
    mounted = tuple(sorted(mounts_of(job)))
    for key, path in _paths(study, stage):
        if not path.startswith(tuple(f"{folder}/" for folder in mounted)) and path not in mounted:
            raise InputError(
                f"{key} {path}: pods do not have this path; use s3://..., or mount it by an overlay "
                "(hcs-ray k8s export)"
            )
    _check_queue(job, study)
    _check_deadline(job, study, stage)


def _paths(study: StudyConfig, stage: str) -> Iterator[tuple[str, str]]:
    """The keys of a study that name files of a machine, as far as the stage reads them."""
    found = [("storage.ca_bundle", study.storage.ca_bundle)]
    if stage in _LEARNS:
        found += [("model.weights", study.model.weights), ("train.cache_folder", study.train.cache_folder)]
    if stage in _READS_RAW:
        found.append(("screen.folder", study.screen.folder))
        prefixes = getattr(study.screen, "path_prefixes", {})
        found += [(f"screen.path_prefixes.{key}", path) for key, path in prefixes.items()]
    for key, path in found:
        if path is not None and path.startswith(("/", "./", "../", "~")):
            yield key, path


def _check_queue(job: dict[str, Any], study: StudyConfig) -> None:
    autoscales = job["spec"]["rayClusterSpec"].get("enableInTreeAutoscaling")
    elastic = job["metadata"].get("annotations", {}).get(_ELASTIC) == "true"
    if study.cluster.queue and autoscales and not elastic:
        raise InputError(
            f"cluster.queue {study.cluster.queue}: Kueue admits a fixed number of pods, and this job "
            "autoscales; add --component queue, or queue-elastic"
        )


def _check_deadline(job: dict[str, Any], study: StudyConfig, stage: str) -> None:
    deadline, hours = job["spec"].get("activeDeadlineSeconds"), study.train.max_hours
    if stage in _LEARNS and hours is not None and deadline is not None and hours * 3600 >= deadline:
        raise InputError(
            f"train.max_hours {hours:g}: the job is ended after {deadline / 3600:g} hours, so training never "
            "ends by itself; lower it, or raise activeDeadlineSeconds by an overlay (hcs-ray k8s export)"
        )


def check_offered(group: dict[str, Any], resources: dict[str, float]) -> None:
    """`InputError` where a worker group does not offer a resource of Ray that workers ask for."""
    offered = {**group.get("resources", {})}
    written = str(group.get("rayStartParams", {}).get("resources", ""))
    for name in resources:
        if name not in offered and f'"{name}"' not in written.replace("\\", ""):
            raise InputError(
                f"train.resources_per_worker {name}: no worker of group {group['groupName']} offers it; "
                "add it to the group's resources by an overlay (hcs-ray k8s export), or leave it out"
            )


def check_stage(job: dict[str, Any], stage: str) -> None:
    """`InputError` where the manifests are of another stage."""
    found = label(job, "hcs-ray/stage")
    if found and found != stage:
        raise InputError(f"--stage {stage}: this job set's job is of stage {found}")
