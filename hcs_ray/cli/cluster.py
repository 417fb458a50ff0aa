"""The commands for jobs on a cluster: Kubernetes with KubeRay, or a plain Ray cluster."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from hcs_ray.cli.app import app, open_target, say
from hcs_ray.contracts import HcsError, InputError

if TYPE_CHECKING:
    from hcs_ray.jobs.kube import Kube
    from hcs_ray.jobs.logs import Wanted

_command = partial(app.command, rich_help_panel="On a cluster")

JobName = Annotated[str, typer.Argument(metavar="JOB", help="As submit has named it.")]
Context = Annotated[str | None, typer.Option("--context", help="Of kubectl's configuration.")]
Namespace = Annotated[str | None, typer.Option("--namespace", "-n", help="By default the context's.")]
Address = Annotated[
    str | None,
    typer.Option(metavar="http://HOST:8265", help="A plain Ray cluster instead, by its dashboard."),
]


@_command(epilog="Example: hcs-ray logs hcs-ray-train-1a2b3c4d --worker 0 --files 'worker-*.err'")
def logs(
    job: JobName,
    pod: Annotated[str | None, typer.Option(help="Of the pod of this name.")] = None,
    head: Annotated[bool, typer.Option("--head", help="Of the head.")] = False,
    worker: Annotated[int | None, typer.Option(min=0, help="Of this worker, from 0.")] = None,
    driver: Annotated[bool, typer.Option("--driver", help="Of the job's program: the default.")] = False,
    files: Annotated[
        str | None,
        typer.Option(metavar="PATTERN", help="Of Ray's own files in the bucket, as 'worker-*.err'."),
    ] = None,
    attempt: Annotated[str | None, typer.Option(help="Of this RayCluster; by default the newest.")] = None,
    tail: Annotated[int | None, typer.Option(min=0, help="At most so many lines of a live pod.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
    study: Annotated[
        str | None, typer.Option(help="In whose storage they are, where the RayJob is gone.")
    ] = None,
    context: Context = None,
    namespace: Namespace = None,
    address: Address = None,
) -> None:
    """Print a job's logs: of its pods while they live, from the bucket afterwards."""
    from hcs_ray.jobs.logs import Wanted

    if driver and (pod is not None or head or worker is not None):
        raise InputError("--driver, --pod, --head and --worker: one at a time")
    wanted = Wanted(pod, head, worker, files, attempt, tail)
    if address is None:
        _kubernetes_logs(job, wanted, follow, study, context, namespace)
        return
    if not wanted.is_driver or files is not None:
        raise InputError("--address: Ray's job API has the driver's log alone")
    _plain_logs(job, address, follow)


def _kubernetes_logs(
    name: str, wanted: Wanted, follow: bool, study: str | None, context: str | None, namespace: str | None
) -> None:
    from hcs_ray.jobs.kube import connect
    from hcs_ray.jobs.logs import find_job
    from hcs_ray.jobs.logs import logs as write_logs

    given = (lambda: open_target(study, "main", None).storage) if study is not None else None
    job = find_job(name, lambda: connect(context, namespace), given, say)
    write_logs(job, wanted, follow, _out, say)


def follow_driver(kube: Kube, name: str) -> None:
    """Print what a job's program says until it ends, from the moment that it runs."""
    from hcs_ray.jobs.logs import Wanted, find_job
    from hcs_ray.jobs.logs import logs as write_logs
    from hcs_ray.jobs.watch import wait_until_running

    if wait_until_running(kube, name, say):
        write_logs(find_job(name, lambda: kube, None, say), Wanted(), True, _out, say)


def _plain_logs(job: str, address: str, follow: bool) -> None:
    from hcs_ray.jobs.plain_ray import PlainRay

    ray = PlainRay(address)
    if not follow:
        _out(ray.logs(job).encode())
        return
    ended = ray.follow(job, lambda text: _out(text.encode()))
    if ended.state != "SUCCEEDED":
        raise HcsError(ended.line)


def _out(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
