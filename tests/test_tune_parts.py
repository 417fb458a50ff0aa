"""The parts of a sweep that need no training: what fits, who is best, its picture, Ray Tune's own pieces."""

from __future__ import annotations

import io
import itertools
from collections.abc import Mapping
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.config import StudyConfig, SweepConfig, parse_sweep
from hcs_ray.contracts import InputError
from hcs_ray.tune.board import Entry, curves, fronts, leaderboard
from hcs_ray.tune.capacity import fit_trials
from hcs_ray.tune.judging import judged
from hcs_ray.tune.pictures import picture
from hcs_ray.tune.space import Space

LR = "space: {train.lr: {kind: loguniform, low: 1.0e-4, high: 1.0e-2}}\n"
SCORE = "validation_balanced_accuracy"


def sweep_of(text: str) -> SweepConfig:
    return parse_sweep(text, "s.yaml")


def space_of(text: str) -> Space:
    return Space.of(sweep_of(text), StudyConfig(), [], "s.yaml")


@pytest.mark.parametrize(
    ("nodes", "worker", "workers", "trials"),
    [
        ([{"CPU": 4}], {"CPU": 1}, 2, 2),
        ([{"CPU": 2}], {"CPU": 0.5}, 1, 4),
        ([{"CPU": 3}, {"CPU": 3}], {"CPU": 2}, 1, 2),  # not three: a worker lies on one node
        ([{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], {"CPU": 1, "GPU": 1}, 2, 1),
        ([{"CPU": 8}], {"CPU": 1, "GPU": 1}, 1, 0),
        ([{"CPU": 2}], {"CPU": 1}, 3, 0),
        ([{"CPU": 0.3}], {"CPU": 0.1}, 1, 3),  # 0.3 / 0.1 is below 3 in binary
    ],
)
def test_as_many_trials_run_as_fit(
    nodes: list[Mapping[str, float]], worker: Mapping[str, float], workers: int, trials: int
) -> None:
    assert fit_trials(nodes, worker, workers, 100) == trials
    assert fit_trials(nodes, worker, workers, 1) == min(trials, 1)


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=4), st.integers(1, 4), st.integers(1, 4),
    st.integers(1, 20),
)  # fmt: skip
def test_what_is_said_to_fit_can_be_placed(cpus: list[int], each: int, workers: int, wanted: int) -> None:
    trials = fit_trials([{"CPU": float(n)} for n in cpus], {"CPU": float(each)}, workers, wanted)
    places = sum(n // each for n in cpus)
    assert trials * workers <= places
    assert trials == wanted or (trials + 1) * workers > places


def entry(trial: str, score: float, **values: Any) -> Entry:
    return Entry(trial, values, "ended", {SCORE: score} if score == score else {}, epochs=2, steps=8)


def test_the_best_comes_first_and_trials_without_a_score_last() -> None:
    sweep = sweep_of(LR)
    entries = [entry("t0000", 0.2), entry("t0001", float("nan")), entry("t0002", 0.9), entry("t0003", 0.9)]
    table = leaderboard(entries, sweep)
    assert list(table["trial"]) == ["t0002", "t0003", "t0000", "t0001"]
    assert list(table["rank"]) == [1, 2, 3, 4]
    down = leaderboard(entries, sweep_of(LR + f"metric: {SCORE}\nmode: min"))
    assert list(down["trial"]) == ["t0000", "t0002", "t0003", "t0001"]


def test_a_key_that_was_not_set_is_blank_and_values_of_any_kind_can_be_written() -> None:
    sweep = sweep_of(
        "space:\n  train.schedule: {kind: choice, values: [cosine, plateau]}\n"
        "  train.warmup: {kind: uniform, low: 0, high: 1, when: {train.schedule: cosine}}\n"
        "  train.stop_after: {kind: choice, values: [null, 3]}\n  train.epochs: {kind: choice, values: [1]}\n"
    )
    entries = [
        entry("t0000", 0.1, **{"train.schedule": "cosine", "train.warmup": 0.5, "train.stop_after": 3}),
        entry("t0001", 0.2, **{"train.schedule": "plateau", "train.stop_after": None}),
    ]
    table = leaderboard(entries, sweep)
    table.to_parquet(buffer := io.BytesIO())
    again = pd.read_parquet(buffer)
    assert again["train.schedule"].tolist() == ["plateau", "cosine"]
    assert np.isnan(again["train.warmup"][0])
    assert again["train.warmup"][1] == 0.5
    assert again["train.stop_after"].isna().tolist() == [True, False]


points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=12)


@settings(deadline=None)
@given(points)
def test_fronts_are_pareto_s(found: list[tuple[int, int]]) -> None:
    sweep = sweep_of(LR + "metric: [{name: a}, {name: b, mode: min}]\nsearcher: {kind: optuna}")
    table = pd.DataFrame(found, columns=["a", "b"]).astype(float)

    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        return one != other and one[0] >= other[0] and one[1] <= other[1]

    left, front = set(range(len(found))), 1
    wanted: dict[int, int] = {}
    while left:
        here = {i for i in left if not any(beats(found[j], found[i]) for j in left)}
        wanted |= dict.fromkeys(here, front)
        left, front = left - here, front + 1
    assert dict(enumerate(fronts(table, sweep))) == wanted


def test_a_trial_is_worth_the_epoch_whose_weights_it_keeps() -> None:
    rows = [
        {"epoch": float(i), "optimizer_steps": 4.0 * (i + 1), SCORE: score, "validation_loss": loss}
        for i, (score, loss) in enumerate([(0.2, 3.0), (0.8, 2.0), (0.8, 1.0), (0.5, 0.1)])
    ]
    text = LR + "metric: validation_loss\nmode: min\n"
    found = judged(rows, space_of(text))
    assert found == {"validation_loss": 2.0, "epochs": 4, "optimizer_steps": 16}
    last = judged(rows, space_of(text + "fixed: {train.choose: last}"))
    assert last["validation_loss"] == 0.1
    population = space_of(text + "samples: 2\nscheduler: {kind: pbt}")
    assert judged(rows, population)["validation_loss"] == 0.1, "others go on from these weights"
    assert judged(rows, population, ended=True)["validation_loss"] == 2.0


def test_a_misspelt_metric_names_the_nearest_figure() -> None:
    rows = [{"epoch": 0.0, "optimizer_steps": 4.0, SCORE: 0.5, "checkpoint": "x"}]
    with pytest.raises(InputError, match="figure validation_balanced_acuracy; did you mean validation_bal"):
        judged(rows, space_of(LR + "metric: validation_balanced_acuracy"))


def test_the_picture_shows_every_axis_trial_and_curve_and_is_the_same_again() -> None:
    sweep = sweep_of(
        "space:\n  train.lr: {kind: loguniform, low: 1.0e-4, high: 1.0e-2}\n"
        "  train.schedule: {kind: choice, values: [cosine, plateau]}\n"
        "  train.warmup: {kind: uniform, low: 0, high: 1, when: {train.schedule: cosine}}\n"
    )
    entries = [
        entry("t0000", 0.5, **{"train.lr": 1e-3, "train.schedule": "cosine", "train.warmup": 0.5}),
        entry("t0001", 0.7, **{"train.lr": 1e-2, "train.schedule": "plateau"}),
        entry("t0002", float("nan"), **{"train.lr": 1e-4, "train.schedule": "plateau"}),
    ]
    rows = {
        trial: [
            {"epoch": float(i), "optimizer_steps": i, SCORE: 0.1 * i, "checkpoint": "c"} for i in range(3)
        ]
        for trial in ("t0000", "t0001")
    }
    table, history = leaderboard(entries, sweep), curves(rows)
    assert len(history) == 6
    assert "checkpoint" not in history
    drawn = picture(table, history, sweep)
    assert drawn == picture(table, history, sweep)
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    without = picture(table, curves({}), sweep)
    assert len(without) < len(drawn), "no curves where no trial told of two epochs"


class Fake:
    """A trial of Tune, with what schedulers ask of it."""

    status = "RUNNING"

    def __init__(self, number: int) -> None:
        self.trial_id = f"abcde_{number:05d}"
        self.config: dict[str, Any] = {}
        self.is_saving = False


class Alone:
    """A controller of Tune with no other trials that wait."""

    def get_live_trials(self) -> list[Any]:
        return []


@pytest.mark.parametrize(
    ("scheduler", "stopped"), [("fifo", 0), ("asha, reduction_factor: 2", 3), ("median_stopping", 1)]
)
def test_ray_s_schedulers_take_our_keys_and_stop_the_worst(scheduler: str, stopped: int) -> None:
    from hcs_ray.tune.algorithms import scheduler_of

    found = scheduler_of(
        space_of(LR + f"samples: 4\nfixed: {{train.epochs: 4}}\nscheduler: {{kind: {scheduler}}}")
    )
    found.set_search_properties(SCORE, "max")
    trials = [Fake(number) for number in range(4)]
    ended = set()
    for trial in trials:
        found.on_trial_add(Alone(), trial)
    for epoch, trial in itertools.product(range(1, 4), reversed(trials)):
        if trial not in ended:
            result = {SCORE: trials.index(trial) / 4 + epoch / 100, "epochs": epoch, "training_iteration": 1}
            if found.on_trial_result(Alone(), trial, result) == "STOP":
                ended.add(trial)
    assert len(ended) >= stopped
    assert trials[-1] not in ended
    assert stopped or not ended


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random"])
def test_optuna_draws_what_the_space_allows_learns_and_repeats_itself(sampler: str) -> None:
    space = space_of(
        "space:\n  train.lr: {kind: loguniform, low: 1.0e-4, high: 1.0}\n"
        "  train.schedule: {kind: choice, values: [cosine, plateau]}\n"
        "  train.epochs: {kind: randint, low: 2, high: 5}\n"
        f"samples: 60\nsearcher: {{kind: optuna, sampler: {sampler}, population: 10}}"
    )
    first, second = (drawn(space, 60) for _ in range(2))
    assert first == second
    assert [draw["trial"] for draw in first] == list(range(60))
    values = [space.values(draw) for draw in first]
    assert {value["train.epochs"] for value in values} <= {2, 3, 4}
    assert all(1e-4 <= value["train.lr"] <= 1 for value in values)
    if sampler == "tpe":
        misses = [abs(np.log10(value["train.lr"]) + 2) for value in values]
        assert np.mean(misses[30:]) < 0.7 * np.mean(misses[:10])


def drawn(space: Space, count: int) -> list[dict[str, Any]]:
    """Draws of the space's searcher, told how far the learning rate is from 0.01."""
    from hcs_ray.tune.algorithms import searcher_of

    searcher = searcher_of(space, 1)
    found = []
    for number in range(count):
        draw = searcher.suggest(f"id{number}")
        found.append(draw)
        score = -abs(np.log10(draw["train.lr"]) + 2)
        searcher.on_trial_complete(f"id{number}", {SCORE: score, "training_iteration": 1})
    return found


def test_bohb_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from hcs_ray.tune.algorithms import searcher_of

    space = space_of(LR + "samples: 4\nscheduler: {kind: hyperband}\nsearcher: {kind: bohb}")
    monkeypatch.setitem(sys.modules, "ConfigSpace", None)
    with pytest.raises(InputError, match=r"searcher bohb needs ConfigSpace: pip install 'hcs_ray\[bohb\]'"):
        searcher_of(space, 1)


def test_a_synchronous_population_goes_on_where_its_last_one_fails() -> None:
    """Ray's own scheduler waits for ever: it asks again only when a trial reports."""
    from types import SimpleNamespace

    from ray.tune.experiment import Trial

    from hcs_ray.tune.algorithms import scheduler_of

    space = space_of(LR + "samples: 2\nscheduler: {kind: pbt, interval_epochs: 2}")
    scheduler = scheduler_of(space)
    scheduler.set_search_properties(metric="score", mode="max")
    trials = [Trial("any", config={"train.lr": 1e-3}, stub=True) for _ in range(3)]
    controller = SimpleNamespace(get_trials=lambda: trials, search_alg=None)
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    for trial in trials[:2]:
        scheduler._trial_state[trial].last_train_time = 2
        trial.status = Trial.PAUSED
    trials[2].status = Trial.RUNNING
    assert scheduler.choose_trial_to_run(controller) is None, "the third is still on its way"
    trials[2].status = Trial.ERROR
    assert scheduler.choose_trial_to_run(controller) in trials[:2]
