"""One section a stage."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from hcs_ray.config.base import ExecutionSection, NonNegativeInt, PositiveInt, Probability, Section


class ShardsConfig(ExecutionSection):
    """`hcs-ray shard`."""

    execution: ClassVar[frozenset[str]] = frozenset({"readers", "on_error"})

    max_shard_mb: Annotated[int, Field(ge=1, le=100_000)] = Field(
        256, description="a tar is closed before it grows beyond this (1e6 bytes)"
    )
    codec: Literal["blosc2", "jpegxl"] = Field(
        "blosc2", description="jpegxl: a seventh smaller, slower to write and read; see docs/codecs.md"
    )
    on_error: Literal["fail", "quarantine"] = Field(
        "fail", description="quarantine: leave a bad field out, listed in quarantine.parquet"
    )
    readers: PositiveInt = Field(2, description="threads that read raw images ahead, a worker")
    illumination_method: Literal["mean", "median"] = Field("mean", description="of the fields' block means")
    illumination_by_site: bool = Field(
        False, description="a function for each site position, not one for all"
    )
    illumination_block_px: PositiveInt = Field(8, description="side of the blocks whose means are averaged")
    illumination_sigma: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.05, description="gaussian that smooths them, as a share of the field's longer side"
    )
    low_percentile: Annotated[float, Field(ge=0, lt=50)] = 0.1
    high_percentile: Annotated[float, Field(gt=50, le=100)] = 99.9


class SplitConfig(Section):
    """`hcs-ray split`: compounds to sides, or to folds of which one is the test."""

    seed: NonNegativeInt = 0
    validation_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    folds: Annotated[int, Field(ge=3)] | None = Field(
        None, description="deal compounds to this many folds instead"
    )
    test_fold: NonNegativeInt = Field(
        0, description="with folds: the fold that is tested; the next validates"
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        if self.folds is not None and self.test_fold >= self.folds:
            raise ValueError(f"test_fold {self.test_fold} is not below folds {self.folds}")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        return self


class ModelConfig(Section):
    """The network."""

    backbone: Literal["tiny", "resnet18", "resnet50", "convnextv2-tiny"] = "resnet18"
    weights: str | None = Field(None, description="none, a local folder or file, or a name on a model hub")
    dmso_class: bool = Field(True, description="negative controls are a class of their own")
    dropout: Probability = 0.0


class TrainConfig(ExecutionSection):
    """`hcs-ray train`."""

    execution: ClassVar[frozenset[str]] = frozenset(
        {"use_gpu", "threads", "max_failures", "cpus_per_worker", "keep_checkpoints", "wandb_project"}
    )

    seed: NonNegativeInt = 0
    epochs: PositiveInt = 30
    global_batch: PositiveInt = Field(32, description="fields in an optimizer step, over all workers")
    crop_px: PositiveInt = Field(
        512, description="side of the random square crop; smaller fields are used whole"
    )
    downsample: PositiveInt = Field(1, description="mean of blocks of this side, before the network")
    lr: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 1e-2
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: bool = Field(True, description="weigh classes by the inverse of their number of fields")
    positive_controls_per_epoch: NonNegativeInt = Field(
        64, description="cap of positive-control fields an epoch"
    )
    intensity_jitter: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.2, description="random gain a channel, +-"
    )
    precision: Literal["32", "bf16"] = "32"
    keep_checkpoints: PositiveInt = 2
    workers: PositiveInt = Field(2, description="ranks; each normalises batches by its own share of them")
    use_gpu: bool = False
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    threads: PositiveInt = Field(2, description="threads that read and decode, a worker")
    max_failures: NonNegativeInt = 2
    wandb_project: str | None = Field(None, description="none: an offline W&B run inside the study")


class EmbedConfig(ExecutionSection):
    """`hcs-ray embed`."""

    execution: ClassVar[frozenset[str]] = frozenset({"workers", "use_gpu", "threads", "cpus_per_worker"})

    chunk_fields: PositiveInt = Field(
        512, description="fields in one output file: the unit of work and of resuming"
    )
    batch: PositiveInt = 16
    workers: PositiveInt = 2
    use_gpu: bool = False
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    threads: PositiveInt = 2


class ProfileConfig(Section):
    """`hcs-ray profile`."""

    normalization: Literal["none", "center", "standardize", "mad_robustize"] = "standardize"
    well_aggregate: Literal["mean", "median"] = "mean"
    treatment_aggregate: Literal["mean", "median"] = "mean"
    metric: Literal["cosine", "correlation"] = "cosine"
    resamples: PositiveInt = Field(1000, description="draws of the intervals and of the null")
    seed: NonNegativeInt = 0


class MapConfig(Section):
    """`hcs-ray map`."""

    neighbors: Annotated[int, Field(ge=2)] = 15
    min_dist: Annotated[float, Field(ge=0, le=1)] = 0.1
    metric: Literal["cosine", "euclidean"] = "cosine"
    seed: NonNegativeInt = 42


class OutliersConfig(Section):
    """`hcs-ray outliers`."""

    neighbors: PositiveInt = Field(7, description="nearest rows whose mean distance is measured")
    top_fraction: Annotated[float, Field(gt=0, le=1)] = Field(0.05, description="share that gets a reason")
    threshold: Annotated[float, Field(gt=0)] = Field(
        3.5, description="robust z-score from which there is a reason (Iglewicz and Hoaglin 1993)"
    )


class ReportConfig(Section):
    """`hcs-ray report`."""

    title: str = "High content screen"
    thumbnails: NonNegativeInt = Field(24, description="images shown among the outliers")
