"""The typed configuration of a study (``study.yaml``) and of a sweep.

The YAML mirrors these models key for key; an unknown or misspelt key is an error that names the nearest
valid one. Every section belongs to one stage, and that stage is stale when its section changes, apart
from the keys in `ExecutionSection.execution`, which say where and how fast it runs, not what comes out.
"""

from hcs_ray.config.base import ExecutionSection, Section
from hcs_ray.config.cluster import ClusterConfig
from hcs_ray.config.labels import TAG_RULE, VERDICTS, LabelsConfig, Verdict
from hcs_ray.config.parse import (
    canonical_digest,
    parse_study,
    parse_sweep,
    stage_config,
    to_yaml,
    with_overrides,
    with_values,
)
from hcs_ray.config.screens import (
    Bbbc021Screen,
    LoadDataColumns,
    LoadDataScreen,
    PositiveControl,
    PybbbcScreen,
    ScreenConfig,
    StorageConfig,
)
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
from hcs_ray.config.study import StudyConfig
from hcs_ray.config.sweep import LEAVE_OUT, Goal, SearchSpace, SweepConfig, TrialResources
from hcs_ray.config.training import (
    AdversaryConfig,
    AugmentConfig,
    ModelConfig,
    TrainConfig,
    TreatmentHeadConfig,
    WandbConfig,
)

__all__ = [
    "LEAVE_OUT",
    "TAG_RULE",
    "VERDICTS",
    "AdversaryConfig",
    "AugmentConfig",
    "Bbbc021Screen",
    "ClusterConfig",
    "EmbedConfig",
    "ExecutionSection",
    "ExportConfig",
    "Goal",
    "LabelsConfig",
    "LoadDataColumns",
    "LoadDataScreen",
    "MapConfig",
    "ModelConfig",
    "OutliersConfig",
    "PositiveControl",
    "ProfileConfig",
    "PybbbcScreen",
    "ReportConfig",
    "ScreenConfig",
    "SearchSpace",
    "Section",
    "ShardsConfig",
    "SplitConfig",
    "StorageConfig",
    "StudyConfig",
    "SweepConfig",
    "TrainConfig",
    "TreatmentHeadConfig",
    "TrialResources",
    "Verdict",
    "WandbConfig",
    "canonical_digest",
    "parse_study",
    "parse_sweep",
    "stage_config",
    "to_yaml",
    "with_overrides",
    "with_values",
]
