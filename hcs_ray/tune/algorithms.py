"""From a sweep's typed scheduler and searcher to Ray Tune's, key by key, so that none is dropped silently.

Time is counted in ``epochs``, a figure of every result: Tune's own count of results begins anew where a
trial goes on in another process.
"""

from __future__ import annotations

import random
from typing import Any, Final

import numpy as np
import ray.tune
from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    HyperBandForBOHB,
    HyperBandScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
)
from ray.tune.search import ConcurrencyLimiter
from ray.tune.search.basic_variant import BasicVariantGenerator

from hcs_ray.config import SearchSpace
from hcs_ray.config.sweep import (
    LISTED,
    AshaScheduler,
    BohbSearcher,
    FifoScheduler,
    HyperbandScheduler,
    MedianStoppingScheduler,
    OptunaSearcher,
    Pb2Scheduler,
    PbtScheduler,
)
from hcs_ray.contracts import InputError
from hcs_ray.tune.space import GRID, Space

EPOCHS: Final = "epochs"  # of a result: epochs that are behind it
NUMBER: Final = "trial"  # of a draw: the how-manieth suggestion of a searcher it is


def param_space(space: Space) -> dict[str, Any]:
    """What Ray Tune draws from; empty where the searcher holds the space itself."""
    if space.sweep.searcher.kind in ("optuna", "bohb"):
        return {}
    drawn = {name: _domain(part) for name, part in space.drawn.items()}
    combinations = space.combinations()
    return {GRID: ray.tune.grid_search(combinations), **drawn} if combinations else drawn


def searcher_of(space: Space, concurrency: int) -> Any:
    """Ray Tune's searcher; its draws follow from the sweep's seed."""
    config = space.sweep.searcher
    random.seed(space.sweep.seed)  # PBT draws from these
    np.random.seed(space.sweep.seed)
    if isinstance(config, OptunaSearcher):
        return ConcurrencyLimiter(_optuna(space, config), max_concurrent=concurrency)
    if isinstance(config, BohbSearcher):
        return _bohb(space, config, concurrency)
    # Where trials wait for each other, all must be there: what runs is limited by resources alone.
    return BasicVariantGenerator(
        max_concurrent=0 if space.sweep.trials_wait else concurrency,
        constant_grid_search=True,
        random_state=space.sweep.seed,
    )


def scheduler_of(space: Space) -> Any:
    """Ray Tune's scheduler."""
    config, epochs = space.sweep.scheduler, space.longest
    if isinstance(config, FifoScheduler):
        every: Any = FIFOScheduler  # untyped
        return every()
    if isinstance(config, AshaScheduler):
        return ASHAScheduler(
            time_attr=EPOCHS,
            max_t=epochs,
            grace_period=min(config.grace_epochs, epochs),
            reduction_factor=config.reduction_factor,
            brackets=config.brackets,
            stop_last_trials=False,  # a trial that is not stopped ends by itself, with its model written
        )
    if isinstance(config, HyperbandScheduler):
        kind = HyperBandForBOHB if space.sweep.searcher.kind == "bohb" else HyperBandScheduler
        return kind(
            time_attr=EPOCHS, max_t=epochs, reduction_factor=config.reduction_factor, stop_last_trials=False
        )
    if isinstance(config, MedianStoppingScheduler):
        return MedianStoppingRule(
            time_attr=EPOCHS, grace_period=config.grace_epochs, min_samples_required=config.min_trials
        )
    return _population(space, config)


def _population(space: Space, config: PbtScheduler | Pb2Scheduler) -> Any:
    common: dict[str, Any] = {
        "time_attr": EPOCHS,
        "perturbation_interval": config.interval_epochs,
        "quantile_fraction": config.quantile_fraction,
        "synch": config.synchronous,
        "log_config": False,
    }
    if isinstance(config, Pb2Scheduler):
        from ray.tune.schedulers.pb2 import PB2

        return _unstuck(PB2)(
            hyperparam_bounds={name: list(part.ends) for name, part in space.drawn.items()}, **common
        )
    return _unstuck(PopulationBasedTraining)(
        burn_in_period=config.burn_in_epochs,
        resample_probability=config.resample_probability,
        perturbation_factors=config.perturbation_factors,
        hyperparam_mutations={
            name: list(range(len(part.ends))) if part.kind in LISTED else _domain(part)
            for name, part in space.drawn.items()
        },
        **common,
    )


def _unstuck(kind: Any) -> Any:
    """A synchronous population that goes on where one of it has failed or ended by itself.

    Tune's own pauses every trial until all have come as far, and asks again only when one of them reports:
    where the last one on its way ends instead, all the others would wait for ever.
    """

    class Unstuck(kind):  # type: ignore[misc]
        def choose_trial_to_run(self, tune_controller: Any) -> Any:
            chosen = super().choose_trial_to_run(tune_controller)
            live = [trial for trial in tune_controller.get_trials() if not trial.is_finished()]
            if chosen is None and live and all(trial.status == "PAUSED" for trial in live):
                self._next_perturbation_sync += self._perturbation_interval
                chosen = super().choose_trial_to_run(tune_controller)
            return chosen

    return Unstuck


def _domain(space: SearchSpace) -> Any:
    if space.kind in LISTED:
        return ray.tune.choice(list(range(len(space.ends))))
    low, high = space.ends
    if space.kind == "randint":
        return ray.tune.randint(low, high + 1)
    draw: Any = ray.tune.loguniform if space.kind == "loguniform" else ray.tune.uniform
    return draw(low, high)


def _optuna(space: Space, config: OptunaSearcher) -> Any:
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    quiet: Any = optuna.logging.set_verbosity  # untyped
    quiet(optuna.logging.ERROR)
    samplers: Any = optuna.samplers  # untyped
    seed = space.sweep.seed
    sampler = {
        "tpe": lambda: samplers.TPESampler(seed=seed, n_startup_trials=config.startup_trials),
        "nsga2": lambda: samplers.NSGAIISampler(seed=seed, population_size=config.population),
        "random": lambda: samplers.RandomSampler(seed=seed),
    }[config.sampler]()
    goals = space.sweep.metric
    several = len(goals) > 1
    return _numbered(OptunaSearch)(
        {name: _optuna_distribution(part) for name, part in space.drawn.items()},
        metric=[goal.name for goal in goals] if several else goals[0].name,
        mode=[goal.mode for goal in goals] if several else goals[0].mode,
        sampler=sampler,
    )


def _optuna_distribution(space: SearchSpace) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.kind in LISTED:
        return CategoricalDistribution(range(len(space.ends)))
    low, high = space.ends
    if space.kind == "randint":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=space.kind == "loguniform")


def _bohb(space: Space, config: BohbSearcher, concurrency: int) -> Any:
    try:
        import ConfigSpace
        from hpbandster.optimizers.config_generators import bohb  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"searcher bohb needs {error.name}: pip install 'hcs_ray[bohb]', or write "
            "searcher: {kind: optuna}"
        ) from None
    from ray.tune.search.bohb import TuneBOHB

    configuration = ConfigSpace.ConfigurationSpace(seed=space.sweep.seed)
    for name, part in space.drawn.items():
        configuration.add(_bohb_parameter(name, part))
    goal = space.sweep.goal
    return _numbered(TuneBOHB)(
        configuration,
        bohb_config={"min_points_in_model": config.min_points},
        metric=goal.name,
        mode=goal.mode,
        seed=space.sweep.seed,
        max_concurrent=concurrency,
    )


def _bohb_parameter(name: str, space: SearchSpace) -> Any:
    import ConfigSpace

    if space.kind in LISTED:
        return ConfigSpace.CategoricalHyperparameter(name, list(range(len(space.ends))))
    low, high = space.ends
    if space.kind == "randint":
        return ConfigSpace.UniformIntegerHyperparameter(name, low, high)
    return ConfigSpace.UniformFloatHyperparameter(name, low, high, log=space.kind == "loguniform")


def _numbered(kind: Any) -> Any:
    """A searcher class that also numbers its draws, from 0."""

    class Numbered(kind):  # type: ignore[misc]
        number = 0

        def suggest(self, trial_id: str) -> Any:
            draw = super().suggest(trial_id)
            if not isinstance(draw, dict):
                return draw
            self.number += 1
            return {**draw, NUMBER: self.number - 1}

    return Numbered
