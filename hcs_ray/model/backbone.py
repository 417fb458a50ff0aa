"""Backbones from transformers: any number of channels in, one pooled embedding a field out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import nn

from hcs_ray.config import ModelConfig, StorageConfig
from hcs_ray.contracts import InputError
from hcs_ray.model.weights import Weights, read_weights
from hcs_ray.storage.base import DEFAULTS

_PATCH_PX: Final = 14  # of DINOv2


@dataclass(frozen=True)
class _Family:
    """A transformers architecture at one size."""

    architecture: str
    stem: str  # the convolution that takes the channels
    features: int
    sizes: dict[str, Any]
    multiple_px: int = 1  # what the sides of an image must be a multiple of
    fewest_px: int = 32  # of a side; a ResNet's last map must be more than one place, to be normalised


def _resnet(embedding: int, hidden: list[int], depths: list[int], layer: str) -> _Family:
    shrinks = 2 ** (len(hidden) + 1)
    sizes = {"embedding_size": embedding, "hidden_sizes": hidden, "depths": depths, "layer_type": layer}
    return _Family("ResNet", "embedder.embedder.convolution", hidden[-1], sizes, fewest_px=shrinks + 1)


def _convnext(hidden: list[int], depths: list[int]) -> _Family:
    sizes = {"hidden_sizes": hidden, "depths": depths}
    return _Family("ConvNextV2", "embeddings.patch_embeddings", hidden[-1], sizes)


_FAMILIES = {
    "tiny": _resnet(16, [16, 32, 64], [1, 1, 1], "basic"),
    "resnet18": _resnet(64, [64, 128, 256, 512], [2, 2, 2, 2], "basic"),
    "resnet50": _resnet(64, [256, 512, 1024, 2048], [3, 4, 6, 3], "bottleneck"),
    "convnextv2-atto": _convnext([40, 80, 160, 320], [2, 2, 6, 2]),
    "convnextv2-tiny": _convnext([96, 192, 384, 768], [3, 3, 9, 3]),
    # Positions for 37 x 37 patches, as published. No mask token: it would be a parameter without a gradient,
    # which DDP refuses.
    "dinov2-small": _Family(
        "Dinov2",
        "embeddings.patch_embeddings.projection",
        384,
        {
            "hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6, "image_size": 518,
            "patch_size": _PATCH_PX, "use_mask_token": False,
        },
        _PATCH_PX,
        _PATCH_PX,
    ),
}  # fmt: skip


def fewest_px(backbone: str) -> int:
    """The shortest side of an image that a backbone takes, also in a batch of one."""
    return _FAMILIES[backbone].fewest_px


class Backbone(nn.Module):
    """(B, C, H, W) float32 to (B, F), H and W of at least `fewest_px`; float32, or as autocast gives it.

    The embedding of ResNet and ConvNeXt V2 is the mean over the field; of DINOv2 it is the class token after
    the last layer norm, which the authors use for the whole image (Oquab et al. 2024, "DINOv2: Learning
    Robust Visual Features without Supervision"). DINOv2 takes the middle of a field whose sides are no
    multiple of 14 px, so up to 13 rows and columns at the border are left out, and its positions are
    interpolated (bicubic) from those of 518 x 518 px.

    With pretrained weights images are scaled as those were that the weights were learned from, by one mean
    and one standard deviation (over the colours) for all channels; both travel with the network's weights.
    """

    def __init__(self, network: Any, family: _Family, scaling: nn.Module) -> None:
        super().__init__()
        self.scaling = scaling
        self.network = network
        self.features = family.features
        self._multiple_px = family.multiple_px

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        images = self.scaling(_middle(images, self._multiple_px))
        pooled: torch.Tensor = self.network(images).pooler_output
        return pooled.flatten(1)


class _Scaling(nn.Module):
    """(images - mean) / std, one number each."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, mean: float = 0.0, std: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return (images - self.mean) / self.std


def build_backbone(
    config: ModelConfig, channels: int, *, pretrained: bool = True, storage: StorageConfig = DEFAULTS
) -> Backbone:
    """The backbone of a configuration, with its weights where it names some (and ``pretrained``).

    Where the weights take another number of channels, the first convolution is inflated: its mean over the
    channels it knows, times their number, divided by ``channels``. So a grey image that is copied to all
    channels gives what it gave before.

    Args:
        config: Which backbone, and which weights.
        channels: Of the images.
        pretrained: False builds it as it was, to take the weights of a checkpoint.
        storage: How weights on S3 are reached.

    Raises:
        InputError: there are no such weights, or they do not fit the backbone; names the first that does not.
        HcsError: they cannot be reached.
    """
    import transformers

    family = _FAMILIES[config.backbone]
    settings = getattr(transformers, f"{family.architecture}Config")(**family.sizes, num_channels=channels)
    model_class = getattr(transformers, f"{family.architecture}Model")
    if config.weights is None:
        return Backbone(model_class(settings), family, nn.Identity())
    if not pretrained:
        return Backbone(model_class(settings), family, _Scaling())
    weights = read_weights(config.weights, storage)
    network = _filled(model_class, settings, _inflated(weights, family, channels), config)
    return Backbone(network, family, _Scaling(weights.mean, weights.std))


def _middle(images: torch.Tensor, multiple_px: int) -> torch.Tensor:
    """The largest middle part of (B, C, H, W) whose sides are a multiple of so many pixels."""
    height, width = (side - side % multiple_px for side in images.shape[2:])
    top, left = (images.shape[2] - height) // 2, (images.shape[3] - width) // 2
    return images[:, :, top : top + height, left : left + width]


def _inflated(weights: Weights, family: _Family, channels: int) -> dict[str, torch.Tensor]:
    """The state with a first convolution (O, C, k, k) of so many channels."""
    state = dict(weights.state)
    # The file of a whole classifier has the architecture's name before each.
    names = [name for name in state if f".{name}".endswith(f".{family.stem}.weight")]
    for name in names:
        known = state[name].shape[1]
        if known != channels:
            mean = state[name].float().mean(1, keepdim=True)
            state[name] = mean.repeat(1, channels, 1, 1) * (known / channels)
    return state


def _filled(model_class: Any, settings: Any, state: dict[str, torch.Tensor], config: ModelConfig) -> Any:
    """The network with these weights, in float32; transformers renames what older files call otherwise."""
    with _hushed():
        network, info = model_class.from_pretrained(
            None,
            config=settings,
            state_dict=state,
            dtype=torch.float32,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    mismatched = [name if isinstance(name, str) else name[0] for name in info["mismatched_keys"]]
    unfit = sorted([*info["missing_keys"], *mismatched])
    if unfit:
        raise InputError(
            f"model.weights {config.weights}: do not fit model.backbone {config.backbone}: "
            f"{unfit[0]} is missing or has another shape ({len(unfit)} weights)"
        )
    return network


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Without transformers' own progress bar and report of what it loads."""
    import transformers

    logging: Any = transformers.utils.logging
    verbosity, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bar:
            logging.enable_progress_bar()
