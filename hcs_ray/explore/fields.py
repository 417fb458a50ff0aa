"""One field as it is looked at: its planes, the limits of contrast, and what is drawn with them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from hcs_ray.contracts import InputError
from hcs_ray.explore.scene import Scene
from hcs_ray.pictures.colours import rgb_of
from hcs_ray.pictures.composite import Image8, add_up

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ChannelView:
    """How a channel is drawn.

    Attributes:
        colour: ``#rrggbb``, or a name of `hcs_ray.pictures.colours`.
        low: Camera units that are black, and all below.
        high: Camera units that have the full colour, and all above.
    """

    name: str
    colour: str
    shown: bool
    low: float
    high: float


def planes(scene: Scene, row: int, corrected: bool) -> Floats:
    """The planes of a field, (C, H, W) float32 in camera units, not to be written to; the last few are kept.

    Uncorrected they are the stored 16 bits; corrected, the illumination of the plate is divided out.

    Raises:
        HcsError: the member is damaged, or its shard is gone; names shard and offset.
    """
    return scene.planes(int(row), corrected)


def percentile_limits(planes: Floats, low: float = 1, high: float = 99.7) -> list[tuple[float, float]]:
    """Percentiles of each channel's pixels, camera units."""
    flat = planes.reshape(len(planes), -1)
    found = np.percentile(flat, [low, high], axis=1)
    return [(float(black), float(white)) for black, white in found.T]


def render(planes: Floats, views: Sequence[ChannelView]) -> Image8:
    """Planes (C, H, W) and a view of each to RGB (H, W, 3) uint8.

    A channel's light is ``(value - low) / (high - low)`` cut to 0 and 1 (where ``high`` is not above ``low``:
    1 above ``low``, else 0); the lights of the channels that are shown are multiplied with their colours and
    added up; the sum, cut at 1, becomes 0 to 255, rounded. There is no gamma: twice the light above ``low``
    is twice the value.

    Raises:
        InputError: an unknown colour, or another number of views than channels.
    """
    if len(views) != len(planes):
        raise InputError(f"{len(views)} views of {len(planes)} channels")
    shown = [number for number, view in enumerate(views) if view.shown]
    if not shown:
        return np.zeros((*planes.shape[1:], 3), np.uint8)
    light = np.stack([_light(planes[number], views[number]) for number in shown])
    return add_up(light, np.array([rgb_of(views[number].colour) for number in shown], np.float32))


def _light(plane: Floats, view: ChannelView) -> Floats:
    low, high = np.float32(view.low), np.float32(view.high)
    if not high > low:
        return (plane > low).astype(np.float32)
    light = plane - low
    light /= high - low
    return np.clip(light, 0, 1, out=light)
