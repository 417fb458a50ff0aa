"""Submitting: what is shown and refused beforehand, and that nothing half-made stays."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs.chain import STAGES, submit_chain
from hcs_ray.jobs.kinds import QUEUE, RAY_JOB, ROOT, SUBMITTING
from hcs_ray.jobs.kube import Kube, KubeError, connect
from hcs_ray.jobs.making import make, ray_job_of
from hcs_ray.jobs.manifests import compose
from hcs_ray.jobs.preflight_job import preflight_job
from hcs_ray.jobs.prepare import Shape
from hcs_ray.jobs.state import Facts, state_of
from hcs_ray.jobs.submit import Order, needs, rehearse, submit
from hcs_ray.jobs.tidy import clear, leftovers
from hcs_ray.lease import Lease
from hcs_ray.study import Study, open_study
from tests.api_server import ApiServer, serving
from tests.api_store import RESOURCES, Change, Object, built_in
from tests.cluster_actors import Kubelet, KubeRay, failed, owners, running, succeeded
from tests.k8s_manifests import crd_validator

GPU = Shape(components=("gpu",))


@pytest.fixture(autouse=True, scope="module")
def rendered_once() -> Iterator[None]:
    """Each job set is rendered by kubectl once a module: `bind` changes copies."""
    with pytest.MonkeyPatch.context() as patch:
        once = cache(compose)
        patch.setattr(
            "hcs_ray.jobs.prepare.compose",
            lambda stage, components, folder: once(stage, tuple(components), folder),
        )
        yield


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with serving() as server:
        server.store.controllers.append(Kubelet(server))
        server.store.controllers.append(never_half_made(server))
        amounts = {"cpu": "64", "memory": "256Gi", "nvidia.com/gpu": "8"}
        server.store.put("nodes", {"metadata": {"name": "n"}, "status": {"allocatable": amounts}})
        yield server


@pytest.fixture
def kube(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kube:
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
    monkeypatch.setattr("hcs_ray.jobs.preflight_job._LOOK_EVERY_S", 0.05)
    return connect()


@pytest.fixture
def study(tmp_path: Path, s3: str) -> Study:
    return written(tmp_path, s3)


def written(folder: Path, s3: str, **cluster: Any) -> Study:
    """A study of its own place in the bucket."""
    file = folder / "study.yaml"
    train = {"use_gpu": True, "workers": 2, "cpus_per_worker": 7}
    document = {
        "root": f"{s3}/{folder.name}",
        "train": train,
        "cluster": {"image": "hub/hcs-ray:1", **cluster},
    }
    file.write_text(yaml.safe_dump(document))
    return open_study(str(file))


def never_half_made(api: ApiServer) -> Any:
    """A controller that fails the test where a RayJob may run, and has not its study."""

    class Watchman:
        seen = 0
        wrong: list[str] = []  # noqa: RUF012

        def __call__(self, change: Change) -> None:
            job = change.object
            if change.plural != "rayjobs" or change.type == "DELETED":
                return
            may_run = not job["spec"].get("suspend") or QUEUE in job["metadata"]["labels"]
            studies = [api.store.get("configmaps", name) for name in api.store.names("configmaps")]
            if may_run and not any(job["metadata"]["uid"] in owners(item) for item in studies):
                self.wrong.append("it may run without its study")
            if may_run and list(owners(job)):
                self.wrong.append("it may run, and goes with its preflight")

    Watchman.wrong = []
    return Watchman()


def wrongs(api: ApiServer) -> list[str]:
    found: list[str] = api.store.controllers[1].wrong  # type: ignore[attr-defined]
    return found


def left(api: ApiServer) -> dict[str, list[str]]:
    """What is on the cluster, pods apart."""
    return {
        plural: names for plural in ("rayjobs", "configmaps", "jobs") if (names := api.store.names(plural))
    }


def the_job(api: ApiServer) -> Object:
    (name,) = api.store.names("rayjobs")
    return api.store.get("rayjobs", name)


# --- A whole submission -------------------------------------------------------------------------------------


def test_a_submission_shows_looks_and_runs(kube: Kube, api: ApiServer, study: Study, shared: Path) -> None:
    api.store.schemas["rayjobs"] = crd_validator(shared / "kuberay-crds")
    said: list[str] = []
    name = submit(kube, study, Order("train", GPU), said.append)
    job = the_job(api)
    assert job["metadata"]["name"] == name
    assert job["spec"]["suspend"] is False
    assert job["metadata"]["annotations"] == {ROOT: study.storage.url}
    assert list(owners(job)) == []
    (config_map,) = api.store.select("configmaps", "", "")
    assert list(owners(config_map)) == [job["metadata"]["uid"]]
    assert yaml.safe_load(config_map["data"]["study.yaml"])["root"] == study.storage.url
    assert api.store.names("jobs") == []  # the preflight's: it has done its work
    assert "\n  inputs    ok" in "\n".join(said)
    assert wrongs(api) == []
    assert [
        verb for verb, path in api.asked if verb == "create" and "fieldValidation=Strict" not in path
    ] == []


def test_what_it_takes_is_a_short_table(study: Study) -> None:
    (job,) = [item for item in Order("train", GPU).manifests(study) if item["kind"] == "RayJob"]
    lines = needs(job).splitlines()
    assert lines[0] == f"{job['metadata']['name']}: train main of {study.storage.url}"
    assert lines[1].split() == ["PODS", "CPU", "MEMORY", "GPU"]
    assert lines[3].split() == ["head", "1", "2.3", "9.5Gi", "0"]  # the autoscaler's share is in it
    assert lines[4].split() == ["gpu", "0-2", "7.1", "32.5Gi", "1"]
    assert lines[5].split() == ["at", "most", "16.7", "75.5Gi", "2"]
    assert lines[6:] == ["image hub/hcs-ray:1", "3 attempts of at most 24 h each; at most 144 GPU-hours"]


def test_a_queued_job_reaches_its_queue_only_when_it_is_whole(
    kube: Kube, api: ApiServer, tmp_path: Path, s3: str
) -> None:
    api.store.put("localqueues", {"metadata": {"name": "gpus"}, "spec": {"clusterQueue": "all"}})
    amounts = [{"name": kind, "nominalQuota": "1Ti"} for kind in ("cpu", "memory", "nvidia.com/gpu")]
    flavors = [{"flavors": [{"name": "any", "resources": amounts}]}]
    api.store.put("clusterqueues", {"metadata": {"name": "all"}, "spec": {"resourceGroups": flavors}})
    submit(kube, written(tmp_path, s3, queue="gpus"), Order("train", GPU), print)
    job = the_job(api)
    assert (job["spec"]["suspend"], job["metadata"]["labels"][QUEUE]) == (True, "gpus")
    assert wrongs(api) == []
    made = next(
        body
        for (verb, path), body in zip(api.asked, api.bodies, strict=True)
        if verb == "create" and "rayjobs" in path
    )
    assert QUEUE not in made["metadata"]["labels"]


def test_the_preflight_is_a_pod_like_the_head(study: Study) -> None:
    manifests = Order("embed", GPU, arguments=("--run", "sweep:first/best")).manifests(study)
    job = preflight_job(ray_job_of(manifests))
    assert list(built_in(RESOURCES["jobs"]).iter_errors(job)) == []
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    head = ray_job_of(manifests)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    for key in ("image", "env", "envFrom", "securityContext", "volumeMounts"):
        assert container[key] == head["containers"][0][key]
    assert (pod["securityContext"], pod["volumes"]) == (head["securityContext"], head["volumes"])
    assert "initContainers" not in pod
    assert container["command"][:9] == [
        "hcs-ray", "preflight", "/study/study.yaml", "--stage", "embed", "--name", "main", "--run",
        "sweep:first/best",
    ]  # fmt: skip
    assert job["spec"]["ttlSecondsAfterFinished"] > 0


# --- Nothing half-made stays --------------------------------------------------------------------------------


def test_a_preflight_that_fails_says_why_and_leaves_nothing(kube: Kube, api: ApiServer, study: Study) -> None:
    kubelet = api.store.controllers[0]
    assert isinstance(kubelet, Kubelet)
    kubelet.succeeds = False
    kubelet.lines = ["storage   failed  s3://b: no permission", "hcs-ray: preflight: storage: no permission"]
    said: list[str] = []
    with pytest.raises(HcsError, match=r"^preflight: storage: no permission$"):
        submit(kube, study, Order("train", GPU), said.append)
    assert "  storage   failed  s3://b: no permission" in said
    assert left(api) == {}


def test_a_preflight_without_its_image_ends_soon(
    kube: Kube, api: ApiServer, study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubelet = api.store.controllers[0]
    assert isinstance(kubelet, Kubelet)
    kubelet.succeeds = None
    monkeypatch.setattr("hcs_ray.jobs.preflight_job._HOPELESS_S", 0.2)
    with pytest.raises(HcsError, match=r"^preflight: ImagePullBackOff \(preflight\): Back-off pulling$"):
        submit(kube, study, Order("train", GPU), print)
    assert left(api) == {}


def requests_of(preflight: bool) -> int:
    """Of how many requests the making of a job consists, up to the one that sets it free."""
    return 8 if preflight else 3


def whole(api: ApiServer) -> bool:
    """Whether there is a job that may run."""
    return any(not job["spec"]["suspend"] for job in api.store.select("rayjobs", "", ""))


@pytest.mark.parametrize("preflight", [True, False])
def test_a_refusal_at_any_request_leaves_nothing(
    kube: Kube, api: ApiServer, study: Study, preflight: bool
) -> None:
    manifests, refusals = Order("train", GPU).manifests(study), list[str]()
    for refused in range(requests_of(preflight)):
        api.faults = [*[-1] * refused, 500]
        try:
            make(kube, manifests, preflight, print)
        except HcsError as error:
            refusals.append(str(error))
            assert left(api) == {}, f"request {refused}"
        else:  # it was the preflight's log that could not be read, and the preflight had succeeded
            assert whole(api)
            kube.delete(RAY_JOB, api.store.names("rayjobs")[0])
            api.store.collect()
    assert len(refusals) == requests_of(preflight) - preflight
    assert all("fault 500" in refusal for refusal in refusals)
    assert wrongs(api) == []


@pytest.mark.parametrize("preflight", [True, False])
def test_a_submission_killed_at_any_request_leaves_nothing_that_runs_or_stays(
    kube: Kube, api: ApiServer, study: Study, preflight: bool
) -> None:
    """Killed: nothing is asked any more, no deletion either; then an hour passes."""
    manifests = Order("train", GPU).manifests(study)
    for last in range(requests_of(preflight)):
        api.dies_after = len(api.asked) + last
        with pytest.raises(HcsError):
            make(kube, manifests, preflight, print)
        api.dies_after = None
        for job in api.store.select("rayjobs", "", ""):
            assert job["spec"]["suspend"]
            assert SUBMITTING in job["metadata"]["annotations"]
            assert state_of(Facts(job)).state == "submitting"
        for name in api.store.names("jobs"):  # its TTL
            api.store.finalize("jobs", name)
        api.store.collect()
        if not preflight:  # nothing deletes it by itself: hcs-ray gc does, or the next submission
            later = datetime.now(UTC) + timedelta(minutes=30)
            found = [item for item in leftovers(kube, timedelta(days=1), later) if item.kind is RAY_JOB]
            assert [item.name for item in found] == api.store.names("rayjobs")
            clear(kube, found)
            api.store.collect()
        assert left(api) == {}, f"after {last} requests"
    assert wrongs(api) == []


def test_what_cannot_be_cleared_away_is_named(kube: Kube, api: ApiServer, study: Study) -> None:
    api.denied |= {("patch", "rayjobs"), ("delete", "rayjobs")}
    with pytest.raises(HcsError, match=r"cannot patch .*; left behind: rayjob/\S+ \(hcs-ray gc\)"):
        submit(kube, study, Order("train", GPU, preflight=False), print)


def test_ctrl_c_clears_away(kube: Kube, api: ApiServer, study: Study) -> None:
    def interrupt(text: str) -> None:
        if text.startswith("  versions"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        submit(kube, study, Order("train", GPU), interrupt)
    assert left(api) == {}


# --- What is refused beforehand -----------------------------------------------------------------------------


def test_a_job_that_the_cluster_cannot_hold(kube: Kube, api: ApiServer, study: Study) -> None:
    quota = {"metadata": {"name": "team"}, "spec": {"hard": {"requests.nvidia.com/gpu": "1"}}, "status": {}}
    api.store.put("resourcequotas", quota)
    with pytest.raises(InputError, match=r"ResourceQuota team allows 1 requests\.nvidia"):
        submit(kube, study, Order("train", GPU), print)
    assert left(api) == {}
    api.denied.add(("list", "resourcequotas"))  # then it is not known
    submit(kube, study, Order("train", GPU), print)


def test_a_budget_of_gpu_hours(kube: Kube, study: Study) -> None:
    with pytest.raises(InputError, match="144 GPU-hours, and 100 are allowed"):
        submit(kube, study, Order("train", GPU, max_gpu_hours=100), print)


def test_a_run_that_goes_on_is_not_begun_twice(kube: Kube, api: ApiServer, study: Study) -> None:
    first = submit(kube, study, Order("train", GPU), print)
    for stage in ("train", "study"):
        with pytest.raises(HcsError, match=f"going on; hcs-ray status {first} --namespace science"):
            submit(kube, study, Order(stage, GPU), print)
    api.store.set_status("rayjobs", first, **succeeded())
    assert submit(kube, study, Order("train", GPU), print) != first


def test_the_holder_of_a_lease_is_named(kube: Kube, api: ApiServer, study: Study) -> None:
    lease = Lease(study.storage, study.place("train").lease, "train main")
    with lease.held(), pytest.raises(HcsError, match=r"/runs/main is being written by \S+@\S+, process \d+;"):
        submit(kube, study, Order("train", GPU), print)
    assert left(api) == {}


def test_what_a_broken_submission_has_left_is_deleted_by_the_next(
    kube: Kube, api: ApiServer, study: Study
) -> None:
    manifests = Order("train", GPU).manifests(study)
    api.dies_after = len(api.asked) + 2
    with pytest.raises(HcsError):
        make(kube, manifests, False, print)
    api.dies_after = None
    old = the_job(api)
    with pytest.raises(HcsError, match="of this run is going on"):  # somebody may just be at it
        submit(kube, study, Order("train", GPU), print)
    old["metadata"]["creationTimestamp"] = (datetime.now(UTC) - timedelta(hours=1)).strftime(
        "%Y-%m-%dT%H:%M:%SZ"
    )
    api.store.put("rayjobs", old)
    said: list[str] = []
    name = submit(kube, study, Order("train", GPU), said.append)
    assert f"{old['metadata']['name']}: its submission broke off; deleted" in said
    assert api.store.names("rayjobs") == [name]


# --- Rehearsals ---------------------------------------------------------------------------------------------


def test_a_dry_run_makes_nothing_and_finds_what_the_server_would(
    kube: Kube, api: ApiServer, study: Study
) -> None:
    names = rehearse(kube, study, Order("train", GPU), print)
    assert [name.partition("/")[0] for name in names] == ["job", "configmap", "rayjob"]
    assert left(api) == {}
    assert len(rehearse(None, study, Order("train", GPU), print)) == 2
    api.served.remove("rayjobs")
    with pytest.raises(KubeError, match="install KubeRay"):
        rehearse(kube, study, Order("train", GPU), print)


# --- A chain of stages --------------------------------------------------------------------------------------


def orders() -> list[Order]:
    return [Order(stage, GPU) for stage in STAGES]


def test_each_stage_is_submitted_after_the_one_before(kube: Kube, api: ApiServer, study: Study) -> None:
    kuberay = KubeRay(api)
    api.store.controllers.append(kuberay)
    said: list[str] = []
    names = submit_chain(kube, study, orders(), said.append)
    assert [name.split("-")[2] for name in names] == list(STAGES)
    assert kuberay.began == names
    ends = [said.index(f"{name}: succeeded") for name in names]
    begins = [said.index(f"{name} is submitted; waiting for its end") for name in names]
    assert all(end < begin for end, begin in zip(ends, begins[1:], strict=False))


def test_a_chain_stops_where_a_stage_fails_and_goes_on_where_it_was(
    kube: Kube, api: ApiServer, study: Study
) -> None:
    kuberay = KubeRay(api, {"train": (running(), failed("hcs-ray: no finite loss", failed=3))})
    api.store.controllers.append(kuberay)
    with pytest.raises(
        HcsError, match=r"hcs-ray-train-\w+: failed .*: no finite loss; .* were not submitted"
    ):
        submit_chain(kube, study, orders(), print)
    assert [name.split("-")[2] for name in kuberay.began] == ["shard", "train"]
    # Somebody submits the training once more, and it goes on while the chain is begun again.
    kuberay.ends = {}
    kuberay.goes_on.clear()
    again = submit(kube, study, Order("train", GPU), print)
    said: list[str] = []

    def say(line: str) -> None:
        said.append(line)
        kuberay.goes_on.set()

    names = submit_chain(kube, study, orders()[1:], say)
    assert names[0] == again
    assert said[0] == f"{again} goes on; waiting for its end"


def test_a_chain_leaves_out_what_is_complete(kube: Kube, api: ApiServer, study: Study) -> None:
    api.store.controllers.append(KubeRay(api))
    with study.writing("shard", study.claim("shard", {"raw": "0"})):
        pass
    with study.writing("split", study.claim("split")):
        pass
    said: list[str] = []
    names = submit_chain(kube, study, orders(), said.append)
    assert said[0] == "shard: complete"
    assert [name.split("-")[2] for name in names] == ["train", "embed", "analyse"]


def test_the_bodies_that_are_sent_name_no_secret(kube: Kube, api: ApiServer, tmp_path: Path, s3: str) -> None:
    """The environment of the tests holds credentials of the store."""
    submit(kube, written(tmp_path, s3, env_from=["hcs-ray-credentials"]), Order("train", GPU), print)
    sent = json.dumps(api.bodies)
    assert os.environ["AWS_SECRET_ACCESS_KEY"] not in sent
    assert "hcs-ray-credentials" in sent
