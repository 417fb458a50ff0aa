"""All that a plate's fields tell together: illumination functions, intensity percentiles, quality.

Fields are added one after the other; of each a few kB are kept, of all together the running sums of block
means (or `MEDIAN_FRAMES` frames for a median), whatever the number and size of the fields.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.config import ShardsConfig
from hcs_ray.shards import kernels, quality
from hcs_ray.shards.illumination import IlluminationEstimate, block_areas, block_means
from hcs_ray.shards.measure import FieldMeasures, FieldReader, Float32, Float64, Pixels


class PlateStatistics:
    """The statistics of one plate. One thread; the same fields in the same order give the same bytes.

    Args:
        channels: Their names, in the order of the planes.
        shape: (C, H, W) of every field.
        nuclear_channel: The channel whose nuclei are counted, if any.
        camera_maximum: The value of a saturated pixel; None: each field's own maximum is taken for it.
    """

    def __init__(
        self,
        channels: Sequence[str],
        shape: tuple[int, int, int],
        config: ShardsConfig,
        nuclear_channel: str | None,
        camera_maximum: int | None,
    ) -> None:
        self.channels = tuple(channels)
        self.shape = shape
        self._config = config
        self._camera_maximum = camera_maximum
        nuclear = None if nuclear_channel is None else self.channels.index(nuclear_channel)
        percents = (config.low_percentile, config.high_percentile)
        self._reader = FieldReader(shape, percents, nuclear, camera_maximum)
        self._estimate = IlluminationEstimate(
            shape, config.illumination_block_px, config.illumination_method, config.illumination_by_site
        )
        self._fields: list[FieldMeasures] = []
        self._wells: list[str] = []
        self._sites: list[int] = []

    def add(self, pixels: Pixels, well: str, site: int) -> None:
        """Add one field, (C, H, W) uint16, in the plate's order."""
        pixels = np.ascontiguousarray(pixels)
        measures, frame = self._reader.measure(pixels)
        self._estimate.add(self._blocks(pixels, frame), site)
        self._fields.append(measures)
        self._wells.append(well)
        self._sites.append(site)

    def _blocks(self, pixels: Pixels, frame: Float32) -> Float32:
        """The block means that the illumination is estimated from; mostly they are the frame's."""
        block_px = self._config.illumination_block_px
        if block_px == self._reader.step:
            return frame
        if block_px > kernels.LARGEST_BLOCK:
            return block_means(pixels, block_px).astype(np.float32)
        areas = block_areas(self.shape[1:], block_px)
        sums = np.empty((len(pixels), *areas.shape), np.uint32)
        for plane, blocks in zip(pixels, sums, strict=True):
            kernels.block_sums(plane, block_px, blocks)
        return np.asarray(sums / areas, np.float32)

    @property
    def sites(self) -> list[int]:
        """The site numbers of the fields, in order: those of the first axis of `illumination` by site."""
        return sorted(set(self._sites))

    def illumination(self) -> npt.NDArray[np.float32]:
        """The illumination functions (C, H, W), by site (S, C, H, W) if configured; each plane's mean is 1.

        A plane is ones where fewer than two fields have light in it: one field does not tell its cells from
        the light that falls on them.
        """
        return np.stack([self.illumination_of(number) for number in range(len(self.channels))], axis=-3)

    def illumination_of(self, channel: int) -> npt.NDArray[np.float32]:
        """One channel's illumination function (H, W), by site (S, H, W) if configured; see `illumination`."""
        functions = self._estimate.channel(channel, self._config.illumination_sigma)
        return functions if self._config.illumination_by_site else functions[0]

    def percentiles(self) -> tuple[Float64, Float64]:
        """The configured low and high percentile of each channel, (C,): medians over the fields.

        So that one saturated field does not set the scale of its whole plate. A field's are numpy's by the
        method "higher", of evenly spaced rows where it has more than about half a million pixels.
        """
        low, high = np.median([field.scale for field in self._fields], axis=0).T
        return low, high

    def field_table(self) -> pd.DataFrame:
        """The QC columns, one row for each added field, in order; see `quality.field_table`."""
        residuals = np.empty((len(self._fields), len(self.channels)))
        keys = np.array(self._sites if self._config.illumination_by_site else [0] * len(self._sites))
        for site in self._estimate.sites:
            function = self._estimate.function(site, self._config.illumination_sigma)
            rows = np.flatnonzero(keys == site)
            fields = [self._fields[row] for row in rows]
            residuals[rows] = quality.illumination_residuals(fields, function, self._reader.step)
        return quality.field_table(self._fields, self._wells, residuals, self.channels, self._camera_maximum)

    def plate_row(self, table: pd.DataFrame | None = None) -> dict[str, float]:
        """The plate in a row, of its `field_table`; see `quality.plate_row`."""
        return quality.plate_row(self.field_table() if table is None else table, self._wells, self.channels)
