"""The study that a job carries in its ConfigMap, and how far it has come there."""

from __future__ import annotations

import itertools
import shlex
from dataclasses import dataclass
from typing import Final

from hcs_ray.config import parse_study
from hcs_ray.contracts import HcsError
from hcs_ray.jobs.kinds import CONFIG_MAP, RUN, STAGE, Object, label, name_of
from hcs_ray.jobs.kube import Kube
from hcs_ray.jobs.ship import impatient
from hcs_ray.lease import holder_of
from hcs_ray.pipeline import STAGES
from hcs_ray.stage import read_record
from hcs_ray.storage import Storage, open_storage
from hcs_ray.study import Study

STUDY_FILE: Final = "study.yaml"
SWEEP_FILE: Final = "sweep.yaml"
_VOLUME: Final = "study"
_PIPELINE: Final = tuple(stage for stage in STAGES if stage != "tune")
# The stages that a job runs, where they are not the one of its name.
PARTS: Final = {
    "shard": ("shard", "split"),
    "analyse": _PIPELINE[_PIPELINE.index("profile") :],
    "study": _PIPELINE,
}


@dataclass(frozen=True)
class Part:
    """A stage of a job: ``state`` is complete, being written, or to do."""

    stage: str
    state: str
    holder: str | None = None

    def __str__(self) -> str:
        return f"{self.stage} {self.state}{f' by {self.holder}' if self.holder else ''}"


def stage_of(job: Object) -> str:
    """Which of our jobs it is: ``train``, ``study``."""
    return label(job, STAGE)


def run_of(job: Object) -> str:
    """The run's name: ``--name`` of the entrypoint, since a label cannot hold every name."""
    words = shlex.split(str(job["spec"].get("entrypoint") or ""))
    named = [value for option, value in itertools.pairwise(words) if option == "--name"]
    return named[-1] if named else label(job, RUN)


def files_of(kube: Kube, job: Object) -> dict[str, str]:
    """The files that a job has mounted: its study, and its sweep's.

    Raises:
        HcsError: there is no such ConfigMap.
    """
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    names = [
        volume["configMap"]["name"]
        for volume in pod.get("volumes") or ()
        if volume["name"] == _VOLUME and "configMap" in volume
    ]
    found = kube.get(CONFIG_MAP, names[0]) if names else None
    if found is None:
        raise HcsError(f"job {name_of(job)} has no ConfigMap with its study any more")
    return dict(found.get("data") or {})


def study_of(kube: Kube, job: Object) -> Study:
    """The study that a job works on, its storage as seen from here.

    Raises:
        HcsError: the job's ConfigMap is gone, or its storage cannot be opened from here.
    """
    files = files_of(kube, job)
    config = parse_study(files.get(STUDY_FILE, ""), f"{STUDY_FILE} of {name_of(job)}")
    if not config.root or "://" not in config.root:
        raise HcsError(f"the study's root {config.root!r} is a folder of the job's pods")
    return Study(open_storage(config.root, config.storage), config, run_of(job) or "main")


def parts_of(study: Study, stage: str) -> list[Part]:
    """How far the stages of a job have come, by the study's own records.

    Raises:
        HcsError: the storage cannot be read.
    """
    quick = impatient(study.storage)
    return [_part(quick, study, part) for part in PARTS.get(stage, (stage,))]


def _part(storage: Storage, study: Study, stage: str) -> Part:
    place = study.place(stage)
    by = holder_of(storage, place.lease)
    if by is not None:
        return Part(stage, "is being written", by)
    return Part(stage, "complete" if read_record(storage, place) else "to do")
