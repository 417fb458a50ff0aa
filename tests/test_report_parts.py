"""The parts of the report: matrices, pictures, plates, colours, the map and the outliers' cards."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray import palette
from hcs_ray.name_order import in_order
from hcs_ray.report import fieldmap, outliers, pictures, plates, scores, screen
from hcs_ray.report.material import Material
from hcs_ray.study import open_study
from tests.report_page import material_of
from tests.report_study import CHANNELS, EVIL_MOA


@pytest.fixture(scope="module")
def material(report_folder: Path) -> Material:
    return material_of(open_study(str(report_folder)))


def test_a_confusion_matrix_shows_counts_and_shares_of_its_rows() -> None:
    metrics = dict.fromkeys(("accuracy", "balanced_accuracy", "macro_f1", "mcc"), 0.5)
    level = {"count": 4, "confusion": [[1, 3], [0, 0]], **metrics}
    found = scores.confusions({"labels": ["A", "B"], "treatment": level, "field": level})
    assert [confusion.level for confusion in found] == ["treatments", "fields"]
    assert [label for label, _ in found[0].rows] == ["A"]  # B does not occur
    cells = found[0].rows[0][1]
    assert [(cell.count, cell.share, cell.diagonal) for cell in cells] == [(1, 0.25, True), (3, 0.75, False)]
    assert cells[1].title == "3 of 4 of A were taken for B (75 %)"
    assert scores.confusions(None) == []


def test_a_picture_is_a_small_jpeg_of_its_field(material: Material) -> None:
    from PIL import Image

    drawn = pictures.FieldPictures(material.reader, material.index)
    picture = drawn.picture(material.index[c.KEY].iloc[0], 20, "a field")
    kind, data = picture.source.split(",")
    assert kind == "data:image/jpeg;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (20, 16)


def test_wells_stand_where_they_are(material: Material) -> None:
    index = material.index.assign(QC_Mean_DAPI=np.arange(float(len(material.index))))
    maps = plates.plate_maps(index, plates.measures(CHANNELS)[0])
    assert [plate.plate for plate in maps.plates] == sorted(index[c.PLATE].unique())
    first = maps.plates[0]
    assert (len(first.rows), first.columns) == (8, 12)
    assert [(well.row, well.column) for well in first.wells][:2] == [(1, 1), (1, 2)]
    assert [well.mark for well in first.wells[:4]] == ["–", "–", "–", ""]
    assert first.wells[0].title == "B02 · DMSO@0 · 0.5"
    assert (first.wells[0].colour, maps.plates[-1].wells[-1].colour) == (maps.colours[0], maps.colours[-1])


@pytest.mark.parametrize(
    ("well", "place", "shape"), [("P24", (15, 23), (16, 24)), ("AF48", (31, 47), (32, 48))]
)
def test_larger_plates_have_their_own_grid(
    material: Material, well: str, place: tuple[int, int], shape: tuple[int, int]
) -> None:
    index = material.index.head(2).assign(**{c.WELL: ["A01", well]})
    plate = plates.plate_maps(index, plates.measures(CHANNELS)[0]).plates[0]
    assert (len(plate.rows), plate.columns) == shape
    assert place in {(found.row, found.column) for found in plate.wells}
    assert plate.rows[place[0]] == well.rstrip("0123456789")


@given(st.lists(st.integers(0, 999), unique=True, min_size=1))
def test_weeks_are_in_the_order_of_their_numbers(weeks: list[int]) -> None:
    assert in_order(f"Week{week}" for week in weeks) == [f"Week{week}" for week in sorted(weeks)]


@given(st.lists(st.text(max_size=6), max_size=6))
def test_any_names_have_an_order(names: list[str]) -> None:
    assert sorted(in_order(["1²", "٣", *names])) == sorted({"1²", "٣", *names})


def test_twenty_four_categories_are_told_apart() -> None:
    styles = palette.category_styles([str(number) for number in range(24)])
    assert len({(style.colour, style.mark) for style in styles.values()}) == 24
    weeks = palette.ordered_styles([str(number) for number in range(10)])
    assert len({style.colour for style in weeks.values()}) == 10
    assert palette.tints("#0072B2", 3)[0] == "#0072b2"


def test_the_typical_field_is_the_one_in_the_middle() -> None:
    fields = pd.DataFrame(
        {
            c.KEY: list("abcdef"),
            c.MOA: ["A", "A", "A", "A", None, None],
            c.COMPOUND: [*"xxxx", "DMSO", "new"],
            c.PERT_TYPE: [c.TREATED] * 4 + [c.NEGATIVE_CONTROL, c.TREATED],
            "QC_Flag_Saturated": [False, False, False, True, False, False],
        }
    )  # fmt: skip
    embeddings = np.array([[0], [1], [9], [1.1], [5], [5]], np.float32)
    typical = screen.typical_fields(fields, embeddings)
    assert typical[[c.KEY, "label"]].to_numpy().tolist() == [["e", "DMSO"], ["b", "A"]]


def test_the_map_shows_every_field_upright_and_in_its_frame(material: Material) -> None:
    assert material.map_about is not None
    found = fieldmap.field_map(material.fields, material.map_about)
    assert (found.shown, found.total) == (52, 52)
    assert [group.name for group in found.groups] == ["no label", "DMSO", "A", EVIL_MOA]
    assert sum(group.fields for group in found.groups) == 52
    assert all(0 < point.x < found.width and 0 < point.y < found.height for point in found.points)
    top = material.fields.iloc[int(material.fields["y"].to_numpy().argmax())]
    highest = min(found.points, key=lambda point: point.y)
    assert f"{top[c.PLATE]} {top[c.WELL]} site {top[c.SITE]}" in highest.title


def test_thumbnails_are_shared_out_among_fields_wells_and_treatments(material: Material) -> None:
    assert material.outliers is not None
    tables = dict(material.outliers)
    tables["well"] = tables["well"].assign(reason="mislabelled", evidence="near to another")
    drawn = pictures.FieldPictures(material.reader, material.index)
    levels = {level.level: level for level in outliers.suspects(tables, material.fields, drawn, 8)}
    assert len(levels["well"].cards) == 2
    assert sum(len(level.cards) for level in levels.values()) == 8
    assert [card.suspect.rank for card in levels["field"].cards] == list(
        range(1, 1 + len(levels["field"].cards))
    )
    card = levels["well"].cards[0]
    assert card.picture.alt.endswith("mislabelled. near to another")
    assert card.suspect.label in ("negative control", "no label", "A", EVIL_MOA)
