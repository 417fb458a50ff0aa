"""`hcs-ray tune`: a sweep over `hcs-ray train` with Ray Tune, and its leaderboard.

Every trial is a whole Ray Train run in a folder named after the trial, so a sweep that was killed goes on
with its trials where their checkpoints stand. Ray Tune keeps its own state as a pickle in
``sweeps/NAME/ray``: resume a sweep only from storage that you trust.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import ray.tune
from ray.tune.integration.ray_train import TuneReportCallback
from ray.tune.schedulers import ASHAScheduler
from ray.tune.search.basic_variant import BasicVariantGenerator

from hcs_ray.config import SearchSpace, StudyConfig, SweepConfig, parse_sweep, with_values
from hcs_ray.contracts import HcsError, InputError, Progress
from hcs_ray.session import ensure_session, hush, require_capacity
from hcs_ray.stage import Claim, read_record
from hcs_ray.study import Study
from hcs_ray.train import fit, prepare

LEADERBOARD = "leaderboard.parquet"
_RAY_FOLDER = "ray"
_DRIVER_CPUS = 0.01  # a trial's driver only waits for its workers


def tune(study: Study, sweep_file: str, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Run the sweep of a YAML file over this study; writes ``sweeps/NAME/leaderboard.parquet``."""
    sweep = _read_sweep(sweep_file)
    claim = study.claim("tune")
    claim = Claim(inputs=claim.inputs, config=claim.config | {"sweep": sweep.model_dump(mode="json")})
    _check_values(study.config, sweep, sweep_file)
    if force or not study.is_complete("tune", claim):
        with study.writing("tune", claim, force) as writer:
            writer.write_table(LEADERBOARD, _sweep(study, sweep, progress))
    return _headline(read_leaderboard(study), sweep)


def read_leaderboard(study: Study) -> pd.DataFrame:
    """One row a trial, the best first: rank, trial, score, epochs, status, and a column a swept key."""
    place = study.place("tune")
    record = read_record(study.storage, place)
    if record is None:
        raise InputError(f"{study.storage.url}: no sweep {study.name}; run hcs-ray tune first")
    return record.read_table(study.storage, f"{place.folder}/{LEADERBOARD}")


def _read_sweep(file: str) -> SweepConfig:
    try:
        text = Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{file}: cannot be read: {getattr(error, 'strerror', error)}") from None
    return parse_sweep(text, file)


def _check_values(config: StudyConfig, sweep: SweepConfig, source: str) -> None:
    """Every listed value, and both ends of every range, must make a valid study."""
    fixed = with_values(config, sweep.fixed, source)
    for name, space in sweep.search.items():
        for value in space.values or (_rounded(space, space.low), _rounded(space, space.high)):
            with_values(fixed, {name: value}, source)


def _rounded(space: SearchSpace, value: float | None) -> float | int | None:
    return int(value) if space.kind == "randint" and value is not None else value


def _sweep(study: Study, sweep: SweepConfig, progress: Progress) -> pd.DataFrame:
    ensure_session(dashboard=True)
    hush("ray.tune")
    hush("ray.train")
    train = with_values(study.config, sweep.fixed, "sweep").train
    require_capacity(
        f"train.workers {train.workers} of one trial",
        train.workers * train.cpus_per_worker + _DRIVER_CPUS * sweep.concurrent_trials,
        train.workers if train.use_gpu else 0,
    )
    filesystem, root = study.storage.arrow()
    folder = f"{root}/{study.place('tune').folder}"
    trainable = ray.tune.with_resources(_trainable(study, sweep), {"CPU": _DRIVER_CPUS})
    if ray.tune.Tuner.can_restore(f"{folder}/{_RAY_FOLDER}", storage_filesystem=filesystem):
        tuner = ray.tune.Tuner.restore(
            f"{folder}/{_RAY_FOLDER}",
            trainable=trainable,
            resume_unfinished=True,
            restart_errored=True,
            storage_filesystem=filesystem,
        )
    else:
        tuner = ray.tune.Tuner(
            trainable,
            param_space={name: _distribution(space) for name, space in sweep.search.items()},
            tune_config=_tune_config(study, sweep),
            run_config=ray.tune.RunConfig(
                name=_RAY_FOLDER, storage_path=folder, storage_filesystem=filesystem, verbose=0,
                callbacks=[_Count(sweep.trials)],
            ),
        )  # fmt: skip
    _Count.show = progress
    progress(0, sweep.trials)
    return _leaderboard(tuner.fit(), sweep)


def _trainable(study: Study, sweep: SweepConfig) -> Any:
    def trial(values: dict[str, Any]) -> None:
        config = with_values(study.config, {**sweep.fixed, **values}, "sweep")
        trial_id = ray.tune.get_context().get_trial_id()
        folder = f"{study.place('tune').folder}/trials/{trial_id}/ray"
        job = prepare(replace(study, config=config), folder)
        report: Any = TuneReportCallback  # untyped
        fit(job, callbacks=[report()])

    return trial


def _distribution(space: SearchSpace) -> Any:
    if space.kind == "grid":
        return ray.tune.grid_search(list(space.values or ()))
    if space.kind == "choice":
        return ray.tune.choice(list(space.values or ()))
    low, high = _rounded(space, space.low), _rounded(space, space.high)
    return getattr(ray.tune, space.kind)(low, high)


def _tune_config(study: Study, sweep: SweepConfig) -> Any:
    epochs = with_values(study.config, sweep.fixed, "sweep").train.epochs
    return ray.tune.TuneConfig(
        metric=sweep.metric,
        mode=sweep.mode,
        num_samples=sweep.trials,
        search_alg=BasicVariantGenerator(max_concurrent=sweep.concurrent_trials, random_state=sweep.seed),
        trial_dirname_creator=lambda trial: trial.trial_id,
        scheduler=ASHAScheduler(
            time_attr="training_iteration",  # one report an epoch
            max_t=epochs,
            grace_period=min(sweep.scheduler.grace_epochs, epochs),
            reduction_factor=sweep.scheduler.reduction_factor,
        ),
    )


class _Count(ray.tune.Callback):
    """Counts ended trials, in the driver.

    Tune pickles its callbacks with its state and unpickles them on resumption, so the terminal's bar is no
    part of them.
    """

    show: ClassVar[Progress | None] = None

    def __init__(self, trials: int) -> None:
        self._trials, self._ended = trials, 0

    def on_trial_complete(self, *_: Any, **__: Any) -> None:
        self._ended += 1
        if _Count.show is not None:
            _Count.show(self._ended, max(self._trials, self._ended))

    on_trial_error = on_trial_complete


def _leaderboard(results: Any, sweep: SweepConfig) -> pd.DataFrame:
    rows = []
    for result in results:
        history = result.metrics_dataframe
        if history is None or sweep.metric not in history:
            rows.append(_row(result, sweep, float("nan"), 0))
            continue
        scores = history[sweep.metric]
        rows.append(_row(result, sweep, scores.max() if sweep.mode == "max" else scores.min(), len(history)))
    table = pd.DataFrame(rows).sort_values(
        ["score", "trial"], ascending=[sweep.mode == "min", True], na_position="last", ignore_index=True
    )
    if table["score"].isna().all():
        raise HcsError(f"every trial failed: {table['error'].dropna().iloc[0] if len(table) else 'none ran'}")
    table.insert(0, "rank", range(1, len(table) + 1))
    return table


def _row(result: Any, sweep: SweepConfig, score: float, epochs: int) -> dict[str, Any]:
    error = str(result.error).strip().splitlines()[-1] if result.error else None
    values = {name: result.config[name] for name in sweep.search}
    return {"trial": Path(result.path).name, "score": float(score), "epochs": epochs, "error": error} | values


def _headline(table: pd.DataFrame, sweep: SweepConfig) -> dict[str, Any]:
    best = table.iloc[0]
    return {
        "trials": len(table),
        f"best {sweep.metric}": round(float(best["score"]), 3),
        **{name: best[name] for name in sweep.search},
    }
