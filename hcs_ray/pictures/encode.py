"""Pictures as files."""

from __future__ import annotations

import io
from typing import Final

from hcs_ray.pictures.composite import Image8

_QUALITY: Final = 85


def jpeg(rgb: Image8, longest_px: int) -> bytes:
    """RGB (H, W, 3) as a JPEG whose longer side is at most ``longest_px``."""
    from PIL import Image

    image = Image.fromarray(rgb)
    image.thumbnail((longest_px, longest_px), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=_QUALITY, optimize=True)
    return buffer.getvalue()
