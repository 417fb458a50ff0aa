"""The commands. A stage's module, with torch or Ray behind it, is loaded only when that stage runs."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from hcs_ray.cli import pipeline  # first, as its panel is in the help

# isort: split
from hcs_ray.cli import (
    cluster,
    configuration,
    exploring,
    fields,
    job_set,
    labelling,
    pods,
    scoring,
    screens,
    submitting,
    watching,
)
from hcs_ray.cli.app import app
from hcs_ray.contracts import HcsError

__all__ = [
    "cluster", "configuration", "exploring", "fields", "job_set", "labelling", "main", "pipeline",
    "pods", "scoring", "screens", "submitting", "watching",
]  # fmt: skip

_INTERRUPTED = 130  # the exit code of a command that was stopped by Ctrl-C


def main() -> None:
    """The entry point: one clear line and an exit code for every failure; ``--debug`` shows tracebacks."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        os.environ["HCS_RAY_DEBUG"] = "1"
    try:
        app()
    except HcsError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        if getattr(stop, "code", _INTERRUPTED) != _INTERRUPTED:
            raise
        _fail("stopped; run the same command again to go on", _INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        first = str(error).strip().splitlines() or [""]
        _fail(f"unexpected {type(error).__name__}: {first[0]} (--debug shows where)", 1)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"hcs-ray: {' '.join(message.split())}\n")
    sys.stderr.flush()
    raise SystemExit(code)
