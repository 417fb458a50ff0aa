"""Control-anchored batch normalisation: a plate is measured by its own controls, and nothing else."""

from __future__ import annotations

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from hcs_ray.config import ModelConfig
from hcs_ray.contracts import InputError
from hcs_ray.model.anchored import AnchoredBatchNorm2d, Reference, anchor_shares, anchored_statistics
from hcs_ray.model.network import MoaNetwork, ModelSpec

Tensor = torch.Tensor


def network_of(normalization: str = "control_anchored", backbone: str = "tiny") -> MoaNetwork:
    torch.manual_seed(0)
    config = ModelConfig.model_validate({"backbone": backbone, "normalization": normalization})
    return MoaNetwork(ModelSpec(config.model_dump(mode="json"), ("x", "y"), ("a", "b"), 1))


def fields(count: int, seed: int = 0, side: int = 64) -> Tensor:
    """(N, 2, side, side) smooth fields, from about 0 to 1, and each unlike the others."""
    draw = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 2, 9, 9, generator=draw) * torch.rand(count, 2, 1, 1, generator=draw)
    return functional.interpolate(coarse, side, mode="bilinear")


def trues(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.bool)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=12), st.integers(0, 99))
def test_statistics_are_those_of_each_plates_anchors(rows: list[tuple[int, bool]], seed: int) -> None:
    """Against numpy, a plate at a time."""
    plates = np.array([7 * plate - 3 for plate, _ in rows])
    anchors = np.array([anchor for _, anchor in rows])
    for plate in set(plates):
        if not anchors[plates == plate].any():
            anchors[np.flatnonzero(plates == plate)[0]] = True
    images = np.random.default_rng(seed).normal(seed, 1 + seed, (len(rows), 3, 4, 5))
    shares = anchor_shares(torch.from_numpy(plates), torch.from_numpy(anchors))
    mean, variance = anchored_statistics(torch.from_numpy(images).float(), shares)
    for row, plate in enumerate(plates):
        controls = images[(plates == plate) & anchors]
        np.testing.assert_allclose(mean[row], controls.mean((0, 2, 3)), rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(variance[row], controls.var((0, 2, 3)), rtol=1e-3)


def test_where_all_are_anchors_of_one_plate_it_is_batch_normalisation_with_its_gradients() -> None:
    torch.manual_seed(0)
    plain, reference = nn.BatchNorm2d(5), Reference()
    nn.init.normal_(plain.weight)
    nn.init.normal_(plain.bias)
    layer = AnchoredBatchNorm2d(plain, reference)
    reference.batch(torch.zeros(6, dtype=torch.int64), trues(6))
    images, weights = torch.randn(6, 5, 8, 7) * 3 + 2, torch.randn(6, 5, 8, 7)
    found = []
    for normalise in (plain, layer):
        leaf = images.clone().requires_grad_()
        result = normalise(leaf)
        inputs = (leaf, plain.weight, plain.bias)
        found.append((result, *torch.autograd.grad((result * weights).sum(), inputs)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-4)


def test_a_whole_network_of_anchors_is_the_plain_one_in_training() -> None:
    plain, anchored = network_of("batch"), network_of()
    images = fields(6)
    mean, variance = images.mean((0, 2, 3), keepdim=True), images.var((0, 2, 3), correction=0, keepdim=True)
    expected = plain((images - mean) / (variance + 1e-5).sqrt()).embeddings
    found = anchored(images, torch.zeros(6, dtype=torch.int64), trues(6)).embeddings
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert not [name for name, _ in anchored.named_buffers()], "there are no running statistics"


def test_what_a_plate_does_to_its_images_is_taken_out_and_not_by_plain_normalisation() -> None:
    """A gain and an offset of each channel of a whole plate."""
    images, anchors = fields(8), torch.tensor([True] * 4 + [False] * 4)
    plate = torch.zeros(8, dtype=torch.int64)
    changed = images * torch.tensor([1.7, 0.6])[:, None, None] + torch.tensor([0.4, -0.1])[:, None, None]
    anchored, plain = network_of().eval(), network_of("batch")
    for _ in range(20):  # its running statistics become those of the plate as it was
        plain(images)
    plain.eval()
    with torch.inference_mode():
        moves = []
        for before, after in (
            (anchored(images, plate, anchors), anchored(changed, plate, anchors)),
            (plain(images), plain(changed)),
        ):
            spread = before.embeddings.std(0).mean()
            moves.append(float((after.embeddings - before.embeddings).abs().mean() / spread))
    assert moves[0] < 0.01
    assert moves[1] > 0.5


def test_a_treatment_does_not_move_what_its_plate_is_measured_by() -> None:
    images, plates = fields(6), torch.tensor([0, 0, 0, 1, 1, 1])
    anchors = torch.tensor([True, True, False, True, True, False])
    network = network_of().eval()
    treated = images.clone()
    treated[2] *= 3
    with torch.inference_mode():
        before = network(images, plates, anchors).embeddings
        after = network(treated, plates, anchors).embeddings
    kept = torch.tensor([0, 1, 3, 4, 5])
    torch.testing.assert_close(after[kept], before[kept], rtol=0, atol=0)
    assert not torch.allclose(after[2], before[2], atol=1e-2)


def test_held_statistics_give_what_a_batch_with_the_same_anchors_gives() -> None:
    images, plates = fields(9), torch.tensor([4, 9, 9, 4, 4, 9, 9, 9, 4])
    anchors = torch.tensor([True, True, True, True, False, True, False, False, False])
    network = network_of().eval()
    with torch.inference_mode():
        together = network(images, plates, anchors).embeddings
        for plate in (4, 9):
            mine = plates == plate
            statistics = network.anchor(images[mine & anchors])
            assert {len(layer) for layer in statistics} == {2}
            held = network(images[mine], statistics=statistics).embeddings
            torch.testing.assert_close(held, together[mine], rtol=1e-3, atol=1e-4)
            one = network(images[mine][:1], statistics=statistics).embeddings
            torch.testing.assert_close(one, together[mine][:1], rtol=1e-3, atol=1e-4)


def test_gradients_reach_the_anchors_and_every_weight() -> None:
    network = network_of()
    images = fields(4).requires_grad_()
    anchors = torch.tensor([True, False, False, False])
    found = network(images, torch.zeros(4, dtype=torch.int64), anchors)
    torch.autograd.backward(found.moa[1:].square().sum())
    assert images.grad is not None
    assert float(images.grad[0].abs().sum()) > 0, "through the statistics alone"
    assert all(weight.grad is not None for weight in network.parameters())


def test_statistics_are_float32_under_autocast() -> None:
    images = (torch.randn(8, 4, 32, 32) + 100).bfloat16()
    shares = anchor_shares(torch.arange(8) // 4, trues(8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mean, variance = anchored_statistics(images, shares)
    exact = images.double().reshape(2, 4, 4, 32, 32)
    torch.testing.assert_close(mean[::4].double(), exact.mean((1, 3, 4)), rtol=1e-5, atol=0)
    expected = exact.var((1, 3, 4), correction=0)
    torch.testing.assert_close(variance[::4].double(), expected, rtol=1e-3, atol=0)
    network = network_of()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = network(fields(4), torch.zeros(4, dtype=torch.int64), trues(4)).embeddings
    expected_rough = network(fields(4), torch.zeros(4, dtype=torch.int64), trues(4)).embeddings
    torch.testing.assert_close(found, expected_rough, rtol=0.1, atol=0.1)


def test_a_plate_without_anchors_or_a_batch_without_plates_is_refused() -> None:
    network = network_of()
    plates, anchors = torch.tensor([0, 0, 1]), torch.tensor([True, False, False])
    with pytest.raises(RuntimeError, match="no anchor in the batch"):
        network(fields(3), plates, anchors)
    with pytest.raises(ValueError, match="needs plates and anchors"):
        network(fields(3))
    with pytest.raises(InputError, match="nothing to anchor"):
        network_of("batch").anchor(fields(3))


@pytest.mark.parametrize("backbone", ["convnextv2-atto", "dinov2-small"])
def test_a_backbone_without_batch_normalisation_is_refused(backbone: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=f"{backbone} has no batch normalisation; choose tiny"):
        network_of(backbone=backbone)
