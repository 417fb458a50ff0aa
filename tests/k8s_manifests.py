"""What the tests of the job set share: its folders as kubectl renders them, and KubeRay's own schema."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import yaml

from hcs_ray.config import StudyConfig, SweepConfig, parse_study, parse_sweep
from hcs_ray.jobs.manifests import STAGES, Manifest, compose, render

REPOSITORY = Path(__file__).resolve().parents[1]
K8S = REPOSITORY / "k8s"
JOBS = tuple(f"jobs/{stage}" for stage in STAGES)
EXAMPLES = tuple(f"examples/{folder.name}" for folder in sorted((K8S / "examples").iterdir()))
SETUPS = ("setup", "setup/queue")


@cache
def _rendered(folder: Path) -> tuple[Manifest, ...]:
    return tuple(render(folder))


@cache
def _composed(stage: str, components: tuple[str, ...]) -> tuple[Manifest, ...]:
    return tuple(compose(stage, components, K8S))


def rendered(folder: str | Path) -> list[Manifest]:
    """Every object of a folder of ``k8s/``, or of any other."""
    return copy.deepcopy(list(_rendered(K8S / folder)))


def composed(stage: str, *components: str) -> list[Manifest]:
    """Every object of a job with components."""
    return copy.deepcopy(list(_composed(stage, components)))


def of_kind(manifests: list[Manifest], kind: str) -> list[Manifest]:
    return [item for item in manifests if item["kind"] == kind]


def ray_job(folder: str | Path) -> Manifest:
    return job_of(rendered(folder))


def job_of(manifests: list[Manifest]) -> Manifest:
    (job,) = of_kind(manifests, "RayJob")
    return job


def cluster(job: Manifest) -> Any:
    return job["spec"]["rayClusterSpec"]


def groups(job: Manifest) -> Iterator[tuple[str, Manifest]]:
    """The head and worker groups, by name."""
    for group in (cluster(job)["headGroupSpec"], *cluster(job)["workerGroupSpecs"]):
        yield group.get("groupName", "head"), group


def pods(job: Manifest) -> Iterator[tuple[str, Manifest]]:
    """The specs of all pods, the submitter's included."""
    yield "submitter", job["spec"]["submitterPodTemplate"]["spec"]
    for name, group in groups(job):
        yield name, group["template"]["spec"]


def pinned_ray() -> str:
    match = re.search(r"^ray==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
    assert match
    return match[1]


def parent_of(job: Any, place: str) -> tuple[Any, Any]:
    """The mapping or list, and its key or index, of a place like ``spec rayClusterSpec rayVersion``."""
    *parents, last = (int(part) if part.isdigit() else part for part in place.split())
    for part in parents:
        job = job[part]
    return job, last


def containers(job: Manifest) -> dict[tuple[str, str], Manifest]:
    """Every container that we name, by pod and name."""
    return {
        (name, container["name"]): container
        for name, pod in pods(job)
        for container in (*pod.get("initContainers", ()), *pod["containers"])
    }


def study_of(manifests: list[Manifest]) -> StudyConfig:
    texts = [
        item["data"]["study.yaml"] for item in of_kind(manifests, "ConfigMap") if "study.yaml" in item["data"]
    ]
    return parse_study(texts[0], "k8s/base/study.yaml")


def sweep_of(manifests: list[Manifest]) -> SweepConfig:
    (config_map,) = of_kind(manifests, "ConfigMap")
    return parse_sweep(config_map["data"]["sweep.yaml"], "k8s/jobs/tune/sweep.yaml")


def put(job: Manifest, place: str, value: object) -> None:
    """Set the field at a place like ``spec rayClusterSpec rayVersion``; None removes it."""
    here, last = parent_of(job, place)
    if value is None:
        del here[last]
    else:
        here[last] = value


def objects_within(node: Any) -> Iterator[Manifest]:
    """Every mapping of a manifest, itself included."""
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from objects_within(value)
    elif isinstance(node, list):
        for item in node:
            yield from objects_within(item)


@cache
def crd_validator(folder: Path) -> Any:
    """A validator of RayJobs, made of KubeRay's own CRD, closed to unknown fields."""
    text = (folder / "ray.io_rayjobs.yaml").read_text()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = (version["schema"]["openAPIV3Schema"] for version in versions if version["name"] == "v1")
    closed = _close(schema)
    closed["properties"]["metadata"] = {"type": "object"}  # ObjectMeta: the API server checks it by itself
    keywords = {"x-kubernetes-list-map-keys": _unique_keys}
    extend: Any = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, keywords)(closed)


def _close(schema: Any) -> Any:
    """The schema with ``additionalProperties: false`` wherever the API server's strict mode would object."""
    if isinstance(schema, list):
        return [_close(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: _close(value) for key, value in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    if schema.get("type") == "object" and not is_open:
        closed["additionalProperties"] = False
    return closed


def _unique_keys(_: Any, keys: list[str], items: list[Manifest], __: Any) -> Iterator[Exception]:
    """``x-kubernetes-list-map-keys``: no two items of the list have the same keys."""
    seen = [tuple(str(item.get(key)) for key in keys) for item in items]
    if len(set(seen)) < len(seen):
        yield jsonschema.ValidationError(f"duplicate {keys} among {seen}")


def flat(node: Any, path: str = "") -> dict[str, Any]:
    """Every scalar, or empty container, of an object by its path; items of lists go by their names."""
    if isinstance(node, dict) and node:
        items = [(f"{path}.{key}" if path else str(key), value) for key, value in node.items()]
    elif isinstance(node, list) and node:
        items = [(f"{path}[{_label(item, index)}]", item) for index, item in enumerate(node)]
    else:
        return {path: node}
    found: dict[str, Any] = {}
    for place, value in items:
        found |= flat(value, place)
    return found


def _label(item: Any, index: int) -> str:
    if isinstance(item, dict):
        for key in ("name", "groupName", "mountPath", "key"):
            if isinstance(item.get(key), str) and not (key == "name" and "mountPath" in item):
                return str(item[key])
    return str(index)


def changes(before: Manifest, after: Manifest) -> dict[str, tuple[Any, Any]]:
    """Path -> (before, after) of every field that differs; None where there is no such field."""
    old, new = flat(before), flat(after)
    return {
        path: (old.get(path), new.get(path))
        for path in sorted({*old, *new})
        if old.get(path) != new.get(path) or (path in old) != (path in new)
    }
