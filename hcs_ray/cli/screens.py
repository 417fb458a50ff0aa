"""The commands that bring raw screens here, and the one that looks whether all is still there."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hcs_ray.cli.app import Name, Overrides, Target, app, bar, open_target, say
from hcs_ray.cli.running import RUNNERS
from hcs_ray.contracts import HcsError, InputError

if TYPE_CHECKING:
    from hcs_ray.study import Study

_command = partial(app.command, rich_help_panel="Screens")


@_command("generate", epilog="Example: hcs-ray generate my-study/raw --set artefact_rate=0.1")
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
    with bar("generate", "fields") as progress:
        generate(config, Path(folder), progress=progress)
    say(f"Raw screen in {folder}. Next: write a study.yaml beside it with these lines; run hcs-ray shard.")
    section = screen_section(config, Path(folder).name)
    typer.echo(yaml.safe_dump({"screen": section}, sort_keys=False), nl=False)


def _synthetic(model: Any, size: str, seed: int, overrides: list[str]) -> Any:
    from hcs_ray.config import with_overrides

    if size not in ("demo", "smallest", "bbbc021", "cellpainting"):
        raise InputError(f"--size {size}: it is demo, smallest, bbbc021 or cellpainting")
    return with_overrides(model.preset(size, seed=seed), overrides, f"--size {size}")


@_command(epilog="Example: hcs-ray download my-study/raw --plates Week1_22123,Week1_22141")
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
    outcome = fetch(request, bar, say)
    say(farewell(folder, outcome))
    if outcome.failed:
        raise HcsError(f"{len(outcome.failed)} files could not be fetched; {outcome.failed[0]}")


@_command(epilog="Example: hcs-ray verify hcs-demo --repair")
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

    opened = open_target(study, name, overrides)
    with bar("verify", "files") as progress:
        checked, flaws = read_all(opened, progress)
    for flaw in flaws:
        typer.echo(str(flaw))
    shards = {flaw.path for flaw in flaws if flaw.stage == "shard" and flaw.mendable}
    if repair and shards:
        _repair(opened, shards)
        with bar("verify", "files") as progress:
            checked, flaws = read_all(opened, progress)
    if flaws:
        raise HcsError(_what_to_do({flaw.stage for flaw in flaws if flaw.mendable}, len(flaws)))
    say(f"  {checked} files are as they were written")


def _repair(study: Study, paths: set[str]) -> None:
    from hcs_ray.session import prepare_environment

    prepare_environment()
    from hcs_ray.shards.repair import repair_shards

    with bar("repair", "fields") as progress:
        repair_shards(study, paths, progress)


_BESIDE = {
    "compare": "profile STUDY --compare",
    "folds": "profile STUDY --folds SWEEP",
    "tune": "tune STUDY SWEEP.yaml",
}


def _what_to_do(stages: set[str], flaws: int) -> str:
    found = f"{flaws} {'flaw' if flaws == 1 else 'flaws'} found"
    others = [f"hcs-ray {stage} STUDY --force" for stage in RUNNERS if stage in stages - {"shard"}]
    others += [f"hcs-ray {command} --force" for stage, command in _BESIDE.items() if stage in stages]
    exports = sorted(stage.removeprefix("export ") for stage in stages if stage.startswith("export "))
    others += [f"hcs-ray export STUDY --to {form} --force" for form in exports]
    shards = ["hcs-ray verify STUDY --repair"] if "shard" in stages else []
    return f"{found}; make them again with {', then '.join([*shards, *others])}" if shards + others else found
