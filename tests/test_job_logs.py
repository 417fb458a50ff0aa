"""A job's logs are found wherever they are: in its pods while they live, in the bucket after."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs import logs as logs_module
from hcs_ray.jobs.kube import connect
from hcs_ray.jobs.logs import Job, Wanted, find_job, logs
from hcs_ray.jobs.parts import Pod
from hcs_ray.storage import LocalStorage, Storage, open_storage
from tests.api_server import ApiServer, serving
from tests.command import hcs_ray, refused
from tests.http_server import closed_port

JOB = "hcs-ray-train-1a2b3c4d"
CLUSTER = f"{JOB}-x7k2p"
HEAD, FIRST, SECOND = f"{CLUSTER}-head-aaaaa", f"{CLUSTER}-gpu-worker-bbbbb", f"{CLUSTER}-gpu-worker-ccccc"


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    with serving() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        yield server


def ray_job(api: ApiServer, root: str = "s3://nowhere/study", **status: str) -> None:
    """A RayJob with the study of its head's ConfigMap."""
    volume = {"name": "study", "configMap": {"name": f"{JOB}-study"}}
    head = {"template": {"spec": {"volumes": [volume]}}}
    api.store.put(
        "rayjobs",
        {
            "metadata": {"name": JOB, "labels": {"hcs-ray/run": "main"}},
            "spec": {"rayClusterSpec": {"headGroupSpec": head}},
            "status": {"rayClusterName": CLUSTER, "jobDeploymentStatus": "Running", **status},
        },
    )
    api.store.put(
        "configmaps", {"metadata": {"name": f"{JOB}-study"}, "data": {"study.yaml": f"root: {root}\n"}}
    )


def pod(api: ApiServer, name: str, kind: str, container: str, *lines: str, phase: str = "Running") -> None:
    labels = {"ray.io/cluster": CLUSTER, "ray.io/node-type": kind}
    if kind == "submitter":
        labels = {"batch.kubernetes.io/job-name": JOB}
    about = {"name": name, "labels": labels}
    spec = {"containers": [{"name": container}]}
    api.store.put("pods", {"metadata": about, "spec": spec, "status": {"phase": phase}})
    api.logs[name, container] = list(lines)
    api.following.set()


def shipped(storage: Storage, attempt: str = CLUSTER, *, driver: bytes = b"epoch 1\n") -> None:
    head, worker = Pod("main", attempt, f"{attempt}-head-aaaaa"), Pod("main", attempt, f"{attempt}-w-bbbbb")
    for whose, file, parts in (
        (head, "gcs_server.out", [b"gcs\n"]),
        (head, f"job-driver-{attempt}.log", [driver, b"epoch 2\n"]),
        (worker, "worker-01-02.err", [b"a warning\n"]),
        (worker, "raylet.out", [b"raylet\n"]),
    ):
        for number, data in enumerate(parts):
            storage.write(f"{whose.folder}/{file}.{number:04d}", data)


class Terminal:
    """What was printed, and what was said beside it."""

    def __init__(self) -> None:
        self.out = b""
        self.said: list[str] = []

    def write(self, data: bytes) -> None:
        self.out += data


def read(wanted: Wanted, storage: Storage | None = None, follow: bool = False) -> Terminal:
    terminal = Terminal()
    given = (lambda: storage) if storage is not None else None
    job = find_job(JOB, connect, given, terminal.said.append)
    logs(job, wanted, follow, terminal.write, terminal.said.append)
    return terminal


# --- While the pods live ------------------------------------------------------------------------------------


def test_the_driver_is_what_the_submitter_printed(api: ApiServer) -> None:
    ray_job(api)
    pod(api, f"{JOB}-first", "submitter", "ray-job-submitter", "epoch 1", "epoch 2")
    assert read(Wanted()).out == b"epoch 1\nepoch 2\n"
    assert read(Wanted(tail=1)).out == b"epoch 2\n"
    done = hcs_ray("logs", JOB, "--follow", KUBECONFIG=os.environ["KUBECONFIG"])
    assert (done.returncode, done.stdout) == (0, "epoch 1\nepoch 2\n")


def test_head_and_workers_are_told_apart(api: ApiServer) -> None:
    ray_job(api)
    pod(api, HEAD, "head", "ray-head", "the head")
    pod(api, FIRST, "worker", "ray-worker", "the first")
    pod(api, SECOND, "worker", "ray-worker", "the second")
    assert read(Wanted(head=True)).out == b"the head\n"
    assert read(Wanted(worker=0)).out == b"the first\n"
    assert read(Wanted(worker=1)).out == b"the second\n"
    found = read(Wanted(pod=SECOND))
    assert found.out == b"the second\n"
    assert "--files" in found.said[-1]


# --- Afterwards ---------------------------------------------------------------------------------------------


def test_a_job_that_is_gone_is_read_from_the_bucket(api: ApiServer, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "study")
    shipped(storage)
    assert read(Wanted(), storage).out == b"epoch 1\nepoch 2\n"
    assert (
        read(Wanted(worker=0), storage).out
        == (
            f"==> {CLUSTER}-w-bbbbb: raylet.out <==\nraylet\n"
            f"==> {CLUSTER}-w-bbbbb: worker-01-02.err <==\na warning\n"
        ).encode()
    )
    assert b"gcs\n" in read(Wanted(head=True), storage).out
    assert read(Wanted(files="worker-*.err"), storage).out.endswith(b"a warning\n")


def test_the_newest_attempt_is_taken(api: ApiServer, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "study")
    shipped(storage, driver=b"the first attempt\n")
    shipped(storage, f"{JOB}-aaaaa", driver=b"the second attempt\n")
    now = time.time()
    for path in storage.sizes("logs"):
        os.utime(storage.path(path), (now - 100, now - 100) if CLUSTER in path else None)
    found = read(Wanted(), storage)
    assert found.out.startswith(b"the second attempt\n")
    assert found.said == [f"attempt {JOB}-aaaaa; --attempt takes another: {CLUSTER}"]
    assert read(Wanted(attempt=CLUSTER), storage).out.startswith(b"the first attempt\n")
    ray_job(api)  # which says itself which attempt is its last
    assert read(Wanted(), storage).out.startswith(b"the first attempt\n")


def test_a_node_that_does_not_answer_leaves_the_bucket(api: ApiServer, tmp_path: Path) -> None:
    ray_job(api)
    pod(api, f"{JOB}-first", "submitter", "ray-job-submitter")
    api.logs.clear()
    storage = LocalStorage(tmp_path / "study")
    shipped(storage)
    found = read(Wanted(), storage)
    assert found.out == b"epoch 1\nepoch 2\n"
    assert found.said[0].startswith("from the bucket instead: ")


def test_files_are_followed_in_the_bucket_until_the_job_ends(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs_module, "_POLL_S", 0.05)
    ray_job(api)
    storage = LocalStorage(tmp_path / "study")
    shipped(storage)

    def go_on() -> None:
        time.sleep(0.2)
        storage.write(f"logs/main/{CLUSTER}/{CLUSTER}-head-aaaaa/job-driver-{CLUSTER}.log.0002", b"epoch 3\n")
        api.store.set_status("rayjobs", JOB, jobDeploymentStatus="Complete")

    later = threading.Thread(target=go_on)
    later.start()
    found = read(Wanted(files="job-driver-*"), storage, follow=True)
    later.join()
    head = f"==> {CLUSTER}-head-aaaaa: job-driver-{CLUSTER}.log <==\n".encode()
    assert found.out.startswith(head)  # a pattern may take files of many pods
    assert found.out.replace(head, b"") == b"epoch 1\nepoch 2\nepoch 3\n"


def test_the_study_of_the_job_says_where_its_bucket_is(api: ApiServer, s3: str) -> None:
    root = f"{s3}/{uuid.uuid4().hex}"
    ray_job(api, root)
    shipped(open_storage(root))
    assert read(Wanted()).out == b"epoch 1\nepoch 2\n"


# --- What is missing is said --------------------------------------------------------------------------------


def test_without_a_bucket_it_says_so_and_what_the_api_server_knows(api: ApiServer) -> None:
    ray_job(
        api,
        "/below/a/mount",
        jobDeploymentStatus="Failed",
        jobStatus="FAILED",
        message="the driver has ended",
    )
    pod(api, HEAD, "head", "ray-head", phase="Pending")
    with pytest.raises(HcsError) as told:
        read(Wanted(head=True))
    wanted = (
        "no logs of the head in the bucket: the study's root '/below/a/mount' is a folder of the job's pods"
    )
    assert wanted in str(told.value)
    assert f"{JOB} is failed: the driver has ended, pod {HEAD}: " in str(told.value)


def test_a_bucket_that_may_not_be_read_leaves_what_the_api_server_knows(api: ApiServer, s3: str) -> None:
    ray_job(api, f"{s3}/closed", jobDeploymentStatus="Failed", jobStatus="FAILED", message="hcs-ray: no GPU")
    keys = {"AWS_ACCESS_KEY_ID": "nobody", "KUBECONFIG": os.environ["KUBECONFIG"]}
    told = refused("logs", JOB, code=1, **keys)
    assert "no logs of the driver in the bucket: s3://" in told
    assert told.endswith(f"{JOB} is failed: no GPU")


def test_nothing_shipped_is_said(api: ApiServer, tmp_path: Path) -> None:
    storage = LocalStorage(tmp_path / "study")
    with pytest.raises(HcsError, match=f"no logs of the driver of {JOB} were shipped; there is no RayJob"):
        read(Wanted(), storage)
    message = refused("logs", JOB, KUBECONFIG=os.environ["KUBECONFIG"], code=1)
    assert f"there is no RayJob {JOB}; --study STUDY says in which study its logs are" in message


def test_a_cluster_that_cannot_be_reached_leaves_the_bucket(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    api.url = f"http://127.0.0.1:{closed_port()}"
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
    storage = LocalStorage(tmp_path / "study")
    shipped(storage)
    found = read(Wanted(), storage)
    assert found.out == b"epoch 1\nepoch 2\n"
    assert found.said[0].startswith("without the API server: the API server http://127.0.0.1:")
    (tmp_path / "study/study.yaml").write_text("")
    done = hcs_ray("logs", JOB, "--study", tmp_path / "study", KUBECONFIG=str(tmp_path / "kubeconfig"))
    assert (done.returncode, done.stdout) == (0, "epoch 1\nepoch 2\n")


def test_what_contradicts_itself_is_refused() -> None:
    for wrong in ({"pod": "x", "head": True}, {"head": True, "worker": 0}):
        options: dict[str, Any] = wrong
        with pytest.raises(InputError, match="one at a time"):
            Wanted(**options)
    assert "one at a time" in refused("logs", JOB, "--driver", "--head")
    assert "the driver's log alone" in refused("logs", JOB, "--address", "http://x:1", "--head")
    assert Job(JOB).pods(Wanted()) == []
