"""Tables from any editor are read rightly or refused by file and row; wells have one name and one place."""

from __future__ import annotations

import csv
import io
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcs_ray.contracts import InputError
from hcs_ray.screen.tables import decimal, integer, read_table, rows_of
from hcs_ray.screen.wells import (
    FORMATS,
    padded_well,
    plate_format,
    row_letters,
    row_number,
    well_name,
    well_position,
)

PLAIN = "well,compound,um\nA1,taxol,0.3\nA2,DMSO,0\n"
ROWS = [
    (2, {"well": "A1", "compound": "taxol", "um": "0.3"}),
    (3, {"well": "A2", "compound": "DMSO", "um": "0"}),
]


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "\ufeff" + PLAIN,
        PLAIN.rstrip("\n"),
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace("taxol", ' "taxol" ').replace(' "', '"').replace('" ', '"'),
        PLAIN.replace(",", " , "),
        "\ufeff" + PLAIN.replace(",", ";").replace("\n", "\r\n") + ";;\r\n\r\n",
    ],
)
def test_a_table_is_the_same_from_any_editor(text: str) -> None:
    assert list(rows_of(read_table(text.encode(), "t.csv", ("well", "um")))) == ROWS


def test_rows_are_counted_as_lines_of_the_file() -> None:
    text = 'a,b\n\n1,"two\nlines"\n\n3,4\n'
    assert [(row, cells["a"]) for row, cells in rows_of(read_table(text.encode(), "t.csv"))] == [
        (3, "1"),
        (6, "3"),
    ]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "t.csv: is empty"),
        (b"\n\n", "t.csv: is empty"),
        (b"a,b,c\n", "t.csv: has no rows"),
        (b"a,a\n1,2\n", "t.csv row 1: has the column a twice"),
        (b"a,,c\n1,2,3\n", "t.csv row 1: column 2 has no name"),
        (b"a,x\n1,2\n", "t.csv: has no column b, c; it has a, x"),
        (b"a;b;c\n1;2\n", "t.csv row 2: 2 cells where the header has 3"),
        (b"a,b,c\n1,2,0,3\n", "t.csv row 2: 4 cells where the header has 3; quote cells"),
        (b"a,b,c\n1,2,3\n1,caf\xe9,3\n", "t.csv row 3: byte 0xe9 is not UTF-8"),
        ("a,b,c\n1,2,3\n".encode("utf-16"), "t.csv row 1: byte 0xff is not UTF-8"),
        (b"a,b,c\n1,2\0,3\n", "t.csv row 2: holds a NUL byte"),
        (b'a,b,c\n1,"2,3\n', "t.csv row 2: not a readable CSV table"),
        (b'a,b,c\n1,"2"x,3\n', "t.csv row 2: not a readable CSV table"),
    ],
)
def test_a_table_that_cannot_be_read_says_where(data: bytes, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_table(data, "t.csv", ("a", "b", "c"))
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


CELL = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=8).map(str.strip)


@given(st.lists(st.tuples(CELL, CELL, st.just("x")), min_size=1), st.sampled_from([",", ";", "\t"]))
def test_what_a_program_writes_is_read_back(rows: list[tuple[str, ...]], separator: str) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=separator)
    writer.writerows([("a", "b", "c"), *rows])
    table = read_table(buffer.getvalue().encode(), "t.csv")
    assert [tuple(cells.values()) for _, cells in rows_of(table)] == rows


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0.3", "0.3"), ("0,3", "0.3"), ("1e-3", "0.001"), ("1E3", "1000"), ("0,003", "0.003"),
        ("+.5", "0.5"), ("3.", "3"), ("1000", "1000"), ("1,25", "1.25"), ("0.300000", "0.3"), (" 2 ", "2"),
        ("-0", "0"), ("10,0000", "10"),
    ],
)  # fmt: skip
def test_numbers_are_read_as_they_are_meant(text: str, value: str) -> None:
    assert decimal(text, "t.csv row 2") == Decimal(value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,000", "may have a decimal comma or thousands"),
        ("12,000,000", "may have a decimal comma or thousands"),
        ("1,000.5", "may have a decimal comma or thousands"),
        ("1.000,5", "may have a decimal comma or thousands"),
        ("-1", "is negative"),
        ("1e99", "beyond all measure"),
        ("1e-99", "beyond all measure"),
        *(
            (text, "is not a number")
            for text in ("", "inf", "nan", "0.3 uM", "1_000", "٣", "1e", "0x1", "1 000")
        ),
    ],
)
def test_what_is_no_concentration_is_refused(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        decimal(text, "t.csv row 2")
    assert str(caught.value).startswith(f"t.csv row 2: concentration {text!r} ")
    assert words in str(caught.value)


@given(st.decimals(0, 10**6, allow_nan=False, allow_infinity=False, places=6))
def test_a_decimal_comma_says_what_a_point_says(value: Decimal) -> None:
    assert decimal(str(value), "t") == decimal(str(value).replace(".", ","), "t") == value


def test_whole_numbers() -> None:
    assert [integer(text, "t", "site") for text in ("1", " 12", "3.0", "-4")] == [1, 12, 3, -4]
    for text in ("", "1.5", "one", "1e3", "1,0"):
        with pytest.raises(InputError, match=r"t row 2: site .* is not a whole number"):
            integer(text, "t row 2", "site")


@given(st.integers(0, 31), st.integers(0, 47))
def test_each_well_has_one_name_and_one_place(row: int, column: int) -> None:
    name = well_name(row, column)
    assert well_position(name, "t") == (row, column)
    assert padded_well(f"{row_letters(row).lower()}{column + 1}", "t") == name
    assert row_number(row_letters(row)) == row


def test_wells_as_people_write_them() -> None:
    assert [padded_well(text, "t") for text in ("A1", "a01", "A001", "H12", "p24", "AF48", " b2 ")] == [
        "A01", "A01", "A01", "H12", "P24", "AF48", "B02",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "text", ["", "A", "1", "A0", "A49", "AG1", "Z99", "ZZ1", "A-1", "A1.0", "A１", "AAA1", "1A"]
)
def test_what_is_no_well_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"t row 2: .* is not a well such as B02"):
        padded_well(text, "t row 2")


@pytest.mark.parametrize(
    ("wells", "count"),
    [
        ([], 6), (["A01"], 6), (["B03"], 6), (["C01"], 12), (["D06"], 24), (["F08"], 48), (["G01"], 96),
        (["B02", "G11"], 96), (["A12"], 96), (["A13"], 384), (["I01"], 384), (["P24"], 384), (["Q01"], 1536),
        (["AF48"], 1536),
    ],
)  # fmt: skip
def test_the_smallest_plate_that_holds_the_wells(wells: list[str], count: int) -> None:
    assert plate_format(wells).wells == count


def test_the_plates_are_the_standard_ones() -> None:
    assert [plate.wells for plate in FORMATS] == [6, 12, 24, 48, 96, 384, 1536]
