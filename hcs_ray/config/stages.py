"""One section a stage."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

import pydantic
from pydantic import Field

from hcs_ray.config.base import ExecutionSection, NonNegativeInt, PositiveInt, Section


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

    leave_out: str | None = Field(
        None, description="test this one compound and train on all others; folds and test_fraction rest"
    )
    leave_out_batches: bool = Field(
        False, description="with leave_out: no field of that compound's weeks trains, controls included"
    )

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SplitConfig:
        if self.leave_out_batches and self.leave_out is None:
            raise ValueError("leave_out_batches needs leave_out: a compound")
        if self.folds is not None and self.test_fold >= self.folds:
            raise ValueError(f"test_fold {self.test_fold} is not below folds {self.folds}")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        return self


class EmbedConfig(ExecutionSection):
    """`hcs-ray embed`."""

    execution: ClassVar[frozenset[str]] = frozenset(
        {"workers", "use_gpu", "threads", "cpus_per_worker", "on_error"}
    )
    since: ClassVar[frozenset[str]] = frozenset(
        {"tiles", "tile_px", "pool", "test_time_augmentation", "dtype"}
    )

    chunk_fields: PositiveInt = Field(
        512, description="fields in one output file: the unit of work and of resuming"
    )
    batch: PositiveInt = 16
    precision: Literal["32", "bf16"] = Field(
        "32", description="of all that computes, on a GPU too; bf16: faster there, to three digits"
    )
    tiles: Literal["full", "center", "grid"] = Field(
        "full", description="of a field: all of it at once, its middle, or as many tiles as cover it"
    )
    tile_px: PositiveInt = Field(512, description="side of a tile, in pixels of the stored field")
    pool: Literal["mean", "max", "median"] = Field(
        "mean", description="over the tiles of a field, by feature; probabilities are averaged"
    )
    test_time_augmentation: Literal["none", "flips", "dihedral"] = Field(
        "none", description="average over 4 flips, or over these and quarter turns (8), of each tile"
    )
    dtype: Literal["float32", "float16"] = Field(
        "float32", description="float16: files of half the size, to three digits"
    )
    on_error: Literal["fail", "quarantine"] = Field(
        "fail", description="quarantine: leave out damaged members, listed in unreadable.parquet"
    )
    workers: PositiveInt = 2
    use_gpu: bool = False
    cpus_per_worker: Annotated[float, Field(gt=0)] = Field(
        1.0, description="cores that Ray sets aside for a worker; it computes with as many threads"
    )
    threads: PositiveInt = Field(2, description="fields that a worker decodes at a time")


class ProfileConfig(ExecutionSection):
    """`hcs-ray profile`."""

    since: ClassVar[frozenset[str]] = frozenset({"shrinkage", "exclude", "minimum_fields", "drop_excluded"})

    normalization: Literal[
        "none",
        "center",
        "center_scale",
        "standardize",
        "mad_robustize",
        "sphere",
        "coral",
        "tvn",
        "combat",
        "harmony",
    ] = Field("center_scale", description="hcs-ray profile --compare shows what each does to this screen")
    shrinkage: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="of the covariances of sphere, coral, tvn; none: chosen from the controls"
    )
    well_aggregate: Literal["mean", "median"] = "mean"
    treatment_aggregate: Literal["mean", "median"] = "mean"
    metric: Literal["cosine", "correlation"] = "cosine"
    exclude: Literal["all", "none"] | tuple[str, ...] = Field(
        "all", description="QC flags whose fields a second evaluation leaves out, as [QC_Flag_Debris]"
    )
    minimum_fields: PositiveInt = Field(
        1, description="the second evaluation leaves out wells with fewer fields, too"
    )
    drop_excluded: bool = Field(
        False, description="the tables of wells and treatments, and the headline, do without them as well"
    )
    resamples: PositiveInt = Field(1000, description="draws of the intervals and of the null")
    seed: NonNegativeInt = 0


class MapConfig(ExecutionSection):
    """`hcs-ray map`."""

    execution: ClassVar[frozenset[str]] = frozenset({"densmap_most", "threads"})

    neighbors: Annotated[int, Field(ge=2)] = Field(
        15, description="nearest fields that a field is laid out by; all others where there are fewer"
    )
    min_dist: Annotated[float, Field(ge=0, le=1)] = Field(0.1, description="how close dots may lie")
    metric: Literal["cosine", "euclidean"] = "cosine"
    supervised: Literal["none", "moa"] = Field(
        "none",
        description="moa: the layout is told the MoA of every labelled field, and proves nothing of it",
    )
    landmarks: Annotated[int, Field(ge=4)] = Field(
        20_000, description="of more fields, so many are laid out and all others placed among them"
    )
    densmap: bool = Field(False, description="keep local density, too; it takes no landmarks, but all fields")
    densmap_most: PositiveInt = Field(20_000, description="of more fields, densmap is refused")
    seed: NonNegativeInt = 42
    threads: PositiveInt = Field(2, description="cores that seek neighbours")


class OutliersConfig(Section):
    """`hcs-ray outliers`."""

    neighbors: Annotated[int, Field(ge=1, le=500)] = Field(7, description="nearest rows that are looked for")
    false_alarms: Annotated[float, Field(gt=0, le=0.1)] = Field(
        0.01,
        description="share of ordinary negative controls called artefacts, of wells called mislabelled",
    )
    novel_false_alarms: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        0.1, description="share of treatments with a known MoA that would be called novel without it"
    )
    detectors: tuple[Literal["knn", "lof", "ecod", "iforest"], ...] = Field(
        ("knn", "lof", "ecod", "iforest"), description="of pyod, run on normalised embeddings"
    )
    components: PositiveInt = Field(64, description="of longer embeddings so many principal ones are used")
    reference_rows: Annotated[int, Field(ge=1000)] = Field(
        10_000, description="in larger tables neighbours are of the own plate and of so many others"
    )


class ReportConfig(Section):
    """`hcs-ray report`."""

    title: str = "High content screen"
    thumbnails: NonNegativeInt = Field(24, description="images shown among the outliers")
    before: str | None = Field(None, description="a run that this one is compared with, side by side")


class ExportConfig(Section):
    """`hcs-ray export`."""

    project: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$", max_length=60)] = Field(
        "hcs_ray", description="the top folder in the Cell Painting Gallery's layout, as in cpg0016-jump"
    )
    field_files: bool = Field(
        True, description="in that layout a file a field, too; false: profiles of wells and treatments alone"
    )
    thumbnail_px: PositiveInt = Field(256, description="longer side of the pictures of --to atlas")
