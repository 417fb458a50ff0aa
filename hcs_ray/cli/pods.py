"""The commands that run inside a cluster's pods."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from hcs_ray.cli.app import Name, Overrides, Target, app, open_target, say

if TYPE_CHECKING:
    from hcs_ray.study import Study

_command = partial(app.command, rich_help_panel="Inside a cluster's pods")


@_command(epilog="Example: hcs-ray preflight /study/study.yaml --stage train")
def preflight(
    study: Target,
    stage: Annotated[str, typer.Option(help="A stage, or study or analyse, the jobs of several.")],
    name: Name = "main",
    source: Annotated[
        str | None, typer.Option("--run", metavar="sweep:NAME/TRIAL", help="As of hcs-ray embed.")
    ] = None,
    sweep: Annotated[str | None, typer.Option(metavar="SWEEP.yaml", help="As of hcs-ray tune.")] = None,
    gpus: Annotated[int, typer.Option(min=0, help="So many GPUs must be visible.")] = 0,
    wanted: Annotated[
        str | None, typer.Option("--expect-version", envvar="HCS_RAY_EXPECT_VERSION", help="Of hcs_ray.")
    ] = None,
    wanted_ray: Annotated[
        str | None, typer.Option("--expect-ray", envvar="HCS_RAY_EXPECT_RAY", help="Of Ray.")
    ] = None,
    overrides: Overrides = None,
) -> None:
    """Look whether a stage can run from here: versions, store, clock, inputs, GPUs. A line a check."""
    from hcs_ray.jobs.preflight import Request
    from hcs_ray.jobs.preflight import preflight as look

    request = Request(
        study, stage, name, overrides or [], source, sweep, hcs_ray=wanted, ray=wanted_ray, gpus=gpus
    )
    look(request, _open_screen, say)


def _open_screen(study: Study) -> object:
    from hcs_ray.screen.sources import open_screen

    return open_screen(study.config.screen, study.storage)


@_command("ship-logs", epilog="Example: hcs-ray ship-logs /study/study.yaml")
def ship_logs(
    study: Annotated[
        str, typer.Argument(metavar="STUDY", help="Whose storage the logs go to.")
    ] = "/study/study.yaml",
    run: Annotated[str, typer.Option(envvar="HCS_RAY_RUN", help="The run's name.")] = "main",
    attempt: Annotated[str, typer.Option(envvar="HCS_RAY_ATTEMPT", help="The RayCluster's name.")] = "local",
    pod: Annotated[str, typer.Option(envvar="HCS_RAY_POD", help="The pod's name.")] = "pod",
    logs: Annotated[
        str, typer.Option(metavar="FOLDER", help="What is shipped.")
    ] = "/tmp/ray/session_latest/logs",  # noqa: S108  Ray's own place
    interval: Annotated[float, typer.Option(min=0.1, help="Seconds between rounds.")] = 30.0,
    grace: Annotated[float, typer.Option(min=0, help="Seconds for the rest after SIGTERM.")] = 20.0,
    longest_mb: Annotated[int, typer.Option(min=1, help="At most so much of one file.")] = 1024,
) -> None:
    """Carry a pod's logs to logs/RUN/ATTEMPT/POD/ of the study while they grow, secrets masked."""
    import os
    import signal
    import threading
    from pathlib import Path

    from hcs_ray.jobs.parts import Pod
    from hcs_ray.jobs.redact import redactor
    from hcs_ray.jobs.ship import Shipper, impatient, keep_shipping

    whose, stop = Pod(run, attempt, pod), threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())

    def shipper() -> Shipper:
        storage = impatient(open_target(study, "main", None).storage)
        return Shipper(storage, whose, Path(logs), redactor(os.environ), longest_mb << 20)

    keep_shipping(shipper, stop, lambda text: say(f"ship-logs: {text}"), interval, grace)
