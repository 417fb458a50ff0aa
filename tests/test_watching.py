"""Watching, listing and ending jobs, and clearing up after them: statuses replayed, and the commands."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from hcs_ray.config import parse_sweep
from hcs_ray.contracts import InputError
from hcs_ray.jobs.kinds import PREFLIGHT, PRICES, QUEUE, ROOT, STAGE, SUBMITTING, name_of, status_of
from hcs_ray.jobs.kube import Kube, KubeError, connect
from hcs_ray.jobs.state import JobState
from hcs_ray.jobs.tidy import clear, leftovers, stop
from hcs_ray.jobs.watch import newest, report, wait
from hcs_ray.lease import Lease
from hcs_ray.stage import parquet_bytes
from hcs_ray.storage import open_storage
from hcs_ray.study import open_study
from hcs_ray.tune import LEADERBOARD
from hcs_ray.tune.board import Entry, leaderboard
from tests.api_server import ApiServer, serving
from tests.api_store import Change, Object
from tests.cluster_actors import KubeRay, failed, running, succeeded
from tests.command import hcs_ray, refused
from tests.http_server import wait_until

LABELS = {"app.kubernetes.io/part-of": "hcs-ray", STAGE: "train", "hcs-ray/run": "main"}


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with serving() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        yield server


@pytest.fixture
def kube(api: ApiServer) -> Kube:
    return connect()


def put_job(api: ApiServer, name: str = "hcs-ray-train-1", ago_h: float = 1.0, **more: Any) -> Object:
    """A RayJob of ours, as the API server has it."""
    volumes = [{"name": "study", "configMap": {"name": f"{name}-study"}}]
    head = {"template": {"spec": {"volumes": volumes, "containers": [{"name": "ray-head"}]}}}
    made = (datetime.now(UTC) - timedelta(hours=ago_h)).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata = {"name": name, "labels": dict(LABELS), "creationTimestamp": made, **more.pop("metadata", {})}
    spec = {
        "backoffLimit": 2,
        "entrypoint": "hcs-ray train /study/study.yaml --name main",
        "rayClusterSpec": {"headGroupSpec": head},
        **more.pop("spec", {}),
    }
    return api.store.put("rayjobs", {"metadata": metadata, "spec": spec, **more})


def ago(hours: float) -> str:
    return (datetime.now(UTC) - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%SZ")


# --- Statuses replayed --------------------------------------------------------------------------------------


def states(api: ApiServer, kube: Kube, *steps: Object) -> list[str]:
    """Every state on the way of a job to its end; each status is set when the state before was told."""
    put_job(api)
    told: list[str] = []
    left = list(steps)

    def tell(state: JobState) -> None:
        told.append(state.line)
        if left:
            api.store.set_status("rayjobs", "hcs-ray-train-1", **left.pop(0))

    wait(kube, "hcs-ray-train-1", tell, every_s=30)
    return told[1:]


def test_a_success(api: ApiServer, kube: Kube) -> None:
    initializing = {"jobDeploymentStatus": "Initializing"}
    assert states(api, kube, initializing, running(), running(jobStatus="SUCCEEDED"), succeeded()) == [
        "starting",
        "running",
        "ending: Ray says SUCCEEDED; KubeRay winds up",
        "succeeded",
    ]


def test_a_failure_with_retries(api: ApiServer, kube: Kube) -> None:
    told = states(
        api, kube, running(),
        {"jobDeploymentStatus": "Retrying", "jobStatus": "FAILED", "failed": 1, "message": "hcs-ray: lost"},
        {"jobDeploymentStatus": "Initializing", "jobStatus": "", "message": ""},
        running(), failed("hcs-ray: lost again", failed=3),
    )  # fmt: skip
    assert told == [
        "running",
        "retrying (attempt 2 of 3): the last attempt failed: lost; a new cluster follows",
        "starting (attempt 2 of 3)",
        "running (attempt 2 of 3)",
        "failed (attempt 3 of 3): lost again",
    ]


def test_a_job_that_kuberay_refuses(api: ApiServer, kube: Kube) -> None:
    refusal = {"jobDeploymentStatus": "ValidationFailed", "message": "deadline is negative"}
    assert states(api, kube, refusal) == ["invalid: KubeRay refuses it: deadline is negative"]


def test_a_queue_admits_preempts_and_admits_again(api: ApiServer, kube: Kube) -> None:
    name = "hcs-ray-train-1"
    job = put_job(api, metadata={"labels": {**LABELS, QUEUE: "gpus"}}, spec={"suspend": True})
    owner = [{"uid": job["metadata"]["uid"]}]
    api.store.put("workloads", {"metadata": {"name": "w", "ownerReferences": owner}, "spec": {}})
    pending = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "2 GPUs needed"}
    evicted = {"type": "Evicted", "status": "True", "reason": "Preempted", "message": "for another"}
    preempted = {"type": "Preempted", "status": "True", "reason": "InClusterQueue", "message": "for another"}

    def kueue(suspend: bool, conditions: list[Object], **status: Any) -> None:
        api.store.set_status("workloads", "w", conditions=conditions)
        api.store.patch("rayjobs", name, {"spec": {"suspend": suspend}}, strict=False)
        api.store.set_status("rayjobs", name, **status)

    steps = {
        "queued: in gpus: Kueue has not looked at it yet": lambda: kueue(True, [pending]),
        "queued: in gpus: 2 GPUs needed": lambda: kueue(False, [], **running()),
        "running": lambda: kueue(
            True, [evicted, preempted], jobDeploymentStatus="Suspended", jobStatus="", rayClusterName=""
        ),
        "queued: in gpus: preempted (InClusterQueue): for another": lambda: kueue(False, [], **succeeded()),
    }
    told: list[str] = []

    def tell(state: JobState) -> None:
        told.append(state.line)
        if state.line in steps:
            steps[state.line]()

    assert wait(kube, name, tell, every_s=0.5).state == "succeeded"
    assert [line for line in told if line in steps] == list(steps)


def test_a_job_deleted_under_us(api: ApiServer, kube: Kube) -> None:
    put_job(api, status=running(), metadata={"finalizers": ["ray.io/rayjob-finalizer"]})
    told: list[JobState] = []

    def tell(state: JobState) -> None:
        told.append(state)
        if state.state == "running":
            api.store.delete("rayjobs", "hcs-ray-train-1", None)
        elif state.state == "stopping":
            api.store.finalize("rayjobs", "hcs-ray-train-1")

    assert wait(kube, "hcs-ray-train-1", tell).state == "gone"
    assert [state.state for state in told] == ["running", "stopping", "gone"]


def test_an_api_server_that_is_away_for_a_while_is_waited_for(api: ApiServer, kube: Kube) -> None:
    put_job(api, status=running())
    told: list[str] = []

    def tell(state: JobState) -> None:
        told.append(state.state)
        if state.state == "running":
            api.store.set_status("rayjobs", "hcs-ray-train-1", **succeeded())
            api.faults = [503, 500, 0]

    wait(kube, "hcs-ray-train-1", tell, every_s=0.1)
    assert told == ["running", "succeeded"]
    api.denied.add(("get", "rayjobs"))
    with pytest.raises(KubeError, match="cannot get"):
        wait(kube, "hcs-ray-train-1", tell)


# --- How a job fares ----------------------------------------------------------------------------------------


def test_progress_is_what_the_studys_records_say(api: ApiServer, kube: Kube, tmp_path: Path, s3: str) -> None:
    file = tmp_path / "study.yaml"
    root = f"{s3}/{tmp_path.name}"
    file.write_text(yaml.safe_dump({"root": root}))
    study = open_study(str(file))
    labels = {**LABELS, STAGE: "shard"}
    annotations = {ROOT: root, PRICES: '{"cpu_hour": 0.1, "gpu_hour": 2, "currency": "EUR"}'}
    put_job(api, status=running(), metadata={"labels": labels, "annotations": annotations})
    told = report(kube, "hcs-ray-train-1")
    assert told.lines.endswith(
        "progress  not known: job hcs-ray-train-1 has no ConfigMap with its study any more"
    )
    data = {"study.yaml": file.read_text()}
    api.store.put("configmaps", {"metadata": {"name": "hcs-ray-train-1-study"}, "data": data})
    with study.writing("shard", study.claim("shard", {"raw": "0"})):
        pass
    with Lease(study.storage, study.place("split").lease, "split main").held():
        told = report(kube, "hcs-ray-train-1")
        assert "progress  shard complete; split is being written by " in told.lines
    told = report(kube, "hcs-ray-train-1")
    assert told.lines.splitlines()[0] == f"hcs-ray-train-1: shard main of {root}"
    assert (
        "  used      at least 0.0 CPU-hours, 0.0 GPU-hours, 0.00 EUR" not in told.lines
    )  # first attempt, fixed
    assert "  used      0.0 CPU-hours, 0.0 GPU-hours, 0.00 EUR" in told.lines
    assert told.figures["parts"] == {"shard": "complete", "split": "to do"}
    assert told.figures["money"] == {"cost": 0.0, "currency": "EUR"}
    data = {"study.yaml": "root: s3://none-of-ours/x\nstorage: {endpoint: http://127.0.0.1:9}\n"}
    api.store.put("configmaps", {"metadata": {"name": "hcs-ray-train-1-study"}, "data": data})
    assert report(kube, "hcs-ray-train-1").parts is None


def test_what_may_not_be_read_is_left_out(api: ApiServer, kube: Kube) -> None:
    put_job(api, status=running(), metadata={"labels": {**LABELS, QUEUE: "gpus"}})
    api.denied |= {
        (verb, kind) for verb in ("get", "list") for kind in ("pods", "events", "jobs", "rayclusters")
    }
    api.served.remove("workloads")
    assert report(kube, "hcs-ray-train-1").state.state == "running"
    api.denied.add(("get", "configmaps"))
    assert "cannot get resource" in report(kube, "hcs-ray-train-1").unread


# --- Clearing up --------------------------------------------------------------------------------------------


def test_only_what_nobody_needs_is_cleared_away(api: ApiServer, kube: Kube) -> None:
    """Everything here is of two days ago, but what is called young."""
    old, young = {"creationTimestamp": ago(48)}, {"creationTimestamp": ago(0.05)}
    put_job(api, "ended", 48, status=succeeded(endTime=ago(47)))
    put_job(api, "ended-young", 48, status=succeeded(endTime=ago(1)))
    live = put_job(api, "running", 48, status=running())
    put_job(api, "half-made", 48, metadata={"annotations": {SUBMITTING: ago(48)}}, spec={"suspend": True})
    put_job(
        api,
        "half-made-young",
        0.05,
        metadata={"annotations": {SUBMITTING: ago(0.05)}},
        spec={"suspend": True},
    )
    put_job(api, "foreign", 48, metadata={"labels": {}}, status=succeeded(endTime=ago(47)))
    for name, about in (("orphan", old), ("orphan-young", young)):
        api.store.put("configmaps", {"metadata": {"name": name, "labels": LABELS, **about}})
    api.store.put("configmaps", {"metadata": {"name": "running-study", "labels": LABELS, **old}})  # mounted
    api.store.put("configmaps", {"metadata": {"name": "not-ours", "labels": {"app": "x"}, **old}})
    made_by = {**LABELS, "ray.io/originated-from-crd": "RayJob"}
    for name, labels, owner in (
        ("leaked", made_by, "gone"),
        ("of-running", made_by, live["metadata"]["uid"]),
        ("by-hand", LABELS, "gone"),
    ):
        reference = [{"uid": owner if owner != "gone" else "uid-of-a-deleted-job"}]
        cluster = {"name": name, "labels": labels, "ownerReferences": reference, **old}
        api.store.put("rayclusters", {"metadata": cluster})
    for name, about in (("look", old), ("look-young", young)):
        labels = {**LABELS, PREFLIGHT: "x"}
        api.store.put("jobs", {"metadata": {"name": name, "labels": labels, **about}, "spec": {}})
    found = leftovers(kube, timedelta(days=1))
    names = {(item.kind.name, item.name) for item in found}
    assert names == {
        ("RayJob", "ended"), ("RayJob", "half-made"), ("ConfigMap", "orphan"), ("RayCluster", "leaked"),
        ("Job", "look"),
    }  # fmt: skip
    # What was made again under an old name in the meantime is another object.
    api.store.finalize("rayjobs", "ended")
    put_job(api, "ended", 0, status=running())
    assert clear(kube, found) == 4
    assert clear(kube, found) == 0
    kept = ["ended", "ended-young", "foreign", "half-made-young", "running"]
    assert api.store.names("rayjobs") == kept


def test_a_job_is_stopped_by_deleting_it(api: ApiServer, kube: Kube) -> None:
    put_job(api, status=running())
    put_job(api, "hcs-ray-train-0", status=succeeded())
    assert stop(kube, "hcs-ray-train-1").state == "running"
    assert stop(kube, "hcs-ray-train-0").state == "succeeded"
    assert api.store.names("rayjobs") == ["hcs-ray-train-0"]
    (options,) = [body for (verb, _), body in zip(api.asked, api.bodies, strict=True) if verb == "delete"]
    assert options["propagationPolicy"] == "Background"
    with pytest.raises(InputError, match="no job hcs-ray-train-1 in namespace science"):
        stop(kube, "hcs-ray-train-1")


def test_the_newest_job(api: ApiServer, kube: Kube) -> None:
    with pytest.raises(InputError, match="no jobs in namespace science"):
        newest(kube)
    put_job(api, "b", 2)
    put_job(api, "a", 1)
    assert newest(kube) == "a"


# --- The commands -------------------------------------------------------------------------------------------


def test_status_and_list_speak_to_people_and_programs(api: ApiServer) -> None:
    put_job(api, "hcs-ray-train-0", 30, status=failed("hcs-ray: no GPU", failed=3, endTime=ago(29)))
    put_job(api, status=running(), metadata={"annotations": {ROOT: "s3://b/s"}})
    told = hcs_ray("status")
    assert told.returncode == 0, told.stderr
    assert told.stdout.splitlines()[:2] == ["hcs-ray-train-1: train main of s3://b/s", "  state     running"]
    figures = json.loads(hcs_ray("status", "hcs-ray-train-0", "--json").stdout)
    assert (figures["state"], figures["reason"], figures["final"]) == ("failed", "no GPU", True)
    assert "--namespace 'a b': a namespace has at most 63" in refused("list", "--namespace", "a b")
    listed = hcs_ray("list").stdout.splitlines()
    assert listed[0].split() == ["JOB", "STAGE", "RUN", "STATE", "ATTEMPT", "AGE", "STUDY", "WHY"]
    assert listed[1].split() == ["hcs-ray-train-1", "train", "main", "running", "1/3", "1h0m", "s3://b/s"]
    assert listed[2].split()[:6] == ["hcs-ray-train-0", "train", "main", "failed", "3/3", "1d6h"]
    assert [item["state"] for item in json.loads(hcs_ray("list", "--json").stdout)] == ["running", "failed"]
    watched = hcs_ray("status", "hcs-ray-train-0", "--watch")
    assert watched.stdout == "hcs-ray-train-0   failed (attempt 3 of 3): no GPU\n"


def test_stop_and_gc(api: ApiServer) -> None:
    put_job(api, status=running())
    put_job(api, "hcs-ray-train-0", 50, status=succeeded(endTime=ago(49)))
    assert hcs_ray("stop", "hcs-ray-train-1").stderr == "hcs-ray-train-1 is being stopped; it was running\n"
    shown = hcs_ray("gc", "--older-than", "2d")
    assert shown.stdout.splitlines()[1].split()[:2] == ["RayJob", "hcs-ray-train-0"]
    assert "nothing was deleted" in shown.stderr
    assert api.store.names("rayjobs") == ["hcs-ray-train-0"]
    assert hcs_ray("gc", "--older-than", "3d").stderr.startswith("nothing to clear away")
    assert hcs_ray("gc", "--older-than", "2d", "--yes").stderr == "1 deleted\n"
    assert api.store.names("rayjobs") == []


def test_what_goes_wrong_is_one_line(api: ApiServer, tmp_path: Path) -> None:
    assert "no job none in namespace science (context lab)" in refused("status", "none")
    assert "--older-than soon: write minutes, hours or days" in refused("gc", "--older-than", "soon")
    assert "--context elsewhere; it has lab" in refused("list", "--context", "elsewhere")
    api.served.remove("rayjobs")
    assert "install KubeRay 1.7 first" in refused("list", code=1)
    api.kubeconfig(tmp_path, token="old")
    assert "log in again" in refused("list", code=1)
    assert "no cluster is configured" in refused("list", KUBECONFIG=str(tmp_path / "none"))


def test_submit_from_the_terminal(api: ApiServer, tmp_path: Path, s3: str) -> None:
    api.store.controllers.append(KubeRay(api, {"train": (running(), failed("hcs-ray: no GPU", failed=3))}))
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"root": f"{s3}/{tmp_path.name}"}))
    options = ("submit", file, "--stage", "train", "--no-preflight", "--namespace", "science")
    rehearsed = hcs_ray(*options, "--dry-run", "server")
    assert rehearsed.returncode == 0, rehearsed.stderr
    assert [line.split("-")[-1] for line in rehearsed.stdout.splitlines()]
    assert api.store.names("rayjobs") == []
    done = hcs_ray(*options, "--wait")
    (name,) = api.store.names("rayjobs")
    assert (done.returncode, done.stdout) == (1, f"{name}\n")
    assert f"Next: hcs-ray status {name} --namespace science --watch" in done.stderr
    assert done.stderr.splitlines()[-1] == f"hcs-ray: {name}: failed (attempt 3 of 3): no GPU"
    assert "--queue is of --stage study" in refused(*options, "--queue")


@dataclass
class Submitter:
    """Gives each job that runs its submitter's pod, and lets it end when somebody follows the pod's log."""

    api: ApiServer
    kuberay: KubeRay
    seen: int = 0

    def __call__(self, change: Change) -> None:
        job = change.object
        if change.plural != "rayjobs" or status_of(job).get("jobStatus") != "RUNNING":
            return
        self.kuberay.goes_on.clear()
        labels = {"batch.kubernetes.io/job-name": name_of(job)}
        pod = {"metadata": {"name": "submitter-x", "labels": labels}}
        spec = {"containers": [{"name": "ray-job-submitter"}]}
        self.api.store.put("pods", {**pod, "spec": spec, "status": {"phase": "Running"}})
        self.api.logs["submitter-x", "ray-job-submitter"] = ["train     1 epochs"]
        threading.Thread(target=self._await_follower, daemon=True).start()

    def _await_follower(self) -> None:
        wait_until(lambda: any("/log?" in path and "follow" in path for _, path in self.api.asked), 60)
        self.api.following.set()
        self.kuberay.goes_on.set()


def test_submit_follows_the_jobs_log_to_its_end(api: ApiServer, tmp_path: Path, s3: str) -> None:
    kuberay = KubeRay(api)
    api.store.controllers += [kuberay, Submitter(api, kuberay)]
    file = tmp_path / "study.yaml"
    file.write_text(yaml.safe_dump({"root": f"{s3}/{tmp_path.name}"}))
    done = hcs_ray("submit", file, "--stage", "train", "--no-preflight", "--follow")
    (name,) = api.store.names("rayjobs")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [name, "train     1 epochs"]
    assert done.stderr.splitlines()[-1] == f"{name}: succeeded"


def test_a_sweep_shows_its_leaderboard_while_it_runs(api: ApiServer, tmp_path: Path, s3: str) -> None:
    text = "space: {train.lr: {kind: loguniform, low: 1.0e-4, high: 1.0e-2}}\nsamples: 2\n"
    sweep, root = parse_sweep(text, "sweep.yaml"), f"{s3}/{tmp_path.name}"
    put_job(api, status=running(), metadata={"labels": {**LABELS, STAGE: "tune"}})
    data = {"study.yaml": f"root: {root}", "sweep.yaml": text}
    api.store.put("configmaps", {"metadata": {"name": "hcs-ray-train-1-study"}, "data": data})
    scores = {"t0000": 0.0, "t0001": 0.5}
    trials = [Entry(name, {"train.lr": 3e-3}, "ended", {sweep.goal.name: scores[name]}) for name in scores]
    board = parquet_bytes(pa.Table.from_pandas(leaderboard(trials, sweep), preserve_index=False))
    open_storage(root).write(f"sweeps/main/{LEADERBOARD}", board)
    told = hcs_ray("status")
    assert "  progress  tune to do" in told.stdout
    rows = [line.split()[:3] for line in told.stderr.splitlines() if " t000" in line]
    assert rows == [["1", "t0001", "0.5"], ["2", "t0000", "0"]]
