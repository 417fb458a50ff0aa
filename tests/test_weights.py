"""Pretrained weights: where they lie, what is read of them, and stems for any number of channels."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hcs_ray.config import ModelConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.model.backbone import build_backbone
from hcs_ray.model.network import MoaNetwork, ModelSpec
from hcs_ray.model.weights import read_weights, resolved_weights, weights_digest
from hcs_ray.storage import open_storage

FAMILIES = ("tiny", "convnextv2-atto", "dinov2-small")  # one size of each
Tensor = torch.Tensor


def model(backbone: str = "tiny", **more: object) -> ModelConfig:
    return ModelConfig.model_validate({"backbone": backbone, **more})


def save(folder: Path, backbone: str) -> Path:
    build_backbone(model(backbone), 3).network.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the weights of a tiny network for RGB."""
    torch.manual_seed(1)
    return save(tmp_path_factory.mktemp("saved") / "tiny", "tiny")


def embed(weights: Path | str, images: Tensor, backbone: str = "tiny") -> Tensor:
    network = build_backbone(model(backbone, weights=str(weights)), images.shape[1]).eval()
    with torch.inference_mode():
        embeddings: Tensor = network(images)
    return embeddings


@pytest.mark.parametrize("backbone", FAMILIES)
def test_a_stem_for_other_channels_sees_grey_as_before(backbone: str, tmp_path: Path) -> None:
    weights = save(tmp_path / "weights", backbone)
    grey = torch.rand(2, 1, 42, 42)
    expected = embed(weights, grey.expand(2, 3, 42, 42), backbone)
    for channels in (1, 5):
        found = embed(weights, grey.expand(2, channels, 42, 42), backbone)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert float(expected.abs().max()) > 0


def test_each_channel_counts_alike_in_an_inflated_stem(saved: Path) -> None:
    images = torch.rand(2, 5, 32, 32)
    torch.testing.assert_close(embed(saved, images[:, [4, 2, 0, 1, 3]]), embed(saved, images))
    rgb = torch.rand(2, 3, 32, 32)
    assert not torch.allclose(embed(saved, rgb[:, [2, 0, 1]]), embed(saved, rgb)), "colours are told apart"


def test_weights_are_read_from_any_usual_file(saved: Path, tmp_path: Path) -> None:
    images = torch.rand(2, 3, 32, 32)
    state = read_weights(str(saved)).state
    classifier = {f"resnet.{name}": tensor.half() for name, tensor in state.items()}
    classifier["classifier.1.weight"] = torch.zeros(5, 64)
    torch.save(classifier, tmp_path / "pytorch_model.bin")
    expected = embed(saved, images)
    torch.testing.assert_close(embed(saved / "model.safetensors", images), expected)
    torch.testing.assert_close(embed(tmp_path, images), expected, rtol=1e-2, atol=1e-3)
    assert embed(tmp_path, images).dtype == torch.float32


def test_images_are_scaled_as_the_weights_want_them_also_after_a_checkpoint(
    saved: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved, tmp_path / "scaled"))
    scaling = '{"image_mean": [0.4, 0.5, 0.6], "image_std": [0.1, 0.2, 0.3]}'
    (folder / "preprocessor_config.json").write_text(scaling)
    images = torch.rand(2, 4, 32, 32)
    expected = embed(saved, (images - 0.5) / 0.2)
    torch.testing.assert_close(embed(folder, images), expected, rtol=1e-4, atol=1e-5)
    config = model(weights=str(folder)).model_dump(mode="json")
    spec = ModelSpec(config, ("w", "x", "y", "z"), ("a", "b"), 1)
    trained, again = MoaNetwork(spec, pretrained=True).eval(), MoaNetwork(spec).eval()
    again.load_state_dict(trained.state_dict())
    torch.testing.assert_close(again(images).embeddings, expected, rtol=1e-4, atol=1e-5)


def test_weights_on_s3_are_those_of_the_folder(saved: Path, s3: str) -> None:
    url = f"{s3}/pretrained/tiny"
    storage = open_storage(url)
    for file in saved.iterdir():
        storage.write(file.name, file.read_bytes())
    images = torch.rand(2, 4, 32, 32)
    torch.testing.assert_close(embed(url, images), embed(saved, images))
    torch.testing.assert_close(embed(f"{url}/model.safetensors", images), embed(saved, images))
    assert weights_digest(url) == weights_digest(str(saved))
    with pytest.raises(InputError, match=r"model\.weights s3://.*no such weights"):
        build_backbone(model(weights=f"{s3}/pretrained/none"), 3)


def test_a_digest_tells_what_weights_hold_and_not_where_they_lie(saved: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(saved, tmp_path / "elsewhere"))
    (copy / "notes.md").write_text("not read")
    digest = weights_digest(str(saved))
    assert weights_digest(str(copy)) == weights_digest(str(saved / "model.safetensors")) == digest
    (copy / "preprocessor_config.json").write_text('{"image_mean": [0.5], "image_std": [0.5]}')
    assert weights_digest(str(copy)) != digest
    assert weights_digest(str(save(tmp_path / "other", "tiny"))) != digest
    assert weights_digest(None) is None
    assert weights_digest("microsoft/resnet-18") is None


def test_relative_weights_are_those_of_the_commands_folder(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(saved.parents[1])
    beside = str(saved.relative_to(saved.parents[1]))  # two names, as on the hub
    assert resolved_weights(beside) == str(saved)
    assert resolved_weights("./nothing") == str(saved.parents[1] / "nothing")
    for elsewhere in (None, "s3://bucket/weights", "microsoft/resnet-18"):
        assert resolved_weights(elsewhere) == elsewhere


def test_weights_that_do_not_fit_are_one_line_that_names_the_first(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"model\.weights .* model\.backbone resnet18: \S+ .*\(\d+ weights"
    ) as error:
        build_backbone(model("resnet18", weights=str(saved)), 3)
    assert "\n" not in str(error.value)
    state = read_weights(str(saved)).state
    name = sorted(state)[0]
    torch.save({other: tensor for other, tensor in state.items() if other != name}, tmp_path / "less.pt")
    with pytest.raises(InputError, match=rf"{re.escape(name)} is missing"):
        build_backbone(model(weights=str(tmp_path / "less.pt")), 3)


def test_weights_that_are_not_there_or_not_to_be_trusted_are_one_line(saved: Path, tmp_path: Path) -> None:
    def refused(weights: Path, *, match: str) -> None:
        with pytest.raises(InputError, match=match) as caught:
            build_backbone(model(weights=str(weights)), 3)
        assert "\n" not in str(caught.value)

    refused(tmp_path / "nothing", match=r"no such weights on this machine.*s3://")
    refused(tmp_path / "nothing.safetensors", match="no such weights")
    harm = tmp_path / "harm"
    torch.save({"weight": _Harm(str(harm))}, tmp_path / "evil.pt")
    refused(tmp_path / "evil.pt", match="pickles are not read")
    assert not harm.exists()
    (tmp_path / "cut.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:1000])
    refused(tmp_path / "cut.safetensors", match="neither safetensors nor plain tensors")
    torch.save({"spec": "x", "state": {}}, tmp_path / "model.pt")
    refused(tmp_path / "model.pt", match="something else than tensors")
    refused(tmp_path, match=r"cut\.safetensors or evil\.pt\? Name the file")
    (tmp_path / "preprocessor_config.json").write_text("{}")
    shutil.copy(saved / "model.safetensors", tmp_path)
    refused(tmp_path, match="no image_mean")


class _Harm:
    """Touches a file when it is unpickled."""

    def __init__(self, file: str) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.file),)


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(HcsError, match=r"somebody/some-network: .* the hub cannot be asked \(.*\)") as caught:
        build_backbone(model(weights="somebody/some-network"), 3)
    assert "\n" not in str(caught.value)
