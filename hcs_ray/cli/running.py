"""Running stages. A stage's module, with torch or Ray behind it, is loaded only when that stage runs."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import typer

from hcs_ray.cli.app import bar, say
from hcs_ray.figure_lines import figure_lines

if TYPE_CHECKING:
    from hcs_ray.study import Study

# Stage -> module, function, what its progress counts.
RUNNERS: dict[str, tuple[str, str, str]] = {
    "shard": ("hcs_ray.shards.write", "shard", "fields"),
    "split": ("hcs_ray.screen.splits", "split", "tables"),
    "train": ("hcs_ray.train", "train", "steps"),
    "embed": ("hcs_ray.embed", "embed", "fields"),
    "profile": ("hcs_ray.profiles.build", "profile", "steps"),
    "map": ("hcs_ray.maps", "make_map", "fields"),
    "outliers": ("hcs_ray.outliers", "find_outliers", "steps"),
    "report": ("hcs_ray.report.build", "report", "parts"),
}


def one_stage(study: Study, stage: str, force: bool, as_json: bool) -> None:
    from hcs_ray.storage import preflight

    preflight(study.storage)
    figures = run_stage(study, stage, force)
    say(next_step_of(study, stage))
    if as_json:
        typer.echo(json.dumps(figures))


def run_stages(study: Study, stages: list[str], force: bool) -> None:
    """Run stages in order, and say at the end where all lies, with the headline figures."""
    from hcs_ray.stage import StaleStageError
    from hcs_ray.storage import preflight

    preflight(study.storage)
    figures: dict[str, Any] = {}
    for stage in stages:
        try:
            figures[stage] = run_stage(study, stage, force=False)
        except StaleStageError as error:
            if not force:
                after = ", ".join(study.downstream(stage))
                follows = f" (and then, after it: {after})" if after else ""
                raise StaleStageError(f"{error}{follows}") from None
            figures[stage] = run_stage(study, stage, force=True)
    _farewell(study, stages, figures.get("profile", {}))


def run_stage(study: Study, stage: str, force: bool) -> dict[str, Any]:
    from hcs_ray.session import prepare_environment

    prepare_environment()
    module, function, unit = RUNNERS[stage]
    with bar(stage, unit) as progress:
        runner: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
        figures = runner(study, progress, force)
    say(figure_lines(figures))
    return figures


def _farewell(study: Study, stages: list[str], headline: dict[str, Any]) -> None:
    if headline:
        say(f"\nHeadline\n{figure_lines(headline)}")
    say("")
    for stage in stages:
        say(f"{stage:<9} {study.storage.url}/{study.place(stage).folder}")
    say(f"\n{next_step_of(study, stages[-1])}")


def next_step_of(study: Study, done: str) -> str:
    if done == "report":
        return f"Next: open {study.storage.url}/{study.place('report').folder}/index.html in a browser"
    after = list(RUNNERS)[list(RUNNERS).index(done) + 1]
    return f"Next: hcs-ray run {study.storage.url} --name {study.name} --from {after}"
