"""The typed configuration of a study (``study.yaml``) and of a sweep.

The YAML mirrors these models key for key; an unknown or misspelt key is an error that names the nearest
valid one. Every section belongs to one stage, and that stage is stale when its section changes, apart
from the keys in `ExecutionSection.execution`, which say where and how fast it runs, not what comes out.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
import yaml
from pydantic import BaseModel, ConfigDict, Field

from hcs_ray.contracts import InputError

M = TypeVar("M", bound=BaseModel)
Probability = Annotated[float, Field(ge=0, le=1)]
PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A part of the configuration: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ExecutionSection(Section):
    """A section with keys that do not change the result, and so do not make it stale."""

    execution: ClassVar[frozenset[str]] = frozenset()


class PositiveControl(Section):
    """The treatment that stands on the plates as positive control."""

    compound: str = "taxol"
    concentration_um: Annotated[float, Field(gt=0)] = 0.3


class Bbbc021Screen(Section):
    """A screen in the layout of BBBC021 version 1, real or generated."""

    kind: Literal["bbbc021"] = "bbbc021"
    folder: str = Field(
        "raw", description="raw images and tables: below the study's root, absolute, or s3://"
    )
    image_table: str = "BBBC021_v1_image.csv"
    moa_table: str = "BBBC021_v1_moa.csv"
    compound_table: str = "BBBC021_v1_compound.csv"
    negative_control: str = "DMSO"
    positive_control: PositiveControl = PositiveControl()
    source: str = "BBBC021"


class ShardsConfig(Section):
    """`hcs-ray shard`."""

    max_shard_mb: Annotated[int, Field(ge=1, le=4000)] = Field(
        256, description="a tar is closed before it grows beyond this (1e6 bytes)"
    )
    codec: Literal["blosc2-lz4", "blosc2-zstd"] = "blosc2-lz4"
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


class StudyConfig(Section):
    """A whole study."""

    version: Literal[1] = 1
    root: str | None = Field(None, description="where the study lies; none: the folder of this file")
    screen: Bbbc021Screen = Bbbc021Screen()
    shards: ShardsConfig = ShardsConfig()
    split: SplitConfig = SplitConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    embed: EmbedConfig = EmbedConfig()
    profile: ProfileConfig = ProfileConfig()
    map: MapConfig = MapConfig()
    outliers: OutliersConfig = OutliersConfig()
    report: ReportConfig = ReportConfig()


class SearchSpace(Section):
    """What a swept key may be; ``kind`` names the distribution as Ray Tune does."""

    kind: Literal["choice", "uniform", "loguniform", "randint", "grid"]
    values: tuple[Any, ...] | None = None
    low: float | None = None
    high: float | None = None

    @pydantic.model_validator(mode="after")
    def _complete(self) -> SearchSpace:
        listed = self.kind in ("choice", "grid")
        if listed and not self.values:
            raise ValueError(f"{self.kind} needs values: [...]")
        if not listed and (self.low is None or self.high is None or self.low >= self.high):
            raise ValueError(f"{self.kind} needs low and high, low below high")
        if self.kind == "loguniform" and self.low is not None and self.low <= 0:
            raise ValueError("loguniform needs low above 0")
        return self


class AshaScheduler(Section):
    """Asynchronous successive halving (Li et al. 2020), by epochs."""

    kind: Literal["asha"] = "asha"
    grace_epochs: PositiveInt = 1
    reduction_factor: Annotated[int, Field(ge=2)] = 2


class SweepConfig(Section):
    """``tune_configs/*.yaml``: what `hcs-ray tune` tries."""

    version: Literal[1] = 1
    metric: str = "validation_balanced_accuracy"
    mode: Literal["max", "min"] = "max"
    trials: PositiveInt = 4
    concurrent_trials: PositiveInt = 1
    seed: NonNegativeInt = 0
    scheduler: AshaScheduler = AshaScheduler()
    fixed: dict[str, Any] = Field(default_factory=dict, description="dotted study keys set for every trial")
    search: dict[str, SearchSpace] = Field(description="dotted study keys and their distributions")


def parse_study(text: str, source: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """A study's YAML, with ``section.key=value`` overrides (parsed as YAML) applied before validation."""
    return _validate(StudyConfig, _overridden(_load_yaml(text, source), overrides), source)


def with_overrides(config: M, overrides: Sequence[str], source: str) -> M:
    """A copy of any configuration with ``key=value`` overrides, validated."""
    return _validate(type(config), _overridden(config.model_dump(mode="json"), overrides), source)


def _overridden(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not name:
            raise InputError(f"--set {override}: write section.key=value, as in --set train.lr=3e-4")
        _assign(document, name.strip(), _parse_value(value, override), override)
    return document


def parse_sweep(text: str, source: str) -> SweepConfig:
    """A sweep's YAML; every swept or fixed key must be a key of the study's train or model section."""
    sweep = _validate(SweepConfig, _load_yaml(text, source), source)
    for name in (*sweep.search, *sweep.fixed):
        known = {
            f"{part}.{key}"
            for part in ("train", "model")
            for key in StudyConfig.model_fields[part].default.__class__.model_fields
        }
        if name not in known:
            raise InputError(f"{source}: {name} cannot be swept{_nearest(name, known)}")
    return sweep


def with_values(config: StudyConfig, values: dict[str, Any], source: str) -> StudyConfig:
    """A copy with dotted keys set, validated."""
    document = config.model_dump(mode="json")
    for name, value in values.items():
        _assign(document, name, value, f"{source}: {name}")
    return _validate(StudyConfig, document, source)


def to_yaml(config: BaseModel) -> str:
    """The whole configuration, defaults included, as canonical YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def stage_config(config: StudyConfig, sections: Sequence[str]) -> dict[str, Any]:
    """The part of a study's configuration on which the result of a stage depends."""
    part: dict[str, Any] = {}
    for name in sections:
        section = getattr(config, name)
        skip = section.execution if isinstance(section, ExecutionSection) else frozenset()
        part[name] = section.model_dump(mode="json", exclude=set(skip))
    return part


def canonical_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _load_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(f"{source}: must hold keys and values, not a {type(document).__name__}")
    return document


def _parse_value(text: str, override: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    if isinstance(value, str):  # YAML 1.1 reads 3e-4 as text
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _assign(document: dict[str, Any], name: str, value: Any, what: str) -> None:
    *sections, key = name.split(".")
    place = document
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"{what}: {section} holds a value, not keys")
        place = inner
    place[key] = value


def _validate(model: type[M], document: dict[str, Any], source: str) -> M:
    try:
        return model.model_validate(document)
    except pydantic.ValidationError as error:
        raise InputError(f"{source}: {_explain(model, error)}") from None


def _explain(model: type[BaseModel], error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    name = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        keys = _keys_at(model, first["loc"][:-1])
        return f"unknown key {name}{_nearest(str(first['loc'][-1]), keys)}"
    if first["type"] == "missing":
        return f"{name} is missing"
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{name or 'the file'}: {message[0].lower()}{message[1:]}" + (
        f" (got {first['input']!r})" if name else ""
    )


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> set[str]:
    here: Any = model
    for part in location:
        field = here.model_fields.get(str(part)) if hasattr(here, "model_fields") else None
        if field is None:
            return set()
        here = field.annotation
    return set(here.model_fields) if hasattr(here, "model_fields") else set()


def _nearest(name: str, keys: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(keys), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; it is one of: {', '.join(sorted(keys))}" if keys else ""
