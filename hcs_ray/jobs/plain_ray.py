"""A job on a plain Ray cluster, through Ray's job API at ``http://HEAD:8265``.

The study's file, and a sweep's, travel as the job's working folder. Credentials do not travel: the nodes of
the cluster have their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from hcs_ray.config import StudyConfig, parse_sweep, to_yaml
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs.entrypoint import entrypoint

STUDY_FILE: Final = "study.yaml"
SWEEP_FILE: Final = "sweep.yaml"
ENDED: Final = ("SUCCEEDED", "FAILED", "STOPPED")
_FIRST_LOOK_S: Final = 10.0
_PROBE_S: Final = 120.0
_POLL_S: Final = 0.5
_TALKERS: Final = ("ray.dashboard.modules.job.sdk", "ray.dashboard.modules.dashboard_sdk")
# Ray's client prefers these to the address that it is given.
_OVERRIDES: Final = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")


@dataclass(frozen=True)
class Status:
    """A job as Ray tells it; ``state`` in PENDING, RUNNING, STOPPED, SUCCEEDED, FAILED."""

    job: str
    state: str
    message: str
    entrypoint: str

    @property
    def line(self) -> str:
        """State and reason as one line."""
        return f"{self.job}: {self.state.lower()}{f': {self.message}' if self.message else ''}"


@contextlib.contextmanager
def working_folder(study: StudyConfig, sweep: str | None = None) -> Iterator[Path]:
    """A temporary folder with the files that travel with a job.

    Raises:
        InputError: the study would lie in the job's own folder, or the sweep is wrong.
    """
    if not study.root or not ("://" in study.root or Path(study.root).is_absolute()):
        raise InputError(
            f"root {study.root!r}: a job on a cluster needs a root that all its nodes see: "
            "s3://bucket/prefix, or an absolute path that they mount"
        )
    if sweep is not None:
        parse_sweep(sweep, SWEEP_FILE)
    with tempfile.TemporaryDirectory(prefix="hcs-ray-job-") as folder:
        (Path(folder) / STUDY_FILE).write_text(to_yaml(study))
        if sweep is not None:
            (Path(folder) / SWEEP_FILE).write_text(sweep)
        yield Path(folder)


class PlainRay:
    """A Ray cluster's job API.

    Every method raises `HcsError`, one line, for what the cluster refuses or when it cannot be reached. The
    token, where the cluster wants one, is ``RAY_AUTH_TOKEN`` of the environment.
    """

    def __init__(self, address: str) -> None:
        if not re.fullmatch(r"https?://[^/\s@]+(/[^\s@]*)?", address):
            raise InputError(f"--address {address}: write http://HOST:8265, where Ray's dashboard listens")
        self.address = address.rstrip("/")
        token = os.environ.get("RAY_AUTH_TOKEN", "").strip()
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self.ray_version = self._first_look()
        self._client = self._connected()

    def _first_look(self) -> str:
        """Ray's version; its own client would wait for ever for a host that does not answer."""
        import urllib3

        try:
            answer = urllib3.request(
                "GET",
                f"{self.address}/api/version",
                headers=self._headers,
                timeout=_FIRST_LOOK_S,
                retries=False,
            )
        except urllib3.exceptions.HTTPError as error:
            reason = str(error).rpartition(": ")[2] or type(error).__name__
            raise HcsError(f"--address {self.address}: cannot be reached: {reason}") from None
        if answer.status in (401, 403):
            problem = (
                "refuses the token of RAY_AUTH_TOKEN" if self._headers else "wants a token: RAY_AUTH_TOKEN"
            )
            raise HcsError(f"--address {self.address}: {problem} (HTTP {answer.status})")
        try:
            return str(answer.json()["ray_version"])
        except (ValueError, KeyError, TypeError):
            raise HcsError(
                f"--address {self.address}: no Ray dashboard answers there (HTTP {answer.status})"
            ) from None

    def _connected(self) -> Any:
        with self._asking("reach it"), _without(_OVERRIDES):
            from ray.job_submission import JobSubmissionClient

            for talker in _TALKERS:
                logging.getLogger(talker).setLevel(logging.WARNING)
            return JobSubmissionClient(self.address, headers=self._headers)

    @contextlib.contextmanager
    def _asking(self, what: str) -> Iterator[None]:
        """Ray's errors, and those of its HTTP libraries, as one line."""
        try:
            yield
        except HcsError:
            raise
        except Exception as error:
            told = " ".join(str(error).split()) or type(error).__name__
            if "does not exist" in told:
                raise InputError(f"{self.address}: cannot {what}: there is no such job") from None
            raise HcsError(f"{self.address}: cannot {what}: {told[:300]}") from None

    def require_same_version(self) -> None:
        """Refuse a cluster whose head has another hcs_ray than this one, by asking it in a job."""
        mine = version("hcs_ray")
        with self._asking("ask for its hcs_ray"):
            job = self._client.submit_job(entrypoint="hcs-ray --version")
            status = self._ended(job, _PROBE_S)
            said = self._client.get_job_logs(job)
            with contextlib.suppress(Exception):  # a question leaves no trace
                self._client.delete_job(job)
        found = re.search(r"^hcs_ray (\S+)", said, re.MULTILINE)
        if found is None:
            last = (said.strip().splitlines() or [status.message])[-1]
            raise HcsError(f"{self.address}: hcs_ray {mine} is not installed on the cluster's head: {last}")
        if found[1] != mine:
            raise HcsError(
                f"{self.address}: the cluster has hcs_ray {found[1]}, this is {mine}; install the same"
            )

    def submit(self, command: str, folder: Path | None = None, metadata: dict[str, str] | None = None) -> str:
        """Submit a command with a working folder, and return the job's name."""
        environment = {"working_dir": str(folder)} if folder else {}
        with self._asking("submit"):
            return str(
                self._client.submit_job(entrypoint=command, runtime_env=environment, metadata=metadata or {})
            )

    def status(self, job: str) -> Status:
        """What a job is doing; `InputError` where there is none of that name."""
        with self._asking(f"tell of {job}"):
            found = self._client.get_job_info(job)
        message = (str(found.message or "").strip().splitlines() or [""])[0]
        return Status(job, str(found.status), message, found.entrypoint)

    def jobs(self) -> list[Status]:
        """The jobs that were submitted through the API, in no order."""
        with self._asking("list its jobs"):
            found = self._client.list_jobs()
        return [
            Status(job.submission_id, str(job.status), (job.message or "").strip(), job.entrypoint)
            for job in found
            if job.submission_id
        ]

    def stop(self, job: str) -> bool:
        """Ask a job to end; False where it had ended."""
        self.status(job)
        with self._asking(f"stop {job}"):
            return bool(self._client.stop_job(job))

    def logs(self, job: str) -> str:
        """All that a job's program has printed so far."""
        self.status(job)
        with self._asking(f"read the logs of {job}"):
            return str(self._client.get_job_logs(job))

    def follow(self, job: str, out: Callable[[str], None]) -> Status:
        """Pass on what a job prints until it ends; its last state."""
        self.status(job)

        async def tail() -> None:
            async for text in self._client.tail_job_logs(job):
                out(text)

        with self._asking(f"follow {job}"):
            asyncio.run(tail())
        return self._ended(job, _PROBE_S)

    def _ended(self, job: str, seconds: float) -> Status:
        """A job's last state, which Ray writes a moment after the program's end."""
        deadline = time.monotonic() + seconds
        while (status := self.status(job)).state not in ENDED:
            if time.monotonic() > deadline:
                raise HcsError(
                    f"{self.address}: {job} is {status.state} after {seconds:.0f} s: {status.message}"
                )
            time.sleep(_POLL_S)
        return status


def submit(
    ray: PlainRay,
    stage: str,
    name: str,
    study: StudyConfig,
    arguments: Sequence[str] = (),
    sweep: str | None = None,
) -> str:
    """Submit a stage of a study, and return the job's name; another hcs_ray version there is refused."""
    if (stage == "tune") != (sweep is not None):
        raise InputError("tune needs a sweep file, and no other stage takes one")
    with working_folder(study, sweep) as folder:
        ray.require_same_version()
        labels = {"hcs_ray_run": name, "hcs_ray_stage": stage}
        files = (STUDY_FILE, SWEEP_FILE) if sweep is not None else (STUDY_FILE,)
        return ray.submit(entrypoint(stage, name, files, arguments), folder, labels)


@contextlib.contextmanager
def _without(names: Sequence[str]) -> Iterator[None]:
    """This process's environment without some variables."""
    kept = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ |= kept
