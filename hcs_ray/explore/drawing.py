"""How a field is to be drawn, as the field view asks for it in an address, and the drawing."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final
from urllib.parse import quote

import numpy as np

from hcs_ray.contracts import InputError
from hcs_ray.explore import fields
from hcs_ray.explore.fields import ChannelView
from hcs_ray.explore.scene import Scene
from hcs_ray.pictures.colours import rgb_of

_PNG_LEVEL: Final = 1  # quick, and still lossless
_FORM: Final = {"name": str, "colour": str, "shown": bool, "low": (int, float), "high": (int, float)}


@dataclass(frozen=True)
class Drawing:
    """What is drawn of a field: corrected or as it came, added up or each channel beside the other."""

    views: tuple[ChannelView, ...]
    corrected: bool
    side_by_side: bool

    @property
    def panels(self) -> int:
        """Pictures side by side."""
        return max(1, sum(view.shown for view in self.views)) if self.side_by_side else 1

    def query(self) -> str:
        """As the part of an address that `parse_drawing` reads."""
        return quote(json.dumps(asdict(self), separators=(",", ":")))


def parse_drawing(text: str, channels: Sequence[str]) -> Drawing:
    """What `Drawing.query` wrote, unquoted; `InputError` where it is anything else."""
    wrong = InputError("not a drawing of this study's channels")
    try:
        found = json.loads(text)
        views = [_view(one) for one in found["views"]]
        drawing = Drawing(tuple(views), found["corrected"], found["side_by_side"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise wrong from None
    flags = (drawing.corrected, drawing.side_by_side)
    if [view.name for view in views] != list(channels) or not all(isinstance(flag, bool) for flag in flags):
        raise wrong
    return drawing


def _view(found: dict[str, Any]) -> ChannelView:
    if found.keys() != _FORM.keys() or not all(isinstance(found[name], kind) for name, kind in _FORM.items()):  # type: ignore[arg-type]
        raise ValueError
    if not (math.isfinite(found["low"]) and math.isfinite(found["high"])):
        raise ValueError
    rgb_of(found["colour"])
    return ChannelView(**found)


def draw(scene: Scene, row: int, drawing: Drawing) -> bytes:
    """A field as PNG, a pixel a pixel of the camera.

    Raises:
        HcsError: the member is damaged, or its shard is gone.
    """
    from PIL import Image

    planes = fields.planes(scene, row, drawing.corrected)
    if drawing.side_by_side and drawing.panels > 1:
        shown = [view for view in drawing.views if view.shown]
        rgb = np.concatenate([fields.render(planes, _only(drawing.views, view)) for view in shown], axis=1)
    else:
        rgb = fields.render(planes, drawing.views)
    buffer = io.BytesIO()
    Image.fromarray(rgb).save(buffer, "PNG", compress_level=_PNG_LEVEL)
    return buffer.getvalue()


def values_at(scene: Scene, row: int, corrected: bool, x: int, y: int) -> str:
    """The values of all channels at a pixel, in words."""
    planes = fields.planes(scene, row, corrected)
    height, width = planes.shape[1:]
    if not (0 <= x < width and 0 <= y < height):
        raise InputError(f"no pixel {x}, {y} in {width} x {height}")
    values = (
        f"{name} {value:,.0f}" for name, value in zip(scene.channels, planes[:, y, x].tolist(), strict=True)
    )
    return f"x {x}, y {y}: {', '.join(values)}"


def _only(views: Sequence[ChannelView], wanted: ChannelView) -> list[ChannelView]:
    return [ChannelView(view.name, view.colour, view is wanted, view.low, view.high) for view in views]
