"""Where shipped logs lie: ``logs/<run>/<attempt>/<pod>/<file>.<nnnn>``, numbered parts of each file."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from hcs_ray.contracts import InputError
from hcs_ray.storage import Storage

LOGS: Final = "logs"
_PART = re.compile(r"(?P<file>.+)\.(?P<number>\d{4,})")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


@dataclass(frozen=True)
class Pod:
    """Whose logs: of a run, in one attempt (the RayCluster's name), of one pod."""

    run: str
    attempt: str
    pod: str

    def __post_init__(self) -> None:
        for what, name in (("run", self.run), ("attempt", self.attempt), ("pod", self.pod)):
            if not _NAME.fullmatch(name):
                raise InputError(f"--{what} {name!r}: use letters, digits, dots, dashes and underscores")

    @property
    def folder(self) -> str:
        """Below the study's root."""
        return f"{LOGS}/{self.run}/{self.attempt}/{self.pod}"


@dataclass(frozen=True)
class Shipped:
    """The parts of one file, in their order, as (path below the study's root, bytes)."""

    file: str
    parts: tuple[tuple[str, int], ...]
    next_number: int

    @property
    def size(self) -> int:
        """Bytes of all parts."""
        return sum(size for _, size in self.parts)


def part_path(pod: Pod, file: str, number: int) -> str:
    """The path of a part of a file."""
    return f"{pod.folder}/{file}.{number:04d}"


def shipped_files(storage: Storage, pod: Pod) -> dict[str, Shipped]:
    """What there is of a pod's files, by their names, which are paths below Ray's folder of logs."""
    found: dict[str, dict[int, tuple[str, int]]] = {}
    for path, size in storage.sizes(pod.folder).items():
        if part := _PART.fullmatch(path.removeprefix(f"{pod.folder}/")):
            found.setdefault(part["file"], {})[int(part["number"])] = (path, size)
    return {
        file: Shipped(file, tuple(part for _, part in sorted(parts.items())), max(parts) + 1)
        for file, parts in sorted(found.items())
    }


def shipped_pods(storage: Storage, job: str, run: str | None = None) -> list[Pod]:
    """The pods of a job whose logs were shipped: of its attempts, which are named for the job.

    ``job`` is a RayJob's or a RayCluster's name; ``run`` spares listing the logs of other runs.
    """
    folder = f"{LOGS}/{run}" if run else LOGS
    found = {Pod(*path.split("/")[1:4]) for path in storage.sizes(folder) if path.count("/") >= 4}
    ours = [pod for pod in found if pod.attempt == job or pod.attempt.startswith(f"{job}-")]
    return sorted(ours, key=lambda pod: (pod.run, pod.attempt, pod.pod))


def content(storage: Storage, shipped: Shipped, since: int = 0) -> Iterator[bytes]:
    """A file's bytes, part by part; without the first ``since`` parts."""
    for path, _ in shipped.parts[since:]:
        yield storage.read(path)
