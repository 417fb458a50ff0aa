"""The list of an epoch, and how the ranks share it, whatever happens on the way."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import TrainConfig
from hcs_ray.contracts import InputError
from hcs_ray.model import targets as t
from hcs_ray.model.epochs import Share, epoch_list, plate_order, shares, with_anchors

Sampling = Literal["shuffled", "class_balanced", "plate_balanced", "plate_and_class_balanced"]
BALANCED: tuple[Sampling, ...] = ("class_balanced", "plate_balanced", "plate_and_class_balanced")


def field_table(fields: int, seed: int = 0, plates: int = 3, classes: int = 4) -> pd.DataFrame:
    """A table with uneven plates and classes, fields without a MoA, unlisted ones, and both controls."""
    rng = np.random.default_rng(seed)
    kinds = rng.choice([c.TREATED, c.POSITIVE_CONTROL, c.NEGATIVE_CONTROL], fields, p=[0.6, 0.2, 0.2])
    label = np.minimum(rng.geometric(0.4, fields) - 1, classes - 1)
    return pd.DataFrame(
        {
            c.KEY: [f"k{i:06}" for i in rng.permutation(fields)],
            c.PLATE: [f"P{i}" for i in np.minimum(rng.geometric(0.4, fields) - 1, plates - 1)],
            c.PERT_TYPE: kinds,
            t.LABEL: np.where(rng.random(fields) < 0.3, t.NONE, label),
            t.TREATMENT_LABEL: rng.integers(-1, 3, fields),
            t.LISTED: rng.random(fields) < 0.9,
            t.ANCHOR: kinds == c.NEGATIVE_CONTROL,
        },
        index=np.arange(fields) + 100,  # positions are no labels
    )


def group_of(row: Any, sampling: Sampling) -> tuple[object, ...]:
    """Written down apart: the class is the MoA's or, without one, the treatment's."""
    moa, treatment = int(row[t.LABEL]), int(row[t.TREATMENT_LABEL])
    of_class = ("moa", moa) if moa != t.NONE else ("treatment", treatment)
    of_plate = ("plate", row[c.PLATE])
    return {"class_balanced": of_class, "plate_balanced": of_plate}.get(sampling, of_class + of_plate)


def even(counts: Counter[Any]) -> bool:
    return not counts or max(counts.values()) - min(counts.values()) <= 1


@settings(deadline=None)
@given(st.integers(0, 120), st.integers(0, 60), st.integers(0, 9))
def test_a_shuffled_epoch_has_every_listed_field_once_and_some_positive_controls(
    fields: int, cap: int, epoch: int
) -> None:
    table = field_table(fields, epoch)
    order = epoch_list(table, TrainConfig(positive_controls_per_epoch=cap), epoch)
    control = (table[c.PERT_TYPE] == c.POSITIVE_CONTROL).to_numpy()
    listed = table[t.LISTED].to_numpy()
    assert order.dtype == np.int64
    assert len(set(order)) == len(order)
    assert listed[order].all()
    assert set(order[~control[order]]) == set(np.flatnonzero(listed & ~control))
    assert control[order].sum() == min(cap, (listed & control).sum())


@pytest.mark.parametrize("sampling", ["shuffled", *BALANCED])
def test_an_epoch_follows_from_its_seed_its_number_and_the_table(sampling: Sampling) -> None:
    table = field_table(300)

    def order(seed: int, epoch: int) -> list[int]:
        config = TrainConfig(seed=seed, sampling=sampling, plates_per_batch=2, positive_controls_per_epoch=9)
        return [int(row) for row in epoch_list(table, config, epoch)]

    assert order(3, 2) == order(3, 2)
    assert len({tuple(order(seed, epoch)) for seed in (3, 4) for epoch in range(3)}) == 6


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(BALANCED), st.integers(0, 150), st.integers(1, 12), st.integers(0, 20), st.integers(0, 99)
)
def test_a_balanced_epoch_is_as_long_and_draws_groups_and_their_fields_equally_often(
    sampling: Sampling, fields: int, plates: int, cap: int, seed: int
) -> None:
    table = field_table(fields, seed, plates)
    config = TrainConfig(positive_controls_per_epoch=cap)
    shuffled = epoch_list(table, config, seed)
    order = epoch_list(table, config.model_copy(update={"sampling": sampling}), seed)
    assert len(order) == len(shuffled)
    assert set(order) <= set(shuffled), "the same positive controls, too"
    groups = [group_of(row, sampling) for _, row in table.iterrows()]
    assert {groups[i] for i in order} == {groups[i] for i in shuffled}, (
        "there are no more groups than entries"
    )
    assert even(Counter(groups[i] for i in order))
    times = Counter(order.tolist())
    for group in {groups[i] for i in shuffled}:
        assert even(Counter({i: times[i] for i in shuffled.tolist() if groups[i] == group}))


def test_a_balanced_epoch_goes_through_its_groups_in_rounds() -> None:
    table = field_table(400, classes=6)
    order = epoch_list(table, TrainConfig(sampling="class_balanced"), 0)
    groups = [group_of(row, "class_balanced") for _, row in table.iterrows()]
    number = len({groups[i] for i in order})
    rounds = [[groups[i] for i in order[k : k + number]] for k in range(0, len(order), number)]
    assert all(len(set(one)) == len(one) for one in rounds)
    assert len({tuple(one) for one in rounds}) > len(rounds) / 2, "in another order each time"


@settings(deadline=None, max_examples=80)
@given(
    st.sampled_from(["shuffled", *BALANCED]), st.integers(0, 300), st.integers(1, 9), st.integers(1, 24),
    st.integers(1, 6), st.integers(0, 99),
)  # fmt: skip
def test_batches_of_few_plates_hold_the_same_entries(
    sampling: Sampling, fields: int, plates: int, batch: int, wanted: int, seed: int
) -> None:
    table = field_table(fields, seed, plates)
    config = TrainConfig(sampling=sampling, global_batch=batch)
    before = epoch_list(table, config, seed)
    order = epoch_list(table, config.model_copy(update={"plates_per_batch": wanted}), seed)
    assert sorted(order) == sorted(before)
    names = table[c.PLATE].to_numpy()
    held = [len(set(names[order[i : i + batch]])) for i in range(0, len(order), batch)]
    piece = -(-batch // wanted)
    counts = Counter(names[order])
    if all(count >= piece for count in counts.values()):
        assert max(held, default=0) <= wanted + 1
    if batch % wanted == 0:
        # Plates that are no multiple of a piece long leave one longer piece each, the last ones in order.
        rest = sum(count % piece + piece * (count > piece) for count in counts.values() if count % piece)
        assert sum(number > wanted for number in held) <= rest // batch + 2


@pytest.mark.parametrize("wanted", [1, 2, 4])
def test_most_batches_hold_no_more_plates_than_asked_for_and_ever_others(wanted: int) -> None:
    """12 plates of 330 fields, which no piece divides; in batches of 32."""
    table = field_table(12 * 330).assign(**{t.LISTED: True})
    names = np.array([f"P{i % 12}" for i in range(len(table))])
    table[c.PLATE] = names
    config = TrainConfig(plates_per_batch=wanted, positive_controls_per_epoch=9999)
    order = epoch_list(table, config, 0)
    held = [frozenset(names[order[i : i + 32]]) for i in range(0, len(order), 32)]
    piece = 32 // wanted
    rest = 12 * (piece + 330 % piece)
    over = [i for i, plates in enumerate(held) if len(plates) > wanted]
    assert len(over) <= rest // 32 + 1
    assert not over or over[0] < len(held) - 2 * len(over), "and those are not left to the end"
    assert len(set(held)) >= min(12, len(held) / 2), "who meets whom is drawn"
    assert len(set().union(*held[: 24 // wanted])) >= 9, "and no plate is gone through at once"


def test_a_million_fields_are_listed_in_seconds() -> None:
    rng, fields = np.random.default_rng(0), 1_000_000
    table = pd.DataFrame(
        {
            c.PLATE: pd.Series([f"P{i}" for i in range(500)]).iloc[rng.integers(0, 500, fields)].to_numpy(),
            c.PERT_TYPE: c.TREATED,
            t.LABEL: rng.integers(-1, 13, fields),
            t.TREATMENT_LABEL: rng.integers(0, 99, fields),
            t.LISTED: True,
        }
    )
    began = time.process_time()
    order = epoch_list(table, TrainConfig(sampling="plate_and_class_balanced", plates_per_batch=4), 0)
    assert len(shares(order, 32, 0, 2)) == fields // 32
    assert time.process_time() - began < 8


@settings(deadline=None)
@given(st.integers(0, 200), st.integers(1, 40), st.integers(1, 9), st.data())
def test_all_ranks_together_see_the_list_once_from_any_cursor_on(
    entries: int, batch: int, world: int, data: st.DataObject
) -> None:
    order = np.random.default_rng(0).permutation(entries).astype(np.int64)
    start = min(batch * data.draw(st.integers(0, -(-entries // batch))), entries)
    ranks = [shares(order, batch, rank, world, start) for rank in range(world)]
    assert {len(one) for one in ranks} == {-(-(entries - start) // batch)}, "every rank makes the same steps"
    for step, together in enumerate(zip(*ranks, strict=True), start // batch):
        sizes = [len(share.rows) for share in together]
        assert max(sizes) - min(sizes) <= 1
        assert {share.batch for share in together} == {sum(sizes)}
        assert {share.step for share in together} == {step}
        seen = sorted(int(row) for share in together for row in share.rows)
        assert seen == sorted(order[step * batch : (step + 1) * batch])


@pytest.mark.parametrize("start", [1, 33, 101, -32])
def test_a_cursor_within_a_batch_is_refused(start: int) -> None:
    with pytest.raises(InputError, match=rf"cursor {start}: .*train\.global_batch"):
        shares(np.arange(100), 32, 0, 1, start)


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90), st.integers(1, 16), st.integers(1, 7),
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 5)), max_size=8),
    st.sampled_from(["shuffled", *BALANCED]),
)  # fmt: skip
def test_a_run_that_is_killed_and_resumed_elsewhere_sees_every_entry_once(
    fields: int, batch: int, checkpoint_steps: int, kills: list[tuple[int, int]], sampling: Sampling
) -> None:
    """Each kill comes after so many more steps; the next life has another number of workers."""
    config = TrainConfig(global_batch=batch, sampling=sampling, plates_per_batch=2)
    table = field_table(fields)
    epochs = 3
    lists = [epoch_list(table, config, epoch) for epoch in range(epochs)]
    saved: tuple[int, int, list[tuple[int, ...]]] = (0, 0, [])  # epoch, cursor, what the weights have seen
    lives = [*kills, (10**9, 2)]
    for lasts, world in lives:
        epoch, cursor, seen = saved[0], saved[1], list(saved[2])
        while epoch < epochs and lasts:
            ranks = [shares(lists[epoch], batch, rank, world, cursor) for rank in range(world)]
            for together in zip(*ranks, strict=True):
                if not lasts:
                    break
                seen.append(tuple(sorted(int(row) for share in together for row in share.rows)))
                cursor, lasts = cursor + together[0].batch, lasts - 1
                if len(seen) % checkpoint_steps == 0:
                    saved = (epoch, cursor, list(seen))
            if cursor == len(lists[epoch]):
                epoch, cursor = epoch + 1, 0
    expected = [
        tuple(sorted(order[i : i + batch].tolist())) for order in lists for i in range(0, len(order), batch)
    ]
    assert seen == expected


@pytest.mark.parametrize("world", [2, 3, 5, 9])
def test_shared_out_gradients_are_those_of_the_whole_batch(world: int) -> None:
    """The mean over ranks of world x (sum of weighted losses / global batch), as DDP takes it."""
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 3)
    inputs, labels = torch.randn(7, 4), torch.randint(0, 3, (7,))
    weight = torch.tensor([0.5, 1.0, 2.0])

    def gradient(share: Share, factor: float) -> torch.Tensor:
        network.zero_grad()
        rows = torch.from_numpy(share.rows)
        losses = torch.nn.functional.cross_entropy(network(inputs[rows]), labels[rows], reduction="none")
        torch.autograd.backward((losses * weight[labels[rows]]).sum() / share.batch * factor)
        assert network.weight.grad is not None
        return network.weight.grad.clone()

    everything = np.arange(7)
    parts = [gradient(shares(everything, 7, rank, world)[0], world) for rank in range(world)]
    torch.testing.assert_close(torch.stack(parts).mean(0), gradient(shares(everything, 7, 0, 1)[0], 1))


def anchored_table(fields: int = 600) -> pd.DataFrame:
    table = field_table(fields, plates=4)
    assert table.groupby(c.PLATE)[t.ANCHOR].sum().min() > 4
    return table


@pytest.mark.parametrize("seed", [None, (0, 3)])
def test_a_share_is_anchored_by_controls_of_its_own_plates(seed: tuple[int, ...] | None) -> None:
    table = anchored_table()
    names, keys = table[c.PLATE].to_numpy(), table[c.KEY].to_numpy()
    plain = [*shares(plate_order(table), 8, 0, 2), Share(np.empty(0, np.int64), 1, step=999)]
    for share, before in zip(with_anchors(plain, table, 4, seed), plain, strict=True):
        assert (share.rows is before.rows, share.batch, share.step) == (True, before.batch, before.step)
        assert table[t.ANCHOR].to_numpy()[share.anchors].all()
        assert len(set(keys[share.anchors])) == len(share.anchors)
        wanted = sorted(np.unique(names[share.rows]).repeat(4))
        assert list(names[share.anchors]) == wanted
    few = with_anchors(plain[:1], table, 10_000, seed)[0].anchors
    of_plate = table[t.ANCHOR].to_numpy() & np.isin(names, names[plain[0].rows])
    assert sorted(few) == np.flatnonzero(of_plate).tolist(), "all of them, where there are no more"


def test_drawn_anchors_depend_on_the_step_alone_and_all_are_used() -> None:
    table = anchored_table()
    order = epoch_list(table, TrainConfig(), 0)
    everyone = with_anchors(shares(order, 8, 0, 1), table, 3, (0, 1))
    names = table[c.PLATE].to_numpy()
    for world, start in [(1, 40), (3, 0), (3, 80)]:
        for share in with_anchors(shares(order, 8, world - 1, world, start), table, 3, (0, 1)):
            whole = everyone[share.step].anchors
            expected = whole[np.isin(names[whole], names[share.rows])]
            np.testing.assert_array_equal(share.anchors, expected)
    other = with_anchors(shares(order, 8, 0, 1), table, 3, (0, 2))
    assert any((one.anchors != two.anchors).any() for one, two in zip(everyone, other, strict=True))
    used = np.concatenate([share.anchors for share in (*everyone, *other)])
    assert set(used) == set(np.flatnonzero(table[t.ANCHOR])), "in two epochs of 70 steps"


def test_fixed_anchors_are_the_same_in_every_share_and_spread_over_the_plate() -> None:
    table = anchored_table()
    names = table[c.PLATE].to_numpy()
    fixed = with_anchors(shares(epoch_list(table, TrainConfig(), 0), 8, 0, 1), table, 3, None)
    for plate in np.unique(names):
        sets = {tuple(s.anchors[names[s.anchors] == plate]) for s in fixed if plate in names[s.rows]}
        assert len(sets) == 1
        keys = sorted(table[c.KEY][(table[c.PLATE] == plate) & table[t.ANCHOR]])
        taken = table[c.KEY].to_numpy()[list(sets.pop())]
        assert min(np.diff([keys.index(key) for key in taken])) >= len(keys) // 3


def test_a_plate_without_controls_is_named() -> None:
    table = anchored_table()
    table[t.ANCHOR] &= table[c.PLATE] != "P1"
    with pytest.raises(InputError, match=r"^plate P1: no negative control .*model\.normalization"):
        with_anchors(shares(plate_order(table), 8, 0, 1), table, 4, (0, 0))
    elsewhere = [Share(np.flatnonzero(table[c.PLATE] == "P0"), 8)]
    assert len(with_anchors(elsewhere, table, 4, (0, 0))[0].anchors) == 4


def test_the_order_of_plates_holds_the_listed_fields_by_plate_and_key() -> None:
    table = field_table(200)
    order = plate_order(table)
    assert sorted(order) == np.flatnonzero(table[t.LISTED]).tolist()
    named = list(zip(table[c.PLATE].to_numpy()[order], table[c.KEY].to_numpy()[order], strict=True))
    assert named == sorted(named)
