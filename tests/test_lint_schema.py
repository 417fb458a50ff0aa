"""The schema of a RayJob that travels with the package: it takes and refuses what KubeRay's own CRD does.

The CRD is closed to unknown fields, as a strict API server closes it. What has a default is not missing. An
object's metadata, of which a CRD says nothing, is checked apart.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.jobs.lint import ClusterLimits, lint, schema
from hcs_ray.jobs.lint.compact import as_json, compact
from hcs_ray.jobs.lint.node import Node
from hcs_ray.jobs.lint.schema import schema_findings
from tests.k8s_manifests import composed, crd_validator, job_of, objects_within, put

JUNK: tuple[Any, ...] = (
    "text",
    "",
    3,
    -1,
    2.5,
    True,
    None,
    [],
    {},
    ["a", "a"],
    [{"name": "a"}],
    {"name": "a"},
)


@pytest.fixture(scope="module")
def spec_schema(shared: Path) -> dict[str, Any]:
    """The CRD's schema of a RayJob's spec."""
    text = (shared / "kuberay-crds" / "ray.io_rayjobs.yaml").read_text()
    versions = yaml.load(text, Loader=yaml.CSafeLoader)["spec"]["versions"]
    (found,) = (item["schema"]["openAPIV3Schema"] for item in versions if item["name"] == "v1")
    return dict(found["properties"]["spec"])


class Crd:
    """KubeRay's own CRD as a judge of jobs."""

    def __init__(self, validator: Any) -> None:
        self._validator = validator

    def __repr__(self) -> str:
        return "the CRD"  # and not its 1.4 MB, where a test fails

    def errors(self, job: Any) -> list[str]:
        return [error.message[:300] for error in self._validator.iter_errors(job)]


def no_two_alike(_: Any, kind: str, items: Any, __: Any) -> Iterator[Exception]:
    """``x-kubernetes-list-type: set``."""
    if kind == "set" and isinstance(items, list) and len({repr(item) for item in items}) < len(items):
        yield jsonschema.ValidationError("two are alike")


def no_two_of_a_key(_: Any, keys: list[str], items: Any, __: Any) -> Iterator[Exception]:
    """``x-kubernetes-list-map-keys``; that an item is no mapping is another keyword's."""
    if isinstance(items, list) and all(isinstance(item, dict) for item in items):
        yield from no_two_alike(_, "set", [[item.get(key) for key in keys] for item in items], __)


@pytest.fixture(scope="module")
def reference(shared: Path) -> Crd:
    extend: Any = jsonschema.validators.extend
    closed = crd_validator(shared / "kuberay-crds")
    keywords = {"x-kubernetes-list-type": no_two_alike, "x-kubernetes-list-map-keys": no_two_of_a_key}
    validator = extend(type(closed), keywords)(closed.schema)
    for mapping in objects_within(validator.schema):
        if "required" in mapping and isinstance(mapping.get("properties"), dict):
            defaults = {key for key, inner in mapping["properties"].items() if "default" in inner}
            mapping["required"] = [key for key in mapping["required"] if key not in defaults]
    return Crd(validator)


def findings(job: Any) -> list[str]:
    return [str(finding) for finding in schema_findings(Node("RayJob/a ", job))]


def assert_agreed(reference: Crd, job: Any) -> None:
    found, errors = findings(job), reference.errors(job)
    assert bool(found) == bool(errors), f"the lint: {found}; the CRD: {errors}"


def test_it_is_what_the_script_makes_of_the_crd(shared: Path) -> None:
    crd = yaml.load((shared / "kuberay-crds/ray.io_rayjobs.yaml").read_text(), Loader=yaml.CSafeLoader)
    packaged = Path(schema.__file__).with_name("rayjob.json").read_text()
    assert packaged == as_json(compact(crd))
    assert len(packaged) < 30_000
    assert "description" not in packaged.replace('"description"', "")  # no sentence of theirs


# --- Mutations of a job -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_both_think_alike_of_a_changed_job(reference: Crd, data: st.DataObject) -> None:
    job = job_of(composed("tune", "gpu", "queue-elastic"))
    for _ in range(data.draw(st.integers(1, 2))):
        places = list(objects_within(job["spec"]))
        place = data.draw(st.sampled_from(places))
        key = data.draw(st.sampled_from(["misspelt", *sorted(place)]))
        if data.draw(st.booleans()) and key in place:
            del place[key]
        else:
            place[key] = copy.deepcopy(data.draw(st.sampled_from(JUNK)))
    assert_agreed(reference, job)


LIMITS = ClusterLimits(
    nodes=[{"metadata": {}, "status": {"allocatable": {"cpu": "1"}}}],
    resource_quotas=[{"metadata": {"name": "q"}, "spec": {"hard": {"requests.cpu": "1", "pods": "3"}}}],
    local_queues=[],
)


class Writer:
    """Writes what a schema of a CRD allows, at random; with ``spoil`` one value is another one's."""

    def __init__(self, seed: int, spoil: bool) -> None:
        self._random = random.Random(seed)
        self._left = 250  # fields to write
        self._spoil = self._random.randrange(60) if spoil else -1

    def write(self, schema: dict[str, Any]) -> Any:
        self._spoil -= 1
        if self._spoil == 0:
            return copy.deepcopy(self._random.choice(JUNK))
        if schema.get("x-kubernetes-int-or-string"):
            return self._random.choice([1, "1", "500m", "2Gi"])
        if "enum" in schema:
            return self._random.choice(schema["enum"])
        kind = schema.get("type")
        if kind == "object":
            return self._mapping(schema)
        if kind == "array":
            return [self.write(schema["items"]) for _ in range(self._random.choice([0, 1, 1, 2]))]
        return {"string": "a", "integer": max(1, schema.get("minimum", 1)), "boolean": True}.get(
            str(kind), 1.5
        )

    def _mapping(self, schema: dict[str, Any]) -> Any:
        if "additionalProperties" in schema:
            return {"a": self.write(schema["additionalProperties"])}
        properties = schema.get("properties", {})
        wanted = set(schema.get("required", ()))
        others = sorted(set(properties) - wanted)
        more = (
            self._random.sample(others, k=min(len(others), self._random.randint(0, 7)))
            if self._left > 0
            else []
        )
        self._left -= len(more)
        return {key: self.write(properties[key]) for key in (*sorted(wanted), *more)}


@settings(deadline=None, max_examples=200)
@given(seed=st.integers(0, 2**32), spoil=st.booleans())
def test_both_think_alike_of_what_the_crd_itself_would_have(
    reference: Crd, spec_schema: dict[str, Any], seed: int, spoil: bool
) -> None:
    spec = Writer(seed, spoil).write(spec_schema)
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": spec}
    assert_agreed(reference, job)
    lint([job], limits=LIMITS, max_gpu_hours=1)  # and no rule stumbles over it


def test_the_writer_writes_both_kinds_and_reaches_most_of_the_crd(
    reference: Crd, spec_schema: dict[str, Any]
) -> None:
    taken, keys = [], set[str]()
    for seed in range(200):
        spec = Writer(seed, seed % 2 == 0).write(spec_schema)
        job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}, "spec": spec}
        taken.append(not findings(job))
        keys |= {str(key) for mapping in objects_within(spec) for key in mapping}
    assert 20 < sum(taken) < 180
    assert len(keys) > 300  # of some 420


# --- What it says -------------------------------------------------------------------------------------------

HEAD = "spec rayClusterSpec headGroupSpec"
WORKER = "spec rayClusterSpec workerGroupSpecs 0 template spec containers 0"


@pytest.mark.parametrize(
    ("place", "value", "line"),
    [
        (
            f"{HEAD} templat",
            {},
            "headGroupSpec.templat: the API server knows no such field; did you mean template?",
        ),
        (f"{WORKER} env 0", {"value": "1"}, "containers[0].env[0].name: it must be there; write it"),
        (f"{WORKER} env", [{"name": "A"}] * 2, '["A"] stands there twice; leave one of them out'),
        (
            "spec backoffLimit",
            "two",
            "spec.backoffLimit: the API server refuses it: 'two' is not of type 'integer'",
        ),
        ("spec rayClusterSpec authOptions mode", "open", "write disabled or token"),
        (f"{WORKER} resources limits memory", "8 gigabytes", "write a quantity, as 500m, 8 or 32Gi"),
        ("spec preRunningDeadlineSeconds", 0, "its minimum is 1"),
        (
            "metadata labels",
            {"a": 1},
            "metadata.labels.a: the API server refuses it: 1 is not of type 'string'",
        ),
        ("metadata nam", "a", "metadata.nam: the API server knows no such field; did you mean name?"),
        ("spec rayClusterSpec authOptions xyz", 1, "it is one of enableK8sTokenAuth, mode, secretName"),
        ("apiVersion", "ray.io/v1alpha1", "write ray.io/v1"),
        ("spec", None, "spec: it must be there; write it"),
    ],
)
def test_it_names_the_field_the_rule_and_the_mend(place: str, value: object, line: str) -> None:
    job = job_of(composed("train"))
    put(job, place, value)
    assert any(line in finding for finding in findings(job)), findings(job)


def test_several_missing_fields_are_each_named() -> None:
    job = {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "a"}}
    del job["metadata"]
    assert [line.split(":")[1] for line in findings(job)] == [" RayJob/a metadata", " RayJob/a spec"]


def test_a_job_that_the_schema_refuses_is_told_of_that_alone() -> None:
    manifests = composed("train")
    put(job_of(manifests), "spec submissionMode", "nonsense")
    put(job_of(manifests), "spec misspelt", 1)
    (finding,) = lint(manifests)
    assert finding.path == "RayJob/hcs-ray-train spec.misspelt"
