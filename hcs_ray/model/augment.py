"""Random changes of training fields, drawn from (seed, epoch, key) and applied in batches on the device.

What is done to a field follows from that triple alone, whatever the number of workers, the batch it is in and
the place where a run was resumed. A crop is drawn for the loader, which reads no more than that; all other
parameters are drawn as one vector a field, which travels with the batch.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from hcs_ray.config.training import AugmentConfig, TrainConfig
from hcs_ray.model.noise import gaussian_noise

Parameters = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]
_CROP, _CHANGES = 1, 2  # what is drawn of a seed
_SHARP_PX = 0.01  # a sigma that leaves an image as it is, where 0 would divide by itself


@dataclass(frozen=True)
class Crop:
    """A part of the full-resolution uint16 field."""

    rows: slice
    columns: slice


def read_px(config: TrainConfig, shape: tuple[int, int, int]) -> int:
    """Side of the square to read of a field (C, H, W), in full-resolution pixels.

    It is that of the crop and, under free rotation, so much more that no corner of the turned crop is empty,
    as far as the field reaches. It exceeds the crop by as many downsampled pixels on either side.
    """
    field = min(shape[1:])
    side = min(config.crop_px, field)
    if not config.augment.rotation_degrees:
        return side
    angle = math.radians(min(config.augment.rotation_degrees, 45))
    block = 2 * config.downsample
    wanted = math.ceil(side * (math.cos(angle) + math.sin(angle) - 1) / block) * block
    return side + min(wanted, (field - side) // block * block)


def draw_crop(shape: tuple[int, int, int], side_px: int, seed: tuple[int, int, str]) -> Crop:
    """A random square of a field (C, H, W); ``seed`` is (seed, epoch, key)."""
    side = min(side_px, *shape[1:])
    rng = _generator(seed, _CROP)
    return _square(int(rng.integers(shape[1] - side + 1)), int(rng.integers(shape[2] - side + 1)), side)


def centre(shape: tuple[int, int, int], side_px: int) -> Crop:
    """The square in the middle of a field (C, H, W)."""
    side = min(side_px, *shape[1:])
    return _square((shape[1] - side) // 2, (shape[2] - side) // 2, side)


def whole(shape: tuple[int, int, int]) -> Crop:
    """All of a field (C, H, W)."""
    return Crop(slice(0, shape[1]), slice(0, shape[2]))


def _square(top: int, left: int, side: int) -> Crop:
    return Crop(slice(top, top + side), slice(left, left + side))


def _generator(seed: tuple[int, int, str], purpose: int) -> np.random.Generator:
    return np.random.default_rng([seed[0], seed[1], zlib.crc32(seed[2].encode()), purpose])


def draw(config: AugmentConfig, channels: int, seed: tuple[int, int, str]) -> Parameters:
    """(P,) float32, the parameters of one field, in the order of `_layout`; ``seed`` is (seed, epoch, key).

    P follows from the configuration and the number of channels; 0 where nothing is switched on. Switching
    one change on or off leaves the others as they were.
    """
    layout = _layout(config, channels)
    if not layout:
        return np.empty(0, np.float32)
    drawn = _drawn(config, _generator(seed, _CHANGES).random(8 + 2 * channels))
    return np.concatenate([drawn[name] for name in layout], dtype=np.float32, casting="same_kind")


def _layout(config: AugmentConfig, channels: int) -> dict[str, int]:
    """How many numbers each change that is switched on takes."""
    sizes = {
        "turn": 3 * (config.flips or config.quarter_turns),  # 0 or 1: transposed, upside down, mirrored
        "rotation": 2 * bool(config.rotation_degrees),  # cosine, sine
        "blur": bool(config.blur_px),  # sigma in full-resolution pixels
        "gamma": channels * bool(config.gamma),  # exponent a channel
        "gain": channels * bool(config.intensity),  # factor a channel
        "noise": 3 * bool(config.noise),  # standard deviation, two whole numbers below 2**24
    }
    return {name: int(size) for name, size in sizes.items() if size}


def _drawn(config: AugmentConfig, uniform: Float64) -> dict[str, Float64]:
    """All parameters of a field; ``uniform`` holds 8 + 2 C numbers in [0, 1)."""
    heads, channels = (uniform[:3] < 0.5).tolist(), len(uniform) // 2 - 4
    transposed = heads[0] and config.quarter_turns
    # Without flips only what keeps the handedness: transposed exactly if turned over in one direction.
    mirrored = heads[2] if config.flips else transposed != heads[1]
    angle = math.radians(config.rotation_degrees) * (2 * uniform[3] - 1)
    symmetric = 2 * uniform[8:] - 1
    return {
        "turn": np.array([transposed, heads[1], mirrored], np.float64),
        "rotation": np.array([math.cos(angle), math.sin(angle)]),
        "blur": config.blur_px * uniform[4:5],
        "gamma": (1 + config.gamma) ** symmetric[:channels],
        "gain": 1 + config.intensity * symmetric[channels:],
        "noise": np.array([config.noise * uniform[5], *(uniform[6:8] * 2**24 // 1)]),
    }


@torch.no_grad()
def apply(images: torch.Tensor, changes: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """The images with their changes: turns, rotation, blur, gamma, gain, noise, in this order.

    An image's result does not depend on the others of the batch, and is the same on every device up to
    rounding. Everything is float32, whatever autocast says. The images given are not written to; without
    any change they are returned.

    Args:
        images: (B, C, h, w) float32, corrected, cropped by `read_px` and downsampled, on any device.
        changes: (B, P) float32 of `draw`, on the same device.

    Returns:
        (B, C, s, s) float32, s the side of the crop after downsampling.
    """
    layout = _layout(config.augment, images.shape[1])
    parts = (
        dict(zip(layout, torch.split(changes, list(layout.values()), dim=1), strict=True)) if layout else {}
    )
    with torch.autocast(images.device.type, enabled=False):
        for name, change in parts.items():
            images = _CHANGE[name](images, change, config)
    return images


def _turned(images: torch.Tensor, change: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Each image's element of the dihedral group. Pixels are only moved; selecting needs no host sync."""
    transposed, upside_down, mirrored = (change[:, i, None, None, None] > 0 for i in range(3))
    if config.augment.quarter_turns:
        images = torch.where(transposed, images.transpose(2, 3), images)
    images = torch.where(upside_down, images.flip(2), images)
    return torch.where(mirrored, images.flip(3), images).contiguous()


def _rotated(images: torch.Tensor, change: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Turned about the middle, bilinearly, and cut to the crop; beyond the field, its mirror image."""
    from kornia.geometry.transform import remap

    height, width = images.shape[2:]
    side = min(-(-config.crop_px // config.downsample), height, width)
    offsets = torch.arange(side, dtype=torch.float32, device=images.device) - (side - 1) / 2
    x, y = offsets[None, None, :], offsets[None, :, None]
    cosine, sine = change[:, 0, None, None], change[:, 1, None, None]
    columns = cosine * x - sine * y + (width - 1) / 2
    rows = sine * x + cosine * y + (height - 1) / 2
    turned: torch.Tensor = remap(
        images, columns, rows, mode="bilinear", padding_mode="reflection", align_corners=True
    )
    return turned


def _blurred(images: torch.Tensor, change: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    """Gaussian blur to 3 sigma; the border is mirrored."""
    from kornia.filters import gaussian_blur2d

    reach = math.ceil(3 * config.augment.blur_px / config.downsample)
    reach = min(reach, images.shape[2] - 1, images.shape[3] - 1)  # as far as a mirror image reaches
    sigma = (change / config.downsample).clamp(min=_SHARP_PX).expand(-1, 2)
    blurred: torch.Tensor = gaussian_blur2d(images, 2 * reach + 1, sigma, border_type="reflect")
    return blurred


def _bent(images: torch.Tensor, change: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    return images.clamp(min=0).pow_(change[:, :, None, None])


def _amplified(images: torch.Tensor, change: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    return images * change[:, :, None, None]


def _noisy(images: torch.Tensor, change: torch.Tensor, config: TrainConfig) -> torch.Tensor:
    noise = gaussian_noise(change[:, 1:].to(torch.int32), images[0].numel())
    return images + noise.mul_(change[:, :1]).view(images.shape)


_Change = Callable[[torch.Tensor, torch.Tensor, TrainConfig], torch.Tensor]
_CHANGE: dict[str, _Change] = {
    "turn": _turned, "rotation": _rotated, "blur": _blurred,
    "gamma": _bent, "gain": _amplified, "noise": _noisy,
}  # fmt: skip
