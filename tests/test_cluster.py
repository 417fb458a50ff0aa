"""The same on the tests' API server and, marked ``cluster``, on a real one with KubeRay, given by KUBECONFIG.

A real run (`pytest -m cluster tests/test_cluster.py`) makes and deletes objects of its own names in the
context's namespace, and starts no pod: the one RayJob is suspended by hand as soon as it could run.
"""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hcs_ray.jobs.gather import facts_of
from hcs_ray.jobs.kinds import CONFIG_MAP, RAY_JOB, owners, uid_of
from hcs_ray.jobs.kube import Kube, KubeError, connect
from hcs_ray.jobs.making import dry_run, make, ray_job_of
from hcs_ray.jobs.manifests import STAGES
from hcs_ray.jobs.prepare import Shape
from hcs_ray.jobs.state import state_of
from hcs_ray.jobs.submit import Order, limits_of
from hcs_ray.jobs.tidy import stop
from hcs_ray.jobs.watch import jobs_table
from hcs_ray.study import Study, open_study
from tests.api_server import ApiServer, serving
from tests.api_store import Change, Store
from tests.k8s_manifests import crd_validator

_LONGEST_S = 60.0
SWEEP = "space: {train.lr: {kind: loguniform, low: 1.0e-4, high: 1.0e-2}}\nsamples: 2\n"


@pytest.fixture(params=["imitation", pytest.param("real", marks=pytest.mark.cluster)])
def kube(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kube]:
    if request.param == "real":
        if "KUBECONFIG" not in os.environ:
            pytest.skip("KUBECONFIG names no cluster")
        yield connect()
        return
    crd = crd_validator(request.getfixturevalue("shared") / "kuberay-crds")
    with serving(Store(schemas={"rayjobs": crd})) as api:
        api.store.controllers.append(Collector(api))
        api.store.forget()
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        yield connect()


class Collector:
    """The garbage collector: after each deletion."""

    def __init__(self, api: ApiServer) -> None:
        self.api, self.seen = api, 0

    def __call__(self, change: Change) -> None:
        if change.type == "DELETED":
            self.api.store.collect()


@pytest.fixture
def name(kube: Kube) -> Iterator[str]:
    """The name of a ConfigMap of this test's own."""
    name = f"hcs-ray-test-{secrets.token_hex(4)}"
    yield name
    kube.delete(CONFIG_MAP, name)


@pytest.fixture
def study(tmp_path: Path, kube: Kube) -> Study:
    file = tmp_path / "study.yaml"
    cluster = {"image": "hcs-ray:0.0.0-of-a-test", "namespace": kube.namespace}
    file.write_text(yaml.safe_dump({"root": "s3://hcs-ray-test/study", "cluster": cluster}))
    return open_study(str(file))


def config_map(name: str, **more: Any) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"a": "b"}, **more}


def until(true: Callable[[], object]) -> None:
    end = time.monotonic() + _LONGEST_S
    while not true():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.1)


def test_objects_come_and_go(kube: Kube, name: str) -> None:
    assert kube.get(CONFIG_MAP, name) is None
    made = kube.create(config_map(name))
    assert kube.get(CONFIG_MAP, name) == made
    with pytest.raises(KubeError, match="already exists") as caught:
        kube.create(config_map(name))
    assert caught.value.code == 409
    assert kube.patch(CONFIG_MAP, name, {"data": {"a": None, "c": "d"}})["data"] == {"c": "d"}
    assert name in {item["metadata"]["name"] for item in kube.list(CONFIG_MAP)}
    with pytest.raises(KubeError) as caught:
        kube.delete(CONFIG_MAP, name, "00000000-0000-0000-0000-000000000000")
    assert caught.value.code == 409
    assert kube.delete(CONFIG_MAP, name, uid_of(made))
    assert not kube.delete(CONFIG_MAP, name)


def test_what_is_wrong_is_refused(kube: Kube, name: str) -> None:
    for wrong, code in (
        (config_map(name, dat={}), 400),
        (config_map(name.upper()), 422),
        ({**config_map(name), "metadata": {"name": name, "labels": {"a": "b"}, "lables": {}}}, 400),
    ):
        with pytest.raises(KubeError) as caught:
            kube.create(wrong)
        assert (caught.value.code, caught.value.exit_code) == (code, 2), str(caught.value)
    assert kube.get(CONFIG_MAP, name) is None


def test_a_watch_sees_what_happens_and_outlives_a_forgotten_version(kube: Kube, name: str) -> None:
    made = kube.create(config_map(name))
    (listed,) = kube.watch(CONFIG_MAP, name=name, since="1", seconds=2)
    assert (listed.type, listed.object["metadata"]["name"]) == ("ADDED", name)
    told = kube.watch(CONFIG_MAP, name=name, since=made["metadata"]["resourceVersion"], seconds=_LONGEST_S)
    kube.patch(CONFIG_MAP, name, {"data": {"c": "d"}})
    kube.delete(CONFIG_MAP, name)
    assert [next(told).type for _ in range(2)] == ["MODIFIED", "DELETED"]


@pytest.mark.parametrize("stage", STAGES)
def test_the_api_server_takes_every_job_as_it_is(kube: Kube, study: Study, stage: str) -> None:
    order = Order(stage, Shape(components=("gpu",)), SWEEP if stage == "tune" else None)
    assert len(dry_run(kube, order.manifests(study), preflight=True)) == 3


def test_the_api_server_refuses_a_misspelt_field_of_a_job(kube: Kube, study: Study) -> None:
    manifests = Order("train", Shape()).manifests(study)
    ray_job_of(manifests)["spec"]["rayClusterSpec"]["headGroupSpec"]["tempalte"] = {}
    with pytest.raises(KubeError, match="tempalte") as caught:
        dry_run(kube, manifests, preflight=False)
    assert caught.value.code == 400


def test_a_submitted_job_owns_its_study_and_takes_it_along(kube: Kube, study: Study) -> None:
    manifests = Order("train", Shape()).manifests(study)
    job = ray_job_of(manifests)
    job["spec"]["suspend"] = True  # no pod for a test
    name = job["metadata"]["name"]
    held = f"{name}-study"
    try:
        made = make(kube, manifests, False, print)
        assert owners(kube.get(CONFIG_MAP, held) or {}) == [uid_of(made)]
        until(lambda: state_of(facts_of(kube, name)).state == "suspended")
        assert name in {row["job"] for row in jobs_table(kube)[1]}
        stop(kube, name)
        until(lambda: kube.get(RAY_JOB, name) is None)
        until(lambda: kube.get(CONFIG_MAP, held) is None)
    finally:
        kube.delete(RAY_JOB, name)
        kube.delete(CONFIG_MAP, held)


def test_the_limits_of_a_cluster_can_be_read_or_not(kube: Kube) -> None:
    limits = limits_of(kube)
    for found in (limits.nodes, limits.resource_quotas, limits.local_queues, limits.cluster_queues):
        assert found is None or all("metadata" in item for item in found)
