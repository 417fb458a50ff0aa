"""The commands that show the configuration."""

from __future__ import annotations

import json

import typer

from hcs_ray.cli.app import Overrides, Target, app, open_target

config_app = typer.Typer(no_args_is_help=True, help="Show the configuration or its schema.")


app.add_typer(config_app, name="config", rich_help_panel="Configuration")


@config_app.command("show")
def config_show(study: Target, overrides: Overrides = None) -> None:
    """The whole configuration of a study, defaults included, as YAML."""
    from hcs_ray.config import to_yaml

    typer.echo(to_yaml(open_target(study, "main", overrides).config), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """The JSON schema of study.yaml, for editors."""
    from hcs_ray.config import StudyConfig

    typer.echo(json.dumps(StudyConfig.model_json_schema(), indent=1))
