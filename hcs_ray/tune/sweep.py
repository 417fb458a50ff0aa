"""A sweep's run of Ray Tune: begun or gone on with."""

from __future__ import annotations

import json
import logging
import os
import warnings
from typing import Any, Final

import ray.tune

from hcs_ray.storage import Storage
from hcs_ray.tune.algorithms import param_space, scheduler_of, searcher_of
from hcs_ray.tune.capacity import Fit, trial_resources
from hcs_ray.tune.trials import MapTrial, TrainTrial, Work
from hcs_ray.tune.watching import Reports, Rules, Watcher

RAY_FOLDER: Final = "ray"  # Tune's own, below the sweep's


def run_trials(work: Work, fit: Fit, watcher: Watcher) -> None:
    """Run all trials to their ends; those of a killed sweep go on, and finished ones are not run again."""
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"  # the leaderboard has it all
    sweep = work.space.sweep
    kind = MapTrial if sweep.objective == "map" else TrainTrial
    trainable = ray.tune.with_resources(
        ray.tune.with_parameters(kind, work=work), trial_resources(sweep, fit)
    )
    filesystem, root = work.study.storage.arrow()
    path = f"{root}/{work.folder}/{RAY_FOLDER}"
    Reports.watcher = watcher
    try:
        if _can_go_on(work.study.storage, f"{work.folder}/{RAY_FOLDER}", sweep.trials_wait):
            tuner = ray.tune.Tuner.restore(
                path, trainable=trainable, resume_unfinished=True, resume_errored=True,
                storage_filesystem=filesystem,
            )  # fmt: skip
        else:
            tuner = _tuner(work, fit, trainable, f"{root}/{work.folder}", filesystem)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on Tune's own settings
            tuner.fit()
    finally:
        Reports.watcher = None


def _tuner(work: Work, fit: Fit, trainable: Any, folder: str, filesystem: Any) -> Any:
    sweep = work.space.sweep
    goals: dict[str, Any] = {}
    if len(sweep.metric) == 1:
        goals = {"metric": sweep.goal.name, "mode": sweep.goal.mode}
    return ray.tune.Tuner(
        trainable,
        param_space=param_space(work.space),
        tune_config=ray.tune.TuneConfig(
            **goals,
            num_samples=sweep.samples,
            search_alg=searcher_of(work.space, fit.trials),
            scheduler=scheduler_of(work.space),
            reuse_actors=sweep.objective == "map",
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray.tune.RunConfig(
            name=RAY_FOLDER, storage_path=folder, storage_filesystem=filesystem, verbose=0,
            callbacks=[Reports()], stop=Rules(),
        ),
    )  # fmt: skip


def _can_go_on(storage: Storage, folder: str, trials_wait: bool = False) -> bool:
    """Whether Tune's state is there and whole; one that a kill has cut is deleted.

    So is one of trials that wait for each other: Tune keeps no state of schedulers, and a new one would wait
    for ever for trials that have ended. Nothing that was learned is lost with it: trials are numbered, the
    draws follow from the seed, and each goes on in its own folder where it draws the same values again.
    """
    if trials_wait:
        for path in storage.sizes(folder):
            storage.delete(path)
        return False
    states = {path for path in storage.sizes(folder) if path.rpartition("/")[0] == folder}
    if f"{folder}/tuner.pkl" not in states:
        return False
    if any("experiment_state" in path for path in states) and all(_whole(storage, path) for path in states):
        return True
    logging.getLogger("hcs_ray").warning("%s/%s was cut by a kill; its trials go on", storage.url, folder)
    for path in storage.sizes(folder):
        storage.delete(path)
    return False


def _whole(storage: Storage, path: str) -> bool:
    if path.endswith(".pkl"):
        return storage.read(path).endswith(b".")  # pickle's own end
    try:
        return not path.endswith(".json") or bool(json.loads(storage.read(path)))
    except ValueError:
        return False
