"""The commands. A stage's module, with torch or Ray behind it, is loaded only when that stage runs."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from hcs_ray.contracts import HcsError, InputError, Progress
from hcs_ray.figure_lines import figure_lines

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
    "train": ("hcs_ray.train", "train", "steps"),
    "embed": ("hcs_ray.embed", "embed", "fields"),
    "profile": ("hcs_ray.profiles.build", "profile", "steps"),
    "map": ("hcs_ray.maps", "make_map", "fields"),
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
    size: Annotated[
        str,
        typer.Option(
            help="demo, smallest, bbbc021 (55 plates of 60 wells), or cellpainting (5 channels, 384 wells)."
        ),
    ] = "demo",
    seed: Annotated[int, typer.Option(min=0)] = 0,
    overrides: Overrides = None,
) -> None:
    """Draw a raw screen, its truth in truth.parquet; print the section of a study.yaml that reads it."""
    from pathlib import Path

    import yaml

    from hcs_ray.screen.synthetic import SyntheticConfig, generate, screen_section

    config = _synthetic(SyntheticConfig, size, seed, overrides or [])
    with _bar("generate", "fields") as progress:
        generate(config, Path(folder), progress=progress)
    _say(f"Raw screen in {folder}. Next: write a study.yaml beside it with these lines; run hcs-ray shard.")
    section = screen_section(config, Path(folder).name)
    typer.echo(yaml.safe_dump({"screen": section}, sort_keys=False), nl=False)


@app.command(epilog="Example: hcs-ray download my-study/raw --plates Week1_22123,Week1_22141")
def download(
    folder: Annotated[str, typer.Argument(help="A local folder for zips and tables, as in my-study/raw.")],
    plates: Annotated[
        list[str] | None, typer.Option(help="Only these, with commas between or one option each.")
    ] = None,
    address: Annotated[
        str | None, typer.Option("--from", metavar="URL", help="Where they lie; by default at the Broad.")
    ] = None,
    jobs: Annotated[int, typer.Option(help="Files at a time.")] = 4,
    check: Annotated[bool, typer.Option("--check", help="Read what was checked before once more.")] = False,
) -> None:
    """Fetch BBBC021 (55 zips, 3 tables), check every byte, and go on where it was stopped."""
    from hcs_ray.screen.download import ADDRESS, Request, farewell
    from hcs_ray.screen.download import download as fetch

    request = Request(folder, tuple(plates or ()), address or ADDRESS, jobs, check)
    outcome = fetch(request, _bar, _say)
    _say(farewell(folder, outcome))
    if outcome.failed:
        raise HcsError(f"{len(outcome.failed)} files could not be fetched; {outcome.failed[0]}")


def _one_stage(study: Study, stage: str, force: bool, as_json: bool) -> None:
    from hcs_ray.storage import preflight

    preflight(study.storage)
    figures = _run_stage(study, stage, force)
    _say(_next_step(study, stage))
    if as_json:
        typer.echo(json.dumps(figures))


def _stage_command(stage: str, help_text: str) -> None:
    def command(
        study: Target,
        name: Name = "main",
        overrides: Overrides = None,
        force: Force = False,
        as_json: Json = False,
    ) -> None:
        _one_stage(_open(study, name, overrides), stage, force, as_json)

    example = f"Example: hcs-ray {stage} hcs-demo --name main"
    app.command(stage, help=help_text, epilog=example)(command)


_stage_command("shard", "Turn raw images into verified WebDataset shards with an index.")
_stage_command("split", "Divide the compounds into training, validation and test.")
_stage_command("train", "Train the network, data-parallel; goes on from its newest checkpoint.")
_stage_command("map", "Lay all fields out in two dimensions with UMAP.")
_stage_command("outliers", "Score how unusual each field is, with a reason for the most unusual.")
_stage_command("report", "Write the report, one HTML file.")


@app.command(epilog="Example: hcs-ray profile hcs-demo --folds loco")
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
    opened = _open(study, name, overrides)
    if compare and folds is not None:
        raise InputError("--compare and --folds: one at a time")
    if compare:
        _compare(opened, force, as_json)
        return
    if folds is None:
        _one_stage(opened, "profile", force, as_json)
        return
    from hcs_ray.profiles.fold_stage import profile_folds
    from hcs_ray.storage import preflight

    preflight(opened.storage)
    with _bar("folds", "settings") as progress:
        figures = profile_folds(opened, folds, progress, force)
    _say(figure_lines(figures))
    _say(f"All of it: {opened.storage.url}/{opened.place('folds').folder}/folds.json")
    if as_json:
        typer.echo(json.dumps(figures))


def _compare(study: Study, force: bool, as_json: bool) -> None:
    from hcs_ray.profiles.compare import compare, next_step, show_comparison
    from hcs_ray.storage import preflight

    preflight(study.storage)
    with _bar("compare", "normalisations") as progress:
        figures = compare(study, progress, force)
    show_comparison(study)
    _say(next_step(study))
    if as_json:
        typer.echo(json.dumps(figures))


@app.command(epilog="Example: hcs-ray embed hcs-demo --run sweep:first/best")
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

    opened = _open(study, name or (sweep_of(source) if source else None) or "main", overrides)
    _one_stage(opened.with_run(source) if source else opened, "embed", force, as_json)
    if formats:
        _export(opened, formats, force)


@app.command(epilog="Example: hcs-ray export hcs-demo --to anndata --to gallery")
def export(
    study: Target,
    formats: Annotated[
        list[str],
        typer.Option(
            "--to", help="anndata: one .h5ad; gallery: the Cell Painting Gallery's folders. One option each."
        ),
    ],
    name: Name = "main",
    overrides: Overrides = None,
    force: Force = False,
) -> None:
    """Write embeddings, the map and profiles as other tools read them, below exports/NAME."""
    from hcs_ray.storage import preflight

    opened = _open(study, name, overrides)
    preflight(opened.storage)
    _export(opened, formats, force)


def _export(study: Study, formats: list[str], force: bool) -> None:
    from hcs_ray.export import export as write

    with _bar("export", "fields") as progress:
        figures = write(study, formats, progress, force)
    _say(figure_lines(figures))


@app.command(epilog="Example: hcs-ray tune hcs-demo tune_configs/smoke.yaml --name first")
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

    opened = _open(study, name, overrides)
    preflight(opened.storage)
    with _bar("tune", "trials") as progress:
        figures = run_tune(opened, sweep, progress, force, _say)
    show_leaderboard(opened)
    _say(figure_lines(figures))
    _say(written(opened))
    _say(next_step(opened))


def _column(option: str, what: str) -> Any:
    return typer.Option(f"--{option}", metavar="COLUMN", help=f"The column of {what}.")


@app.command(
    epilog="Example: hcs-ray score profiles.csv.gz --plate Image_Metadata_Plate --well Image_Metadata_Well "
    "--image-table BBBC021_v1_image.csv --moa-table BBBC021_v1_moa.csv --normalize standardize "
    "--distance correlation --json"
)
def score(
    table: Annotated[str, typer.Argument(metavar="TABLE", help="Profiles: .csv(.gz), .parquet or .h5ad.")],
    plate: Annotated[str | None, _column("plate", "the plate; common names are found without")] = None,
    well: Annotated[str | None, _column("well", "the well (B02)")] = None,
    batch: Annotated[str | None, _column("batch", "the batch or week; without one there is no NSCB")] = None,
    compound: Annotated[str | None, _column("compound", "the compound")] = None,
    concentration: Annotated[str | None, _column("concentration", "the concentration")] = None,
    treatment: Annotated[str | None, _column("treatment", "the treatment, where no concentration is")] = None,
    moa: Annotated[str | None, _column("moa", "the mechanism of action")] = None,
    pert_type: Annotated[str | None, _column("pert-type", "the role: trt, negcon, poscon")] = None,
    negative_control: Annotated[
        list[str] | None,
        typer.Option("--negative-control", metavar="COMPOUND", help="By default DMSO, if no role is told."),
    ] = None,
    positive_control: Annotated[
        str | None,
        typer.Option(
            "--positive-control",
            metavar="COMPOUND@DOSE",
            help="Of --image-table: taxol@0.3 by default, told by its wells on half of the plates; or none.",
        ),
    ] = None,
    features: Annotated[
        list[str] | None,
        typer.Option(metavar="PREFIX", help="Of features, with commas; by default all numbers but metadata."),
    ] = None,
    moa_table: Annotated[
        str | None, typer.Option(metavar="FILE", help="CSV of compound, concentration, moa.")
    ] = None,
    image_table: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="CSV of plate, well, compound, concentration (BBBC021's)."),
    ] = None,
    normalize: Annotated[
        str, typer.Option(help="On the negative controls, as profile.normalization: standardize, center ...")
    ] = "none",
    aggregate: Annotated[str, typer.Option(help="Wells to treatments: mean or median.")] = "mean",
    field_aggregate: Annotated[
        str, typer.Option(help="Rows of one well (fields) to wells: mean or median.")
    ] = "mean",
    distance: Annotated[str, typer.Option(help="cosine or correlation.")] = "cosine",
    missing: Annotated[
        str, typer.Option(help="Values that are missing: refuse, drop-features or drop-rows.")
    ] = "refuse",
    neighbours: Annotated[
        str | None, typer.Option(metavar="FILE.csv", help="Write every query with its neighbour.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Draws of intervals and nulls.")] = 2000,
    seed: Annotated[int, typer.Option(min=0)] = 0,
    as_json: Json = False,
) -> None:
    """Score anybody's profiles: NSC and NSCB, with every rule that was followed."""
    from hcs_ray.profiles.score import Settings
    from hcs_ray.profiles.score_lines import score_lines
    from hcs_ray.profiles.score_table import Request, score_table
    from hcs_ray.profiles.wells_of import Description

    columns = {
        "plate": plate, "well": well, "batch": batch, "compound": compound, "concentration": concentration,
        "treatment": treatment, "moa": moa, "pert_type": pert_type,
    }  # fmt: skip
    named = {role: name for role, name in columns.items() if name is not None}
    told: Any = {"method": normalize, "how": aggregate, "field_how": field_aggregate, "missing": missing}
    metric: Any = distance
    answer = score_table(
        Request(
            table,
            Description(named, moa_table, image_table, tuple(negative_control or ()), positive_control),
            tuple(part for text in features or () for part in text.split(",") if part),
            settings=Settings(metric, resamples, seed),
            **told,
        )
    )
    if neighbours is not None:
        answer.write_queries(neighbours)
        _say(f"Every query with its neighbour: {neighbours}")
    typer.echo(json.dumps(answer.told, indent=1) if as_json else score_lines(answer.told))


@app.command(epilog="Example: hcs-ray verify hcs-demo --repair")
def verify(
    study: Target,
    name: Name = "main",
    overrides: Overrides = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Make damaged or missing shards again from the raw images.")
    ] = False,
) -> None:
    """Read every output of every complete stage; name what is damaged, missing or surplus."""
    from hcs_ray.verify import verify as read_all

    opened = _open(study, name, overrides)
    with _bar("verify", "files") as progress:
        checked, flaws = read_all(opened, progress)
    for flaw in flaws:
        typer.echo(str(flaw))
    shards = {flaw.path for flaw in flaws if flaw.stage == "shard" and flaw.mendable}
    if repair and shards:
        _repair(opened, shards)
        with _bar("verify", "files") as progress:
            checked, flaws = read_all(opened, progress)
    if flaws:
        raise HcsError(_what_to_do({flaw.stage for flaw in flaws if flaw.mendable}, len(flaws)))
    _say(f"  {checked} files are as they were written")


def _repair(study: Study, paths: set[str]) -> None:
    from hcs_ray.session import prepare_environment

    prepare_environment()
    from hcs_ray.shards.repair import repair_shards

    with _bar("repair", "fields") as progress:
        repair_shards(study, paths, progress)


def _what_to_do(stages: set[str], flaws: int) -> str:
    found = f"{flaws} {'flaw' if flaws == 1 else 'flaws'} found"
    others = [f"hcs-ray {stage} STUDY --force" for stage in _RUNNERS if stage in stages - {"shard"}]
    others += ["hcs-ray profile STUDY --compare --force"] if "compare" in stages else []
    shards = ["hcs-ray verify STUDY --repair"] if "shard" in stages else []
    return f"{found}; make them again with {', then '.join([*shards, *others])}" if shards + others else found


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

    if size not in ("demo", "smallest", "bbbc021", "cellpainting"):
        raise InputError(f"--size {size}: it is demo, smallest, bbbc021 or cellpainting")
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
    _say(figure_lines(figures))
    return figures


def _bar(stage: str, unit: str) -> AbstractContextManager[Progress]:
    from hcs_ray.progress import progress_bar

    return progress_bar(stage, unit)


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def _farewell(study: Study, stages: list[str], headline: dict[str, Any]) -> None:
    if headline:
        _say(f"\nHeadline\n{figure_lines(headline)}")
    _say("")
    for stage in stages:
        _say(f"{stage:<9} {study.storage.url}/{study.place(stage).folder}")
    _say(f"\n{_next_step(study, stages[-1])}")


def _next_step(study: Study, done: str) -> str:
    if done == "report":
        return f"Next: open {study.storage.url}/{study.place('report').folder}/index.html in a browser"
    after = list(_RUNNERS)[list(_RUNNERS).index(done) + 1]
    # The report tells of the training of a run of its own name.
    last = " --to outliers" if study.run is not None else ""
    return f"Next: hcs-ray run {study.storage.url} --name {study.name} --from {after}{last}"
