"""A study as one job a stage, each after the one before has succeeded, so that no GPU waits for a CPU stage.

The chain lives in the command that began it. Where that ends, the job that goes on goes on; the same command
finds it, and waits for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs.held import PARTS
from hcs_ray.jobs.kinds import name_of
from hcs_ray.jobs.kube import Kube
from hcs_ray.jobs.ship import impatient
from hcs_ray.jobs.state import JobState
from hcs_ray.jobs.submit import Order, going_on, submit
from hcs_ray.jobs.watch import wait
from hcs_ray.jobs.words import Say
from hcs_ray.study import Study

STAGES: Final = ("shard", "train", "embed", "analyse")


def submit_chain(kube: Kube, study: Study, orders: Sequence[Order], say: Say) -> list[str]:
    """Submit the stages of a study one after the other, and return the names of their jobs.

    What is complete is left out, where the study's records can be read from here; a job that goes on already
    is waited for.

    Raises:
        HcsError: a stage has not succeeded; it names the job and the reason.
    """
    names = []
    for order in orders:
        if is_complete(study, order.stage, say):
            say(f"{order.stage}: complete")
            continue
        running = going_on(kube, study, order.stage, say)
        name = name_of(running[0]) if running else submit(kube, study, order, say)
        say(f"{name} {'goes on' if running else 'is submitted'}; waiting for its end")
        names.append(name)
        state = wait_aloud(kube, name, say)
        if state.state != "succeeded":
            raise HcsError(
                f"{name}: {state.line}; the stages after {order.stage} were not submitted: "
                "run the same command again when it is mended"
            )
    return names


def wait_aloud(kube: Kube, name: str, say: Say) -> JobState:
    """Wait for a job's end, and say each state on the way."""
    return wait(kube, name, lambda state: say(f"{name}: {state.line}"))


def is_complete(study: Study, stage: str, say: Say) -> bool:
    """Whether all parts of a stage are complete and up to date, as far as that can be seen from here."""
    quick = replace(study, storage=impatient(study.storage))
    try:
        for part in PARTS.get(stage, (stage,)):
            quick.require(part, labels=True)
    except InputError:
        return False
    except HcsError as error:
        say(f"whether {stage} is complete is not known from here: {error}")
        return False
    return True
