"""The command that opens a study in a browser."""

from __future__ import annotations

from typing import Annotated

import typer

from hcs_ray.cli.app import Name, Overrides, Target, app, open_target, say
from hcs_ray.cli.chosen import login_name


@app.command(
    rich_help_panel="From raw images to a report",
    epilog="Example: hcs-ray explore hcs-demo --user ada",
)
def explore(
    study: Target,
    name: Name = "main",
    overrides: Overrides = None,
    port: Annotated[int, typer.Option(help="0 takes a free one.")] = 0,
    address: Annotated[
        str, typer.Option(help="Where to listen; any other than this machine's own is told aloud.")
    ] = "127.0.0.1",
    user: Annotated[str | None, typer.Option(help="Who gives the labels; by default the login name.")] = None,
    no_token: Annotated[
        bool, typer.Option("--no-token", help="Let in everybody who has an account on this machine.")
    ] = False,
) -> None:
    """Look at fields, wells, doses and the map in a browser, and label them."""
    from hcs_ray.explore.server import explore as serve

    opened = open_target(study, name, overrides)
    serve(opened, address, port, user or login_name(), say, with_token=not no_token)
