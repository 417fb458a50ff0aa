"""The command that scores anybody's profiles."""

from __future__ import annotations

import json
from functools import partial
from typing import Annotated, Any

import typer

from hcs_ray.cli.app import Json, app, say

_command = partial(app.command, rich_help_panel="Scores")


def _column(option: str, what: str) -> Any:
    return typer.Option(f"--{option}", metavar="COLUMN", help=f"The column of {what}.")


@_command(
    epilog="Example: hcs-ray score profiles.csv.gz --plate Image_Metadata_Plate --well Image_Metadata_Well "
    "--image-table BBBC021_v1_image.csv --moa-table BBBC021_v1_moa.csv --normalize standardize "
    "--distance correlation --json",
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
        str, typer.Option(help="On the negative controls, as profile.normalization: center_scale ...")
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
        say(f"Every query with its neighbour: {neighbours}")
    typer.echo(json.dumps(answer.told, indent=1) if as_json else score_lines(answer.told))
