"""The colours of channels."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Final

from hcs_ray.contracts import InputError

COLOUR_OF: Final = {"DAPI": "blue", "DNA": "blue", "Hoechst": "blue", "Tubulin": "green", "Actin": "red"}
RGB: Final = {
    "blue": (0.15, 0.35, 1.0),  # pure blue is too dark for eyes and screens
    "magenta": (1.0, 0.0, 1.0),
    "cyan": (0.0, 1.0, 1.0),
    "yellow": (1.0, 1.0, 0.0),
    "green": (0.0, 1.0, 0.0),
    "red": (1.0, 0.0, 0.0),
}
_HEX: Final = re.compile(r"#[0-9a-fA-F]{6}")
_WHITE: Final = (1.0, 1.0, 1.0)


def channel_colours(channels: Sequence[str]) -> dict[str, str]:
    """The name of each channel's colour: the usual one of a stain, or the next that is free."""
    taken = {COLOUR_OF.get(channel) for channel in channels}
    free = itertools.cycle([name for name in RGB if name not in taken] or list(RGB))
    return {channel: COLOUR_OF.get(channel) or next(free) for channel in channels}


def rgb_of(colour: str) -> tuple[float, float, float]:
    """Red, green and blue, 0 to 1, of a colour of `RGB`, of ``white``, or of ``#rrggbb``.

    Raises:
        InputError: it is none of these.
    """
    if _HEX.fullmatch(colour):
        red, green, blue = (int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5))
        return red, green, blue
    if colour == "white":
        return _WHITE
    if colour not in RGB:
        raise InputError(f"no colour {colour!r}; write #rrggbb or one of {', '.join([*RGB, 'white'])}")
    return RGB[colour]
