"""`hcs-ray score`: the published profiles give the known counts in every format, and what cannot be scored is
one line that names the place."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.profiles.aggregate import BATCHES, WELLS, exclude_controls, to_treatments
from hcs_ray.profiles.normalize import normalize
from hcs_ray.profiles.score import Settings, evaluate, evaluate_wells
from hcs_ray.profiles.score_lines import score_lines
from hcs_ray.profiles.score_table import Request, score_table
from hcs_ray.profiles.wells_of import Description
from tests.command import hcs_ray, refused
from tests.test_exclusions import drawn_index, profiled

QUICK = Settings(resamples=50)

# --- The published profiles of BBBC021 ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def published(shared: Path) -> Path:
    return shared / "data" / "bbbc021"


def asked(published: Path, table: Path, **options: Any) -> Request:
    description = Description(
        {"plate": "Image_Metadata_Plate", "well": "Image_Metadata_Well"},
        moa_table=str(published / "BBBC021_v1_moa.csv"),
        image_table=str(published / "BBBC021_v1_image.csv.gz"),
    )
    return Request(str(table), description, method="standardize", **options)


@pytest.mark.parametrize(
    ("how", "metric", "nsc", "nscb"),
    [
        ("mean", "correlation", 85, 68),
        ("mean", "cosine", 84, 67),
        ("median", "correlation", 80, 64),
        ("median", "cosine", 79, 63),
    ],
)
def test_the_published_profiles_give_the_known_counts(
    published: Path, how: Any, metric: Any, nsc: int, nscb: int
) -> None:
    table = published / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz"
    told = score_table(asked(published, table, how=how, settings=Settings(metric, 50))).told
    assert (told["nsc"]["correct"], told["nsc"]["total"]) == (nsc, 103)
    assert (told["nscb"]["correct"], told["nscb"]["total"]) == (nscb, 92)
    assert (told["features"]["read"], told["features"]["used"]) == (516, 513)
    assert len(told["features"]["dropped_without_spread"]) == 3
    assert told["same_batch_expected"] == pytest.approx(0.129, abs=5e-4)
    assert told["same_batch_share"] > 0.42
    assert sum(found["correct"] for found in told["nscb"]["by_moa"].values()) == nscb


def test_the_command_prints_json_alone(published: Path) -> None:
    done = hcs_ray(
        "score", published / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz",
        "--plate", "Image_Metadata_Plate", "--well", "Image_Metadata_Well",
        "--moa-table", published / "BBBC021_v1_moa.csv",
        "--image-table", published / "BBBC021_v1_image.csv.gz", "--normalize", "standardize",
        "--aggregate", "mean", "--distance", "correlation", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    told = json.loads(done.stdout)
    assert (told["nsc"]["correct"], told["nsc"]["total"]) == (85, 103)
    assert (told["nscb"]["correct"], told["nscb"]["total"]) == (68, 92)
    assert told["nsc"]["accuracy"] == pytest.approx(85 / 103)
    low, high = told["nsc"]["interval"]
    assert low < 85 / 103 < high
    assert told["track"]["track"] == "not known"
    assert "leaked" not in told["nsc"], "what has leaked is not known of profiles from elsewhere"


def test_every_format_gives_the_same(published: Path, tmp_path: Path) -> None:
    source = published / "ljosa_jbiomolscreen_2013_per_well_mean.csv.gz"
    table = pd.read_csv(source, float_precision="round_trip")
    table.to_parquet(tmp_path / "wells.parquet")
    obs = table.iloc[:, :2].astype("category").set_axis(table.index.astype(str))
    anndata.AnnData(table.iloc[:, 2:].to_numpy(), obs, pd.DataFrame(index=table.columns[2:])).write_h5ad(
        tmp_path / "wells.h5ad"
    )
    (tmp_path / "wells.csv").write_bytes(gzip.decompress(source.read_bytes()))
    first, *others = [
        score_table(asked(published, path, settings=QUICK))
        for path in (source, *(tmp_path / f"wells.{ending}" for ending in ("parquet", "h5ad", "csv")))
    ]
    for other in others:
        assert {**other.told, "table": ""} == {**first.told, "table": ""}
        pd.testing.assert_frame_equal(other.queries, first.queries)


# --- A small table ------------------------------------------------------------------------------------------


def drawn() -> pd.DataFrame:
    """Two plates in each of two weeks; four compounds of two mechanisms, two doses each, and DMSO."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []
    for week in (1, 2):
        for plate in (1, 2):
            wells: list[tuple[str, str, str | None]] = [("DMSO", "0", None)] * 3
            for number in (1, 2):
                name = f"c{2 * (week - 1) + number}"
                wells += [(name, dose, f"m{number}") for dose in ("0.1", "1.0")]
            for place, (compound, dose, moa) in enumerate(wells):
                signal = np.zeros(6) if moa is None else np.eye(6)[int(moa[1])] * 5
                rows.append(
                    {
                        c.BATCH: f"week{week}", c.PLATE: f"{week}{plate}", c.WELL: f"B{place + 2}",
                        c.COMPOUND: compound, c.CONCENTRATION: dose, c.MOA: moa, "Metadata_Count": 7,
                        **{f"F_{i}": value for i, value in enumerate(signal + rng.normal(size=6) + week)},
                    }
                )  # fmt: skip
    return pd.DataFrame(rows)


def written(folder: Path, table: pd.DataFrame, name: str = "wells.csv") -> Path:
    path = folder / name
    table.to_csv(path, index=False)
    return path


def test_columns_are_found_by_their_common_names(tmp_path: Path) -> None:
    table = drawn()
    answer = score_table(Request(str(written(tmp_path, table)), method="center", settings=QUICK))
    meta = table[[c.BATCH, c.PLATE, c.WELL, c.COMPOUND, c.MOA]].copy()
    meta[c.TREATMENT] = (
        table[c.COMPOUND] + "@" + table[c.CONCENTRATION].map({"0": "0", "0.1": "0.1", "1.0": "1"})
    )
    meta[c.PERT_TYPE] = np.where(table[c.COMPOUND] == "DMSO", c.NEGATIVE_CONTROL, c.TREATED)
    features = normalize(meta, table.filter(like="F_").to_numpy(), "center").features
    expected = evaluate_wells(meta, features, "mean", QUICK)
    assert answer.told["nsc"] == expected.nsc.figures()
    assert answer.told["nscb"] == expected.nscb.figures()
    assert answer.told["counts"]["treatments"] == 8
    assert answer.told["features"]["used"] == 6
    assert answer.told["rules"]["columns"][c.PERT_TYPE] == "compound DMSO is the negative control"
    other = {
        "Plate": c.PLATE,
        "Well": c.WELL,
        "week": c.BATCH,
        "compound": c.COMPOUND,
        "dose": c.CONCENTRATION,
    }
    renamed = table.rename(columns={ours: name for name, ours in other.items()} | {c.MOA: "MoA"})
    again = score_table(Request(str(written(tmp_path, renamed)), method="center", settings=QUICK))
    assert again.told["nscb"] == answer.told["nscb"]


def test_without_a_batch_there_is_no_nscb_and_it_says_why(tmp_path: Path) -> None:
    path = written(tmp_path, drawn().drop(columns=c.BATCH))
    told = score_table(Request(str(path), settings=QUICK)).told
    assert told["nscb"] is None
    assert told["same_batch_share"] is None
    assert told["nsc"]["total"] == 8
    assert "--batch" in told["nscb_impossible"]
    assert told["nscb_impossible"] in score_lines(told)


def test_rows_of_one_well_are_fields_and_are_averaged_first(tmp_path: Path) -> None:
    table = drawn()
    shift = np.where(np.arange(len(table)) % 2, 3.0, 1.0)
    names = [str(name) for name in table.filter(like="F_")]
    fields = pd.concat([table, table], ignore_index=True)
    fields[names] += np.concatenate([shift, -shift])[:, None]
    answers = [
        score_table(Request(str(written(tmp_path, rows)), method="center", settings=QUICK))
        for rows in (table, fields)
    ]
    assert answers[1].told["counts"]["rows"] == 2 * len(table)
    assert answers[1].told["counts"]["profiles"] == len(table)
    assert answers[1].told["rules"]["well_from_fields"] == "mean"
    assert answers[1].queries["neighbour"].tolist() == answers[0].queries["neighbour"].tolist()


def test_treatments_as_our_own_tables_have_them(tmp_path: Path) -> None:
    table = drawn()
    table[c.TREATMENT] = table[c.COMPOUND] + "@" + table[c.CONCENTRATION]
    table[c.PERT_TYPE] = np.where(table[c.COMPOUND] == "DMSO", c.NEGATIVE_CONTROL, c.TREATED)
    meta, features = to_treatments(*exclude_controls(table, table.filter(like="F_").to_numpy()), "mean")
    plain = meta.drop(columns=[name for name in meta if str(name).startswith("F_")])
    columns: dict[str, Any] = {BATCHES: plain[BATCHES].map(list), c.EMBEDDING: list(features)}
    lists = plain.assign(**columns)
    lists.to_parquet(tmp_path / "treatment.parquet")
    told = score_table(Request(str(tmp_path / "treatment.parquet"), settings=QUICK)).told
    expected = evaluate(plain.assign(**{c.PERT_TYPE: c.TREATED}), features, QUICK)
    assert told["nscb"] == expected.nscb.figures()
    assert told["rules"]["treatment_from_wells"] == "a row a treatment"


def test_roles_as_jump_writes_them_and_controls_by_name(tmp_path: Path) -> None:
    table = drawn()
    roles = table[c.COMPOUND].map({"DMSO": "negcon", "c1": "poscon_cp"}).fillna("trt")
    told = score_table(Request(str(written(tmp_path, table.assign(pert_type=roles))), settings=QUICK)).told
    assert told["counts"]["negative_controls"] == 12
    assert told["counts"]["positive_controls"] == 4
    assert told["rules"]["only_control_wells"] == ["DMSO@0", "c1@0.1", "c1@1"]
    named = Description(negative_controls=("c1", "DMSO"))
    told = score_table(Request(str(written(tmp_path, table)), named, settings=QUICK)).told
    assert told["counts"]["negative_controls"] == 16


def test_compounds_without_a_mechanism_are_counted_and_left_out(tmp_path: Path) -> None:
    table = drawn()
    path = written(tmp_path, table.drop(columns=c.MOA))
    rows = [
        "compound,concentration,moa",
        "c1,0.10,m1",
        "c1,1,m1",
        "c3,0.1,m1",
        "c3,1,m1",
        "c2,0.1,m2",
        "c4,1,m2",
    ]
    (tmp_path / "moa.csv").write_text("\n".join(rows) + "\n")
    request = Request(str(path), Description(moa_table=str(tmp_path / "moa.csv")), settings=QUICK)
    told = score_table(request).told
    assert told["counts"]["treatments_without_moa"] == 2
    assert told["counts"]["labelled_treatments"] == told["nsc"]["total"] == 6
    (tmp_path / "moa.csv").write_text("compound,moa\nc1,m1\nc3,m1\nc2,m2\nc4,m2\n")
    assert score_table(request).told["nsc"]["total"] == 8, "by compound, where the table has no concentration"


def test_missing_values_are_refused_or_dropped_aloud(tmp_path: Path) -> None:
    table = drawn()
    table.loc[4, "F_3"] = np.nan
    path = str(written(tmp_path, table))
    with pytest.raises(InputError, match=r"row 6: F_3 is missing; --missing drop-features or drop-rows"):
        score_table(Request(path))
    told = score_table(Request(path, missing="drop-features", settings=QUICK)).told
    assert told["features"]["dropped_missing"] == ["F_3"]
    told = score_table(Request(path, missing="drop-rows", settings=QUICK)).told
    assert told["rules"]["missing_values"]["rows_dropped"] == 1
    assert told["rules"]["missing_values"]["treatments_lost"] == []
    table.loc[table[c.COMPOUND] == "c1", "F_3"] = np.nan
    request = Request(str(written(tmp_path, table)), missing="drop-rows", settings=QUICK)
    told = score_table(request).told
    assert told["rules"]["missing_values"]["treatments_lost"] == ["c1@0.1", "c1@1"]
    assert "4, with missing values; so 2 labelled treatments are in no denominator: c1@0.1" in score_lines(
        told
    )


def test_a_concentration_is_what_was_written_whatever_the_width_of_its_column(tmp_path: Path) -> None:
    """0.1 as float32 is no 0.10000000149011612, which a table of mechanisms would not know."""
    table = drawn()
    (tmp_path / "moa.csv").write_text(
        table.loc[table[c.MOA].notna(), [c.COMPOUND, c.CONCENTRATION, c.MOA]]
        .drop_duplicates()
        .to_csv(index=False)
    )
    description = Description(moa_table=str(tmp_path / "moa.csv"))
    doses = {name: table[c.CONCENTRATION].astype(name) for name in ("float32", "Float32", "float64", "str")}
    answers = []
    for name, dose in doses.items():
        path = tmp_path / f"{name}.parquet"
        table.drop(columns=c.MOA).assign(**{c.CONCENTRATION: dose}).to_parquet(path)
        answers.append(score_table(Request(str(path), description, settings=QUICK)).queries)
    assert answers[0][c.TREATMENT].nunique() == 8
    for other in answers[1:]:
        pd.testing.assert_frame_equal(other, answers[0])


def test_a_feature_with_a_word_in_it_and_a_number_that_is_none_catch_the_eye(tmp_path: Path) -> None:
    table = drawn().assign(dose_um=1.0)
    table["F_1"] = table["F_1"].astype(object)
    table.loc[3, "F_1"] = "#DIV/0!"
    told = score_table(Request(str(written(tmp_path, table)), settings=QUICK)).told
    assert told["features"]["text_but_no_metadata"] == ["F_1"]
    assert told["features"]["groups"] == {"F": 5, "dose": 1}
    assert "6 of 6 (F 5, dose 1); 1 not taken for features, since not every row is a number: F_1" in (
        score_lines(told)
    )


def test_what_a_normalisation_was_told_stands_in_its_line(tmp_path: Path) -> None:
    path = str(written(tmp_path, drawn()))
    lines = {
        method: score_lines(score_table(Request(path, method=method, settings=QUICK)).told)
        for method in ("sphere", "combat", "none")
    }
    assert "sphere, on negative controls; shrinkage " in lines["sphere"]
    assert "combat, on negative controls, then on all wells; told the batch of each well" in lines["combat"]
    assert "none: as they stand" in lines["none"]


def test_tables_of_a_study_give_the_scores_of_the_study(tmp_path: Path) -> None:
    """A treatment that is also the positive control of every plate is profiled by its other wells alone."""
    index = drawn_index()
    own = index[index[c.COMPOUND] == "a0"].iloc[0]
    controls = index.drop_duplicates(c.PLATE).copy()
    of_treatment = {name: own[name] for name in (c.COMPOUND, c.TREATMENT, c.MOA)}
    for name, value in {c.WELL: "C02", c.SITE: 1, c.PERT_TYPE: c.POSITIVE_CONTROL, **of_treatment}.items():
        controls[name] = value
    controls[c.KEY] = [c.field_key(plate, "C02", 1) for plate in controls[c.PLATE]]
    both = pd.concat([index, controls]).sort_values(c.KEY, ignore_index=True)
    found = profiled(tmp_path, both, {})
    treatments = pd.read_parquet(tmp_path / "profiles/main/treatment.parquet")
    about = {row[c.TREATMENT]: row for row in c.rows_of(treatments)}
    assert (about["a0@1"][c.PERT_TYPE], about["a0@1"][WELLS]) == (c.TREATED, 2)
    assert about["DMSO@0"][c.PERT_TYPE] == c.NEGATIVE_CONTROL
    assert list(about["a0@1"][BATCHES]) == [own[c.BATCH]]
    for table in ("treatment", "well"):
        path = str(tmp_path / f"profiles/main/{table}.parquet")
        told = score_table(Request(path, settings=Settings(resamples=50))).told
        for guard in ("nsc", "nscb"):
            same = ("correct", "total", "accuracy", "interval", "by_moa", "dropped", "candidates")
            assert {name: told[guard][name] for name in same} == {name: found[guard][name] for name in same}
        assert told["same_batch_share"] == found["same_batch_share"]


def _without(name: str) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.drop(columns=name)


def _cell(row: int, name: str, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def changed(table: pd.DataFrame) -> pd.DataFrame:
        table[name] = table[name].astype(object)
        table.loc[row, name] = value
        return table

    return changed


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (None, {"columns": {"plate": "Metadata_Plato"}}, r"Plato \(--plate\); the nearest is Metadata_Plate"),
        (_without(c.COMPOUND), {}, "nothing tells the compound of a row; name its column in --compound"),
        (_without(c.MOA), {}, "nothing tells the mechanisms; name a column in --moa, or a --moa-table"),
        (_cell(2, c.COMPOUND, ""), {}, "row 4: Metadata_Compound is empty"),
        (_cell(2, c.BATCH, None), {}, r"row 4: has no batch \(Metadata_Batch\); give every row one, or none"),
        (_cell(1, c.WELL, "Z99"), {}, "row 3: 'Z99' is not a well"),
        (_cell(5, c.CONCENTRATION, "high"), {}, "row 7: concentration 'high' is not a number"),
        (None, {"negative_controls": ("dmso",)}, "no row is of the negative control dmso"),
        (lambda table: table.assign(pert_type="sample"), {}, "row 2: 'sample' is none of trt, negcon"),
        (lambda table: table.assign(**{BATCHES: "['a', 'b']"}), {}, "row 2: Metadata_Batches .* is a list"),
    ],
)  # fmt: skip
def test_what_is_missing_is_named_with_its_row(
    tmp_path: Path,
    change: Callable[[pd.DataFrame], pd.DataFrame] | None,
    options: dict[str, Any],
    message: str,
) -> None:
    table = drawn() if change is None else change(drawn())
    path = written(tmp_path, table)
    with pytest.raises(InputError, match=message):
        score_table(Request(str(path), Description(**options), settings=QUICK))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without(c.PLATE), "nothing tells the plate of a row; name its column in --plate"),
        (
            lambda table: table[table[c.COMPOUND] != "DMSO"],
            "no row is one; name their compound in --negative",
        ),
        (
            lambda table: table.assign(**{c.PLATE: "7", c.WELL: _apart(table)}),
            "plate 7 lies in week1 and week2",
        ),
        (
            lambda table: _again(table, c.BATCH, "week9"),
            "rows of one plate and well differ in Metadata_Batch",
        ),
        (lambda table: _again(table, c.MOA, "m9"), "rows of one plate and well differ in Metadata_MOA"),
    ],
)
def test_what_a_normalisation_cannot_do_without_is_named(
    tmp_path: Path, change: Callable[[pd.DataFrame], pd.DataFrame], message: str
) -> None:
    path = str(written(tmp_path, change(drawn())))
    with pytest.raises(InputError, match=message):
        score_table(Request(path, method="standardize", settings=QUICK))


def _apart(table: pd.DataFrame) -> list[str]:
    return [f"{'BCDE'[row // 12]}{row % 12 + 1}" for row in range(len(table))]


def _again(table: pd.DataFrame, name: str, value: str) -> pd.DataFrame:
    return pd.concat([table, table.assign(**{name: value})], ignore_index=True)


def test_a_named_batch_goes_before_the_batches_of_treatments(tmp_path: Path) -> None:
    table = drawn()
    table[BATCHES] = table[c.BATCH].map(lambda batch: [batch])
    path = tmp_path / "wells.parquet"
    table.to_parquet(path)
    with pytest.raises(InputError, match="is of treatments, and some have several rows; name --batch"):
        score_table(Request(str(path), settings=QUICK))
    named = score_table(Request(str(path), Description({"batch": c.BATCH}), settings=QUICK)).told
    plain = score_table(Request(str(written(tmp_path, drawn())), settings=QUICK)).told
    assert named["nscb"] == plain["nscb"]


def test_what_the_other_tables_lack_is_named(tmp_path: Path) -> None:
    path = str(written(tmp_path, drawn()))
    moa = tmp_path / "moa.csv"
    moa.write_text("compound,concentration,moa\nC1,0.1,m1\n")
    with pytest.raises(
        InputError, match=r"knows none of the treatments of .*, as c1@0.1; the nearest there is C1@0.1"
    ):
        score_table(Request(path, Description(moa_table=str(moa))))
    moa.write_text("compound,concentration,moa\nc1,0.1,m1\nc1,0.10,m2\n")
    with pytest.raises(InputError, match=r"moa.csv row 3: c1@0.1 is m2 here and m1 above"):
        score_table(Request(path, Description(moa_table=str(moa))))
    images = tmp_path / "image.csv"
    images.write_text("plate,well,compound,concentration\n11,B02,DMSO,0\n")
    with pytest.raises(InputError, match=r"row 3: plate 11 well B03 is not in .*image.csv"):
        score_table(Request(path, Description(image_table=str(images))))
    images.write_text("plate,well,compound,concentration\n11,B02,DMSO,0\n11,B2,x,0\n")
    with pytest.raises(InputError, match=r"image.csv row 3: plate 11 well B02 holds two things"):
        score_table(Request(path, Description(image_table=str(images))))
    with pytest.raises(InputError, match=r"--normalize zscore: it is one of none, center"):
        score_table(Request(path, method="zscore"))  # type: ignore[arg-type]


def test_files_that_are_no_tables_end_the_command_with_one_line(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refused("score", tmp_path / "none.csv")
    for name, content, message in (
        ("profiles.xlsx", b"x", "not a table that is known"),
        ("a.csv.gz", b"x", "not a readable gzip file"),
        ("a.parquet", b"x", "not a readable Parquet file"),
        ("a.h5ad", b"x", "not a readable AnnData file"),
        ("a.csv", b"a,b\n1,2,3\n4,5\n", r"a.csv: not a readable CSV table: .*Expected 2 columns, got 3"),
        ("c.csv", b"a,b,a\n1,2,3\n", "has the column 'a' twice"),
        ("d.csv", b"\n", "is empty"),
        ("b.csv", b"Metadata_Plate,Metadata_Well\nP,B02\n", "has no numeric column that could be a feature"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=message):
            score_table(Request(str(tmp_path / name)))


def test_the_terminal_states_every_rule_and_neighbours_are_written(tmp_path: Path) -> None:
    path = written(tmp_path, drawn())
    done = hcs_ray(
        "score",
        path,
        "--normalize",
        "center",
        "--features",
        "F_0,F_1,F_2",
        "--neighbours",
        tmp_path / "n.csv",
    )
    assert done.returncode == 0, done.stderr
    for words in (
        "NSC ", "NSCB", "not known: profiles of another's making", "3 of 3", "center, on negative", "m1 ",
        "mean; control wells are left out before", "DMSO@0: not scored", "cosine", "by chance",
    ):  # fmt: skip
        assert words in done.stdout, words
    neighbours = pd.read_csv(tmp_path / "n.csv")
    assert len(neighbours) == 16
    assert {"neighbour", "distance", "guard", "dropped"} <= set(neighbours)
