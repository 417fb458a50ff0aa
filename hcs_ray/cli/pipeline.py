"""The commands that take a screen from its raw images to a report: all stages, and each."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from hcs_ray.cli.app import Force, Json, Name, Overrides, Target, app, bar, open_target, say
from hcs_ray.cli.running import RUNNERS, one_stage, run_stages
from hcs_ray.contracts import InputError
from hcs_ray.figure_lines import figure_lines

if TYPE_CHECKING:
    from hcs_ray.study import Study

_command = partial(app.command, rich_help_panel="From raw images to a report")


@_command(epilog="Example: hcs-ray demo my-demo --seed 1")
def demo(
    folder: Annotated[str, typer.Argument(help="The study's folder; raw images go below it.")] = "hcs-demo",
    size: Annotated[str, typer.Option(help="demo, or smallest for a quick check.")] = "demo",
    seed: Annotated[int, typer.Option(min=0, help="Another seed draws another screen.")] = 0,
    force: Force = False,
) -> None:
    """Draw a small screen and take it all the way to a report. No account, GPU or network needed."""
    from hcs_ray.demo import prepare_demo
    from hcs_ray.storage import LocalStorage, open_storage, preflight
    from hcs_ray.study import open_study

    if size not in ("demo", "smallest"):
        raise InputError(f"--size {size}: it is demo or smallest")
    storage = open_storage(folder)
    if not isinstance(storage, LocalStorage):
        raise InputError(f"{folder}: the demo draws its screen into a local folder")
    preflight(storage)
    with bar("generate", "fields") as progress:
        prepare_demo(storage, size, seed, progress)
    study = open_study(folder)
    run_stages(study, list(RUNNERS), force)


@_command(
    epilog="Example: hcs-ray run my-study --name second --set train.lr=3e-4 --from train",
)
def run(
    study: Target,
    name: Name = "main",
    overrides: Overrides = None,
    first: Annotated[str, typer.Option("--from", help="Begin with this stage.")] = "shard",
    last: Annotated[str, typer.Option("--to", help="End with this stage.")] = "report",
    force: Annotated[bool, typer.Option("--force", help="Make stale stages again.")] = False,
) -> None:
    """Run every stage that is not complete, in order."""
    opened = open_target(study, name, overrides)
    stages = list(RUNNERS)
    for option, stage in (("--from", first), ("--to", last)):
        if stage not in stages:
            raise InputError(f"{option} {stage}: it is one of {', '.join(stages)}")
    chosen = stages[stages.index(first) : stages.index(last) + 1]
    if not chosen:
        raise InputError(f"--from {first} comes after --to {last}")
    run_stages(opened, chosen, force)


def _stage_command(stage: str, help_text: str) -> None:
    def command(
        study: Target,
        name: Name = "main",
        overrides: Overrides = None,
        force: Force = False,
        as_json: Json = False,
    ) -> None:
        one_stage(open_target(study, name, overrides), stage, force, as_json)

    example = f"Example: hcs-ray {stage} hcs-demo --name main"
    _command(stage, help=help_text, epilog=example)(command)


_stage_command("shard", "Turn raw images into verified WebDataset shards with an index.")


_stage_command("split", "Divide the compounds into training, validation and test.")


_stage_command("train", "Train the network, data-parallel; goes on from its newest checkpoint.")


@_command(epilog="Example: hcs-ray tune hcs-demo tune_configs/smoke.yaml --name first")
def tune(
    study: Target,
    sweep: Annotated[str, typer.Argument(metavar="SWEEP.yaml", help="As in tune_configs/smoke.yaml.")],
    name: Name = "main",
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Sweep hyperparameters with Ray Tune: a leaderboard, its picture, and every trial's network."""
    from hcs_ray.session import prepare_environment
    from hcs_ray.storage import preflight

    prepare_environment()
    from hcs_ray.tune import next_step, show_leaderboard, written
    from hcs_ray.tune import tune as run_tune

    opened = open_target(study, name, overrides)
    preflight(opened.storage)
    with bar("tune", "trials") as progress:
        figures = run_tune(opened, sweep, progress, force, say)
    show_leaderboard(opened)
    say(figure_lines(figures))
    say(written(opened))
    say(next_step(opened))


@_command(epilog="Example: hcs-ray embed hcs-demo --run sweep:first/best")
def embed(
    study: Target,
    name: Annotated[
        str | None, typer.Option("--name", help="The run's name; by default main, or the sweep's.")
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            "--run", metavar="sweep:NAME/TRIAL", help="Take the network of a sweep's trial, or of its best."
        ),
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--export", help="And export them: anndata, gallery; see hcs-ray export."),
    ] = None,
    overrides: Overrides = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write an embedding and MoA probabilities of every field."""
    from hcs_ray.study import sweep_of

    opened = open_target(study, name or (sweep_of(source) if source else None) or "main", overrides)
    one_stage(opened.with_run(source) if source else opened, "embed", force, as_json)
    if formats:
        _export(opened, formats, force)


@_command(epilog="Example: hcs-ray profile hcs-demo --folds loco")
def profile(
    study: Target,
    name: Name = "main",
    folds: Annotated[
        str | None,
        typer.Option(
            "--folds",
            metavar="SWEEP",
            help="Score a leave-one-compound-out sweep instead (track A), each compound by its own network.",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Lay all normalisations side by side instead, and name one by a rule."
        ),
    ] = False,
    overrides: Overrides = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Make profiles of wells and treatments, and score them (NSC, NSCB)."""
    opened = open_target(study, name, overrides)
    if compare and folds is not None:
        raise InputError("--compare and --folds: one at a time")
    if compare:
        _compare(opened, force, as_json)
        return
    if folds is None:
        one_stage(opened, "profile", force, as_json)
        return
    from hcs_ray.profiles.fold_stage import profile_folds
    from hcs_ray.storage import preflight

    preflight(opened.storage)
    with bar("folds", "settings") as progress:
        figures = profile_folds(opened, folds, progress, force)
    say(figure_lines(figures))
    say(f"All of it: {opened.storage.url}/{opened.place('folds').folder}/folds.json")
    if as_json:
        typer.echo(json.dumps(figures))


def _compare(study: Study, force: bool, as_json: bool) -> None:
    from hcs_ray.profiles.compare import compare, next_step, show_comparison
    from hcs_ray.storage import preflight

    preflight(study.storage)
    with bar("compare", "normalisations") as progress:
        figures = compare(study, progress, force)
    show_comparison(study)
    say(next_step(study))
    if as_json:
        typer.echo(json.dumps(figures))


_stage_command("map", "Lay all fields out in two dimensions with UMAP.")


_stage_command("outliers", "Score how unusual each field is, with a reason for the most unusual.")


@_command(epilog="Example: hcs-ray report hcs-demo --name cleaned --before main")
def report(
    study: Target,
    name: Name = "main",
    before: Annotated[
        str | None, typer.Option(metavar="NAME", help="Show this run beside that one: before and after.")
    ] = None,
    overrides: Overrides = None,
    force: Force = False,
    as_json: Json = False,
) -> None:
    """Write the report, one HTML file, of what the run has; the rest stands there as not run."""
    also = [] if before is None else [f"report.before={before}"]
    one_stage(open_target(study, name, [*(overrides or []), *also]), "report", force, as_json)


@_command(epilog="Example: hcs-ray export hcs-demo --to anndata --to gallery")
def export(
    study: Target,
    formats: Annotated[
        list[str],
        typer.Option(
            "--to",
            help="anndata: one .h5ad; gallery: the Cell Painting Gallery's folders; atlas: a table with "
            "pictures and neighbours for embedding-atlas and FiftyOne. One option each.",
        ),
    ],
    name: Name = "main",
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Write embeddings, the map and profiles as other tools read them, below exports/NAME."""
    from hcs_ray.storage import preflight

    opened = open_target(study, name, overrides)
    preflight(opened.storage)
    _export(opened, formats, force)


def _export(study: Study, formats: list[str], force: bool) -> None:
    from hcs_ray.export import export as write

    with bar("export", "fields") as progress:
        figures = write(study, formats, progress, force)
    say(figure_lines(figures))
