"""A compound has one side; small MoAs keep what they can; controls are divided by plates."""

from __future__ import annotations

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import SplitConfig
from hcs_ray.contracts import InputError
from hcs_ray.screen.splits import SPLIT_COLUMNS, divide


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
