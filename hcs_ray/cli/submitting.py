"""The command that submits a stage to a cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hcs_ray.cli.app import Name, Overrides, Target, app, open_target, say
from hcs_ray.cli.cluster import Address, Context, Namespace, follow_driver
from hcs_ray.cli.job_set import (
    Components,
    Example,
    Force,
    JobSet,
    MaxGpuHours,
    Source,
    Stage,
    Sweep,
    arguments_of,
)
from hcs_ray.contracts import HcsError, InputError

if TYPE_CHECKING:
    from hcs_ray.jobs.kube import Kube
    from hcs_ray.jobs.submit import Order
    from hcs_ray.study import Study


@app.command(
    rich_help_panel="On a cluster",
    epilog="Example: hcs-ray submit study.yaml --stage train --component gpu --follow",
)
def submit(
    study: Target,
    stage: Stage = "study",
    name: Name = "main",
    sweep: Sweep = None,
    components: Components = None,
    example: Example = None,
    job_set: JobSet = None,
    source: Source = None,
    overrides: Overrides = None,
    force: Force = False,
    queue: Annotated[
        bool, typer.Option("--queue", help="Of a study: one job a stage, each after the one before.")
    ] = False,
    dry_run: Annotated[
        Literal["client", "server"] | None,
        typer.Option("--dry-run", help="Make nothing: only lint it, or let the API server check it too."),
    ] = None,
    wait: Annotated[bool, typer.Option("--wait", help="Until the job has ended; 1 where it failed.")] = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print its log, and wait.")] = False,
    no_preflight: Annotated[
        bool, typer.Option("--no-preflight", help="Without the pod that looks at image, storage and inputs.")
    ] = False,
    max_gpu_hours: MaxGpuHours = None,
    context: Context = None,
    namespace: Namespace = None,
    address: Address = None,
) -> None:
    """Run a stage, or a whole study, on a cluster; a preflight pod looks first whether it can."""
    from hcs_ray.jobs.prepare import Shape, read_sweep
    from hcs_ray.jobs.submit import Order
    from hcs_ray.packaged import JOB_SET

    opened = _at(open_target(study, name, overrides), namespace)
    text = None if sweep is None else read_sweep(sweep)
    arguments = arguments_of(stage, source, force)
    if address is not None:
        given = {
            "--queue": queue, "--dry-run": dry_run, "--component": components, "--example": example,
            "--k8s": job_set, "--max-gpu-hours": max_gpu_hours is not None, "--no-preflight": no_preflight,
            "--context": context, "--namespace": namespace,
        }  # fmt: skip
        if refused := [option for option, value in given.items() if value]:
            raise InputError(f"{', '.join(refused)}: of Kubernetes, not of --address")
        _to_ray(opened, address, stage, arguments, text, wait, follow)
        return
    shape = Shape(job_set or JOB_SET, tuple(components or ()), example)
    order = Order(stage, shape, text, arguments, not no_preflight, max_gpu_hours)
    if queue:
        _chain(opened, order, dry_run, context)
    elif dry_run is not None:
        _rehearse(opened, order, dry_run, context)
    else:
        _submit(opened, order, wait, follow, context)


def _at(study: Study, namespace: str | None) -> Study:
    """The study in another namespace than its ``cluster`` section says."""
    if namespace is None:
        return study
    cluster = study.config.cluster.model_copy(update={"namespace": namespace})
    return replace(study, config=study.config.model_copy(update={"cluster": cluster}))


def _cluster(study: Study, context: str | None) -> Kube:
    from hcs_ray.jobs.kube import connect

    return connect(context, study.config.cluster.namespace)


def _submit(study: Study, order: Order, wait: bool, follow: bool, context: str | None) -> None:
    from hcs_ray.jobs.chain import wait_aloud
    from hcs_ray.jobs.submit import submit as submit_stage

    kube = _cluster(study, context)
    job = submit_stage(kube, study, order, say)
    typer.echo(job)
    where = _where(study, context)
    say(f"Next: hcs-ray status {job}{where} --watch, hcs-ray logs {job}{where} --follow")
    if follow:
        follow_driver(kube, job)
    if wait or follow:
        state = wait_aloud(kube, job, say)
        if state.state != "succeeded":
            raise HcsError(f"{job}: {state.line}")


def _rehearse(study: Study, order: Order, dry_run: str, context: str | None) -> None:
    from hcs_ray.jobs.submit import rehearse

    kube = _cluster(study, context) if dry_run == "server" else None
    for name in rehearse(kube, study, order, say):
        typer.echo(f"{name} (dry run: {dry_run})")


def _chain(study: Study, order: Order, dry_run: str | None, context: str | None) -> None:
    from hcs_ray.jobs.chain import STAGES, submit_chain

    if order.stage != "study":
        raise InputError(f"--queue is of --stage study, whose stages it queues, not of {order.stage}")
    if order.shape.example is not None:
        raise InputError("--queue makes one job a stage, and --example is one job; use --component")
    orders = [replace(order, stage=stage) for stage in STAGES]
    if dry_run is not None:
        for one in orders:
            _rehearse(study, one, dry_run, context)
        return
    for job in submit_chain(_cluster(study, context), study, orders, say):
        typer.echo(job)


def _to_ray(
    study: Study,
    address: str,
    stage: str,
    arguments: tuple[str, ...],
    sweep: str | None,
    wait: bool,
    follow: bool,
) -> None:
    from hcs_ray.jobs.plain_ray import PlainRay
    from hcs_ray.jobs.plain_ray import submit as submit_to_ray
    from hcs_ray.jobs.prepare import resolved

    ray = PlainRay(address)
    job = submit_to_ray(ray, stage, study.name, resolved(study), arguments, sweep)
    typer.echo(job)
    say(f"Next: hcs-ray status {job} --address {address}, hcs-ray logs {job} --address {address} --follow")
    if wait or follow:
        ended = ray.follow(job, lambda text: typer.echo(text, nl=False) if follow else None)
        if ended.state != "SUCCEEDED":
            raise HcsError(ended.line)


def _where(study: Study, context: str | None) -> str:
    """The options that find the cluster again."""
    namespace = study.config.cluster.namespace
    return (f" --context {context}" if context else "") + (f" --namespace {namespace}" if namespace else "")
