"""The command that a job runs."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Final

from hcs_ray.contracts import InputError

# A job of this name -> its command, and what follows the run's name.
COMMANDS: Final[Mapping[str, tuple[str, tuple[str, ...]]]] = {
    "shard": ("run", ("--to", "split")),
    "train": ("train", ()),
    "tune": ("tune", ()),
    "embed": ("embed", ()),
    "analyse": ("run", ("--from", "profile")),
    "study": ("run", ()),
}


def entrypoint(job: str, name: str, files: Sequence[str], arguments: Sequence[str] = ()) -> str:
    """One plain command, quoted for the shell line that it is pasted into.

    Args:
        job: its name among `COMMANDS`.
        name: the run's, by which any new cluster finds what the last one has done.
        files: the study's file, and of ``tune`` the sweep's.
        arguments: more, as ``--force``.

    Raises:
        InputError: there is no such job, or a file too many or too few.
    """
    if job not in COMMANDS:
        raise InputError(f"no job {job}: it is one of {', '.join(COMMANDS)}")
    if len(files) != (2 if job == "tune" else 1):
        raise InputError("tune takes the study's file and a sweep's; every other job the study's alone")
    command, more = COMMANDS[job]
    return shlex.join(["hcs-ray", command, *files, "--name", name, *more, *arguments])
