"""Tables of a `load_data` screen, however written, become wells and roles, or one line says what is wrong."""

from __future__ import annotations

import unicodedata
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from hcs_ray import contracts as c
from hcs_ray.screen.tables import typed
from tests.jump_screen import (
    BARCODES,
    COMPOUND_TABLE,
    FIRST,
    MAP,
    SIMPLE,
    Change,
    Table,
    columns,
    edit,
    frame,
    load,
    opened,
    refused,
    save,
    set_cell,
    write_jump,
    write_simple,
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_jump(tmp_path / "raw", "BR00117035", "BR00117036")


# --- how tables are written -----------------------------------------------------------------------


def rewrite(path: Path, separator: str, ending: str, mark: str = "") -> None:
    text = load(path).to_csv(sep=separator, index=False, lineterminator=ending)
    path.write_bytes((mark + text).encode())


@pytest.mark.parametrize(
    ("separator", "ending", "mark"), [(";", "\n", "\ufeff"), ("\t", "\r\n", ""), (",", "\r\n\r\n", "\ufeff")]
)
def test_a_table_says_the_same_however_it_is_written(
    raw: Path, separator: str, ending: str, mark: str
) -> None:
    before = opened(raw)
    for path in [*raw.rglob("load_data.csv"), *raw.rglob("barcode_platemap.csv")]:
        rewrite(path, separator, ending, mark)
    after = opened(raw)
    pd.testing.assert_frame_equal(after.fields, before.fields)
    assert after.plates == before.plates
    assert after.tables != before.tables


@pytest.mark.parametrize(
    ("written", "unit", "name"),
    [
        ("0,3", "uM", "taxol@0.3"),
        ("1e-3", "mM", "taxol@1"),
        ("1.e-001", "uM", "taxol@0.1"),
        ("300", "nM", "taxol@0.3"),
        ("0.0000003", "M", "taxol@0.3"),
        ("10.00", "uM", "taxol@10"),
    ],
)
def test_concentrations_are_exact_decimals_in_any_unit(raw: Path, written: str, unit: str, name: str) -> None:
    for path in raw.rglob("MAP-1.txt"):
        edit(path, set_cell("mmoles_per_liter", written))
    fields = opened(raw, concentration_unit=unit).fields
    row = fields[(fields[c.COMPOUND] == "taxol") & (fields[c.PLATE] == "BR00117035")].iloc[0]
    assert row[c.TREATMENT] == name
    assert row[c.CONCENTRATION] == float(name.partition("@")[2])


def test_concentrations_are_rounded_only_where_that_is_asked_for(raw: Path) -> None:
    edit(next(raw.rglob("MAP-1.txt")), set_cell("mmoles_per_liter", "9.99999999999999999"))
    assert "taxol@9.99999999999999999" in set(opened(raw).fields[c.TREATMENT])
    assert "taxol@9.99999999999999999" not in set(opened(raw, concentration_digits=6).fields[c.TREATMENT])


@pytest.mark.parametrize("written", ["Plättchen 1.b", "板/α"])
def test_any_plate_name_is_kept_and_makes_a_safe_key(tmp_path: Path, written: str) -> None:
    raw = write_simple(tmp_path, Metadata_Plate=written)
    save(
        raw / "layout.csv",
        frame({"Plate": unicodedata.normalize("NFD", written), "well": "A01", "Dose": "3"}),
    )
    screen = opened(
        raw, SIMPLE, treatments=["layout.csv"], columns={"concentration": "Dose", "well": "Metadata_Well"}
    )
    row = screen.fields.iloc[0]
    assert list(screen.plates) == [written] == [row[c.PLATE]]
    assert row[c.KEY] == f"{c.safe_name(written)}_A01_s1"
    assert row[c.KEY].isascii()


TYPED = ("Passage", "Barcode", "Row", "T")


def test_columns_are_numbers_where_every_value_is_one(tmp_path: Path) -> None:
    raw = write_simple(
        tmp_path, Metadata_Passage="7", Metadata_Barcode="00123", Metadata_Row="1E5", Metadata_T="36.6"
    )
    extra = {"Metadata_Site": "2", "Metadata_Passage": "", "Metadata_T": "3e-1"}
    edit(raw / "load_data.csv", lambda table: pd.concat([table, table.assign(**extra)]))
    fields = opened(raw, SIMPLE).fields
    assert fields["Metadata_Passage"].fillna("").tolist() == ["7", ""], "text, until all plates are known"
    columns = {name: typed(fields[f"Metadata_{name}"].fillna("")).tolist() for name in TYPED}
    assert columns["Passage"] == [7, pd.NA]
    assert columns["Barcode"] == ["00123", "00123"]
    assert columns["Row"] == ["1E5", "1E5"]
    assert columns["T"] == [36.6, 0.3]


def test_a_column_of_our_name_that_says_something_else_is_kept_beside_ours(tmp_path: Path) -> None:
    raw = write_simple(
        tmp_path, Metadata_Treatment="A", Metadata_moa="inert", Metadata_Gene="BRAF", Metadata_Barcode="B7"
    )
    fields = opened(raw, SIMPLE, columns={"compound": "Gene", "plate": "Barcode"}).fields
    assert fields[c.COMPOUND].tolist() == ["BRAF"]
    assert fields[c.PLATE].tolist() == ["B7"]
    assert fields["Metadata_OriginalPlate"].tolist() == ["P1"]
    assert fields["Metadata_OriginalCompound"].tolist() == ["DMSO"]
    assert fields["Metadata_OriginalTreatment"].tolist() == ["A"]
    assert fields["Metadata_Originalmoa"].tolist() == ["inert"]


# --- what is refused ------------------------------------------------------------------------------


def again(table: Table) -> Table:
    return pd.concat([table, table.iloc[[0]]])


def also(**cells: str) -> Change:
    return lambda table: pd.concat([table, table.assign(**cells)])


def unknown(table: Table) -> Table:
    return table.iloc[[1]].assign(broad_sample="BRD-7")


@pytest.mark.parametrize(
    ("path", "change", "words"),
    [
        (FIRST, again, ["row 5", "site 1 of plate 'BR00117035' well A01 stands already in", "row 2"]),
        (FIRST, set_cell("Metadata_Well", "Z99"), ["row 3", "'Z99' is not a well"]),
        (FIRST, set_cell("Metadata_Well", "C03"), ["row 3", "well C03 is not in the plate map MAP-1"]),
        (FIRST, set_cell("Metadata_Site", "one"), ["row 3", "site 'one' is not a whole number"]),
        (FIRST, set_cell("Metadata_Plate", ""), ["row 3: no plate"]),
        (FIRST, set_cell("Metadata_Plate", "P9"), ["barcode_platemap", "plate 'P9' has no row"]),
        (FIRST, set_cell("Metadata_Batch", ""), ["row 3", "Metadata_Batch is empty"]),
        (FIRST, set_cell("FileName_OrigER", ""), ["row 3: FileName_OrigER is empty"]),
        (FIRST, set_cell("FileName_OrigER", "../x.tif"), ["row 3: FileName_OrigER", "path with .."]),
        (FIRST, set_cell("PathName_OrigER", "images/../.."), ["row 3: FileName_OrigER", "path with .."]),
        (FIRST, lambda table: table.drop(columns="Metadata_Well"), ["no column Metadata_Well", ".well"]),
        (FIRST, lambda table: table.iloc[:0], ["has no rows"]),
        (BARCODES, set_cell("Plate_Map_Name", "MAP-7", 0), ["row 2", "the plate map 'MAP-7' is not in"]),
        (BARCODES, set_cell("Plate_Map_Name", "../compounds.tsv", 0), ["row 2", "is not in"]),
        (BARCODES, also(Plate_Map_Name="X"), ["row 3", "'X' here"]),
        (BARCODES, lambda table: table.drop(columns="Plate_Map_Name"), ["has no column Plate_Map_Name"]),
        (MAP, also(broad_sample="X"), ["row 5", "broad_sample 'X' here"]),
        (MAP, set_cell("plate_map_name", "MAP-2"), ["row 3: says that it is of plate map 'MAP-2'"]),
        (MAP, lambda table: table.drop(columns="well_position"), ["has no column well_position"]),
        (MAP, set_cell("mmoles_per_liter", ""), ["no concentration", "taxol", "well B02"]),
        (MAP, set_cell("mmoles_per_liter", "1,000"), ["concentration '1,000'"]),
        (MAP, set_cell("mmoles_per_liter", "-1"), ["concentration '-1'"]),
        (MAP, set_cell("broad_sample", "BRD-9"), ["no table of treatments knows", "well B02"]),
        (COMPOUND_TABLE, also(moa="X"), ["row 5", "moa 'X' here", "row 2"]),
        (COMPOUND_TABLE, set_cell("pert_type", "maybe"), ["pert_type 'maybe' is none of trt", "pert_types"]),
        (COMPOUND_TABLE, set_cell("pert_type", "control"), ["pert_type 'control' is none of trt"]),
        (COMPOUND_TABLE, unknown, ["no row for any"]),
        (COMPOUND_TABLE, lambda table: table.rename(columns={"broad_sample": "x"}), ["shares no column"]),
        (COMPOUND_TABLE, lambda table: table.drop(columns="moa"), ["no column moa", "screen.columns.moa"]),
    ],
)  # fmt: skip
def test_a_bad_table_is_refused_with_its_row(raw: Path, path: str, change: Change, words: list[str]) -> None:
    edit(raw / path, change)
    refused(raw, *words)


def test_rows_that_repeat_each_other_word_for_word_are_one(raw: Path) -> None:
    before = opened(raw).fields
    for path in (BARCODES, MAP, COMPOUND_TABLE):
        edit(raw / path, again)
    pd.testing.assert_frame_equal(opened(raw).fields, before)


def test_a_pattern_that_finds_no_table_is_one_line(raw: Path) -> None:
    refused(raw, "screen.load_data: there is no table", load_data=["load_data_csv/*/nothing.csv"])


def test_one_treatment_with_two_mechanisms_is_refused(tmp_path: Path) -> None:
    raw = write_simple(tmp_path, Metadata_Compound="taxol", Metadata_MOA="tubulin")
    edit(raw / "load_data.csv", lambda t: pd.concat([t, t.assign(Metadata_Site="2", Metadata_MOA="actin")]))
    refused(raw, "row 3: taxol is actin here and tubulin in load_data.csv row 2", config=SIMPLE)


# --- who is a control -----------------------------------------------------------------------------


def test_an_empty_compound_is_a_control_only_where_that_is_said(raw: Path) -> None:
    by_sample = columns(compound="broad_sample", pert_type=None)
    changes: dict[str, Any] = {"treatments": [], "columns": by_sample | {"moa": None}}
    refused(raw, "row 2: no compound (column Metadata_broad_sample)", "screen.empty_compound", **changes)
    wells = opened(raw, empty_compound="DMSO", **changes).fields
    assert wells.groupby(c.COMPOUND)[c.PERT_TYPE].first().to_dict() == {
        "BRD-1": c.TREATED, "BRD-2": c.TREATED, "DMSO": c.NEGATIVE_CONTROL,
    }  # fmt: skip


def test_a_compound_that_the_table_lacks_is_not_taken_for_an_empty_well(raw: Path) -> None:
    edit(raw / COMPOUND_TABLE, lambda table: table.iloc[:2])
    refused(raw, "no table of treatments knows", "well P24", empty_compound="DMSO")


def test_controls_are_told_by_their_names_where_no_column_tells_them(raw: Path) -> None:
    edit(raw / COMPOUND_TABLE, lambda table: table.drop(columns=["pert_type", "control_type"]))
    control = {"compound": "AMG900", "concentration_um": 0.5}
    fields = opened(raw, columns=columns(pert_type=None), positive_control=control).fields
    assert fields[c.PERT_TYPE].tolist()[:3] == [c.NEGATIVE_CONTROL, c.TREATED, c.POSITIVE_CONTROL]
    other = opened(
        raw, columns=columns(pert_type=None), positive_control=control | {"concentration_um": 5}
    ).fields
    assert c.POSITIVE_CONTROL not in set(other[c.PERT_TYPE])


def test_other_words_for_roles_are_said_in_the_configuration(raw: Path) -> None:
    edit(raw / COMPOUND_TABLE, set_cell("pert_type", "empty"))
    fields = opened(raw, pert_types={"empty": "negcon"}).fields
    assert fields.loc[fields[c.COMPOUND] == "taxol", c.PERT_TYPE].unique().tolist() == [c.NEGATIVE_CONTROL]
