"""A picture that stands where a field's should, and says why it does not."""

from __future__ import annotations

import textwrap

import numpy as np

from hcs_ray.pictures.composite import Image8

_GROUND = (58, 62, 68)
_INK = (255, 209, 102)
_CHARACTERS = 18  # of a line; more would be too small to read


def notice(text: str, width_px: int, height_px: int) -> Image8:
    """A grey picture (height, width, 3) with a cross and a few words in the middle."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (width_px, height_px), _GROUND)
    draw = ImageDraw.Draw(image)
    draw.line((0, 0, width_px, height_px), fill=(88, 92, 98), width=2)
    draw.line((0, height_px, width_px, 0), fill=(88, 92, 98), width=2)
    words = "\n".join(textwrap.wrap(text, _CHARACTERS))
    font = ImageFont.load_default(max(8, width_px // 11))
    middle = (width_px / 2, height_px / 2)
    draw.multiline_text(middle, words, fill=_INK, font=font, anchor="mm", align="center")
    return np.asarray(image, np.uint8)
