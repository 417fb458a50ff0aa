"""KubeRay's own CRD, closed to unknown fields as a strict API server closes it, against the jobs.

A typing error is dropped in silence by some clients, so what the CRD does not know must not be there. The
rules that it does not hold are the lint's (test_lint.py); what the jobs are is in test_k8s_jobs.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.k8s_manifests import EXAMPLES, JOBS, objects_within, put, ray_job

FOLDERS = ("base", *JOBS, *EXAMPLES)
HEAD = "spec rayClusterSpec headGroupSpec"


@pytest.mark.parametrize("folder", FOLDERS)
def test_the_crd_accepts_the_job(crd: Any, folder: str) -> None:
    assert [error.message for error in crd.iter_errors(ray_job(folder))] == []


def test_the_crd_refuses_an_unknown_field_wherever_it_stands(crd: Any) -> None:
    job = ray_job("jobs/train")
    places = [job, *objects_within(job["spec"])]
    assert len(places) > 100
    for place in places:
        place["misspelt"] = {}
        assert not crd.is_valid(job), f"not seen among {sorted(place)}"
        del place["misspelt"]
    assert crd.is_valid(job)


CPU = "spec rayClusterSpec workerGroupSpecs 0"
CPU_WORKER = f"{CPU} template spec containers 0"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (f"{CPU} replicas", "two", "'two' is not of type"),
        (f"{CPU} template", None, "'template' is a required"),
        (f"{CPU_WORKER} resources limits memory", "8 gigabytes", "does not match"),
        (f"{CPU_WORKER} env 0", {"value": "1"}, "'name' is a required"),
        (f"{CPU_WORKER} env", [{"name": "HOME"}, {"name": "HOME"}], "duplicate ['name']"),
        (HEAD, None, "'headGroupSpec' is a required"),
        ("spec rayClusterSpec authOptions mode", "open", "'open' is not one of"),
    ],
)
def test_the_crd_refuses(crd: Any, place: str, value: object, message: str) -> None:
    job = ray_job("jobs/train")
    put(job, place, value)
    assert any(message in error.message for error in crd.iter_errors(job))
