"""From a study to what is created for one of its stages: the job set, rendered and bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hcs_ray.config import StudyConfig, parse_sweep
from hcs_ray.contracts import InputError
from hcs_ray.jobs.bind import Run, bind
from hcs_ray.jobs.manifests import STAGES, Manifest, compose, example
from hcs_ray.packaged import JOB_SET
from hcs_ray.study import Study

_QUEUES: Final = ("queue", "queue-elastic")


@dataclass(frozen=True)
class Shape:
    """Which job of which job set.

    Args:
        job_set: a folder as `hcs_ray.jobs.manifests.export` writes it.
        components: of it, in their order.
        example: one of its examples instead, which has its own components.
    """

    job_set: Path = JOB_SET
    components: tuple[str, ...] = ()
    example: str | None = None


def resolved(study: Study) -> StudyConfig:
    """A study's configuration as a pod needs it: its root is where it really lies."""
    return study.config.model_copy(update={"root": study.storage.url})


def prepare(study: Study, run: Run, shape: Shape) -> list[Manifest]:
    """What is created for a run. A study with a ``cluster.queue`` gets the component ``queue`` by itself.

    Raises:
        InputError: the study, the run and the job set contradict each other.
    """
    if run.stage not in STAGES:
        raise InputError(f"--stage {run.stage}: it is one of {', '.join(STAGES)}")
    if not shape.job_set.is_dir():
        raise InputError(f"--k8s {shape.job_set}: no such folder; hcs-ray k8s export writes one")
    if shape.example is not None:
        if shape.components:
            raise InputError("--example has its own components; leave --component out")
        rendered = example(shape.example, shape.job_set)
    else:
        rendered = compose(run.stage, _components(study.config, shape.components), shape.job_set)
    return bind(rendered, resolved(study), run)


def read_sweep(path: str) -> str:
    """The text of a sweep file, which is checked."""
    try:
        text = Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    parse_sweep(text, path)
    return text


def _components(config: StudyConfig, chosen: Sequence[str]) -> list[str]:
    if twice := [name for name in dict.fromkeys(chosen) if chosen.count(name) > 1]:
        raise InputError(f"--component {twice[0]}: once is enough")
    queued = [name for name in chosen if name in _QUEUES]
    if len(queued) > 1:
        raise InputError(f"--component {' and '.join(queued)}: a job waits in one way; take one of them")
    return [*chosen, "queue"] if config.cluster.queue and not queued else list(chosen)
