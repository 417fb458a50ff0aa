"""A compound has one side; small MoAs keep what they can; controls are divided by plates."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import SplitConfig
from hcs_ray.contracts import InputError
from hcs_ray.screen.splits import SPLIT_COLUMNS, divide, scored_compounds


def wells(compounds_per_moa: list[int], plates: int = 6, unlabelled: int = 2) -> pd.DataFrame:
    """One row a well: every compound and control on every plate, taxol also as positive control."""
    compounds: list[tuple[str, str | None]] = [
        (f"m{moa}c{number}", f"MoA {moa}")
        for moa, count in enumerate(compounds_per_moa)
        for number in range(count)
    ]
    compounds += [(f"unknown{number}", None) for number in range(unlabelled)]
    rows: list[tuple[str, str, str, str | None, str]] = []
    for plate in range(plates):
        for position, (compound, moa) in enumerate(compounds):
            rows.append((compound, f"P{plate}", f"C{position:02d}", moa, c.TREATED))
        rows.append(("DMSO", f"P{plate}", "B02", None, c.NEGATIVE_CONTROL))
        rows.append(("m0c0", f"P{plate}", "B11", "MoA 0", c.POSITIVE_CONTROL))
    return pd.DataFrame(rows, columns=[c.COMPOUND, c.PLATE, c.WELL, c.MOA, c.PERT_TYPE])


screens = st.lists(st.integers(1, 7), min_size=1, max_size=6)
configs = st.builds(SplitConfig, seed=st.integers(0, 1000)) | st.integers(3, 6).flatmap(
    lambda folds: st.builds(
        SplitConfig, seed=st.integers(0, 1000), folds=st.just(folds), test_fold=st.integers(0, folds - 1)
    )
)


@settings(deadline=None, max_examples=60)
@given(screens, configs)
def test_what_holds_for_every_split(compounds_per_moa: list[int], config: SplitConfig) -> None:
    table = wells(compounds_per_moa)
    split = divide(table, config)
    assert list(split.columns) == list(SPLIT_COLUMNS)
    assert len(split) == len(table), "every well has one row"
    joined = split.merge(table, on=[c.COMPOUND, c.PLATE, c.WELL])
    assert len(joined) == len(table)
    treated = joined[joined[c.PERT_TYPE] == c.TREATED]
    assert (treated.groupby(c.COMPOUND)[c.SIDE].nunique() == 1).all(), "a compound has one side"
    assert set(treated.loc[treated[c.MOA].isna(), c.SIDE]) == {c.UNUSED}
    labelled = treated[treated[c.MOA].notna()]
    trained = labelled[labelled[c.SIDE] == c.TRAIN]
    assert set(trained[c.MOA]) == set(labelled[c.MOA]), "every MoA trains"
    controls = joined[joined[c.PERT_TYPE] == c.NEGATIVE_CONTROL]
    assert (controls.groupby(c.PLATE)[c.SIDE].nunique() == 1).all()
    assert {c.TRAIN, c.TEST, c.VALIDATION} == set(controls[c.SIDE])
    positive = joined[joined[c.PERT_TYPE] == c.POSITIVE_CONTROL]
    own_side = treated.loc[treated[c.COMPOUND] == "m0c0", c.SIDE].iloc[0]
    assert set(positive[c.SIDE]) == {c.TRAIN if own_side == c.TRAIN else c.UNUSED}
    pd.testing.assert_frame_equal(split, divide(table.sample(frac=1, random_state=1), config))


@pytest.mark.parametrize(
    ("compounds", "sides"),
    [(1, {c.TRAIN}), (2, {c.TRAIN, c.TEST}), (3, {c.TRAIN, c.TEST, c.VALIDATION})],
)
def test_a_small_moa_keeps_what_it_can(compounds: int, sides: set[str]) -> None:
    split = divide(wells([compounds], unlabelled=0), SplitConfig())
    own = split[split[c.COMPOUND].str.startswith("m0") & (split[c.WELL] != "B11")]
    assert set(own[c.SIDE]) == sides


def test_a_compound_of_two_moas_has_one_side_and_both_moas_train() -> None:
    table = wells([3, 3], unlabelled=0)
    both = (table[c.COMPOUND] == "m1c0") & (table[c.PLATE] == "P0")
    table.loc[both, c.COMPOUND] = "m0c1"  # now of MoA 0 and MoA 1
    for seed in range(30):
        split = divide(table, SplitConfig(seed=seed)).merge(table, on=[c.COMPOUND, c.PLATE, c.WELL])
        treated = split[split[c.PERT_TYPE] == c.TREATED]
        assert (treated.groupby(c.COMPOUND)[c.SIDE].nunique() == 1).all()
        assert set(treated.loc[treated[c.SIDE] == c.TRAIN, c.MOA]) == {"MoA 0", "MoA 1"}


@pytest.mark.parametrize("fractions", [(0.9, 0.05), (0.05, 0.9), (0.4, 0.5), (0.01, 0.01)])
def test_any_fractions_leave_something_to_train_on(fractions: tuple[float, float]) -> None:
    config = SplitConfig(test_fraction=fractions[0], validation_fraction=fractions[1])
    for compounds in range(1, 9):
        sides = divide(wells([compounds], unlabelled=0), config).groupby(c.COMPOUND)[c.SIDE].first()
        assert c.TRAIN in set(sides.drop("DMSO"))


def test_another_seed_divides_otherwise() -> None:
    table = wells([6, 6, 6])
    assert not divide(table, SplitConfig(seed=0)).equals(divide(table, SplitConfig(seed=1)))


def test_over_all_folds_every_compound_of_a_large_moa_is_tested_once() -> None:
    table = wells([5, 5], unlabelled=0)
    tested: list[str] = []
    for fold in range(5):
        split = divide(table, SplitConfig(folds=5, test_fold=fold))
        rows = split[(split[c.SIDE] == c.TEST) & (split[c.COMPOUND] != "DMSO")]
        tested += list(rows[c.COMPOUND].unique())
    assert sorted(tested) == sorted(name for name in table[c.COMPOUND].unique() if name != "DMSO")


def test_a_screen_without_labels_is_one_line() -> None:
    with pytest.raises(InputError, match="no well has a MoA"):
        divide(wells([], unlabelled=2).assign(**{c.MOA: None}), SplitConfig())


# --- One compound left out ---------------------------------------------------------------------------------


def weekly_wells(compounds_per_moa: list[int], weeks: int = 4) -> pd.DataFrame:
    """One row a well: each compound in one week, on its two plates; the first also a control everywhere."""
    names = [
        (f"m{moa}c{number}", f"MoA {moa}")
        for moa, count in enumerate(compounds_per_moa)
        for number in range(count)
    ]
    rows: list[tuple[str, str, str, str, str | None, str]] = []
    for week in range(weeks):
        own = [pair for place, pair in enumerate(names) if place % weeks == week]
        for plate in (f"W{week}P1", f"W{week}P2"):
            for position, (compound, moa) in enumerate(own):
                rows.append((compound, f"W{week}", plate, f"C{position:02d}", moa, c.TREATED))
                rows.append(
                    (compound, f"W{week}", plate, f"D{position:02d}", None, c.TREATED)
                )  # a lower dose
            rows.append(("DMSO", f"W{week}", plate, "B02", None, c.NEGATIVE_CONTROL))
            rows.append(("m0c0", f"W{week}", plate, "B11", "MoA 0", c.POSITIVE_CONTROL))
    return pd.DataFrame(rows, columns=[c.COMPOUND, c.BATCH, c.PLATE, c.WELL, c.MOA, c.PERT_TYPE])


def divided(table: pd.DataFrame, **config: Any) -> pd.DataFrame:
    """The split, joined to what is known of the wells."""
    split = divide(table, SplitConfig.model_validate(config))
    assert list(split.columns) == list(SPLIT_COLUMNS)
    assert len(split) == len(table)
    return split.merge(table, on=[c.COMPOUND, c.PLATE, c.WELL], validate="1:1")


def learnt(split: pd.DataFrame) -> pd.DataFrame:
    """The wells that training or the choice of the epoch sees."""
    return split[split[c.SIDE].isin([c.TRAIN, c.VALIDATION])]


large_screens = st.lists(st.integers(1, 7), min_size=2, max_size=5).filter(lambda counts: sum(counts) >= 5)


@settings(deadline=None, max_examples=40)
@given(large_screens, st.integers(0, 1000), st.booleans(), st.data())
def test_what_holds_for_every_compound_left_out(
    compounds_per_moa: list[int], seed: int, batches: bool, data: st.DataObject
) -> None:
    table = weekly_wells(compounds_per_moa)
    name = data.draw(st.sampled_from(scored_compounds(table)))
    split = divided(table, seed=seed, leave_out=name, leave_out_batches=batches)
    own = (split[c.COMPOUND] == name) & (split[c.PERT_TYPE] == c.TREATED) & split[c.MOA].notna()
    assert split.index[split[c.SIDE] == c.TEST].equals(split.index[own]), "the test is that compound, whole"
    seen = learnt(split)
    assert name not in set(seen[c.COMPOUND])
    assert split[c.FOLD].isna().all()
    unlabelled = split[c.MOA].isna() & (split[c.PERT_TYPE] != c.NEGATIVE_CONTROL)
    assert set(split.loc[unlabelled, c.SIDE]) == {c.UNUSED}
    treated = seen[seen[c.PERT_TYPE] == c.TREATED]
    assert (treated.groupby(c.COMPOUND)[c.SIDE].nunique() == 1).all()
    controls = seen[seen[c.PERT_TYPE] == c.NEGATIVE_CONTROL]
    assert (controls.groupby(c.PLATE)[c.SIDE].nunique() == 1).all()
    assert set(controls[c.SIDE]) == {c.TRAIN, c.VALIDATION}
    weeks = set(split.loc[own, c.BATCH]) if batches else set()
    assert not weeks & set(seen[c.BATCH])
    usable = split[split[c.MOA].notna() & (split[c.COMPOUND] != name) & ~split[c.BATCH].isin(weeks)]
    assert set(usable[c.MOA]) == set(seen.loc[seen[c.SIDE] == c.TRAIN, c.MOA].dropna()), "every MoA trains"
    sizes = usable[usable[c.PERT_TYPE] == c.TREATED].groupby(c.MOA)[c.COMPOUND].nunique()
    least = 3 if sizes.max() > 2 else 2
    validating = treated[treated[c.SIDE] == c.VALIDATION].groupby(c.MOA)[c.COMPOUND].nunique()
    wanted = {moa: max(1, round(size * 0.25)) for moa, size in sizes.items() if size >= least}
    assert validating.to_dict() == wanted, "the large MoAs validate, or all of two where none is large"
    shuffled = divided(
        table.sample(frac=1, random_state=1), seed=seed, leave_out=name, leave_out_batches=batches
    )
    pd.testing.assert_frame_equal(split, shuffled)


def test_a_positive_control_left_out_takes_the_week_of_its_other_wells_with_it() -> None:
    table = weekly_wells([5, 5])
    split = divided(table, leave_out="m0c0", leave_out_batches=True)
    assert set(split.loc[split[c.SIDE] == c.TEST, c.WELL]) == {"C00"}
    assert set(split.loc[split[c.PERT_TYPE] == c.POSITIVE_CONTROL, c.SIDE]) == {c.UNUSED}
    assert set(learnt(split)[c.BATCH]) == {"W1", "W2", "W3"}


def test_a_compound_left_with_its_control_wells_trains() -> None:
    table = weekly_wells([5, 5])
    assert (table.loc[table[c.COMPOUND] == "m0c4", c.BATCH] == "W0").all(), "the week of m0c0, too"
    for seed in range(10):
        split = divided(table, seed=seed, leave_out="m0c4", leave_out_batches=True)
        positive = split[split[c.PERT_TYPE] == c.POSITIVE_CONTROL].groupby(c.BATCH)[c.SIDE].unique()
        assert positive.map(list).to_dict() == {"W0": ["unused"], **{f"W{n}": ["train"] for n in (1, 2, 3)}}


def test_of_small_moas_one_compound_validates_and_every_moa_trains() -> None:
    table = weekly_wells([3, 1, 1])
    both = (table[c.COMPOUND] == "m0c1") & (table[c.PLATE] == "W1P1") & (table[c.WELL] == "C00")
    table.loc[both, c.MOA] = "MoA 1"  # now of MoA 0 and MoA 1
    for seed in range(5):
        split = divided(table, seed=seed, leave_out="m0c0")
        treated = learnt(split[split[c.PERT_TYPE] == c.TREATED])
        sides = treated.groupby(c.COMPOUND)[c.SIDE].first().to_dict()
        assert sides == {"m0c1": "train", "m0c2": "validation", "m1c0": "validation", "m2c0": "train"}
        assert set(treated.loc[treated[c.SIDE] == c.TRAIN, c.MOA]) == {"MoA 0", "MoA 1", "MoA 2"}


def test_no_compound_validates_in_every_fold() -> None:
    table = weekly_wells([5, 5, 4])
    names = scored_compounds(table)
    validated = [
        set(rows.loc[rows[c.SIDE] == c.VALIDATION, c.COMPOUND]) - {"DMSO"}
        for rows in (divided(table, leave_out=name) for name in names)
    ]
    assert len(set.union(*validated)) > len(names) // 2, "and most of them in one"
    assert not set.intersection(*validated)


def test_folds_rest_while_a_compound_is_left_out() -> None:
    table = weekly_wells([4, 4])
    plain = divide(table, SplitConfig(leave_out="m1c1"))
    pd.testing.assert_frame_equal(plain, divide(table, SplitConfig(leave_out="m1c1", folds=4, test_fold=2)))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("M1C1", "M1C1 is no compound of this screen; the nearest is m1c1"),
        ("DMSO", "DMSO has no labelled well that is no control; the nearest is"),
    ],
)
def test_a_compound_that_cannot_be_left_out_is_one_line(name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"^split.leave_out: {message}"):
        divide(weekly_wells([3, 3]), SplitConfig(leave_out=name))


def test_a_screen_of_one_week_cannot_lose_it() -> None:
    table = weekly_wells([3, 3], weeks=1)
    with pytest.raises(InputError, match="without m0c1 and W0 no labelled well is left to train on"):
        divide(table, SplitConfig(leave_out="m0c1", leave_out_batches=True))
    table[c.BATCH] = table[c.BATCH].where(table[c.WELL] != "C01")
    with pytest.raises(InputError, match="leave_out_batches: plate W0P1 well C01 has no Metadata_Batch"):
        divide(table, SplitConfig(leave_out="m0c1", leave_out_batches=True))
