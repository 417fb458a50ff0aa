"""Who says something, and about which fields: options that several commands share."""

from __future__ import annotations

import csv
import getpass
from pathlib import Path
from typing import Annotated

import typer

from hcs_ray.contracts import KEY, InputError

Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY...", help="Fields, as Week1_22123_B02_s1.")]
KeysFile = Annotated[
    Path | None,
    typer.Option("--keys", metavar="FILE", help="More keys: the first column of a CSV, or one a line."),
]


def chosen_keys(keys: list[str] | None, listed: Path | None) -> list[str]:
    """The keys that a command names, then those of its file; each once."""
    return list(dict.fromkeys([*(keys or []), *(_first_column(listed) if listed else [])]))


def login_name() -> str:
    """Whose account this is; a container's user may have none."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        raise InputError("who decides? give a name with --user") from None


def _first_column(file: Path) -> list[str]:
    """Without a heading; a spreadsheet may have put a byte-order mark before it."""
    try:
        rows = list(csv.reader(file.read_text("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--keys {file}: cannot be read: {error}") from None
    cells = [row[0].strip() for row in rows if row]
    return [cell for cell in cells if cell and cell != KEY]
