"""The jobs of k8s/: what each runs, on what, and what every pod has. See also test_k8s_components.py."""

from __future__ import annotations

import re
import shlex
from decimal import Decimal

import kubernetes_validate
import pytest

from hcs_ray.jobs.lint.node import quantity
from hcs_ray.jobs.manifests import STAGES, Manifest
from tests.k8s_manifests import (
    EXAMPLES,
    JOBS,
    cluster,
    composed,
    containers,
    groups,
    job_of,
    of_kind,
    pods,
    ray_job,
    rendered,
    study_of,
    sweep_of,
)

# --- What a job runs, and on what ---------------------------------------------------------------------------

ENTRYPOINTS = {
    "shard": "hcs-ray run /study/study.yaml --name main --to split",
    "train": "hcs-ray train /study/study.yaml --name main",
    "tune": "hcs-ray tune /study/study.yaml /study/sweep.yaml --name main",
    "embed": "hcs-ray embed /study/study.yaml --name main",
    "analyse": "hcs-ray run /study/study.yaml --name main --from profile",
    "study": "hcs-ray run /study/study.yaml --name main",
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_job_is_one_command_that_names_its_run(stage: str) -> None:
    job = ray_job(f"jobs/{stage}")
    assert job["spec"]["entrypoint"] == ENTRYPOINTS[stage]
    assert job["metadata"]["name"] == f"hcs-ray-{stage}"
    arguments = shlex.split(job["spec"]["entrypoint"])
    expected = {"hcs-ray/stage": stage, "hcs-ray/run": arguments[arguments.index("--name") + 1]}
    expected["app.kubernetes.io/part-of"] = "hcs-ray"
    templates = [job["spec"]["submitterPodTemplate"], *(group["template"] for _, group in groups(job))]
    for labelled in (job, *of_kind(rendered(f"jobs/{stage}"), "ConfigMap"), *templates):
        assert labelled["metadata"]["labels"] == expected


@pytest.mark.parametrize("folder", [*JOBS, *EXAMPLES])
def test_the_study_reaches_head_and_sidecars_under_the_name_with_its_hash(folder: str) -> None:
    manifests = rendered(folder)
    (config_map,) = (item for item in of_kind(manifests, "ConfigMap") if "study.yaml" in item["data"])
    name = config_map["metadata"]["name"]
    assert re.fullmatch(r"hcs-ray-study-[a-z]+-[a-z0-9]{10}", name)
    by_name = dict(pods(job_of(manifests)))
    for pod in ("head", "cpu", "gpu"):
        assert {"name": "study", "configMap": {"name": name}} in by_name[pod]["volumes"]
    mounted = {
        place
        for place, container in containers(job_of(manifests)).items()
        for mount in container["volumeMounts"]
        if (mount["name"], mount["mountPath"], mount.get("readOnly")) == ("study", "/study", True)
    }
    sidecars = {(pod, "ship-logs") for pod in ("head", "cpu", "gpu")}
    assert mounted == {("head", "ray-head"), *sidecars}
    entrypoint = shlex.split(job_of(manifests)["spec"]["entrypoint"])
    assert {word.removeprefix("/study/") for word in entrypoint if word.startswith("/study/")} == set(
        config_map["data"]
    )


def test_all_jobs_have_the_same_study_in_a_bucket() -> None:
    studies = [study_of(rendered(folder)) for folder in JOBS]
    assert all(study == studies[0] for study in studies)
    assert str(studies[0].root).startswith("s3://")
    assert studies[0].model.weights is None  # needs no model hub


def room(job: Manifest, group: str, cpus: float, gpus: int) -> int:
    """How many workers of so many cores and GPUs fit on all pods of a group."""
    found = dict(groups(job))[group]
    limits = found["template"]["spec"]["containers"][0]["resources"]["limits"]
    each = int(quantity(limits["cpu"]) / Decimal(cpus))
    if gpus:
        each = min(each, int(limits.get("nvidia.com/gpu", 0)) // gpus)
    return int(found["maxReplicas"]) * each


@pytest.mark.parametrize(
    ("stage", "components", "group"),
    [
        *((stage, (), "cpu") for stage in ("train", "tune", "embed", "study")),
        *((stage, ("gpu",), "gpu") for stage in ("train", "tune", "embed", "study")),
    ],
)
def test_what_the_study_wants_fits(stage: str, components: tuple[str, ...], group: str) -> None:
    manifests = composed(stage, *components)
    study, job = study_of(manifests), job_of(manifests)
    gpus = 1 if group == "gpu" else 0
    if stage == "tune":
        workers = sweep_of(manifests).resources.workers
        assert room(job, group, study.train.cpus_per_worker, gpus) == 4 * (workers or 0)
    if stage in ("train", "study"):
        assert room(job, group, study.train.cpus_per_worker, gpus) >= study.train.most_workers
    if stage in ("embed", "study"):
        assert room(job, group, study.embed.cpus_per_worker, gpus) >= study.embed.workers


def test_a_sweep_finds_its_workers_there_when_it_begins() -> None:
    """Tune takes as many trials at a time as fit at its start, and refuses where none does.

    Workers that no autoscaler ends do not idle for the hour that other jobs' clusters are kept.
    """
    job = ray_job("jobs/tune")
    cpu = dict(groups(job))["cpu"]
    assert cpu["replicas"] == cpu["minReplicas"] == cpu["maxReplicas"] == 4
    assert job["spec"]["ttlSecondsAfterFinished"] == 300
    assert ray_job("jobs/train")["spec"]["ttlSecondsAfterFinished"] == 3600


def test_stages_that_compute_in_the_driver_have_a_head_that_can() -> None:
    for stage in STAGES:
        head = containers(ray_job(f"jobs/{stage}"))["head", "ray-head"]["resources"]
        assert head["requests"] == head["limits"]
        assert head["limits"]["cpu"] == ("8" if stage in ("analyse", "study") else "2")
    assert all(group["maxReplicas"] == 0 for name, group in groups(ray_job("jobs/analyse")) if name != "head")


# --- Every pod ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", [*JOBS, *EXAMPLES])
def test_the_pods_are_valid_for_the_api_server(folder: str) -> None:
    """As pods of their own: the CRD's copy of a pod's schema is older and looser than the built-in one."""
    for name, pod in pods(ray_job(folder)):
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{name}"}, "spec": pod}
        kubernetes_validate.validate(manifest, "1.34", strict=True)


@pytest.mark.parametrize("folder", [*JOBS, *EXAMPLES])
def test_logs_leave_every_ray_pod_by_a_sidecar_that_sees_the_session(folder: str) -> None:
    job = ray_job(folder)
    for name in ("head", "cpu", "gpu"):
        pod = dict(pods(job))[name]
        (sidecar,) = pod["initContainers"]
        assert (sidecar["name"], sidecar["restartPolicy"]) == ("ship-logs", "Always")
        assert sidecar["command"] == ["hcs-ray", "ship-logs", "/study/study.yaml"]
        fields = {
            item["name"]: item["valueFrom"]["fieldRef"]["fieldPath"]
            for item in sidecar["env"]
            if "valueFrom" in item
        }
        assert fields == {
            "HCS_RAY_RUN": "metadata.labels['hcs-ray/run']",
            "HCS_RAY_ATTEMPT": "metadata.labels['ray.io/cluster']",
            "HCS_RAY_POD": "metadata.name",
        }
        assert sidecar["envFrom"] == pod["containers"][0]["envFrom"]
        logs = [volume for volume in pod["volumes"] if volume["name"] == "ray-logs"]
        assert "emptyDir" in logs[0]
        for container in (sidecar, pod["containers"][0]):
            mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
            assert mounts["/tmp/ray"]["name"] == "ray-logs"
        # So long may Ray take to end, and ship-logs after it.
        grace = pod["terminationGracePeriodSeconds"]
        if name != "head":
            assert grace - int(pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"][3]) >= 10


def test_the_autoscaler_writes_where_kuberay_and_the_sidecar_look() -> None:
    """KubeRay adds a volume of its own at /tmp/ray unless one is mounted at just this path."""
    mounts = cluster(ray_job("base"))["autoscalerOptions"]["volumeMounts"]
    assert {"name": "ray-logs", "mountPath": "/tmp/ray"} in mounts


def test_only_the_head_has_a_token_of_the_api_server() -> None:
    automounted = {name: pod.get("automountServiceAccountToken", True) for name, pod in pods(ray_job("base"))}
    assert automounted == {"submitter": False, "head": True, "cpu": False, "gpu": False}


def test_secrets_come_by_reference_and_may_be_missing() -> None:
    for place, container in containers(ray_job("base")).items():
        if place[0] == "submitter":
            assert "envFrom" not in container
            continue
        assert container["envFrom"] == [
            {"secretRef": {"name": "hcs-ray-credentials", "optional": True}},
            {"configMapRef": {"name": "hcs-ray-environment", "optional": True}},
        ]


def test_prometheus_finds_every_ray_pod() -> None:
    for _, group in groups(ray_job("base")):
        annotations = group["template"]["metadata"]["annotations"]
        assert (annotations["prometheus.io/scrape"], annotations["prometheus.io/port"]) == ("true", "8080")
