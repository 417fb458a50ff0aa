"""`hcs-ray fields`: some fields as files that image programs open."""

from __future__ import annotations

from typing import Annotated

import typer

from hcs_ray.cli.app import Target, app, bar, open_target, say
from hcs_ray.cli.chosen import Keys, KeysFile, chosen_keys
from hcs_ray.contracts import InputError

_EXAMPLE = "Example: hcs-ray fields hcs-demo Week1_22121_B02_s1 Week1_22121_B03_s1 --out for-napari"


@app.command(rich_help_panel="From raw images to a report", epilog=_EXAMPLE)
def fields(
    study: Target,
    keys: Keys = None,
    out: Annotated[str, typer.Option("--out", help="The folder, or s3:// prefix, for <key>.ome.tiff.")] = "",
    listed: KeysFile = None,
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

    chosen = chosen_keys(keys, listed)
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
