"""The commands that make and check manifests. None of them speaks to a cluster."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hcs_ray.cli.app import Name, Overrides, Target, app, open_target, say
from hcs_ray.contracts import InputError

if TYPE_CHECKING:
    from hcs_ray.jobs.manifests import Manifest

_PANEL = "On a cluster"
_command = partial(app.command, rich_help_panel=_PANEL)
k8s_app = typer.Typer(no_args_is_help=True, help="The job set for overlays of one's own.")
app.add_typer(k8s_app, name="k8s", rich_help_panel=_PANEL)

# What submit takes, too.
Stage = Annotated[
    str, typer.Option(help="shard, train, tune, embed, analyse (from profile on) or study (all).")
]
Sweep = Annotated[
    str | None, typer.Option(metavar="SWEEP.yaml", help="As of hcs-ray tune, for --stage tune.")
]
Components = Annotated[
    list[str] | None,
    typer.Option(
        "--component", help="gpu, spot, queue, queue-elastic, identity, air-gapped. One option each."
    ),
]
Example = Annotated[str | None, typer.Option(help="A combination of k8s/examples instead.")]
JobSet = Annotated[
    Path | None, typer.Option("--k8s", metavar="DIR", help="Your own job set, of hcs-ray k8s export.")
]
Source = Annotated[
    str | None, typer.Option("--run", metavar="sweep:NAME/TRIAL", help="As of hcs-ray embed, for embed.")
]
Force = Annotated[bool, typer.Option("--force", help="The job makes it again where it is stale or complete.")]
MaxGpuHours = Annotated[
    float | None, typer.Option(min=0, help="More, at most, is an error: GPUs until the deadline of each try.")
]


@_command(epilog="Example: hcs-ray render study.yaml --stage train --component gpu")
def render(
    study: Target,
    stage: Stage,
    name: Name = "main",
    sweep: Sweep = None,
    components: Components = None,
    example: Example = None,
    job_set: JobSet = None,
    source: Source = None,
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Print all that submitting a stage would create on a cluster, as YAML."""
    from hcs_ray.jobs.manifests import to_yaml

    made = prepared(study, stage, name, sweep, components, example, job_set, source, overrides, force)
    typer.echo(to_yaml(made), nl=False)


@_command(epilog="Example: hcs-ray lint study.yaml --stage train --max-gpu-hours 100")
def lint(
    target: Annotated[
        str, typer.Argument(metavar="STUDY | FILE.yaml", help="A study, or a file of manifests; - reads one.")
    ],
    stage: Annotated[str | None, typer.Option(help="Of a study: which job.")] = None,
    name: Name = "main",
    sweep: Sweep = None,
    components: Components = None,
    example: Example = None,
    job_set: JobSet = None,
    source: Source = None,
    max_gpu_hours: MaxGpuHours = None,
    overrides: Overrides = None,
) -> None:
    """Check a job before it is submitted: each finding names the field, the rule and the mend."""
    from hcs_ray.jobs.findings import errors_of
    from hcs_ray.jobs.lint import lint as check

    manifests = _manifests(target)
    if manifests is None:
        if stage is None:
            raise InputError(f"{target}: say which job of this study: --stage train")
        made = prepared(target, stage, name, sweep, components, example, job_set, source, overrides)
    else:
        made = manifests
    if all(manifest["kind"] != "RayJob" for manifest in made):
        raise InputError(f"{target}: there is no RayJob in it")
    found = check(made, max_gpu_hours=max_gpu_hours)
    for finding in found:
        typer.echo(str(finding))
    errors = len(errors_of(found))
    warnings = len(found) - errors
    say(f"{errors} error{'s'[: errors != 1]}, {warnings} warning{'s'[: warnings != 1]}")
    if errors:
        raise typer.Exit(1)


@k8s_app.command("export", epilog="Example: hcs-ray k8s export cluster, then render --k8s cluster/k8s")
def k8s_export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="k8s/ and tune_configs/ go below it.")],
) -> None:
    """Write the job set and the sweeps that hcs-ray carries; nothing is overwritten."""
    from hcs_ray.jobs.manifests import export

    job_set, sweeps = export(folder)
    say(f"{job_set}\n{sweeps}")
    say(f"Next: edit them, then hcs-ray render STUDY --stage train --k8s {job_set}")


def prepared(
    study: str,
    stage: str,
    name: str,
    sweep: str | None,
    components: list[str] | None,
    example: str | None,
    job_set: Path | None,
    source: str | None,
    overrides: list[str] | None,
    force: bool = False,
) -> list[Manifest]:
    """What the options of a command say, rendered and bound."""
    from hcs_ray.jobs.bind import Run, new_submission
    from hcs_ray.jobs.prepare import Shape, prepare, read_sweep
    from hcs_ray.packaged import JOB_SET

    opened = open_target(study, name, overrides)
    arguments = arguments_of(stage, source, force)
    text = None if sweep is None else read_sweep(sweep)
    run = Run(stage, name, new_submission(), text, arguments)
    return prepare(opened, run, Shape(job_set or JOB_SET, tuple(components or ()), example))


def arguments_of(stage: str, source: str | None, force: bool) -> tuple[str, ...]:
    """What the options of a command add to a job's entrypoint."""
    if source is not None and stage != "embed":
        raise InputError(f"--run is of --stage embed, not of {stage}")
    return (*(("--run", source) if source else ()), *(("--force",) if force else ()))


def _manifests(target: str) -> list[Manifest] | None:
    """The objects of a file of manifests; None of what is a study."""
    from hcs_ray.jobs.manifests import parse_manifests

    if target == "-":
        return parse_manifests(sys.stdin.read(), "standard input")
    if "://" in target or not Path(target).is_file():
        return None
    try:
        text = Path(target).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{target}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    is_object = any(line.startswith("kind:") for line in text.splitlines())
    return parse_manifests(text, target) if is_object else None
