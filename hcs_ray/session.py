"""The Ray session that all stages of a command share: a given cluster, or one of this machine.

With ``RAY_ADDRESS`` (as in a RayJob) it joins that cluster. Otherwise it starts Ray here, on loopback, in a
temporary folder that goes when the process ends.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
from typing import Any, TypeVar

from hcs_ray.contracts import HcsError

_OBJECT_STORE_BYTES = 256 * 2**20  # no pixels travel through it
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_DEDUP_LOGS": "0",
    "OMP_NUM_THREADS": "1",
}
T = TypeVar("T")


def ensure_session() -> None:
    """Join or start Ray, once a process."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS")
    if address:
        ray.init(address=address, log_to_driver=False)
        return
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # loopback only; else a token goes to the home folder
    folder = tempfile.mkdtemp(prefix="hcs-ray-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    ray.init(
        address="local",
        _temp_dir=folder,
        include_dashboard=False,
        object_store_memory=_OBJECT_STORE_BYTES,
        log_to_driver=bool(os.environ.get("HCS_RAY_DEBUG")),
        logging_level=logging.ERROR,
    )
    atexit.register(ray.shutdown)


def result_of(reference: Any, what: str) -> Any:
    """The result of a Ray task; its own error where it failed, `HcsError` where its process died."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise cause_of(error) from None
    except ray.exceptions.RayError as error:
        raise HcsError(f"{what}: a Ray worker failed: {str(error).splitlines()[0]}") from None


def cause_of(error: BaseException) -> BaseException:
    """The error of ours inside the wrappings of Ray, or the outermost one where there is none."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, HcsError):
            return type(inner).__mro__[1](*inner.args) if "RayTaskError" in type(inner).__name__ else inner
        inner = getattr(inner, "cause", None) or inner.__cause__
    return error
