"""What the heads learn, field by field, and how the ranks' shares of a loss add up."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import ModelConfig, TrainConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.model.checkpoint import RunState
from hcs_ray.model.epochs import shares
from hcs_ray.model.losses import Wanted, class_weights, losses, total
from hcs_ray.model.meter import Meter
from hcs_ray.model.network import Outputs
from hcs_ray.model.targets import (
    ANCHOR,
    DOMAIN_LABEL,
    LABEL,
    LISTED,
    NONE,
    PLATE_NUMBER,
    TREATMENT_LABEL,
    side_table,
    targets,
)

#            plate week  compound MoA    type                side
ROWS = [
    ("p1", "w1", "DMSO", None, c.NEGATIVE_CONTROL, c.TRAIN),
    ("p1", "w1", "a", "kills", c.TREATED, c.TRAIN),
    ("p1", "w1", "b", "stops", c.TREATED, c.TRAIN),
    ("p1", "w1", "x", None, c.TREATED, c.UNUSED),
    ("p2", "w2", "DMSO", None, c.NEGATIVE_CONTROL, c.TRAIN),
    ("p2", "w2", "a", "kills", c.TREATED, c.TRAIN),
    ("p2", "w2", "taxol", "stops", c.POSITIVE_CONTROL, c.UNUSED),
    ("p3", "w2", "DMSO", None, c.NEGATIVE_CONTROL, c.VALIDATION),
    ("p3", "w2", "v", "kills", c.TREATED, c.VALIDATION),
    ("p3", "w2", "t", "stops", c.TREATED, c.TEST),
    ("p3", "w2", "t", None, c.TREATED, c.UNUSED),  # a dose of it without a known MoA
    ("p3", "w2", "a", "kills", c.TREATED, c.UNUSED),  # left out by the split
]


def table() -> pd.DataFrame:
    columns = [c.PLATE, c.BATCH, c.COMPOUND, c.MOA, c.PERT_TYPE, c.SIDE]
    fields = pd.DataFrame(ROWS, columns=columns)
    fields[c.TREATMENT] = fields[c.COMPOUND] + "@1"
    fields[c.KEY] = [f"k{number}" for number in range(len(fields))]
    return fields


def numbered(model: dict[str, Any] | None = None, **train: Any) -> tuple[pd.DataFrame, tuple[str, ...]]:
    found = targets(table(), ModelConfig.model_validate(model or {}), TrainConfig.model_validate(train))
    return found.fields, found.classes


def listed(fields: pd.DataFrame, side: str = c.TRAIN) -> list[str]:
    rows = side_table(fields, side, anchored=False)
    assert rows[LISTED].all()
    return list(rows[c.KEY])


def test_moas_and_dmso_are_the_classes_and_each_side_lists_its_own() -> None:
    fields, classes = numbered()
    assert classes == ("DMSO", "kills", "stops")
    assert list(fields[LABEL]) == [0, 1, 2, NONE, 0, 1, NONE, 0, 1, 2, NONE, NONE]
    assert listed(fields) == ["k0", "k1", "k2", "k4", "k5"]
    assert listed(fields, c.VALIDATION) == ["k7", "k8"]
    assert listed(fields, c.TEST) == ["k9"]
    assert (fields[[TREATMENT_LABEL, DOMAIN_LABEL]] == NONE).all(axis=None)
    assert list(fields[PLATE_NUMBER]) == [0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2, 2]


def test_without_a_class_of_dmso_controls_are_listed_for_the_adversary_alone() -> None:
    fields, classes = numbered({"dmso_class": False})
    assert classes == ("kills", "stops")
    assert listed(fields) == ["k1", "k2", "k5"]
    fields, _ = numbered({"dmso_class": False}, adversary={"target": "plate"})
    assert listed(fields) == ["k0", "k1", "k2", "k4", "k5"]
    assert list(fields[DOMAIN_LABEL]) == [0, NONE, NONE, NONE, 1] + [NONE] * 7


def test_the_adversary_sees_controls_or_all_fields_that_train() -> None:
    fields, _ = numbered(adversary={"target": "batch", "fields": "all"})
    assert list(fields[DOMAIN_LABEL]) == [0, 0, 0, NONE, 1, 1] + [NONE] * 6


def test_weak_labels_reach_compounds_without_moa_and_held_out_ones_only_where_asked() -> None:
    fields, _ = numbered(treatment={"weight": 1.0})
    assert listed(fields) == ["k0", "k1", "k2", "k3", "k4", "k5"]
    fields, _ = numbered(treatment={"weight": 1.0, "fields": "all"})
    train = side_table(fields, c.TRAIN, anchored=False)
    assert list(train[c.KEY]) == ["k0", "k1", "k2", "k3", "k4", "k5", "k8", "k9", "k10", "k11"]
    held_out = train[train[c.SIDE] != c.TRAIN]
    assert (held_out[LABEL] == NONE).all(), "the MoA of a held-out compound is never a target"
    assert (held_out[TREATMENT_LABEL] != NONE).all()


def test_anchors_are_the_controls_of_the_plates_and_are_in_no_list() -> None:
    fields, _ = numbered()
    test = side_table(fields, c.TEST, anchored=True)
    assert list(test[c.KEY]) == ["k7", "k9"]
    assert list(test[LISTED]) == [False, True]
    assert list(test[ANCHOR]) == [True, False]


def test_what_cannot_be_learned_is_one_line() -> None:
    one = table()
    one = one[(one[c.MOA] == "kills") | (one[c.SIDE] != c.TRAIN)]
    with pytest.raises(InputError, match="has 1 classes"):
        targets(one, ModelConfig(), TrainConfig())
    single = table()
    single = single[single[c.PLATE] != "p2"]
    adversary = TrainConfig.model_validate({"adversary": {"target": "plate"}})
    with pytest.raises(InputError, match=r"adversary\.target plate: its fields lie on 1"):
        targets(single, ModelConfig(), adversary)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 2**16))
def test_the_shares_of_all_ranks_add_up_to_the_loss_of_the_batch(rows: int, world: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)

    def numbers(highest: int) -> torch.Tensor:
        return torch.randint(NONE, highest, (rows,), generator=generator)

    wanted = Wanted(numbers(3), numbers(4), numbers(2), torch.zeros(rows, dtype=torch.int64))
    scores = [torch.randn(rows, width, generator=generator) for width in (5, 3, 4, 2)]
    config = TrainConfig(label_smoothing=0.1)
    weight = torch.tensor([0.5, 1.0, 2.0])

    def share(rank: int, ranks: int) -> dict[str, torch.Tensor]:
        found = {"moa": torch.zeros(()), "treatment": torch.zeros(()), "domain": torch.zeros(())}
        for part in shares(np.arange(rows), 4, rank, ranks):
            at = torch.from_numpy(part.rows.copy())
            outputs = Outputs(*(score[at] for score in scores))
            weights = torch.full((len(at),), 1 / part.batch)
            for name, loss in losses(outputs, wanted.at(at), weights, weight, config).items():
                found[name] = found[name] + loss
        return found

    whole, parts = share(0, 1), [share(rank, world) for rank in range(world)]
    for name, loss in whole.items():
        summed = torch.stack([part[name] for part in parts]).sum()
        torch.testing.assert_close(summed, loss, rtol=1e-4, atol=1e-6)


def test_a_loss_is_that_of_torch_where_all_fields_have_a_target() -> None:
    torch.manual_seed(0)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    wanted = Wanted(labels, labels, labels, labels)
    outputs = Outputs(torch.zeros(6, 2), logits, None, None)
    found = losses(outputs, wanted, torch.full((6,), 1 / 6), torch.ones(3), TrainConfig())
    torch.testing.assert_close(found["moa"], torch.nn.functional.cross_entropy(logits, labels))
    assert set(found) == {"moa"}


def test_heads_are_weighed_and_a_probe_still_learns() -> None:
    parts = {"moa": torch.tensor(2.0), "treatment": torch.tensor(3.0), "domain": torch.tensor(5.0)}
    both = TrainConfig.model_validate({"moa_weight": 0.5, "treatment": {"weight": 2.0}})
    assert float(total(parts, both)) == 0.5 * 2 + 2 * 3 + 5
    weak = TrainConfig.model_validate({"moa_weight": 0, "treatment": {"weight": 1.0}})
    assert float(total(parts, weak)) == 2 + 3 + 5


def test_class_weights_have_mean_one_over_the_fields_that_have_a_class() -> None:
    fields = table().loc[[1] * 20 + [2] * 10 + [3] * 5].reset_index(drop=True)
    fields[LABEL] = [0] * 20 + [1] * 10 + [NONE] * 5
    fields[LISTED] = True
    weights = class_weights(fields, TrainConfig(), 2)
    torch.testing.assert_close(weights, torch.tensor([0.75, 1.5]))
    torch.testing.assert_close(class_weights(fields, TrainConfig(class_weights=False), 2), torch.ones(2))


def test_sums_that_are_carried_over_a_checkpoint_go_on() -> None:
    parts = {"loss": torch.tensor(1.0), "moa": torch.tensor(0.25)}
    undisturbed, before, after = (Meter(3, torch.device("cpu")) for _ in range(3))
    for meter in (undisturbed, before):
        meter.add(parts)
        meter.step_done(first_rank=True)
        meter.saw(torch.tensor([0, 2, 2]), torch.tensor([True, True, False]))
    after.load(*before.state(), first_rank=True)
    for meter in (undisturbed, after):
        meter.add({"loss": torch.tensor(3.0), "moa": torch.tensor(0.75)})
        meter.step_done(first_rank=True)
        meter.saw(torch.tensor([1]), torch.tensor([True]))
        assert meter.window_means(("loss", "moa")) == {"loss": 2.0, "moa": 0.5}
        assert meter.state()[1].tolist() == [1, 1, 1]
        assert meter.epoch_means(("loss",)) == {"loss": 2.0}
        assert meter.epoch_means(("loss",)) == {"loss": 0.0}


def test_a_state_is_read_without_pickle_and_an_older_one_is_refused() -> None:
    state = RunState(
        epoch=2, samples=32, step=10, history=[{"epoch": 0.0}], points=[{"lr": 1e-3}],
        best={"weight": torch.ones(2)}, seen=torch.ones(3, dtype=torch.int32), generators={"seed": 1},
    )  # fmt: skip
    buffer = io.BytesIO()
    torch.save(state.to_plain(), buffer)
    buffer.seek(0)
    plain = torch.load(buffer, weights_only=True)
    found = RunState.from_plain(plain)
    assert (found.epoch, found.samples, found.step, found.history) == (2, 32, 10, [{"epoch": 0.0}])
    torch.testing.assert_close(found.best["weight"], torch.ones(2))
    with pytest.raises(HcsError, match="format 1; this version reads 2"):
        RunState.from_plain({**plain, "format": 1})
