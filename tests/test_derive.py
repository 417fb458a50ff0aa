"""How many worker pods a stage has, and of what size, follows from its study."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.jobs.bind import Run, bind
from hcs_ray.jobs.derive import Given, Pods, pods_of
from hcs_ray.jobs.lint import lint
from tests.bound_jobs import SWEEP, bound, sizes, study
from tests.k8s_manifests import composed, job_of, put


@pytest.mark.parametrize(
    ("stage", "overrides", "components", "wanted"),
    [
        ("train", ["train.workers=3", "train.cpus_per_worker=6.5"], (), {"cpu": (0, 0, 3, "7", 0)}),
        ("train", ["train.workers=3", "train.use_gpu=true"], (), {"gpu": (0, 0, 3, "1", 1)}),
        ("train", ["train.workers=[2, 6]", "train.use_gpu=true"], (), {"gpu": (0, 0, 6, "1", 1)}),
        ("train", ["train.workers=5", "train.cpus_per_worker=0.5"], (), {"cpu": (0, 0, 3, "1", 0)}),
        ("train", ["train.workers=3"], ("gpu", "queue"), {"gpu": (3, 3, 3, "1", 1)}),
        ("embed", ["embed.workers=4", "embed.cpus_per_worker=2"], (), {"cpu": (0, 0, 4, "2", 0)}),
        ("embed", ["embed.workers=4"], ("gpu",), {"gpu": (0, 0, 4, "1", 1)}),
        ("shard", [], (), {"cpu": (0, 0, 4, "8", 0)}),
        ("shard", ["screen.plates=[a, b, c, d, e, f, g, h, i]"], (), {"cpu": (0, 0, 2, "8", 0)}),
        ("analyse", ["train.use_gpu=true"], (), {}),
        ("study", ["train.workers=6", "train.cpus_per_worker=12"], (), {"cpu": (0, 0, 6, "12", 0)}),
        (
            "study",
            ["train.workers=6", "train.use_gpu=true", "embed.workers=3"],
            (),
            {"cpu": (0, 0, 4, "8", 0), "gpu": (0, 0, 6, "1", 1)},
        ),
    ],
)
def test_workers_follow_from_the_study(
    stage: str, overrides: list[str], components: tuple[str, ...], wanted: dict[str, Any]
) -> None:
    made = bound(study(*overrides), Run(stage), *components)
    assert sizes(made) == wanted
    assert lint(made) == []


@pytest.mark.parametrize(
    ("sweep", "wanted"),
    [
        ("", {"cpu": (4, 4, 4, "1", 0)}),  # auto: as many as the job set has, there from the start
        ("concurrency: 6\n", {"cpu": (12, 12, 12, "1", 0)}),  # of two workers each
        ("concurrency: 100\n", {"cpu": (16, 16, 16, "1", 0)}),  # it has eight trials
        ("concurrency: 2\nresources: {workers: 1, use_gpu: true}\n", {"gpu": (2, 2, 2, "1", 1)}),
        ("concurrency: 3\nresources: {workers: 1, cpus_per_worker: 5}\n", {"cpu": (3, 3, 3, "5", 0)}),
    ],
)
def test_a_sweeps_workers_follow_from_its_trials(sweep: str, wanted: dict[str, Any]) -> None:
    made = bound(study(), Run("tune", sweep=SWEEP + sweep))
    assert sizes(made) == wanted
    assert lint(made) == []


def test_a_crossed_sweep_may_have_more_trials_than_samples() -> None:
    sweep = "space: {train.seed: {kind: grid, values: [0, 1, 2]}}\nconcurrency: 3\n"
    assert sizes(bound(study(), Run("tune", sweep=sweep))) == {"cpu": (6, 6, 6, "1", 0)}


def test_what_a_group_offers_in_rays_words_is_kept_in_step() -> None:
    manifests = composed("train")
    group = "spec rayClusterSpec workerGroupSpecs 1"
    put(job_of(manifests), f"{group} resources", {"CPU": "8", "GPU": "1", "accelerator_type:H200": "1"})
    overrides = ("train.use_gpu=true", "train.resources_per_worker={accelerator_type:H200: 0.001}")
    made = bind(manifests, study(*overrides, "train.cpus_per_worker=3"), Run("train"))
    offered = job_of(made)["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["resources"]
    assert offered == {"CPU": "3", "GPU": "1", "accelerator_type:H200": "1"}
    assert lint(made) == []


@settings(deadline=None, max_examples=200)
@given(
    workers=st.integers(1, 40),
    cpus=st.floats(0.05, 40).map(lambda value: round(value, 2)),
    use_gpu=st.booleans(),
)
def test_all_workers_fit_and_no_pod_is_left_over(workers: int, cpus: float, use_gpu: bool) -> None:
    config = study(f"train.workers={workers}", f"train.cpus_per_worker={cpus}", f"train.use_gpu={use_gpu}")
    ((_, found),) = pods_of("train", config, Given(4, 8)).items()

    def room(pods: int) -> int:
        by_cpu = int(found.cpus / cpus + 1e-9)
        return pods * (min(by_cpu, found.gpus) if use_gpu else by_cpu)

    assert isinstance(found, Pods)
    assert room(found.most) >= workers > room(found.most - 1)
    assert found.cpus - 1 < cpus
