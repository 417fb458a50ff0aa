"""The whole of ``study.yaml``."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from hcs_ray.config.base import Section
from hcs_ray.config.cluster import ClusterConfig
from hcs_ray.config.labels import LabelsConfig
from hcs_ray.config.screens import Bbbc021Screen, ScreenConfig, StorageConfig
from hcs_ray.config.stages import (
    EmbedConfig,
    ExportConfig,
    MapConfig,
    OutliersConfig,
    ProfileConfig,
    ReportConfig,
    ShardsConfig,
    SplitConfig,
)
from hcs_ray.config.training import ModelConfig, TrainConfig, WandbConfig


class StudyConfig(Section):
    """A whole study."""

    version: Literal[1] = 1
    root: str | None = Field(None, description="where the study lies; none: the folder of this file")
    storage: StorageConfig = StorageConfig()
    screen: ScreenConfig = Bbbc021Screen()
    shards: ShardsConfig = ShardsConfig()
    split: SplitConfig = SplitConfig()
    labels: LabelsConfig = LabelsConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    embed: EmbedConfig = EmbedConfig()
    profile: ProfileConfig = ProfileConfig()
    map: MapConfig = MapConfig()
    outliers: OutliersConfig = OutliersConfig()
    report: ReportConfig = ReportConfig()
    export: ExportConfig = ExportConfig()
    wandb: WandbConfig = WandbConfig()
    cluster: ClusterConfig = ClusterConfig()
