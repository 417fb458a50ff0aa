"""Tables as people keep them: CSV with commas, semicolons or tabs, from any editor, read as text.

A table is read rightly or refused with its file and row. Rows are counted as lines of the file, the header
being row 1, so that a message names what an editor shows.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from decimal import Decimal
from typing import Final

import numpy as np
import pandas as pd

from hcs_ray.contracts import InputError

# What pandas 3 calls "str", in pandas 2 as well.
TEXT: Final = pd.StringDtype(na_value=np.nan)

_SEPARATORS: Final = (",", ";", "\t")
_FIRST_LINE: Final = re.compile(r"[^\r\n]*[^\s][^\r\n]*")
_NUMBER: Final = re.compile(r"[+-]?([0-9]+([.,][0-9]*)?|[.,][0-9]+)([eE][+-]?[0-9]{1,3})?")
_THOUSANDS: Final = re.compile(r"[+-]?[1-9][0-9]{0,2}(,[0-9]{3})+")
_WHOLE: Final = re.compile(r"([+-]?[0-9]{1,15})(\.0+)?")
_PLAIN_NUMBER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][+-][0-9]{1,3})?")
_PLAIN_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_MAGNITUDE: Final = 15  # beyond it a number is a slip of the pen, and would print as a page of zeros


def read_table(data: bytes, name: str, columns: Sequence[str] = ()) -> pd.DataFrame:
    """A CSV file as text.

    The separator (comma, semicolon or tab) is the one that splits the header; a byte order mark, CRLF and
    empty lines are no part of the table, nor are blanks around a cell.

    Args:
        data: The file's bytes, UTF-8.
        name: How messages call the file.
        columns: Columns that must be there.

    Returns:
        All columns as ``str`` (an empty cell is ""); the index, ``row``, is the line where the row begins.

    Raises:
        InputError: names the file, and the row where there is one.
    """
    text = _text(data, name)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_separator(text), strict=True)
    lines = _lines(reader, name)
    _, header = next(lines, (1, []))
    _check_header(header, name, columns)
    rows, numbers = [], []
    for number, cells in lines:
        if len(cells) != len(header):
            raise InputError(
                f"{name} row {number}: {len(cells)} cells where the header has {len(header)}; "
                "quote cells that hold the separator"
            )
        rows.append(cells)
        numbers.append(number)
    if not rows:
        raise InputError(f"{name}: has no rows")
    return pd.DataFrame(rows, columns=header, index=pd.Index(numbers, name="row"), dtype=TEXT)


def rows_of(table: pd.DataFrame) -> Iterator[tuple[int, dict[str, str]]]:
    """The rows of `read_table` as dicts, with their line numbers."""
    names = list(table.columns)
    for row in table.itertuples(name=None):
        yield int(row[0]), dict(zip(names, row[1:], strict=True))


def decimal(text: str, where: str, what: str = "concentration") -> Decimal:
    """A number that is not negative, with a decimal point or a decimal comma: "0.3", "0,3", "1e-3".

    What could be thousands ("1,000", "1,000.5") is refused rather than guessed.
    """
    cell = text.strip()
    if _THOUSANDS.fullmatch(cell) or ("," in cell and "." in cell):
        raise InputError(f"{where}: {what} {text!r} may have a decimal comma or thousands; write 1000 or 1.0")
    if not _NUMBER.fullmatch(cell):
        raise InputError(f"{where}: {what} {text!r} is not a number")
    value = Decimal(cell.replace(",", "."))
    if value < 0 or (value and not -_MAGNITUDE <= value.adjusted() <= _MAGNITUDE):
        raise InputError(f"{where}: {what} {text!r} is negative or beyond all measure")
    return abs(value)  # -0 is 0


def typed(column: pd.Series) -> pd.Series:
    """Text as numbers where every cell that is not empty is one; an empty cell is missing.

    What loses a digit as a number (00123) or only looks like one (1E5) keeps its column text.
    """
    column = column.astype(TEXT).where(column != "")
    texts = column.dropna().unique()
    if len(texts) and all(_PLAIN_INTEGER.fullmatch(text) for text in texts):
        return column.astype("Int64")
    if len(texts) and all(_PLAIN_NUMBER.fullmatch(text) for text in texts):
        return column.astype("float64")
    return column


def integer(text: str, where: str, what: str) -> int:
    """A whole number: "1", and "1.0" as programs write one that once stood beside an empty cell."""
    match = _WHOLE.fullmatch(text.strip())
    if match is None:
        raise InputError(f"{where}: {what} {text!r} is not a whole number")
    return int(match.group(1))


def _text(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{name} row {row}: byte 0x{data[error.start]:02x} is not UTF-8; save the table as UTF-8"
        ) from None
    if "\0" in text:
        row = text.count("\n", 0, text.index("\0")) + 1
        raise InputError(f"{name} row {row}: holds a NUL byte; save the table as UTF-8 text")
    return text


def _separator(text: str) -> str:
    """The separator that splits the first line that is not empty into most cells; a comma where none does."""
    header = _FIRST_LINE.search(text)
    bare = re.sub(r'"[^"]*"', "", header.group()) if header else ""  # what stands in quotes does not separate
    return max(_SEPARATORS, key=bare.count)


def _lines(reader: Iterator[list[str]], name: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not empty, each with the line where it begins (a quoted cell may hold line breaks)."""
    begins = 1
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise InputError(f"{name} row {begins}: not a readable CSV table: {error}") from None
        stripped = [cell.strip() for cell in cells]
        if any(stripped):
            yield begins, stripped
        begins = reader.line_num + 1  # type: ignore[attr-defined]


def _check_header(header: list[str], name: str, columns: Sequence[str]) -> None:
    if not header:
        raise InputError(f"{name}: is empty")
    if again := next((column for column in header if header.count(column) > 1), None):
        raise InputError(f"{name} row 1: has the column {again} twice")
    if "" in header:
        raise InputError(f"{name} row 1: column {header.index('') + 1} has no name")
    if missing := [column for column in columns if column not in header]:
        raise InputError(f"{name}: has no column {', '.join(missing)}; it has {', '.join(header[:12])}")
