"""The configuration of a sweep, ``tune_configs/*.yaml``: what `hcs-ray tune` tries, and how it chooses."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from pydantic import Field

from hcs_ray.config.base import ExecutionSection, NonNegativeInt, PositiveInt, Probability, Section

LISTED = ("choice", "grid", "compounds")
LEAVE_OUT = "split.leave_out"
_GOALS = {"train": "validation_balanced_accuracy", "map": "trustworthiness"}
# What may change between two epochs of one training, so that a population can go on from another's weights.
_CHANGEABLE = (
    "train.lr", "train.weight_decay", "train.label_smoothing", "train.clip_norm", "train.moa_weight",
    "train.adversary.weight", "train.augment.", "model.dropout",
)  # fmt: skip


class SearchSpace(Section):
    """What a swept key may be; ``kind`` names the distribution as Ray Tune does."""

    kind: Literal["choice", "uniform", "loguniform", "randint", "grid", "compounds"] = Field(
        description="grid and compounds: every value is tried, crossed with the others'"
    )
    values: tuple[Any, ...] | Literal["all"] | None = Field(
        None, description="of choice and grid; of compounds: all (those with a MoA), or some names"
    )
    low: float | None = None
    high: float | None = Field(None, description="of randint it is one more than the largest value")
    when: dict[str, Any] = Field(
        default_factory=dict,
        description="set only where these other keys have this value, or one of a list of values",
    )

    @pydantic.model_validator(mode="after")
    def _complete(self) -> SearchSpace:
        if self.kind in LISTED:
            if not self.values or (self.values == "all" and self.kind != "compounds"):
                raise ValueError(f"{self.kind} needs values: [...]")
            if self.low is not None or self.high is not None:
                raise ValueError(f"{self.kind} takes values, not low and high")
            return self
        if self.values is not None:
            raise ValueError(f"{self.kind} takes low and high, not values")
        if self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"{self.kind} needs low and high, low below high")
        if self.kind == "loguniform" and self.low <= 0:
            raise ValueError("loguniform needs low above 0")
        if self.kind == "randint" and (self.low % 1 or self.high % 1):
            raise ValueError("randint needs whole numbers")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """Every listed value, or the least and the largest value of a range."""
        if self.kind in LISTED:
            return () if self.values in (None, "all") else tuple(self.values or ())
        assert self.low is not None
        assert self.high is not None
        return (int(self.low), int(self.high) - 1) if self.kind == "randint" else (self.low, self.high)


class FifoScheduler(Section):
    """Every trial runs to its end."""

    kind: Literal["fifo"] = "fifo"


class AshaScheduler(Section):
    """Asynchronous successive halving (Li et al. 2020), by epochs."""

    kind: Literal["asha"] = "asha"
    grace_epochs: PositiveInt = Field(1, description="no trial is stopped before")
    reduction_factor: Annotated[float, Field(gt=1)] = Field(
        3.0, description="one in so many goes on at each rung"
    )
    brackets: PositiveInt = 1


class HyperbandScheduler(Section):
    """HyperBand (Li et al. 2018), by epochs: trials wait for each other at each rung."""

    kind: Literal["hyperband"] = "hyperband"
    reduction_factor: Annotated[float, Field(gt=1)] = 3.0


class MedianStoppingScheduler(Section):
    """Stop what is worse than the median of the others' means (Golovin et al. 2017)."""

    kind: Literal["median_stopping"] = "median_stopping"
    grace_epochs: PositiveInt = 1
    min_trials: PositiveInt = Field(3, description="others that must have come as far")


class PbtScheduler(Section):
    """Population based training (Jaderberg et al. 2017): the worst go on from the best one's weights."""

    kind: Literal["pbt"] = "pbt"
    interval_epochs: PositiveInt = 2
    burn_in_epochs: NonNegativeInt = 0
    quantile_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    resample_probability: Probability = 0.25
    perturbation_factors: tuple[float, float] = (1.2, 0.8)
    synchronous: bool = True


class Pb2Scheduler(Section):
    """Population based bandits (Parker-Holder et al. 2020): PBT whose new values a Gaussian process picks."""

    kind: Literal["pb2"] = "pb2"
    interval_epochs: PositiveInt = 2
    quantile_fraction: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    synchronous: bool = True


class RandomSearcher(Section):
    """Independent draws."""

    kind: Literal["random"] = "random"


class GridSearcher(Section):
    """Every combination of listed values, each ``samples`` times."""

    kind: Literal["grid"] = "grid"


class OptunaSearcher(Section):
    """Optuna; TPE (Watanabe 2023) also takes more than one metric, as NSGA-II (Deb et al. 2002) does."""

    kind: Literal["optuna"] = "optuna"
    sampler: Literal["tpe", "nsga2", "random"] = "tpe"
    startup_trials: PositiveInt = Field(10, description="random draws before TPE has a model")
    population: Annotated[int, Field(ge=2)] = Field(20, description="trials in a generation of nsga2")


class BohbSearcher(Section):
    """BOHB (Falkner et al. 2018); it needs the hyperband scheduler, and ConfigSpace and hpbandster."""

    kind: Literal["bohb"] = "bohb"
    min_points: Annotated[int, Field(ge=2)] | None = Field(
        None, description="results at one budget before there is a model; none: one more than swept keys"
    )


Scheduler = Annotated[
    FifoScheduler
    | AshaScheduler
    | HyperbandScheduler
    | MedianStoppingScheduler
    | PbtScheduler
    | Pb2Scheduler,
    Field(discriminator="kind"),
]
Searcher = Annotated[
    RandomSearcher | GridSearcher | OptunaSearcher | BohbSearcher, Field(discriminator="kind")
]


class Goal(Section):
    """A figure that a trial is judged by."""

    name: str
    mode: Literal["max", "min"] = "max"


class TrialResources(ExecutionSection):
    """What each trial is given; what is not said is as in the study's ``train`` section."""

    execution: ClassVar[frozenset[str]] = frozenset(
        {"cpus_per_worker", "use_gpu", "resources_per_worker", "threads"}
    )

    workers: PositiveInt | None = None
    cpus_per_worker: Annotated[float, Field(gt=0)] | None = None
    use_gpu: bool | None = None
    resources_per_worker: dict[str, float] | None = None
    threads: PositiveInt | None = None


class StopRules(Section):
    """What ends a trial, or the sweep, before its time."""

    reached: dict[str, float] = Field(
        default_factory=dict,
        description="end a trial when a figure is this high, or, of a metric to minimise, this low",
    )
    max_hours: Annotated[float, Field(gt=0)] | None = Field(
        None, description="end the sweep so long after this command began; what ran is ranked"
    )
    trials_without_better: PositiveInt | None = Field(
        None, description="end the sweep after so many ended trials without a better one"
    )


class SweepConfig(ExecutionSection):
    """``tune_configs/*.yaml``: what `hcs-ray tune` tries. It names no path."""

    execution: ClassVar[frozenset[str]] = frozenset({"concurrency", "failed"})

    version: Literal[1] = 1
    objective: Literal["train", "map"] = Field("train", description="map: layouts of one run's embeddings")
    metric: tuple[Goal, ...] = Field(
        (), description="a figure's name, or a list of {name, mode}; none: the objective's own"
    )
    mode: Literal["max", "min"] = Field(
        "max", exclude=True, description="of a metric that is one name; kept beside it in the list"
    )
    space: dict[str, SearchSpace] = Field(min_length=1, description="dotted study keys -> what they may be")
    fixed: dict[str, Any] = Field(default_factory=dict, description="dotted study keys set for every trial")
    samples: PositiveInt = Field(1, description="trials; with grid or compounds: of each combination")
    concurrency: PositiveInt | Literal["auto"] = Field(
        "auto", description="trials at a time; auto: as many as fit"
    )
    resources: TrialResources = TrialResources()
    scheduler: Scheduler = FifoScheduler()
    searcher: Searcher = RandomSearcher()
    stop: StopRules = StopRules()
    failed: Literal["retry", "keep"] = Field(
        "retry",
        description="retry: while a trial has failed the sweep is not complete, and the same command tries "
        "it again; keep: it stands at the end of the leaderboard",
    )
    seed: NonNegativeInt = 0

    @pydantic.model_validator(mode="before")
    @classmethod
    def _one_metric(cls, document: Any) -> Any:
        """``metric: NAME`` with ``mode`` is short for a list of one."""
        if not isinstance(document, Mapping):
            return document
        if isinstance(document.get("metric"), list | tuple) and "mode" in document:
            raise ValueError("mode: write it beside each name of the metric list")
        metric = document.get("metric") or _GOALS.get(document.get("objective", "train"))
        if isinstance(metric, str):
            rest = {key: value for key, value in document.items() if key != "mode"}
            return {**rest, "metric": [{"name": metric, "mode": document.get("mode", "max")}]}
        return document

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> SweepConfig:
        _check_keys(self)
        _check_searcher(self)
        _check_scheduler(self)
        return self

    @property
    def goal(self) -> Goal:
        """The first metric: the one that schedulers and ranks go by."""
        return self.metric[0]

    @property
    def is_population(self) -> bool:
        return self.scheduler.kind in ("pbt", "pb2")

    @property
    def trials_wait(self) -> bool:
        """Whether trials wait for each other, so that all must be there."""
        return self.is_population or self.scheduler.kind == "hyperband"

    @property
    def compounds(self) -> SearchSpace | None:
        """The space of left-out compounds, in a cross-validation."""
        return self.space.get(LEAVE_OUT)


def _check_keys(sweep: SweepConfig) -> None:
    twice = sorted(sweep.space.keys() & sweep.fixed.keys())
    if twice:
        raise ValueError(f"{twice[0]} is both swept and fixed")
    seen = set[str]()
    for name, space in sweep.space.items():
        if (name == LEAVE_OUT) != (space.kind == "compounds"):
            raise ValueError(f"space.{name}: kind compounds and {LEAVE_OUT} go together")
        for other in space.when:
            if other in sweep.space and other not in seen:
                raise ValueError(f"space.{name}.when: {other} must be listed above {name}")
        seen.add(name)


def _check_searcher(sweep: SweepConfig) -> None:
    kind = sweep.searcher.kind
    crossed = [name for name, space in sweep.space.items() if space.kind in ("grid", "compounds")]
    ranges = [name for name, space in sweep.space.items() if space.kind not in LISTED]
    if kind in ("optuna", "bohb") and crossed:
        raise ValueError(f"space.{crossed[0]}: {kind} draws values; write kind: choice")
    if kind == "grid" and ranges:
        raise ValueError(f"space.{ranges[0]}: a grid needs values: [...]")
    if len(sweep.metric) > 1 and (kind != "optuna" or sweep.scheduler.kind != "fifo"):
        raise ValueError("more than one metric needs searcher: {kind: optuna} and scheduler: {kind: fifo}")
    if kind == "bohb" and sweep.scheduler.kind != "hyperband":
        raise ValueError("searcher bohb needs scheduler: {kind: hyperband}")


def _check_scheduler(sweep: SweepConfig) -> None:
    kind = sweep.scheduler.kind
    if sweep.compounds is not None and (kind != "fifo" or sweep.samples > 1 or sweep.stop != StopRules()):
        raise ValueError("every fold must be trained to its end, once: scheduler fifo, samples of 1, no stop")
    goals = {goal.name for goal in sweep.metric}
    strange = sorted(name for name in sweep.stop.reached if name.endswith("loss") and name not in goals)
    if strange:
        raise ValueError(f"stop.reached.{strange[0]}: name it as a metric, too, with its mode")
    if sweep.objective == "map" and sweep.resources != TrialResources():
        raise ValueError("resources are of trainings; objective map has none")
    if sweep.objective == "map" and kind != "fifo":
        raise ValueError(f"objective map tells one result a trial; {kind} needs more (write kind: fifo)")
    if not sweep.is_population:
        return
    if sweep.searcher.kind != "random" or sweep.samples < 2:
        raise ValueError(f"scheduler {kind} needs samples of at least 2 (its population) and searcher random")
    for name, space in sweep.space.items():
        if not name.startswith(_CHANGEABLE):
            raise ValueError(f"space.{name} cannot change in mid-training, as {kind} would have it")
        if space.kind == "grid" or space.when or (kind == "pb2" and space.kind in LISTED):
            wanted = "low and high" if kind == "pb2" else "choice or a range"
            raise ValueError(f"space.{name}: {kind} needs {wanted}, without when")
