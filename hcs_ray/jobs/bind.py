"""A rendered job set bound to one run of a study: pure, from manifests to manifests."""

from __future__ import annotations

import copy
import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from hcs_ray.config import StudyConfig
from hcs_ray.jobs.manifests import Manifest


@dataclass(frozen=True)
class Run:
    """One submission of a stage.

    Args:
        stage: one of `hcs_ray.jobs.manifests.STAGES`.
        name: the run's name, the entrypoint's ``--name``.
        submission: part of the RayJob's name, another one for each submission; see `new_submission`.
        sweep: of ``tune``: the sweep file's text.
        arguments: further arguments of the entrypoint, as ``--force``.
    """

    stage: str
    name: str = "main"
    submission: str = "0"
    sweep: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def job(self) -> str:
        """The name of the RayJob."""
        return f"hcs-ray-{self.stage}-{self.submission}"


def new_submission() -> str:
    """A part of a name that no other submission has: eight random letters and digits."""
    return secrets.token_hex(4)


def bind(manifests: Sequence[Manifest], study: StudyConfig, run: Run) -> list[Manifest]:
    """What is created for a run: the ConfigMap with its study, the RayJob, and what else was rendered.

    ``study`` is as resolved, with its ``root``.

    Raises:
        InputError: the study, the run and the manifests contradict each other.
    """
    return copy.deepcopy(list(manifests))
