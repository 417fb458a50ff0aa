"""The commands that look at jobs on a cluster, end them, and clear up after them."""

from __future__ import annotations

import json
import re
import sys
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from hcs_ray.cli.app import Json, app, say
from hcs_ray.cli.cluster import Address, Context, JobName, Namespace
from hcs_ray.contracts import HcsError, InputError

if TYPE_CHECKING:
    from hcs_ray.jobs.kube import Kube
    from hcs_ray.jobs.watch import Report

_command = partial(app.command, rich_help_panel="On a cluster")
_UNITS = {"m": "minutes", "h": "hours", "d": "days"}


@_command(epilog="Example: hcs-ray status hcs-ray-train-1a2b3c4d --watch")
def status(
    job: Annotated[
        str | None, typer.Argument(metavar="JOB", help="By default the one submitted last.")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="A line at each change, until it ends.")
    ] = False,
    as_json: Json = False,
    context: Context = None,
    namespace: Namespace = None,
    address: Address = None,
) -> None:
    """Say how a job fares, and why: its state, attempts, progress, and what it has taken."""
    if address is not None:
        _plain_status(job, address)
        return
    from hcs_ray.jobs.kube import connect
    from hcs_ray.jobs.watch import newest, report

    kube = connect(context, namespace)
    name = job or newest(kube)
    if watch:
        _watch(kube, name, as_json)
        return
    found = report(kube, name)
    if as_json:
        typer.echo(json.dumps(found.figures))
        return
    typer.echo(found.lines)
    _show_sweep(kube, found)


def _watch(kube: Kube, name: str, as_json: bool) -> None:
    from hcs_ray.jobs.state import JobState
    from hcs_ray.jobs.watch import state_figures, wait

    def tell(state: JobState) -> None:
        figures = {"job": name, **state_figures(state)}
        typer.echo(json.dumps(figures) if as_json else f"{name}   {state.line}")
        sys.stdout.flush()

    wait(kube, name, tell)


def _show_sweep(kube: Kube, found: Report) -> None:
    """The leaderboard of a sweep as it stands, where its bucket can be read from here."""
    from hcs_ray.jobs.held import SWEEP_FILE, files_of, stage_of, study_of

    if stage_of(found.job) != "tune" or found.parts is None:
        return
    from hcs_ray.config import parse_sweep
    from hcs_ray.tune import show_standing

    try:
        sweep = parse_sweep(files_of(kube, found.job)[SWEEP_FILE], SWEEP_FILE)
        if not show_standing(study_of(kube, found.job), sweep):
            say("no trial has ended yet")
    except HcsError as error:
        say(f"no leaderboard: {error}")


def _plain_status(job: str | None, address: str) -> None:
    from hcs_ray.jobs.plain_ray import PlainRay

    ray = PlainRay(address)
    for found in [ray.status(job)] if job else ray.jobs():
        typer.echo(found.line)


@_command("list", epilog="Example: hcs-ray list --namespace science")
def list_jobs(
    as_json: Json = False, context: Context = None, namespace: Namespace = None, address: Address = None
) -> None:
    """List the jobs of a namespace, the newest first, each with its state and the reason."""
    if address is not None:
        _plain_status(None, address)
        return
    from hcs_ray.jobs.kube import connect
    from hcs_ray.jobs.watch import jobs_table

    kube = connect(context, namespace)
    text, figures = jobs_table(kube)
    if as_json:
        typer.echo(json.dumps(figures))
    elif figures:
        typer.echo(text)
    else:
        say(f"no jobs in namespace {kube.namespace} (context {kube.context})")


@_command(epilog="Example: hcs-ray stop hcs-ray-train-1a2b3c4d")
def stop(job: JobName, context: Context = None, namespace: Namespace = None, address: Address = None) -> None:
    """End a job and its cluster. The run stays where its study is; submit it again to go on with it."""
    if address is not None:
        from hcs_ray.jobs.plain_ray import PlainRay

        say(f"{job} {'is being stopped' if PlainRay(address).stop(job) else 'had ended'}")
        return
    from hcs_ray.jobs.kube import connect
    from hcs_ray.jobs.tidy import stop as stop_job

    state = stop_job(connect(context, namespace), job)
    if state.final:
        say(f"{job} had ended: {state.line}; hcs-ray gc clears it away")
    else:
        say(f"{job} is being stopped; it was {state.line}")


@_command(epilog="Example: hcs-ray gc --older-than 7d --yes")
def gc(
    older_than: Annotated[
        str, typer.Option("--older-than", metavar="AGE", help="Of ended jobs: 30m, 12h, 7d.")
    ] = "1d",
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete them; without it they are shown.")] = False,
    context: Context = None,
    namespace: Namespace = None,
) -> None:
    """Clear away ended jobs, and ConfigMaps, clusters and preflights that no job has. Shows them first."""
    from hcs_ray.jobs.kube import connect
    from hcs_ray.jobs.tidy import clear, leftover_table, leftovers

    kube = connect(context, namespace)
    found = leftovers(kube, _span(older_than))
    if not found:
        say(f"nothing to clear away in namespace {kube.namespace} (context {kube.context})")
        return
    typer.echo(leftover_table(found))
    if yes:
        say(f"{clear(kube, found)} deleted")
    else:
        say("nothing was deleted; --yes deletes them")


def _span(text: str) -> timedelta:
    found = re.fullmatch(r"(\d+)([mhd])", text)
    if found is None:
        raise InputError(f"--older-than {text}: write minutes, hours or days, as 30m, 12h, 7d")
    return timedelta(**{_UNITS[found[2]]: int(found[1])})
