"""`hcs-ray fields`: some fields as files that image programs open."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hcs_ray.cli.app import Target, app, bar, open_target, say
from hcs_ray.contracts import InputError

_EXAMPLE = "Example: hcs-ray fields hcs-demo Week1_22121_B02_s1 Week1_22121_B03_s1 --out for-napari"


@app.command(rich_help_panel="From raw images to a report", epilog=_EXAMPLE)
def fields(
    study: Target,
    keys: Annotated[list[str] | None, typer.Argument(metavar="KEY...", help="As in the explorer.")] = None,
    out: Annotated[str, typer.Option("--out", help="The folder, or s3:// prefix, for <key>.ome.tiff.")] = "",
    listed: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="More keys: the first column of a CSV, or one a line."),
    ] = None,
    corrected: Annotated[
        bool, typer.Option("--corrected", help="Divide out the plate's illumination; 32-bit floats.")
    ] = False,
    pixel_um: Annotated[
        float | None, typer.Option("--pixel-um", min=1e-6, help="Side of a pixel in micrometres, if known.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Write over files that are there.")] = False,
) -> None:
    """Write fields as OME-TIFF, for napari or Fiji: all channels, the true 16 bits."""
    from hcs_ray.export.ome_tiff import write_fields
    from hcs_ray.storage import open_storage

    chosen = [*(keys or []), *(_listed(listed) if listed else [])]
    if not out:
        raise InputError("--out FOLDER: say where the files go")
    if not chosen:
        raise InputError("no KEY; name fields, or a file of them with --keys")
    opened = open_target(study, "main", None)
    target = open_storage(out, opened.storage.options)
    with bar("fields", "fields") as progress:
        names = write_fields(
            opened, chosen, target, progress, corrected=corrected, pixel_um=pixel_um, force=force
        )
    say(f"{len(names)} OME-TIFFs in {target.url}")


def _listed(file: Path) -> list[str]:
    """The first cells of a file's lines, without a heading."""
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--keys {file}: cannot be read: {error}") from None
    cells = [line.split(",")[0].strip().strip('"') for line in lines]
    return [cell for cell in cells if cell and cell != "key"]
