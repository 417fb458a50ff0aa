"""Backbones, and what the heads make of them and take out of them."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from hcs_ray.config import AdversaryConfig, ModelConfig
from hcs_ray.contracts import InputError
from hcs_ray.model.backbone import build_backbone
from hcs_ray.model.heads import adversary, reversal_at, reverse_gradient
from hcs_ray.model.network import MoaNetwork, ModelSpec, Outputs

BACKBONES = ("tiny", "resnet18", "resnet50", "convnextv2-atto", "convnextv2-tiny", "dinov2-small")
Tensor = torch.Tensor


def model(backbone: str = "tiny", **more: object) -> ModelConfig:
    return ModelConfig.model_validate({"backbone": backbone, **more})


def spec_of(channels: int = 3, **more: Any) -> ModelSpec:
    config = model(**more.pop("model", {}))
    names = tuple(f"channel {number}" for number in range(channels))
    return ModelSpec(config.model_dump(mode="json"), names, ("a", "b", "c"), 1, **more)


ALL_HEADS: dict[str, Any] = {"treatments": ("s", "t"), "domains": ("p", "q", "r")}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_backbone_takes_any_channels_and_sizes_and_every_weight_learns(backbone: str) -> None:
    network = MoaNetwork(spec_of(5, model={"backbone": backbone}, **ALL_HEADS))
    found = network(torch.rand(2, 5, 43, 57), probe=True)
    assert found.embeddings.shape == (2, network.backbone.features)
    assert [logits.shape[1] for logits in (found.moa, found.treatment, found.domain)] == [3, 2, 3]
    torch.autograd.backward(found.moa.sum() + found.treatment.sum() + found.domain.sum())
    assert [name for name, weight in network.named_parameters() if weight.grad is None] == []
    with torch.inference_mode():
        assert network(torch.rand(1, 5, 32, 70)).moa.shape == (1, 3)


def test_the_tiny_twin_is_tiny() -> None:
    assert sum(weight.numel() for weight in MoaNetwork(spec_of()).parameters()) < 150_000


def test_dinov2_takes_the_middle_of_a_field_whose_sides_are_no_multiple_of_14() -> None:
    network = build_backbone(model("dinov2-small"), 2).eval()
    field = torch.rand(1, 2, 44, 61)
    with torch.inference_mode():
        torch.testing.assert_close(network(field), network(field[:, :, 1:43, 2:58]), rtol=0, atol=0)


def test_without_a_head_there_are_no_logits() -> None:
    found = MoaNetwork(spec_of())(torch.rand(2, 3, 32, 32))
    assert found.treatment is None
    assert found.domain is None


def channels_last(network: Any) -> MoaNetwork:
    changed: MoaNetwork = network.to(memory_format=torch.channels_last)
    return changed


def test_outputs_are_float32_and_close_under_autocast_and_channels_last() -> None:
    torch.manual_seed(0)
    network = MoaNetwork(spec_of(**ALL_HEADS)).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network(images)
        swapped = channels_last(network)
        found = swapped(images.contiguous(memory_format=torch.channels_last))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            reduced = network(images)
    for one, other, rough in zip(expected, found, reduced, strict=True):
        torch.testing.assert_close(other, one, rtol=1e-4, atol=1e-5)
        assert rough.dtype == torch.float32
        torch.testing.assert_close(rough, one, rtol=0.05, atol=0.05)


# --- the description of a network ---------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(st.text(), min_size=1, max_size=3), st.lists(st.text(), max_size=3), st.integers(1, 8))
def test_a_description_is_read_as_it_was_written(names: list[str], more: list[str], downsample: int) -> None:
    config = model().model_dump(mode="json")
    spec = ModelSpec(config, tuple(names), tuple(names), downsample, tuple(more), tuple(more))
    assert ModelSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    "change",
    [
        ('"downsample": 1', '"downsample": 1, "depth": 2'),
        (', "treatments": []', ""),
        ('"a", ', ""),
        ('"resnet18"', '"vgg"'),
        ('"dropout": 0.0', '"dropout": 7'),
        ("{", "[{"),
    ],
)
def test_no_other_description_is_read(change: tuple[str, str]) -> None:
    text = spec_of(model={"backbone": "resnet18"}).to_json()
    assert change[0] in text
    changed = text.replace(*change, 1)
    if change[0] == '"a", ':  # one class fewer is another network, and as good
        assert ModelSpec.from_json(changed).classes == ("b", "c")
        return
    with pytest.raises(InputError, match="not written by this version"):
        ModelSpec.from_json(changed)


# --- the adversary ------------------------------------------------------------------------------------------


def test_a_reversed_gradient_is_the_finite_difference_times_minus_the_scale() -> None:
    torch.manual_seed(0)
    weight, point = torch.randn(4, 3, dtype=torch.float64), torch.randn(2, 4, dtype=torch.float64)

    def loss(embeddings: Tensor) -> Tensor:
        return functional.cross_entropy(embeddings @ weight, torch.tensor([0, 2]))

    leaf = point.clone().requires_grad_()
    torch.autograd.backward(loss(reverse_gradient(leaf, 0.3)))
    assert leaf.grad is not None
    step = 1e-6
    for row, column in np.ndindex(2, 4):
        moved = torch.zeros_like(point)
        moved[row, column] = step
        difference = (loss(point + moved) - loss(point - moved)) / (2 * step)
        assert float(leaf.grad[row, column]) == pytest.approx(-0.3 * float(difference), rel=1e-6)
    torch.testing.assert_close(reverse_gradient(point, 0.3), point, rtol=0, atol=0)


@settings(deadline=None)
@given(st.integers(1, 5000), st.floats(0, 1), st.floats(0.01, 10))
def test_the_reversal_grows_to_its_weight_and_stays(steps: int, warmup: float, weight: float) -> None:
    config = AdversaryConfig(target="plate", weight=weight, warmup=warmup)
    course = [reversal_at(step, steps, config) for step in range(steps)]
    assert all(before <= after for before, after in itertools.pairwise(course))
    assert all(value == weight for step, value in enumerate(course) if step >= warmup * steps)
    assert course[0] == (0 if warmup else weight)
    assert {reversal_at(step, steps, AdversaryConfig()) for step in (0, steps)} == {0.0}


def test_the_course_of_the_reversal_is_that_of_ganin() -> None:
    config = AdversaryConfig(target="batch", weight=0.5, warmup=0.4)
    expected = 0.5 * (2 / (1 + math.exp(-10 * 0.25)) - 1)
    assert reversal_at(100, 1000, config) == pytest.approx(expected)


def test_a_probe_and_an_adversary_at_rest_leave_the_backbone_alone() -> None:
    network = MoaNetwork(spec_of(**ALL_HEADS))

    def moved(found: Outputs, name: str) -> float:
        network.zero_grad()
        torch.autograd.backward(getattr(found, name)[:, 0].sum())
        return sum(float(w.grad.abs().sum()) for w in network.backbone.parameters() if w.grad is not None)

    images = torch.rand(4, 3, 32, 32)
    assert moved(network(images, probe=True), "moa") == 0
    assert moved(network(images), "moa") > 0
    assert moved(network(images, reversal=0.0), "domain") == 0
    assert moved(network(images, reversal=0.5), "domain") > 0
    assert moved(network(images), "treatment") > 0


def test_the_adversarys_head_begins_like_any_other_and_learns_faster() -> None:
    torch.manual_seed(0)
    head, inputs = adversary(64, 3), torch.randn(500, 64)
    plain = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.ReLU(), torch.nn.Linear(64, 3))
    assert head(inputs).std().item() == pytest.approx(plain(inputs).std().item(), rel=0.3)
    losses = {}
    for name, network in (("head", head), ("plain", plain)):
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        for _ in range(10):
            loss = functional.cross_entropy(network(inputs), (inputs[:, 0] > 0).long())
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
        losses[name] = float(loss.detach())
    assert losses["head"] < 0.5 * losses["plain"]


def planted(fields: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Fields (N, 2, 16, 16) whose first channel shows the class (N,), the second the plate's (N,) light."""
    draw = torch.Generator().manual_seed(seed)
    classes, plates = (torch.randint(0, 2, (fields,), generator=draw) for _ in range(2))
    images = 0.3 * torch.randn(fields, 2, 16, 16, generator=draw)
    stripes = torch.sin(torch.arange(16) * 2 * np.pi / 8)[:, None]
    images[:, 0] += 0.7 * classes[:, None, None] * stripes
    brightness = 0.6 * plates + 0.2 * torch.randn(fields, generator=draw)
    images[:, 1] += brightness[:, None, None]
    return images, classes, plates


def learned(config: AdversaryConfig, steps: int) -> MoaNetwork:
    torch.manual_seed(1)
    spec = ModelSpec(model().model_dump(mode="json"), ("x", "y"), ("a", "b"), 1, (), ("p", "q"))
    network = MoaNetwork(spec)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps)
    images, classes, plates = planted(512, 1)
    draw = torch.Generator().manual_seed(3)
    for step in range(steps):
        rows = torch.randint(0, 512, (64,), generator=draw)
        found = network(images[rows], reversal=reversal_at(step, steps, config))
        loss = functional.cross_entropy(found.moa, classes[rows])
        optimizer.zero_grad()
        torch.autograd.backward(loss + functional.cross_entropy(found.domain, plates[rows]))
        optimizer.step()
        schedule.step()
    return network.eval()


def test_the_adversary_takes_a_planted_plate_out_of_the_embeddings() -> None:
    """A linear probe reads the plate without it, hardly with it, and the class is read by both."""
    from sklearn.linear_model import LogisticRegression

    images, classes, plates = planted(1000, 2)
    read, share = {}, {}
    for target in ("none", "plate"):
        config = AdversaryConfig.model_validate({"target": target, "weight": 0.03})
        network = learned(config, 250)
        with torch.inference_mode():
            found = network(images)
        assert float((found.moa.argmax(1) == classes).float().mean()) > 0.97
        vectors = (found.embeddings - found.embeddings.mean(0)) / found.embeddings.var(0).mean().sqrt()
        # A penalised probe reads what stands out from the spread of the embeddings, as neighbours do.
        probe = LogisticRegression(C=0.001).fit(vectors[:500], plates[:500])
        read[target] = float(probe.score(vectors[500:], plates[500:]))
        apart = vectors[plates == 1].mean(0) - vectors[plates == 0].mean(0)
        share[target] = float((apart / 2).square().sum() / vectors.var(0).sum())
    assert read["none"] > 0.8
    assert read["plate"] < read["none"] - 0.06
    assert share["plate"] < 0.65 * share["none"]


# --- compiled, and on a GPU ---------------------------------------------------------------------------------


@pytest.mark.parametrize("normalization", ["batch", "control_anchored"])
def test_a_compiled_network_is_the_same_in_one_graph_at_every_reversal(normalization: str) -> None:
    torch.manual_seed(0)
    network = MoaNetwork(spec_of(model={"normalization": normalization}, **ALL_HEADS)).eval()
    images, plates = torch.rand(4, 3, 32, 32), torch.tensor([0, 0, 1, 1])
    anchors = torch.tensor([True, False, True, True])
    weights = list(network.backbone.parameters())

    def step(reversal: float) -> tuple[Tensor, ...]:
        found = network(images, plates, anchors, reversal=reversal)
        return (found.moa, *torch.autograd.grad(found.domain.square().sum(), weights))

    expected = {reversal: step(reversal) for reversal in (0.1, 0.2, 0.3)}
    network.compile(backend="aot_eager", fullgraph=True)
    for reversal, tensors in expected.items():
        for one, other in zip(tensors, step(reversal), strict=True):
            torch.testing.assert_close(other, one, rtol=1e-3, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("normalization", ["batch", "control_anchored"])
def test_a_gpu_in_bf16_is_close_to_the_cpu(backbone: str, normalization: str) -> None:
    if normalization == "control_anchored" and not backbone.startswith(("tiny", "resnet")):
        pytest.skip("no batch normalisation")
    torch.manual_seed(0)
    settings_ = {"backbone": backbone, "normalization": normalization}
    network = MoaNetwork(spec_of(model=settings_, **ALL_HEADS)).eval()
    images, plates = torch.rand(4, 3, 64, 64), torch.tensor([0, 0, 1, 1])
    anchors = torch.tensor([True, False, True, True])
    with torch.inference_mode():
        expected = network(images, plates, anchors)
        channels_last(network.cuda())
        with torch.autocast("cuda", dtype=torch.bfloat16):
            found = network(images.cuda(), plates.cuda(), anchors.cuda())
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(other.cpu(), one, rtol=0.1, atol=0.1)
