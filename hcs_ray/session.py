"""The Ray session that all stages of a command share: a given cluster, or one of this machine.

With ``RAY_ADDRESS`` (as in a RayJob) it joins that cluster. Otherwise it starts Ray here, behind a token made
for this session, in a temporary folder that goes when the process ends.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import secrets
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from hcs_ray.contracts import HcsError, InputError

_OBJECT_STORE_BYTES = 256 * 2**20  # no pixels travel through it
_FOLDER = "hcs-ray-"
_LONGEST_BASE = 24
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "OMP_NUM_THREADS": "1",
}


def prepare_environment() -> None:
    """Set what Ray reads when it is first imported; call it before that. What the user has set stays.

    A session of this machine gets a token of its own, since Ray listens on every interface.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    if "RAY_ADDRESS" in os.environ:
        return
    if not os.environ.get("HCS_RAY_DEBUG"):
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def ensure_session(*, dashboard: bool = False) -> None:
    """Join or start Ray, once a process.

    A sweep needs the ``dashboard``: Ray Train frees the workers of a trial that was stopped early only where
    it can ask the dashboard's state API who is alive.
    """
    prepare_environment()
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False)
        return
    folder = _session_folder()
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with _quiet_start():
        _start(folder, dashboard)
    atexit.register(ray.shutdown)


def _session_folder() -> str:
    """A new temporary folder, short enough for Ray's sockets; those of killed processes are swept away."""
    base = tempfile.gettempdir()
    if len(base) > _LONGEST_BASE:
        base = "/tmp"  # noqa: S108  a socket's path has at most 107 bytes
    for old in Path(base).glob(f"{_FOLDER}*-*"):
        owner = old.name.removeprefix(_FOLDER).partition("-")[0]
        with contextlib.suppress(FileNotFoundError):  # another process sweeps too
            mine = old.stat().st_uid == os.getuid()
            if owner.isdigit() and mine and not psutil.pid_exists(int(owner)):
                shutil.rmtree(old, ignore_errors=True)
    return tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-", dir=base)


def hush(library: str) -> None:
    """Leave only errors of one of Ray's libraries on the terminal; call it after importing the library."""
    if not os.environ.get("HCS_RAY_DEBUG"):
        logging.getLogger(library).setLevel(logging.ERROR)


@contextlib.contextmanager
def _quiet_start() -> Iterator[None]:
    """Ray's own processes announce their log level on the terminal; keep that for a start that fails."""
    if os.environ.get("HCS_RAY_DEBUG"):
        yield
        return
    with tempfile.TemporaryFile() as said:
        terminal = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield
        except BaseException:
            said.seek(0)
            os.write(terminal, said.read())
            raise
        finally:
            os.dup2(terminal, 2)
            os.close(terminal)


def _start(folder: str, dashboard: bool) -> None:
    import ray

    ray.init(
        address="local",
        _temp_dir=folder,
        include_dashboard=dashboard,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=bool(os.environ.get("HCS_RAY_DEBUG")),
        logging_level=logging.ERROR,
    )


def require_capacity(what: str, cpus: float, gpus: float) -> None:
    """`InputError` where this machine can never give that much; a given cluster may still grow."""
    import ray

    if os.environ.get("RAY_ADDRESS"):
        return
    resources: Any = ray.cluster_resources  # untyped
    have = resources()
    for kind, needed in (("CPU", cpus), ("GPU", gpus)):
        if needed > have.get(kind, 0):
            raise InputError(
                f"{what} need {needed:g} {kind}; Ray has {have.get(kind, 0):g} here. "
                "Take fewer workers, or less for each"
            )


@contextlib.contextmanager
def plainly(what: str) -> Iterator[None]:
    """Turn Ray's errors into ours: the error of ours that a task raised, or one line that names ``what``."""
    import ray

    try:
        yield
    except ray.exceptions.RayError as error:
        cause = cause_of(error)
        if isinstance(cause, HcsError):
            raise cause from None
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise HcsError(f"{what}: a Ray worker failed: {lines[-1]}") from error


def cause_of(error: BaseException) -> BaseException:
    """The error of ours inside the wrappings of Ray, or the outermost one where there is none."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, HcsError):
            # Ray raises a class made of its own and ours; the original is its cause.
            original = getattr(inner, "cause", None)
            return original if isinstance(original, HcsError) else inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
