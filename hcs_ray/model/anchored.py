"""Batch normalisation by a plate's negative controls, in the place of that by whatever is in the batch.

Each layer normalises the rows of a plate by the mean and variance of that plate's control fields, so what
staining and lamp do to a whole plate is taken out in every layer, and what a treatment does to its wells
stays in. The images themselves are normalised so, too: later layers mix the channels, and could not undo what
was done to each (a gain and an offset), nor at the borders, where convolutions pad with zeros. There are no
running statistics: the same happens in training and in use.

Where it comes from:

- Typical variation normalisation (Ando et al. 2017, "Improving phenotypic measurements in high-content
  imaging screens") aligns batches by their negative controls, but after the network, on its embeddings.
- Batch effects normalisation (Lin and Lu 2022, "Incorporating knowledge of plates in batch normalization
  improves generalization of deep learning for microscopy images") draws every batch from one plate, in
  training and in use, so that batch normalisation is the plate's. Its statistics come from all wells of the
  batch, so they shift with the treatments that happen to lie there; here a batch may mix plates, and only
  controls count.
- CS-ARM-BN (Sanchez-Fernandez et al. 2026, arXiv 2604.20824) adds control fields to the context that the
  statistics of a batch are taken from, beside the treated ones. Here they are taken from controls alone:
  unbiased by the treatments, for the price of more noise where few controls are read.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hcs_ray.model.backbone import Backbone

PlateStatistics = tuple[torch.Tensor, ...]  # one (2, C) float32 a layer: mean and variance of its channels


class Reference:
    """What the layers of one network normalise by in the pass that is running; all of them share it."""

    def __init__(self) -> None:
        self.layers = 0
        self._shares: torch.Tensor | None = None
        self._held: PlateStatistics | None = None
        self._kept: dict[int, torch.Tensor] | None = None

    def batch(self, plates: torch.Tensor, anchors: torch.Tensor) -> None:
        """Normalise by the anchors among the rows themselves: (B,) int64 plates, (B,) bool anchors."""
        self._held, self._kept = None, None
        self._shares = anchor_shares(plates, anchors)

    def hold(self, statistics: PlateStatistics) -> None:
        """Normalise all rows by the statistics of one plate."""
        self._shares, self._kept, self._held = None, None, statistics

    def keep(self, rows: int, device: torch.device) -> None:
        """Normalise so many rows, all of them anchors of one plate, by themselves, and remember by what."""
        self._held, self._kept = None, {}
        self._shares = torch.full((rows, rows), 1 / rows, device=device)

    def kept(self) -> PlateStatistics:
        """What `keep` has remembered, in the order of the layers."""
        assert self._kept is not None
        return tuple(self._kept[number] for number in range(self.layers))

    def clear(self) -> None:
        self._shares, self._held, self._kept = None, None, None

    def statistics(self, number: int, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and variance for layer ``number`` and (B, C, h, w): (B, C) each, or (1, C), float32."""
        if self._held is not None:
            return self._held[number][:1], self._held[number][1:]
        if self._shares is None:
            raise RuntimeError("a control-anchored layer was called without plates and anchors")
        mean, variance = anchored_statistics(images, self._shares)
        if self._kept is not None:
            self._kept[number] = torch.stack([mean[0], variance[0]])
        return mean, variance


class AnchoredBatchNorm2d(nn.Module):
    """(B, C, h, w) to the same shape, type and memory format.

    Weight and bias are those of the layer it replaces, or none where that has none.
    """

    def __init__(self, layer: nn.BatchNorm2d, reference: Reference) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self._reference = reference
        self._number = reference.layers
        reference.layers += 1

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        mean, variance = self._reference.statistics(self._number, images)
        scale = torch.rsqrt(variance + self.eps)
        if self.weight is not None:
            scale = scale * self.weight
        shift = -mean * scale
        if self.bias is not None:
            shift = shift + self.bias
        normalised = images * scale[:, :, None, None] + shift[:, :, None, None]  # in float32
        return normalised.to(images.dtype)


def anchor_backbone(backbone: Backbone, channels: int) -> Reference:
    """Replace every BatchNorm2d by an anchored one, keeping its weight and bias, and anchor the images.

    Args:
        backbone: Changed in place; the scaling of pretrained weights gives way to the plate's own. It has
            batch normalisation: the configuration refuses those that have none.
        channels: Of the images.
    """
    reference = Reference()
    modules: Any = backbone.network.named_modules()
    layers = [(path, layer) for path, layer in modules if isinstance(layer, nn.BatchNorm2d)]
    backbone.scaling = AnchoredBatchNorm2d(nn.BatchNorm2d(channels, affine=False), reference)
    for path, layer in layers:
        backbone.network.set_submodule(path, AnchoredBatchNorm2d(layer, reference))
    return reference


def anchor_shares(plates: torch.Tensor, anchors: torch.Tensor) -> torch.Tensor:
    """(B, B) float32: in row i, one over the number of anchors of i's plate at each of those anchors, else 0.

    Raises:
        RuntimeError: a row's plate has no anchor among the rows.
    """
    same = (plates[:, None] == plates[None, :]) & anchors[None, :]
    counts = same.sum(1, keepdim=True)
    torch._assert_async((counts > 0).all(), "a row's plate has no anchor in the batch")  # waits for no device
    return same.float() / counts


def anchored_statistics(images: torch.Tensor, shares: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and (biased) variance over the anchors of each row's plate, as batch normalisation takes them.

    Args:
        images: (B, C, h, w), of any floating type.
        shares: (B, B), of `anchor_shares`.

    Returns:
        (B, C) float32 each, computed in float32 also under autocast.
    """
    with torch.autocast(images.device.type, enabled=False):
        variances, means = torch.var_mean(images.float(), dim=(2, 3), correction=0)
        mean = shares @ means
        # Of an anchor, `mean` is that of its own plate: the variance within fields and that between them.
        variance = shares @ (variances + (means - mean).square())
    return mean, variance
