"""What a network sees of a field at a time, and how that becomes one embedding: tiles, turns, pooling."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

import torch

from hcs_ray.config import EmbedConfig
from hcs_ray.model import augment
from hcs_ray.model.augment import Crop
from hcs_ray.model.network import Outputs

Augmentation = Literal["none", "flips", "dihedral"]
Pool = Literal["mean", "max", "median"]


class Pooled(NamedTuple):
    """Of (B) fields."""

    embeddings: torch.Tensor  # (B, F) float32
    probabilities: torch.Tensor  # (B, K) float32


def part_read(config: EmbedConfig, shape: tuple[int, int, int]) -> Crop:
    """The part of a field (C, H, W) that is read: its middle where that is all the network sees."""
    return augment.centre(shape, config.tile_px) if config.tiles == "center" else augment.whole(shape)


def tiles_of(height: int, width: int, side: int) -> list[tuple[slice, slice]]:
    """As few squares of ``side`` as cover an image, evenly spread, row by row.

    They overlap where the sides are no multiple of ``side``; an image shorter than that is taken as it is.
    """
    return [(rows, columns) for rows in _spread(height, side) for columns in _spread(width, side)]


def _spread(length: int, side: int) -> list[slice]:
    side = min(side, length)
    count = -(-length // side)
    starts = [round(number * (length - side) / max(count - 1, 1)) for number in range(count)]
    return [slice(start, start + side) for start in starts]


def cut(images: torch.Tensor, config: EmbedConfig, downsample: int) -> Iterator[torch.Tensor]:
    """The tiles of (B, C, h, w), which were downsampled: (B, C, t, t) each, or the images as they are."""
    if config.tiles != "grid":
        yield images
        return
    height, width = images.shape[2:]
    for rows, columns in tiles_of(height, width, -(-config.tile_px // downsample)):
        yield images[:, :, rows, columns].contiguous()


def turned(images: torch.Tensor, augmentation: Augmentation) -> Iterator[torch.Tensor]:
    """(B, C, h, w) as it is, its three flips, and for dihedral these four of its transpose (B, C, w, h)."""
    yield images
    if augmentation == "none":
        return
    flips = ((3,), (2,), (2, 3))
    for axes in flips:
        yield images.flip(axes)
    if augmentation == "dihedral":
        across = images.transpose(2, 3).contiguous()
        yield across
        for axes in flips:
            yield across.flip(axes)


def see(
    images: torch.Tensor, config: EmbedConfig, downsample: int, network: Callable[[torch.Tensor], Outputs]
) -> Pooled:
    """Every turn of every tile of (B, C, h, w) through the network, B at a time.

    A tile's embedding is the mean over its turns; the field's is pooled over the tiles. Probabilities are
    averaged over all.
    """
    embeddings, probabilities = [], []
    for tile in cut(images, config, downsample):
        outputs = [network(view) for view in turned(tile, config.test_time_augmentation)]
        embeddings.append(torch.stack([output.embeddings for output in outputs]).mean(0))
        probabilities.append(torch.stack([output.moa.softmax(1) for output in outputs]).mean(0))
    return Pooled(pool(torch.stack(embeddings), config.pool), torch.stack(probabilities).mean(0))


def pool(tiles: torch.Tensor, how: Pool) -> torch.Tensor:
    """(T, B, F) to (B, F); of an even number of tiles the median is the mean of the middle two."""
    if how == "max":
        return tiles.amax(0)
    return tiles.mean(0) if how == "mean" else tiles.quantile(0.5, dim=0)
