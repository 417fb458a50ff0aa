"""Wells by name and by place, and the standard plates, from 6 to 1,536 wells."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from hcs_ray.contracts import InputError

_WELL: Final = re.compile(r"([A-Za-z]{1,2})0*([1-9][0-9]?)")


class PlateFormat(NamedTuple):
    """A standard plate."""

    wells: int
    rows: int
    columns: int


FORMATS: Final = tuple(
    PlateFormat(rows * columns, rows, columns)
    for rows, columns in ((2, 3), (3, 4), (4, 6), (6, 8), (8, 12), (16, 24), (32, 48))
)
_LARGEST: Final = FORMATS[-1]


def row_letters(row: int) -> str:
    """The name of a row counted from 0: A .. Z, AA .. AF."""
    return chr(ord("A") + row) if row < 26 else f"A{chr(ord('A') + row - 26)}"


def row_number(letters: str) -> int:
    """The row, from 0, that is called A .. Z, AA ..; ``ValueError`` where no plate has it."""
    names = [row_letters(row) for row in range(_LARGEST.rows)]
    return names.index(letters.upper())


def well_position(text: str, where: str) -> tuple[int, int]:
    """Row and column, from 0, of a well written as A1, a01 or AF48.

    Raises:
        InputError: it is no well of a plate with at most 1,536 wells; ``where`` begins the message.
    """
    match = _WELL.fullmatch(text.strip())
    column = int(match.group(2)) - 1 if match else _LARGEST.columns
    try:
        row = row_number(match.group(1)) if match else _LARGEST.rows
    except ValueError:
        row = _LARGEST.rows
    if row >= _LARGEST.rows or column >= _LARGEST.columns:
        raise InputError(f"{where}: {text!r} is not a well such as B02 (A01 to AF48)")
    return row, column


def well_name(row: int, column: int) -> str:
    """The name of the well in a row and column counted from 0: B02."""
    return f"{row_letters(row)}{column + 1:02d}"


def padded_well(text: str, where: str) -> str:
    """A well's name as all our tables have it: "b2" -> "B02"."""
    return well_name(*well_position(text, where))


def plate_format(wells: Iterable[str]) -> PlateFormat:
    """The smallest standard plate with all these wells; `InputError` where one is none."""
    places = [well_position(well, "plate") for well in wells]
    rows = max((row for row, _ in places), default=0)
    columns = max((column for _, column in places), default=0)
    return next(plate for plate in FORMATS if rows < plate.rows and columns < plate.columns)
