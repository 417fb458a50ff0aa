"""A sweep's file: what it may say, what is refused with one line, and what its space means."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcs_ray.config import StudyConfig, SweepConfig, parse_sweep
from hcs_ray.config.sweep import AshaScheduler, OptunaSearcher, PbtScheduler
from hcs_ray.contracts import InputError
from hcs_ray.tune.space import GRID, Space
from tests.conftest import REPOSITORY

LR = "space: {train.lr: {kind: loguniform, low: 1.0e-4, high: 1.0e-2}}\n"
LEAVE_OUT = "space: {split.leave_out: {kind: compounds, values: all}}\n"
FILES = sorted((REPOSITORY / "tune_configs").glob("*.yaml"))
COMPOUNDS = ("aspirin", "taxol")


def space_of(text: str, config: StudyConfig | None = None) -> Space:
    return Space.of(parse_sweep(text, "s.yaml"), config or StudyConfig(), COMPOUNDS, "s.yaml")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_committed_sweep_is_valid_and_says_what_it_is_for(file: Any) -> None:
    text = file.read_text()
    space = space_of(text)
    assert space.trials >= 1
    comment = "".join(line for line in text.splitlines(keepends=True) if line.startswith("#"))
    assert f"tune_configs/{file.name}" in comment, "the command stands in it"


def test_the_committed_sweeps_are_those_that_are_promised() -> None:
    assert {file.stem for file in FILES} == {
        "smoke", "lr_asha", "backbones", "augmentation", "adversary", "leave_one_compound_out",
        "leave_one_compound_and_week_out", "umap",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("samples: 2", "space is missing"),
        ("space: {}", "space: dictionary should have at least 1 item"),
        ("smaples: 2\n" + LR, "unknown key smaples; did you mean samples?"),
        (LR.replace("lr:", "lrr:"), "train.lrr cannot be swept; did you mean train.lr?"),
        (
            "space: {train.augment.rotation_degres: {kind: choice, values: [1]}}",
            "did you mean train.augment.rotation_degrees?",
        ),
        ("space: {train.augment: {kind: choice, values: [1]}}", "train.augment cannot be swept"),
        ("space: {map.neighbors: {kind: choice, values: [5]}}", "map.neighbors cannot be swept"),
        (LR + "objective: map", "train.lr cannot be swept; it is one of: map."),
        (LR + "fixed: {train.epoch: 2}", "train.epoch cannot be swept; did you mean train.epochs?"),
        (LR + "fixed: {train.lr: 2}", "train.lr is both swept and fixed"),
        (LR + "fixed: {train.workers: 2}", "train.workers cannot be swept; it belongs into resources"),
        (LR + "fixed: {train.cache_folder: x}", "a sweep names no path"),
        (LR + "fixed: {model.weights: /x}", "a sweep names no path"),
        ("space: {train.lr: {kind: uniform, low: 1, high: 0}}", "space.train.lr: uniform needs low and high"),
        ("space: {train.lr: {kind: loguniform, low: 0, high: 1}}", "loguniform needs low above 0"),
        ("space: {train.lr: {kind: randint, low: 0.5, high: 1}}", "randint needs whole numbers"),
        ("space: {train.lr: {kind: choice}}", "space.train.lr: choice needs values"),
        ("space: {train.lr: {kind: choice, values: all}}", "choice needs values"),
        ("space: {train.lr: {kind: choice, values: [1], low: 0}}", "choice takes values, not low and high"),
        (
            "space: {train.lr: {kind: uniform, values: [1], low: 0, high: 1}}",
            "takes low and high, not values",
        ),
        (
            "space: {train.lr: {kind: normal, low: 0, high: 1}}",
            "space.train.lr.kind: input should be 'choice'",
        ),
        (
            "space: {train.lr: {kind: choice, vals: [1]}}",
            "unknown key space.train.lr.vals; did you mean values?",
        ),
        (
            LR + "scheduler: {kind: ash}",
            "scheduler.kind: it is one of fifo, asha, hyperband, median_stopping",
        ),
        (LR + "scheduler: {grace_epochs: 1}", "scheduler.kind: it is one of fifo, asha"),
        (LR + "scheduler: {kind: asha, grace: 1}", "unknown key scheduler.grace"),
        (LR + "scheduler: {kind: asha, grace_epoch: 1}", "did you mean grace_epochs?"),
        (
            LR + "scheduler: {kind: asha, reduction_factor: 1}",
            "scheduler.reduction_factor: input should be gr",
        ),
        (
            LR + "searcher: {kind: optuna, sampelr: tpe}",
            "unknown key searcher.sampelr; did you mean sampler?",
        ),
        (LR + "searcher: {kind: optuna, sampler: cma}", "searcher.sampler: input should be 'tpe'"),
        (LR + "stop: {max_hour: 2}", "unknown key stop.max_hour; did you mean max_hours?"),
        (LR + "resources: {gpu: true}", "unknown key resources.gpu"),
        (LR + "concurrency: many", "concurrency: input should be"),
        (LR + "metric: [{name: a, moed: max}]", "unknown key metric.0.moed; did you mean mode?"),
        (LR + "metric: [{name: a}, {name: b}]", "more than one metric needs searcher: {kind: optuna}"),
        (LR + "searcher: {kind: grid}", "space.train.lr: a grid needs values"),
        (LR + "searcher: {kind: bohb}", "searcher bohb needs scheduler: {kind: hyperband}"),
        (LR + "scheduler: {kind: pbt}", "scheduler pbt needs samples of at least 2"),
        (LEAVE_OUT + "searcher: {kind: optuna}", "optuna draws values; write kind: choice"),
        (LEAVE_OUT + "scheduler: {kind: asha}", "every fold must be trained to its end"),
        (LEAVE_OUT + "samples: 2", "samples of 1"),
        (
            "space: {split.leave_out: {kind: choice, values: [a]}}",
            "kind compounds and split.leave_out go tog",
        ),
        (
            "space: {train.lr: {kind: compounds, values: all}}",
            "kind compounds and split.leave_out go together",
        ),
        (
            "space: {train.lr: {kind: choice, values: [1], when: {train.shedule: cosine}}}",
            "space.train.lr.when: unknown key train.shedule; did you mean train.schedule?",
        ),
        (
            "space:\n  train.warmup: {kind: uniform, low: 0, high: 1, when: {train.schedule: cosine}}\n"
            "  train.schedule: {kind: choice, values: [cosine]}",
            "train.schedule must be listed above train.warmup",
        ),
        (
            "space: {train.epochs: {kind: choice, values: [1, 2]}}\nsamples: 4\nscheduler: {kind: pbt}",
            "space.train.epochs cannot change in mid-training",
        ),
        (
            "space: {train.lr: {kind: choice, values: [1, 2]}}\nsamples: 4\nscheduler: {kind: pb2}",
            "space.train.lr: pb2 needs low and high",
        ),
        ("a: [", "line 1: not valid YAML"),
    ],
)
def test_a_bad_sweep_is_refused_with_one_line_that_names_it(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_sweep(text, "s.yaml")
    message = str(caught.value)
    assert message.startswith("s.yaml")
    assert words in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "space: {train.lr: {kind: choice, values: [0.1, fast]}}",
            "train.lr: input should be a valid number",
        ),
        ("space: {train.lr: {kind: uniform, low: -1, high: 1}}", "train.lr: input should be greater than 0"),
        ("space: {model.backbone: {kind: grid, values: [resnet19]}}", "model.backbone: input should be"),
        (LR + "fixed: {train.epochs: 0}", "train.epochs: input should be greater than or equal to 1"),
        (
            "space: {split.leave_out: {kind: compounds, values: [taxol, asprin]}}",
            "no compound asprin with a MoA; there are: aspirin, taxol",
        ),
    ],
)
def test_a_value_that_the_study_does_not_take_is_refused_before_any_trial(text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        space_of(text)
    assert words in str(caught.value)


def test_a_metric_is_a_name_or_a_list_of_names_with_modes() -> None:
    one = parse_sweep(LR + "metric: validation_loss\nmode: min", "s.yaml")
    assert [(goal.name, goal.mode) for goal in one.metric] == [("validation_loss", "min")]
    several = parse_sweep(
        LR + "metric: [{name: a}, {name: b, mode: min}]\nsearcher: {kind: optuna, sampler: nsga2}", "s.yaml"
    )
    assert [(goal.name, goal.mode) for goal in several.metric] == [("a", "max"), ("b", "min")]
    assert parse_sweep(LR, "s.yaml").goal.name == "validation_balanced_accuracy"


def test_a_sweep_is_typed_and_what_was_dumped_is_read_back() -> None:
    text = LR + (
        "samples: 4\nscheduler: {kind: asha, grace_epochs: 2}\nsearcher: {kind: optuna, sampler: random}\n"
        "resources: {workers: 1, use_gpu: true}\nstop: {reached: {validation_accuracy: 0.9}, max_hours: 2}"
    )
    sweep = parse_sweep(text, "s.yaml")
    assert isinstance(sweep.scheduler, AshaScheduler)
    assert isinstance(sweep.searcher, OptunaSearcher)
    assert sweep.scheduler.grace_epochs == 2
    assert SweepConfig.model_validate(sweep.model_dump(mode="json")) == sweep
    least = parse_sweep(LR + "metric: validation_loss\nmode: min", "s.yaml")
    assert SweepConfig.model_validate(least.model_dump(mode="json")) == least
    population = parse_sweep(LR + "samples: 4\nscheduler: {kind: pbt}", "s.yaml")
    assert isinstance(population.scheduler, PbtScheduler)


def test_resources_become_the_study_s_and_nothing_else_does() -> None:
    config = space_of(LR + "resources: {workers: 3, cpus_per_worker: 0.5}").config
    assert (config.train.workers, config.train.cpus_per_worker) == (3, 0.5)
    assert config.train.use_gpu == StudyConfig().train.use_gpu


CONDITIONAL = """
space:
  train.adversary.target: {kind: grid, values: [none, plate, batch]}
  train.adversary.fields:
    {kind: grid, values: [controls, all], when: {train.adversary.target: [plate, batch]}}
  train.adversary.weight: {kind: uniform, low: 0.1, high: 1, when: {train.adversary.fields: all}}
samples: 2
"""


def test_a_grid_tries_each_combination_of_active_keys_once() -> None:
    space = space_of(CONDITIONAL)
    values = [space.values({GRID: found, "train.adversary.weight": 0.5}) for found in space.combinations()]
    assert [tuple(value.values()) for value in values] == [
        ("none",), ("plate", "controls"), ("plate", "all", 0.5), ("batch", "controls"), ("batch", "all", 0.5),
    ]  # fmt: skip
    assert space.trials == 10


def test_an_inactive_key_leaves_the_study_as_it_is() -> None:
    space = space_of(CONDITIONAL)
    config = space.study_config(space.values({GRID: (0, 1), "train.adversary.weight": 0.7}))
    assert config.train.adversary == StudyConfig().train.adversary
    config = space.study_config(space.values({GRID: (1, 1), "train.adversary.weight": 0.7}))
    assert config.train.adversary.model_dump() | {"warmup": 0} == {
        "target": "plate", "fields": "all", "weight": 0.7, "warmup": 0,
    }  # fmt: skip


def test_a_condition_may_hang_on_a_key_that_is_not_swept() -> None:
    text = "space: {train.warmup: {kind: uniform, low: 0, high: 1, when: {train.schedule: cosine}}}"
    assert space_of(text).values({"train.warmup": 0.5}) == {}
    fixed = space_of(text + "\nfixed: {train.schedule: cosine}")
    assert fixed.values({"train.warmup": 0.5}) == {"train.warmup": 0.5}


def test_all_compounds_become_folds() -> None:
    space = space_of(LEAVE_OUT)
    found = [space.values({GRID: positions}) for positions in space.combinations()]
    assert found == [{"split.leave_out": name} for name in COMPOUNDS]


listed = st.lists(
    st.one_of(st.integers(), st.text(max_size=3), st.none(), st.booleans()),
    min_size=1, max_size=3, unique_by=repr,
)  # fmt: skip


@given(st.lists(listed, min_size=1, max_size=3))
def test_a_grid_is_the_product_of_its_values_whatever_they_are(lists: list[list[Any]]) -> None:
    names = ("train.lr", "train.epochs", "train.seed")
    sweep = SweepConfig.model_validate(
        {
            "space": {
                name: {"kind": "grid", "values": tuple(values)}
                for name, values in zip(names, lists, strict=False)
            }
        }
    )
    space = Space(sweep, StudyConfig())
    found = [tuple(space.values({GRID: at}).values()) for at in space.combinations()]
    assert list(map(repr, found)) == list(map(repr, product(*lists)))


@given(st.floats(-10, 10), st.integers(-10, 10))
def test_a_step_of_a_population_cannot_leave_its_range(value: float, whole: int) -> None:
    space = space_of(
        "space:\n  train.lr: {kind: uniform, low: 0.1, high: 0.3}\n"
        "  train.epochs: {kind: randint, low: 1, high: 4}"
    )
    found = space.values({"train.lr": value, "train.epochs": whole})
    assert 0.1 <= found["train.lr"] <= 0.3
    assert found["train.epochs"] in (1, 2, 3)
    assert found["train.lr"] == value or not 0.1 <= value <= 0.3
