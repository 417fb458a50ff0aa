"""The entrypoints really run: each rendered job's own, on a Ray cluster of two nodes, through Ray's job API.

The nodes have the environment that the manifest gives its containers (and what KubeRay and the image add),
the study is the ConfigMap's, and everything else lies in S3. Beside the head runs its log sidecar.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import psutil
import pytest

from hcs_ray.config import StudyConfig, to_yaml
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.demo import demo_config, prepare_demo
from hcs_ray.jobs import plain_ray
from hcs_ray.jobs.bind import Run, bind
from hcs_ray.jobs.entrypoint import COMMANDS, entrypoint
from hcs_ray.jobs.manifests import STAGES, Manifest, compose
from hcs_ray.jobs.parts import Pod, content, shipped_files
from hcs_ray.jobs.plain_ray import PlainRay, Status, submit
from hcs_ray.jobs.redact import same_but_masked
from hcs_ray.pipeline import STAGES as ALL_STAGES
from hcs_ray.storage import LocalStorage, Storage, open_storage
from hcs_ray.study import open_study
from tests.command import hcs_ray, refused
from tests.ray_nodes import Node, RayNodes, ray_nodes
from tests.s3_server import SECRETS, S3Server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

LONGEST_S = 900.0
POD = Pod("main", "hcs-ray-study-0-x1y2z", "hcs-ray-study-0-x1y2z-head-7")
INTERVAL_S = 1.0
SWEEP = "space:\n  train.lr: {kind: choice, values: [0.001, 0.003]}\nsamples: 2\nconcurrency: 1\n"


@dataclass
class Cluster:
    """Two nodes and the log sidecar of the head."""

    nodes: RayNodes
    head: Node
    sidecar: subprocess.Popen[bytes]
    environment: Mapping[str, str]
    storage: Storage
    mounted: Path  # what the pods have at /study

    @property
    def ray(self) -> PlainRay:
        return PlainRay(self.nodes.dashboard)

    def run(self, job: Manifest) -> str:
        """Submit a RayJob's own entrypoint, as KubeRay's submitter does."""
        return self.ray.submit(job["spec"]["entrypoint"].replace("/study/", f"{self.mounted}/"))

    def driver(self) -> psutil.Process:
        """The process of the command that a job runs."""
        for process in self.head.processes():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                if str(self.mounted / "study.yaml") in words and words[1].endswith("hcs-ray"):
                    return process
        raise AssertionError("no job runs")

    def ended(self, job: str) -> Status:
        return self.ray.follow(job, lambda text: print(text, end=""))


def bound(stage: str, study: StudyConfig, sweep: str | None = None) -> tuple[Manifest, Manifest]:
    """ConfigMap and RayJob of a run of the study."""
    manifests = bind(compose(stage), study, Run(stage, submission="0", sweep=sweep))
    (job,) = (item for item in manifests if item["kind"] == "RayJob")
    mounted = {volume["name"]: volume for volume in head_pod(job)["volumes"]}["study"]["configMap"]["name"]
    (study_map,) = (
        item for item in manifests if item["kind"] == "ConfigMap" and item["metadata"]["name"] == mounted
    )
    return study_map, job


def head_pod(job: Manifest) -> Manifest:
    found: Manifest = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    return found


def environment_of(container: Manifest, secret: Mapping[str, str], scratch: Path) -> dict[str, str]:
    """What a container gets: from the manifest, the Secret, KubeRay (a token) and the image (PATH).

    The volume at /tmp is a folder of the test.
    """
    given = {item["name"]: item["value"] for item in container["env"] if "value" in item}
    given = {name: str(scratch) if value == "/tmp" else value for name, value in given.items()}
    assert {"secretRef", "configMapRef"} >= {kind for source in container["envFrom"] for kind in source}
    token = {name: os.environ[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN")}
    path = f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin"
    return {"PATH": path, **token, **secret, **given}


def mount(study_map: Manifest, folder: Path) -> Path:
    """The files of a ConfigMap."""
    folder.mkdir(exist_ok=True)
    for name, text in study_map["data"].items():
        (folder / name).write_text(text)
    return folder


@pytest.fixture(scope="module")
def study(s3: str) -> StudyConfig:
    """The smallest demo's, in a bucket."""
    return demo_config("smallest").model_copy(update={"root": f"{s3}/{uuid.uuid4().hex}"})


@pytest.fixture(scope="module")
def _screen(study: StudyConfig, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its raw images in the bucket, and nothing else."""
    drawn = LocalStorage(tmp_path_factory.mktemp("drawn"))
    prepare_demo(drawn, "smallest", 0, lambda done, total: None)
    for path in drawn.sizes("raw"):
        if "truth" not in path:
            open_storage(str(study.root)).write(path, drawn.read(path))


@pytest.fixture(scope="module")
def cluster(
    study: StudyConfig, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("pods")
    study_map, job = bound("study", study)
    pod, mounted = head_pod(job), mount(study_map, folder / "study")
    (head,) = pod["containers"]
    (sidecar,) = (item for item in pod["initContainers"] if item["name"] == "ship-logs")
    environment = environment_of(head, s3_server.environment, folder)
    with ray_nodes(alone=True, **environment) as nodes:
        started = nodes.start_head(0)
        nodes.add(2)
        shipping = ship(sidecar, environment_of(sidecar, s3_server.environment, folder), nodes, mounted)
        yield Cluster(nodes, started, shipping, environment, open_storage(str(study.root)), mounted)
        shipping.kill()
        shipping.wait()


def ship(
    container: Manifest, environment: dict[str, str], nodes: RayNodes, mounted: Path
) -> subprocess.Popen[bytes]:
    """The sidecar's own command, with the pod's fields, this session's folder and a short interval."""
    del environment["RAY_AUTH_TOKEN"]  # KubeRay gives it to Ray's containers alone
    fields = {"HCS_RAY_RUN": POD.run, "HCS_RAY_ATTEMPT": POD.attempt, "HCS_RAY_POD": POD.pod}
    named = {item["name"] for item in container["env"] if "valueFrom" in item}
    assert named == set(fields)
    command = [word.replace("/study/", f"{mounted}/") for word in container["command"]]
    command += ["--logs", str(nodes.folder / "session_latest/logs"), "--interval", str(INTERVAL_S)]
    command[0] = str(Path(sys.executable).with_name(command[0]))
    return subprocess.Popen(command, env=environment | fields)


# --- The study job ------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_screen")
def test_the_study_job_is_killed_half_way_and_a_new_job_of_the_run_ends_it(
    cluster: Cluster, study: StudyConfig
) -> None:
    look = [str(Path(sys.executable).with_name("hcs-ray")), "preflight", str(cluster.mounted / "study.yaml")]
    looked = subprocess.run([*look, "--stage", "study"], env=dict(cluster.environment), check=False)
    assert looked.returncode == 0
    _, job = bound("study", study)
    first = cluster.run(job)
    await_file(cluster, first, "runs/main/ray/checkpoint_manager_snapshot.json")
    shards = versions(cluster.storage, "shards")
    os.kill(cluster.driver().pid, signal.SIGKILL)
    assert cluster.ended(first).state == "FAILED"
    assert cluster.storage.size("runs/main/_stage.json") is None
    second = cluster.run(job)
    assert second != first
    ended = cluster.ended(second)
    assert ended.state == "SUCCEEDED", cluster.ray.logs(second)
    opened = open_study(str(cluster.mounted / "study.yaml"))
    for stage in ALL_STAGES:
        if stage != "tune":
            opened.require(stage)
    assert versions(cluster.storage, "shards") == shards
    metrics = pd.read_csv(io.BytesIO(cluster.storage.read("runs/main/metrics.csv")))
    assert list(metrics["epoch"]) == [0, 1]
    said = cluster.ray.logs(second)
    assert "NSCB, held-out compounds" in said
    assert "Traceback" not in said


def await_file(cluster: Cluster, job: str, path: str) -> None:
    deadline = time.monotonic() + LONGEST_S
    while cluster.storage.size(path) is None:
        status = cluster.ray.status(job)
        assert status.state in ("PENDING", "RUNNING"), cluster.ray.logs(job)
        assert time.monotonic() < deadline, cluster.ray.logs(job)
        time.sleep(0.1)


def versions(storage: Storage, folder: str) -> dict[str, Any]:
    """When the files of a folder were written."""
    return {path: storage.modified(path) for path in storage.sizes(folder)}


# --- A plain Ray cluster ------------------------------------------------------------------------------------


def test_a_study_is_submitted_to_a_plain_cluster_with_its_files(cluster: Cluster, study: StudyConfig) -> None:
    """Of the finished study every stage is found complete, though the file lies somewhere else."""
    ray = cluster.ray
    assert ray.ray_version
    job = submit(ray, "shard", "main", study)
    said: list[str] = []
    ended = ray.follow(job, said.append)
    assert ended.state == "SUCCEEDED", ray.logs(job)
    assert ended.entrypoint == "hcs-ray run study.yaml --name main --to split"
    assert "".join(said) == ray.logs(job)
    assert job in {known.job for known in ray.jobs()}
    printed = hcs_ray("logs", job, "--address", cluster.nodes.dashboard, "--follow")
    assert (printed.returncode, printed.stdout) == (0, ray.logs(job))
    assert not any("--version" in known.entrypoint for known in ray.jobs())


def test_a_job_is_stopped_and_a_failed_one_says_why(cluster: Cluster) -> None:
    ray = cluster.ray
    job = ray.submit("sleep 600")
    while ray.status(job).state == "PENDING":
        time.sleep(0.2)
    assert ray.stop(job)
    assert ray.follow(job, lambda _: None).state == "STOPPED"
    assert not ray.stop(job)
    failed = ray.submit("echo it went wrong; exit 3")
    assert ray.follow(failed, lambda _: None).state == "FAILED"
    message = refused("logs", failed, "--address", cluster.nodes.dashboard, "--follow", code=1)
    assert f"{failed}: failed: " in message
    for ask in (ray.status, ray.stop, ray.logs):
        with pytest.raises(InputError, match="there is no such job"):
            ask("nothing")


@pytest.mark.usefixtures("_screen")
def test_the_commands_speak_to_a_plain_cluster(cluster: Cluster, study: StudyConfig, tmp_path: Path) -> None:
    file = tmp_path / "study.yaml"
    file.write_text(to_yaml(study))
    address = ("--address", cluster.nodes.dashboard)
    done = hcs_ray("submit", file, "--stage", "shard", *address, "--wait")
    assert done.returncode == 0, done.stderr
    job = done.stdout.strip()
    assert f"Next: hcs-ray status {job} --address {address[1]}" in done.stderr
    assert hcs_ray("status", job, *address).stdout.startswith(f"{job}: succeeded")
    assert hcs_ray("stop", job, *address).stderr == f"{job} had ended\n"
    message = refused("submit", file, *address, "--queue", "--component", "gpu")
    assert message.endswith("--queue, --component: of Kubernetes, not of --address")


def test_another_hcs_ray_version_is_refused(
    cluster: Cluster, study: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plain_ray, "version", lambda _: "99.0")
    with pytest.raises(HcsError, match=r"the cluster has hcs_ray 0.*, this is 99.0; install the same"):
        submit(cluster.ray, "shard", "main", study)


def test_addresses_and_tokens_that_are_wrong_are_one_line(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # which Ray's own client would prefer
    assert cluster.ray.jobs()
    with pytest.raises(HcsError, match=r"cannot be reached: .*refused"):
        PlainRay("http://127.0.0.1:1")
    with another_server() as address, pytest.raises(HcsError, match=r"no Ray dashboard .* \(HTTP 404\)"):
        PlainRay(address)
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 64)
    with pytest.raises(HcsError, match="refuses the token of RAY_AUTH_TOKEN"):
        PlainRay(cluster.nodes.dashboard)
    monkeypatch.delenv("RAY_AUTH_TOKEN")
    with pytest.raises(HcsError, match="wants a token: RAY_AUTH_TOKEN"):
        PlainRay(cluster.nodes.dashboard)


@contextlib.contextmanager
def another_server() -> Iterator[str]:
    """An HTTP server that knows nothing of Ray."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_error(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_what_cannot_run_there_is_refused_before(cluster: Cluster, study: StudyConfig) -> None:
    relative = study.model_copy(update={"root": "somewhere"})
    with pytest.raises(InputError, match="a root that all its nodes see"):
        submit(cluster.ray, "train", "main", relative)
    with pytest.raises(InputError, match="tune needs a sweep file"):
        submit(cluster.ray, "tune", "main", study)


def test_the_commands_are_those_of_the_job_set(study: StudyConfig) -> None:
    assert set(COMMANDS) == set(STAGES)
    for stage in STAGES:
        sweep = SWEEP if stage == "tune" else None
        files = ["/study/study.yaml", *(["/study/sweep.yaml"] if sweep else [])]
        _, job = bound(stage, study, sweep)
        assert shlex.split(job["spec"]["entrypoint"]) == shlex.split(entrypoint(stage, "main", files))


# --- The other jobs -----------------------------------------------------------------------------------------


@pytest.mark.soak
@pytest.mark.usefixtures("_screen")
def test_the_other_jobs_run_one_after_the_other(cluster: Cluster, study: StudyConfig, tmp_path: Path) -> None:
    root = f"{study.root}-stages"
    for path in cluster.storage.sizes("raw"):
        open_storage(root).write(path, cluster.storage.read(path))
    config = study.model_copy(update={"root": root})
    for stage in STAGES:
        study_map, job = bound(stage, config, SWEEP if stage == "tune" else None)
        mount(study_map, cluster.mounted)
        try:
            name = cluster.run(job)
            assert cluster.ended(name).state == "SUCCEEDED", cluster.ray.logs(name)
        finally:
            mount(bound("study", study)[0], cluster.mounted)
    done = open_storage(root)
    assert done.size("reports/main/index.html")
    assert done.size("sweeps/main/leaderboard.parquet")


# --- The logs, when all is lost -----------------------------------------------------------------------------


def test_a_sigkill_of_node_and_sidecar_loses_at_most_the_last_interval(
    cluster: Cluster,
) -> None:
    """Last in this file: it ends the cluster. A program that prints its environment tells no secret."""
    assert cluster.ended(cluster.ray.submit("env")).state == "SUCCEEDED"
    ticking = cluster.ray.submit("bash -c 'for i in {1..1000}; do echo tick $i; sleep 0.1; done'")
    logs = cluster.nodes.folder / "session_latest/logs"
    while not any(b"tick 30" in path.read_bytes() for path in logs.glob(f"job-driver-{ticking}*")):
        time.sleep(0.1)
    before = {path.relative_to(logs.resolve()): path.stat().st_size for path in files_of(logs)}
    time.sleep(2 * INTERVAL_S + 1)  # an interval, and a round's own time
    assert cluster.sidecar.poll() is None
    cluster.sidecar.kill()
    cluster.head.kill()
    files = shipped_files(cluster.storage, POD)
    assert len(files) > 10
    secrets = [*SECRETS.values(), os.environ["RAY_AUTH_TOKEN"]]
    for path, size in before.items():
        out = b"".join(content(cluster.storage, files[str(path)])) if str(path) in files else b""
        raw = (logs / path).read_bytes()
        last_word = len(raw[:size].rstrip().split()[-1]) if raw[:size].strip() else size
        assert len(out) >= size - last_word - len(max(secrets, key=len)), path
        assert same_but_masked(out, raw[: len(out)]), path
        assert not any(secret.encode() in out for secret in secrets), path
    (ticks,) = (name for name in files if name.startswith(f"job-driver-{ticking}"))
    assert b"tick 30\n" in b"".join(content(cluster.storage, files[ticks]))


def files_of(logs: Path) -> list[Path]:
    """The logs that are shipped."""
    return [
        path
        for path in logs.resolve().rglob("*")
        if path.is_file() and not path.is_symlink() and "debug_state" not in path.name
    ]
