"""The application, the options that many commands share, and how a command speaks."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated

import typer

from hcs_ray.contracts import Progress

if TYPE_CHECKING:
    from hcs_ray.study import Study

app = typer.Typer(
    name="hcs-ray",
    help="From the raw images of a high content screen to honest answers about its compounds.",
    epilog="Example: hcs-ray demo, then hcs-ray run hcs-demo --name second --set train.lr=3e-4",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"hcs_ray {version('hcs_ray')}\nRay {version('ray')}")
        raise typer.Exit


@app.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Versions of hcs_ray and Ray."),
    ] = False,
) -> None:
    pass


Target = Annotated[
    str, typer.Argument(metavar="STUDY", help="A YAML file, a study folder or an s3:// prefix.")
]


Name = Annotated[str, typer.Option("--name", help="The run's name: its folder in every stage.")]


Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in train.lr=3e-4.")
]


Force = Annotated[bool, typer.Option("--force", help="Make it again where it is stale or complete.")]


Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON on standard output.")]


def open_target(target: str, name: str, overrides: list[str] | None) -> Study:
    from hcs_ray.study import open_study

    return open_study(target, name, overrides or [])


def bar(stage: str, unit: str) -> AbstractContextManager[Progress]:
    from hcs_ray.progress import progress_bar

    return progress_bar(stage, unit)


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")
