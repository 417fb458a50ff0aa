"""The commands. A stage's module, with torch or Ray behind it, is loaded only when that stage runs."""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hcs_ray.contracts import HcsError, InputError, Progress

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

# Stage -> module, function, what its progress counts.
_RUNNERS: dict[str, tuple[str, str, str]] = {
    "shard": ("hcs_ray.shards.write", "shard", "fields"),
    "split": ("hcs_ray.screen.splits", "split", "tables"),
    "train": ("hcs_ray.train", "train", "epochs"),
    "embed": ("hcs_ray.embed", "embed", "fields"),
    "profile": ("hcs_ray.profiles.build", "profile", "steps"),
    "map": ("hcs_ray.maps", "make_map", "steps"),
    "outliers": ("hcs_ray.outliers", "find_outliers", "steps"),
    "report": ("hcs_ray.report.build", "report", "parts"),
}

_INTERRUPTED = 130  # the exit code of a command that was stopped by Ctrl-C

Target = Annotated[
    str, typer.Argument(metavar="STUDY", help="A YAML file, a study folder or an s3:// prefix.")
]
Name = Annotated[str, typer.Option("--name", help="The run's name: its folder in every stage.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override a key, as in train.lr=3e-4.")
]
Force = Annotated[bool, typer.Option("--force", help="Make it again where it is stale or complete.")]
Json = Annotated[bool, typer.Option("--json", help="Print figures as JSON on standard output.")]


@app.command(epilog="Example: hcs-ray demo my-demo --seed 1")
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
    with _bar("generate", "fields") as progress:
        prepare_demo(storage, size, seed, progress)
    study = open_study(folder)
    _run_stages(study, list(_RUNNERS), force)


@app.command(epilog="Example: hcs-ray run my-study --name second --set train.lr=3e-4 --from train")
def run(
    study: Target,
    name: Name = "main",
    overrides: Overrides = None,
    first: Annotated[str, typer.Option("--from", help="Begin with this stage.")] = "shard",
    last: Annotated[str, typer.Option("--to", help="End with this stage.")] = "report",
    force: Annotated[bool, typer.Option("--force", help="Make stale stages again.")] = False,
) -> None:
    """Run every stage that is not complete, in order."""
    opened = _open(study, name, overrides)
    stages = list(_RUNNERS)
    for option, stage in (("--from", first), ("--to", last)):
        if stage not in stages:
            raise InputError(f"{option} {stage}: it is one of {', '.join(stages)}")
    chosen = stages[stages.index(first) : stages.index(last) + 1]
    if not chosen:
        raise InputError(f"--from {first} comes after --to {last}")
    _run_stages(opened, chosen, force)


@app.command("generate", epilog="Example: hcs-ray generate my-study/raw --set artefact_rate=0.1")
def generate_command(
    folder: Annotated[str, typer.Argument(help="Where the raw screen goes, as in my-study/raw.")],
    size: Annotated[str, typer.Option(help="demo, smallest, or bbbc021 (55 plates of 60 wells).")] = "demo",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    overrides: Overrides = None,
) -> None:
    """Draw a raw screen in BBBC021's layout, with its truth in truth.parquet."""
    from pathlib import Path

    from hcs_ray.screen.synthetic import SyntheticConfig, generate

    config = _synthetic(SyntheticConfig, size, seed, overrides or [])
    with _bar("generate", "fields") as progress:
        generate(config, Path(folder), progress=progress)
    _say(f"Raw screen in {folder}. Next: write a study.yaml beside it and run hcs-ray shard.")


def _stage_command(stage: str, help_text: str) -> None:
    def command(
        study: Target,
        name: Name = "main",
        overrides: Overrides = None,
        force: Force = False,
        as_json: Json = False,
    ) -> None:
        opened = _open(study, name, overrides)
        figures = _run_stage(opened, stage, force)
        if as_json:
            typer.echo(json.dumps(figures))

    example = f"Example: hcs-ray {stage} hcs-demo --name main"
    app.command(stage, help=help_text, epilog=example)(command)


_stage_command("shard", "Turn raw images into verified WebDataset shards with an index.")
_stage_command("split", "Divide the compounds into training, validation and test.")
_stage_command("train", "Train the network, data-parallel; goes on from its newest checkpoint.")
_stage_command("embed", "Write an embedding and MoA probabilities of every field.")
_stage_command("profile", "Make profiles of wells and treatments, and score them (NSC, NSCB).")
_stage_command("map", "Lay all fields out in two dimensions with UMAP.")
_stage_command("outliers", "Score how unusual each field is, with a reason for the most unusual.")
_stage_command("report", "Write the report, one HTML file.")


@app.command(epilog="Example: hcs-ray tune hcs-demo tune_configs/smoke.yaml --name first")
def tune(
    study: Target,
    sweep: Annotated[str, typer.Argument(metavar="SWEEP.yaml", help="As in tune_configs/smoke.yaml.")],
    name: Name = "main",
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Sweep hyperparameters over train with Ray Tune and write a leaderboard."""
    from hcs_ray.session import prepare_environment

    prepare_environment()
    from hcs_ray.tune import tune as run_tune

    opened = _open(study, name, overrides)
    with _bar("tune", "trials") as progress:
        figures = run_tune(opened, sweep, progress, force)
    _say(_figures(figures))
    _say(f"Leaderboard: {opened.storage.url}/{opened.place('tune').folder}/leaderboard.parquet")


@app.command(epilog="Example: hcs-ray verify hcs-demo")
def verify(study: Target, name: Name = "main", overrides: Overrides = None) -> None:
    """Read every output of every complete stage and compare it with its hash."""
    opened = _open(study, name, overrides)
    with _bar("verify", "files") as progress:
        checked = opened.verify(progress)
    _say(f"  {checked} files are as they were written")


config_app = typer.Typer(no_args_is_help=True, help="Show the configuration or its schema.")
app.add_typer(config_app, name="config")


@config_app.command("show")
def config_show(study: Target, overrides: Overrides = None) -> None:
    """The whole configuration of a study, defaults included, as YAML."""
    from hcs_ray.config import to_yaml

    typer.echo(to_yaml(_open(study, "main", overrides).config), nl=False)


@config_app.command("schema")
def config_schema() -> None:
    """The JSON schema of study.yaml, for editors."""
    from hcs_ray.config import StudyConfig

    typer.echo(json.dumps(StudyConfig.model_json_schema(), indent=1))


def main() -> None:
    """The entry point: one clear line and an exit code for every failure; ``--debug`` shows tracebacks."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
        os.environ["HCS_RAY_DEBUG"] = "1"
    try:
        app()
    except HcsError as error:
        if debug:
            raise
        _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, SystemExit) as stop:
        if getattr(stop, "code", _INTERRUPTED) != _INTERRUPTED:
            raise
        _fail("stopped; run the same command again to go on", _INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        first = str(error).strip().splitlines() or [""]
        _fail(f"unexpected {type(error).__name__}: {first[0]} (--debug shows where)", 1)


def _fail(message: str, code: int) -> NoReturn:
    sys.stderr.write(f"hcs-ray: {' '.join(message.split())}\n")
    sys.stderr.flush()
    raise SystemExit(code)


def _open(target: str, name: str, overrides: list[str] | None) -> Study:
    from hcs_ray.study import open_study

    return open_study(target, name, overrides or [])


def _synthetic(model: Any, size: str, seed: int, overrides: list[str]) -> Any:
    from hcs_ray.config import with_overrides

    if size not in ("demo", "smallest", "bbbc021"):
        raise InputError(f"--size {size}: it is demo, smallest or bbbc021")
    return with_overrides(model.preset(size, seed=seed), overrides, f"--size {size}")


def _run_stages(study: Study, stages: list[str], force: bool) -> None:
    """Run stages in order, and say at the end where all lies, with the headline figures."""
    from hcs_ray.stage import StaleStageError
    from hcs_ray.storage import preflight

    preflight(study.storage)
    figures: dict[str, Any] = {}
    for stage in stages:
        try:
            figures[stage] = _run_stage(study, stage, force=False)
        except StaleStageError as error:
            if not force:
                after = ", ".join(study.downstream(stage))
                follows = f" (and then, after it: {after})" if after else ""
                raise StaleStageError(f"{error}{follows}") from None
            figures[stage] = _run_stage(study, stage, force=True)
    _farewell(study, stages, figures.get("profile", {}))


def _run_stage(study: Study, stage: str, force: bool) -> dict[str, Any]:
    from hcs_ray.session import prepare_environment

    prepare_environment()
    module, function, unit = _RUNNERS[stage]
    with _bar(stage, unit) as progress:
        runner: Callable[..., dict[str, Any]] = getattr(importlib.import_module(module), function)
        figures = runner(study, progress, force)
    _say(_figures(figures))
    return figures


def _figures(figures: dict[str, Any]) -> str:
    """One line of small figures, then a line for each with words of its own."""
    plain = [f"{name}: {_words(value)}" for name, value in figures.items() if not _worded(value)]
    lines = [f"  {'; '.join(plain)}"] if plain else []
    lines += [f"  {name + ':':<30}{_words(value)}" for name, value in figures.items() if _worded(value)]
    return "\n".join(lines)


def _worded(value: Any) -> bool:
    return isinstance(value, dict) and "text" in value


def _words(value: Any) -> str:
    if not isinstance(value, dict):
        return str(value)
    if not _worded(value):
        return ", ".join(f"{inner} {name}" for name, inner in value.items())
    chance = {None: "", True: ", above chance", False: ", NOT above chance"}[value.get("above_chance")]
    return f"{value['text']}{chance}"


@contextmanager
def _bar(stage: str, unit: str) -> Iterator[Progress]:
    """A progress bar on standard error; where that is no terminal, a line at the start and the end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True, highlight=False)
    started = time.monotonic()
    seen: list[int] = []
    columns = (
        TextColumn("{task.description:<9}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
    )
    with Bars(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:
        task = bars.add_task(stage, total=None)

        def update(done: int, total: int) -> None:
            if not seen and done == total:
                return  # nothing is left to do
            if not seen and not console.is_terminal:
                console.print(f"{stage:<9} {total} {unit} ...")
            seen.append(done)
            bars.update(task, completed=done, total=total)

        yield update
    state = f"{time.monotonic() - started:.1f} s" if seen else "complete"
    console.print(f"{stage:<9} {state}")


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _farewell(study: Study, stages: list[str], headline: dict[str, Any]) -> None:
    if headline:
        _say(f"\nHeadline\n{_figures(headline)}")
    _say("")
    for stage in stages:
        _say(f"{stage:<9} {study.storage.url}/{study.place(stage).folder}")
    if "report" in stages:
        _say(f"\nNext: open {study.storage.url}/{study.place('report').folder}/index.html in a browser")
    else:
        after = list(_RUNNERS)[list(_RUNNERS).index(stages[-1]) + 1]
        _say(f"\nNext: hcs-ray run {study.storage.url} --name {study.name} --from {after}")
