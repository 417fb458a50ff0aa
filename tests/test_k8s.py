"""The manifests, as kubectl renders them: valid for the API server, for KubeRay's controller and for us.

The API server rejects little of a RayJob (its schema knows no submission modes, and a typing error is
dropped in silence by some clients); the controller then fails it for good. So three nets are held here:
the CRD's schema closed to unknown fields, the controller's rules, and our own rules for a safe cluster.
Each net is shown to catch something. What the jobs are is in test_k8s_jobs.py.
"""

from __future__ import annotations

from typing import Any

import pytest

from tests.k8s_manifests import EXAMPLES, JOBS, objects_within, put, ray_job
from tests.k8s_rules import FACTS, HEAD, POSITIVE, findings

FOLDERS = ("base", *JOBS, *EXAMPLES)

# --- The API server's net: the CRD's schema, closed to unknown fields --------------------------------------


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


HEAD_POD = f"{HEAD} template spec"
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


# --- The controller's net and our own: rules of which the schema knows nothing (tests/k8s_rules.py) ---------


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_rule_is_broken(folder: str) -> None:
    mirrored = ": image mirror.example/"  # what an overlay may name, and the defaults may not
    found = [line for line in findings(ray_job(folder)) if "air-gapped" not in folder or mirrored not in line]
    assert found == []


@pytest.mark.parametrize("place", [*FACTS, *(f"spec {key}" for key in POSITIVE)])
@pytest.mark.parametrize("value", [None, -1])
def test_every_fact_is_missed(place: str, value: object) -> None:
    job = ray_job("jobs/train")
    put(job, place, value)
    assert [line.partition(":")[0] for line in findings(job)] == [place]


@pytest.mark.parametrize(
    ("place", "value", "finding"),
    [
        ("metadata name", "a" * 48, "metadata name: at most 47"),
        ("metadata name", "train.1", "metadata name: at most 47"),
        ("spec entrypoint", "hcs-ray train s --name a > log", "entrypoint: pasted"),
        ("spec entrypoint", "hcs-ray train s", "entrypoint: without --name"),
        ("spec rayClusterSpec rayVersion", "2.60.1", "rayVersion: constraints.txt has"),
        ("spec rayClusterSpec rayVersion", "2.51.0", "rayVersion: tokens need"),
        ("spec rayClusterSpec autoscalerOptions securityContext", {}, "autoscaler: securityContext.run"),
        ("spec rayClusterSpec autoscalerOptions resources", {}, "autoscaler: cpu and memory"),
        ("spec submitterPodTemplate spec containers 0 resources limits cpu", None, "submitter: cpu and"),
        ("spec submitterPodTemplate spec restartPolicy", "Always", "submitter: restartPolicy"),
        (f"{HEAD} rayStartParams labels", "a=b", "head: rayStartParams.labels"),
        (f"{HEAD} resources", {"CPU": "1"}, "head: resources stand"),
        (f"{HEAD_POD} hostNetwork", True, "head: shares a namespace"),
        (f"{HEAD_POD} volumes 0", {"name": "scratch", "hostPath": {"path": "/"}}, "head: a volume"),
        (f"{HEAD_POD} volumes 1 emptyDir sizeLimit", "1000Mi", "head: /dev/shm"),
        (f"{HEAD_POD} volumes 1 emptyDir medium", None, "head: /dev/shm"),
        (f"{HEAD_POD} containers 0 resources limits nvidia.com/gpu", 1, "head: takes a GPU"),
        (f"{HEAD_POD} containers 0 image", "registry.example/hcs-ray:1", "head: image registry"),
        (f"{HEAD_POD} containers 0 image", "hcs-ray:latest", "head: image hcs-ray:latest"),
        (f"{CPU} rayStartParams num-cpus", "1", "cpu: a worker's num-cpus"),
        (f"{CPU} rayStartParams object-store-memory", str(2**33), "cpu: /dev/shm"),
        (f"{CPU} maxReplicas", -1, "cpu: replicas outside"),
        (f"{CPU} template", None, "cpu: its pod template is lost"),
        (f"{CPU} template spec terminationGracePeriodSeconds", None, "cpu: preStop does"),
        (f"{CPU_WORKER} lifecycle", None, "cpu: preStop does"),
        (f"{CPU_WORKER} resources requests memory", "1Gi", "cpu: the request for memory"),
        (f"{CPU_WORKER} securityContext capabilities", None, "cpu: securityContext.capabilities"),
        (f"{CPU_WORKER} securityContext runAsUser", 0, "cpu: runs as root"),
        (f"{CPU_WORKER} volumeMounts 0 mountPath", "/scratch", "cpu: /tmp cannot"),
        (f"{CPU_WORKER} env 0", {"name": "WANDB_API_KEY", "value": "1"}, "cpu: WANDB_API_KEY"),
    ],
)
def test_every_rule_has_a_job_that_breaks_it(place: str, value: object, finding: str) -> None:
    job = ray_job("jobs/train")
    put(job, place, value)
    assert any(line.startswith(finding) for line in findings(job)), findings(job)
