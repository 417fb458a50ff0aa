"""Quality measures of a field, one column a measure and channel (``QC_<Measure>_<Channel>``).

They describe and flag; nothing is dropped for them here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from hcs_ray.contracts import QC_PREFIX
from hcs_ray.shards.codec import Pixels

SATURATED = 4095 << 4  # a 12-bit camera's maximum as BBBC021 stores it
_SATURATED_SHARE = 0.02  # a flag is raised above it


def measure(
    pixels: Pixels, channels: Sequence[str], camera_maximum: int = SATURATED
) -> dict[str, float | bool]:
    """The QC columns of one field, (C, H, W) uint16.

    ``FocusScore`` is the variance of the Laplacian over the squared mean (Pech-Pacheco et al. 2000), low
    where a field is out of focus; ``Saturated`` and ``Zero`` are shares of pixels; ``P01``, ``P50`` and
    ``P99`` percentiles; ``Mean`` and ``SD`` in camera units.
    """
    row: dict[str, float | bool] = {}
    saturated = False
    for channel, plane in zip(channels, pixels, strict=True):
        values = _measure_plane(plane, camera_maximum)
        saturated |= values["Saturated"] > _SATURATED_SHARE
        row |= {f"{QC_PREFIX}{name}_{channel}": value for name, value in values.items()}
    return row | {f"{QC_PREFIX}Flag_Saturated": saturated}


def _measure_plane(plane: Pixels, camera_maximum: int) -> dict[str, float]:
    values = plane.astype(np.float32)
    mean = float(values.mean())
    laplacian = ndimage.laplace(values)
    low, middle, high = np.percentile(plane, (1, 50, 99))
    return {
        "FocusScore": float(laplacian.var()) / mean**2 if mean > 0 else 0.0,
        "Saturated": float((plane >= camera_maximum).mean()),
        "Zero": float((plane == 0).mean()),
        "Mean": mean,
        "SD": float(values.std()),
        "P01": float(low),
        "P50": float(middle),
        "P99": float(high),
    }
