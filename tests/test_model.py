"""What the network is fed with, how its work is shared out, and what it is built from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import ModelConfig, TrainConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.model import augment
from hcs_ray.model.backbone import build_backbone
from hcs_ray.model.fitting import class_weights
from hcs_ray.model.loader import LABEL, epoch_list, parts
from hcs_ray.model.module import validation_metrics
from hcs_ray.model.network import MoaNetwork, ModelSpec
from hcs_ray.shards.read import Plate
from hcs_ray.train import model_bytes

TINY = ModelSpec(ModelConfig(backbone="tiny").model_dump(), ("a", "b", "c"), ("X", "Y"), 1)


def field_table(fields: int, controls: int = 0) -> pd.DataFrame:
    kinds = [c.POSITIVE_CONTROL] * controls + [c.TREATED] * (fields - controls)
    return pd.DataFrame({c.KEY: [f"k{i}" for i in range(fields)], c.PERT_TYPE: kinds})


@settings(deadline=None)
@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 9), st.integers(0, 5))
def test_all_ranks_together_see_the_list_of_the_epoch_once(
    fields: int, batch: int, world: int, epoch: int
) -> None:
    config = TrainConfig(global_batch=batch)
    order = epoch_list(field_table(fields), config, epoch)
    shares = [parts(order, batch, rank, world) for rank in range(world)]
    assert len({len(share) for share in shares}) == 1, "every rank makes the same steps"
    for step, together in enumerate(zip(*shares, strict=True)):
        sizes = [len(rows) for rows, _ in together]
        assert max(sizes) - min(sizes) <= 1
        assert {whole for _, whole in together} == {sum(sizes)}
        seen = sorted(int(row) for rows, _ in together for row in rows)
        assert seen == sorted(order[step * batch : (step + 1) * batch])
    assert sorted(order) == list(range(fields))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 60))
def test_positive_controls_are_capped_and_change_with_the_epoch(controls: int, others: int, cap: int) -> None:
    config = TrainConfig(positive_controls_per_epoch=cap)
    order = epoch_list(field_table(controls + others, controls), config, 0)
    assert sum(row < controls for row in order) == min(cap, controls)
    assert sum(row >= controls for row in order) == others
    assert len(set(order)) == len(order)


def test_an_epoch_follows_from_its_seed_and_number() -> None:
    table, config = field_table(50), TrainConfig(seed=3)
    np.testing.assert_array_equal(epoch_list(table, config, 2), epoch_list(table, config, 2))
    assert not np.array_equal(epoch_list(table, config, 2), epoch_list(table, config, 3))
    assert not np.array_equal(epoch_list(table, config, 2), epoch_list(table, TrainConfig(seed=4), 2))


@pytest.mark.parametrize("world", [2, 3, 5])
def test_shared_out_gradients_are_those_of_the_whole_batch(world: int) -> None:
    """The mean over ranks of world x (sum of weighted losses / global batch), as DDP takes it."""
    torch.manual_seed(0)
    network = torch.nn.Linear(4, 3)
    inputs, labels = torch.randn(7, 4), torch.randint(0, 3, (7,))
    weight = torch.tensor([0.5, 1.0, 2.0])

    def gradient(rows: np.ndarray[tuple[int], np.dtype[np.int64]], factor: float) -> torch.Tensor:
        network.zero_grad()
        if len(rows):
            losses = torch.nn.functional.cross_entropy(network(inputs[rows]), labels[rows], reduction="none")
            torch.autograd.backward((losses * weight[labels[rows]]).sum() / 7 * factor)
        return (
            torch.zeros_like(network.weight) if network.weight.grad is None else network.weight.grad.clone()
        )

    everything = np.arange(7)
    shares = [gradient(parts(everything, 7, rank, world)[0][0], world) for rank in range(world)]
    torch.testing.assert_close(torch.stack(shares).mean(0), gradient(everything, 1))


def test_a_view_follows_from_seed_epoch_and_key() -> None:
    shape = (3, 60, 80)
    view = augment.draw(shape, 32, 0.2, (0, 1, "k"))
    again = augment.draw(shape, 32, 0.2, (0, 1, "k"))
    assert (view.rows, view.columns, view.quarter_turns) == (again.rows, again.columns, again.quarter_turns)
    others = {
        (v.rows.start, v.columns.start) for v in (augment.draw(shape, 32, 0.2, (0, e, "k")) for e in range(9))
    }
    assert len(others) > 5


def test_a_view_is_a_turned_and_mirrored_crop() -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 1000, (3, 20, 24), np.uint16)
    plate = Plate(np.ones((3, 20, 24), np.float32), np.zeros((3, 1, 1), np.float32))
    gains = np.array([1, 2, 0.5], np.float32)
    view = augment.View(slice(2, 10), slice(4, 12), 1, True, gains)
    expected = np.rot90(pixels[:, 2:10, 4:12] * gains[:, None, None], 1, axes=(1, 2))[:, :, ::-1]
    np.testing.assert_allclose(augment.render(pixels, plate, view, 1), expected)
    assert augment.render(pixels, plate, view, 2).shape == (3, 4, 4)
    assert augment.render(pixels, plate, augment.whole((3, 20, 24)), 1).shape == (3, 20, 24)
    assert augment.centre((3, 20, 24), 512).rows == slice(0, 20)


@pytest.mark.parametrize("backbone", ["tiny", "resnet18"])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_backbones_take_any_channels_and_sizes(backbone: str, channels: int) -> None:
    network = build_backbone(ModelConfig.model_validate({"backbone": backbone}), channels).eval()
    with torch.inference_mode():
        for side in (32, 65):
            assert network(torch.zeros(2, channels, side, side)).shape == (2, network.features)


def test_the_tiny_twin_is_tiny() -> None:
    assert sum(weight.numel() for weight in MoaNetwork(TINY).parameters()) < 150_000


def save_weights(folder: Path) -> Path:
    build_backbone(ModelConfig(backbone="tiny"), 3).network.save_pretrained(folder)
    return folder


def test_weights_are_loaded_and_a_stem_for_more_channels_sees_grey_as_before(tmp_path: Path) -> None:
    weights = str(save_weights(tmp_path / "weights"))
    rgb = build_backbone(ModelConfig(backbone="tiny", weights=weights), 3).eval()
    five = build_backbone(ModelConfig(backbone="tiny", weights=weights), 5).eval()
    grey = torch.rand(2, 1, 64, 64)
    with torch.inference_mode():
        expected = rgb(grey.expand(2, 3, 64, 64))
        torch.testing.assert_close(five(grey.expand(2, 5, 64, 64)), expected, rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_or_are_not_there_are_one_line(tmp_path: Path) -> None:
    weights = str(save_weights(tmp_path / "weights"))
    with pytest.raises(InputError, match=r"model\.weights .*weights"):
        build_backbone(ModelConfig(backbone="resnet18", weights=weights), 3)
    with pytest.raises(HcsError, match="cannot be loaded") as caught:
        build_backbone(ModelConfig(backbone="tiny", weights=str(tmp_path / "nothing")), 3)
    assert "\n" not in str(caught.value)


def test_a_saved_network_is_read_without_pickle(tmp_path: Path) -> None:
    import io

    network = MoaNetwork(TINY)
    saved = torch.load(io.BytesIO(model_bytes(TINY, network.state_dict())), weights_only=True)
    assert ModelSpec.from_json(saved["spec"]) == TINY
    assert model_bytes(TINY, network.state_dict()) == model_bytes(TINY, network.state_dict())


def test_class_weights_have_mean_one_over_the_fields() -> None:
    fields = field_table(30).assign(**{LABEL: [0] * 20 + [1] * 10})
    weights = class_weights(fields, TrainConfig(), 2)
    torch.testing.assert_close(weights, torch.tensor([0.75, 1.5]))
    assert float(weights[torch.tensor(fields[LABEL].to_numpy())].mean()) == pytest.approx(1)


def test_validation_metrics_are_those_of_scikit_learn() -> None:
    from sklearn import metrics

    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 60)  # class 3 is known but not among the labels
    logits = torch.from_numpy(rng.normal(size=(60, 4)) + 1.5 * np.eye(4)[labels]).float()
    fields = pd.DataFrame(
        {LABEL: labels, c.TREATMENT: [f"t{label}-{i % 4}" for i, label in enumerate(labels)]}
    )
    found = validation_metrics(fields, torch.arange(60), logits, 4)
    predicted = logits.argmax(1).numpy()
    assert found["validation_accuracy"] == pytest.approx(metrics.accuracy_score(labels, predicted))
    assert found["validation_mcc"] == pytest.approx(metrics.matthews_corrcoef(labels, predicted), abs=1e-6)
    expected = metrics.recall_score(labels, predicted, labels=[0, 1, 2], average="macro")
    assert found["validation_balanced_accuracy"] == pytest.approx(expected)
    f1 = metrics.f1_score(labels, predicted, labels=[0, 1, 2], average="macro")
    assert found["validation_macro_f1"] == pytest.approx(f1)
    means = pd.DataFrame(logits.softmax(1).numpy()).groupby(fields[c.TREATMENT]).mean().to_numpy()
    truth = [int(name[1]) for name in sorted(fields[c.TREATMENT].unique())]
    assert found["validation_treatment_accuracy"] == pytest.approx((means.argmax(1) == truth).mean())
