"""What a map was made by: it travels with its table, and in words with its pictures."""

from __future__ import annotations

from typing import Final, Literal

from hcs_ray.config import MapConfig
from hcs_ray.config.base import Section

METADATA: Final = b"hcs_ray_map"  # of the Parquet file's schema


class MapAbout(Section):
    """How the fields of a map were laid out."""

    fields: int
    landmarks: int  # that were laid out, the others placed among them
    neighbors: int  # used: of fewer rows than asked for, all
    metric: str
    min_dist: float
    supervised: Literal["none", "moa"]
    densmap: bool
    seed: int

    @classmethod
    def of(cls, config: MapConfig, fields: int, landmarks: int, neighbors: int) -> MapAbout:
        return cls(
            fields=fields, landmarks=landmarks, neighbors=neighbors, metric=config.metric,
            min_dist=config.min_dist, supervised=config.supervised, densmap=config.densmap, seed=config.seed,
        )  # fmt: skip

    @property
    def uses_labels(self) -> bool:
        """Whether the layout was told labels, so that it cannot speak for them."""
        return self.supervised != "none"

    @property
    def mark(self) -> str:
        """What each picture of the map says where it used labels; else nothing."""
        return "supervised: USES MoA LABELS" if self.uses_labels else ""

    @property
    def settings(self) -> str:
        """The settings as a phrase."""
        kind = "densMAP" if self.densmap else "UMAP"
        told = ", supervised by MoA labels" if self.uses_labels else ""
        return (
            f"{kind}{told}, {self.metric} distance, {self.neighbors} neighbours, "
            f"minimum distance {self.min_dist:g}, seed {self.seed}"
        )

    @property
    def sample(self) -> str:
        """What was laid out, as a phrase."""
        if self.landmarks == self.fields:
            return f"all {self.fields:,} fields laid out"
        return (
            f"{self.landmarks:,} landmarks, sampled evenly over plates and treatments, laid out; "
            f"{self.fields - self.landmarks:,} other fields placed among them"
        )
