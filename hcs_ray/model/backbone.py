"""Backbones from transformers: any number of channels in, one pooled embedding a field out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hcs_ray.config import ModelConfig
from hcs_ray.contracts import HcsError, InputError

_RGB = 3


@dataclass(frozen=True)
class _Family:
    """A transformers architecture at one size."""

    architecture: str
    sizes: dict[str, Any]


_FAMILIES = {
    "tiny": _Family(
        "ResNet",
        {"embedding_size": 16, "hidden_sizes": [16, 32, 64], "depths": [1, 1, 1], "layer_type": "basic"},
    ),
    "resnet18": _Family(
        "ResNet",
        {
            "embedding_size": 64,
            "hidden_sizes": [64, 128, 256, 512],
            "depths": [2, 2, 2, 2],
            "layer_type": "basic",
        },
    ),
    "resnet50": _Family("ResNet", {}),
    "convnextv2-tiny": _Family("ConvNextV2", {}),
}


class Backbone(nn.Module):
    """(B, C, H, W) float32 to (B, F) float32, for any H and W of at least 32."""

    def __init__(self, network: Any, features: int) -> None:
        super().__init__()
        self.network = network
        self.features = features

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        pooled: torch.Tensor = self.network(images).pooler_output
        return pooled.flatten(1)


def build_backbone(config: ModelConfig, channels: int, *, pretrained: bool = True) -> Backbone:
    """The backbone of a configuration, with its weights where it names some (and ``pretrained``).

    Raises:
        InputError: the weights do not fit the backbone; names the first that does not.
        HcsError: they cannot be reached.
    """
    import transformers

    family = _FAMILIES[config.backbone]
    weights = config.weights if pretrained else None
    settings = getattr(transformers, f"{family.architecture}Config")(
        **family.sizes, num_channels=_RGB if weights else channels
    )
    model_class = getattr(transformers, f"{family.architecture}Model")
    network = model_class(settings) if weights is None else _load(model_class, settings, weights)
    if weights is not None and channels != _RGB:
        _inflate_stem(network, channels)
    return Backbone(network, settings.hidden_sizes[-1])


def _load(model_class: Any, settings: Any, weights: str) -> Any:
    try:
        network, info = model_class.from_pretrained(weights, config=settings, output_loading_info=True)
    except RuntimeError as error:
        raise InputError(f"model.weights {weights}: do not fit the backbone: {_last_line(error)}") from None
    except (OSError, ValueError) as error:
        raise HcsError(f"model.weights {weights}: cannot be loaded: {_last_line(error)}") from None
    unfit = sorted(str(name) for name in (*info["missing_keys"], *info["mismatched_keys"]))
    if unfit:
        raise InputError(f"model.weights {weights}: lack or differ in {unfit[0]} ({len(unfit)} weights)")
    return network


def _inflate_stem(network: Any, channels: int) -> None:
    """Give the first convolution another number of inputs: the mean over RGB, times 3 / channels.

    A grey image copied to all channels then gives what it gave before.
    """
    name: str
    stem: Any
    name, stem = next((n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d))
    inflated = nn.Conv2d(
        channels, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=stem.bias is not None
    )
    with torch.no_grad():
        inflated.weight.copy_(stem.weight.mean(1, keepdim=True).expand_as(inflated.weight) * _RGB / channels)
        if stem.bias is not None and inflated.bias is not None:
            inflated.bias.copy_(stem.bias)
    parent, _, attribute = name.rpartition(".")
    setattr(network.get_submodule(parent), attribute, inflated)
    for module in network.modules():
        if hasattr(module, "num_channels"):
            module.num_channels = channels
    network.config.num_channels = channels


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
