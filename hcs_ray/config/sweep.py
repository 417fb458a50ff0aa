"""The configuration of a sweep, ``tune_configs/*.yaml``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from hcs_ray.config.base import NonNegativeInt, PositiveInt, Section


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
