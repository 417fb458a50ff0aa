"""Where Ray Train would try again or wait for ever: bad input, and workers that never start.

Ray Train asks these callbacks in its controller; an error that they raise ends the run.
"""

from __future__ import annotations

import time
from typing import Any

from ray.train.v2._internal.execution.callback import ControllerCallback
from ray.train.v2._internal.execution.controller.state import PreemptingState, RunningState
from ray.train.v2.api.exceptions import WorkerGroupError

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.session import cause_of

# A worker group is there: it trains, or uses the time that a node's notice leaves it.
_STARTED = (RunningState, PreemptingState)
_PAUSE_S = 0.5


class Limits(ControllerCallback):
    """Ends a run at bad input, which no retry mends, or when workers have not started for so long.

    Args:
        wait_s: seconds that the workers may take to start, at first and after a failure.
        wanted: what they need, in words.
    """

    def __init__(self, wait_s: float, wanted: str) -> None:
        self._wait_s, self._wanted = wait_s, wanted
        self._waiting_since = 0.0

    def after_controller_start(self, train_run_context: Any) -> None:
        self._waiting_since = time.monotonic()  # of the machine of the controller

    def after_controller_state_update(self, previous_state: Any, current_state: Any) -> None:
        _end_at_bad_input(current_state)
        if isinstance(current_state, _STARTED) or isinstance(previous_state, _STARTED):
            self._waiting_since = time.monotonic()
        elif time.monotonic() - self._waiting_since > self._wait_s:
            raise HcsError(
                f"no {self._wanted} within {self._wait_s / 60:g} minutes (train.wait_minutes); "
                "what was learned is kept: run the same command again to go on"
            )
        elif type(current_state) is type(previous_state):
            time.sleep(_PAUSE_S)  # an elastic run's controller asks again at once, and takes a core for that


def _end_at_bad_input(state: Any) -> None:
    """Raise the first `InputError` of the workers whose failure led to a state."""
    error = getattr(state, "training_failed_error", None)
    if isinstance(error, WorkerGroupError):
        for failure in error.worker_failures.values():
            cause = cause_of(failure)
            if isinstance(cause, InputError):
                raise cause
