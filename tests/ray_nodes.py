"""Several Ray nodes on one machine, each with raylet and workers of its own, which a test may kill.

They are started by ``ray start`` and stay in the foreground, so that a node is a process and its descendants.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

RAY = str(Path(sys.executable).with_name("ray"))
_STARTED = "This command will now block"
_LONGEST_START_S = 90
# A node is given up after five seconds of silence, not half a minute.
_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0", "RAY_enable_metrics_collection": "0", "OMP_NUM_THREADS": "1",
    "RAY_health_check_initial_delay_ms": "1000", "RAY_health_check_period_ms": "1000",
}  # fmt: skip


@dataclass(frozen=True)
class Node:
    """A node; its processes are those of ``process`` and below."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    def processes(self) -> list[psutil.Process]:
        """Raylet, agents and workers, and what they have started."""
        with contextlib.suppress(psutil.NoSuchProcess):
            top = psutil.Process(self.process.pid)
            return [top, *top.children(recursive=True)]
        return []

    def id(self) -> str:
        """Ray's name for it."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                for argument in process.cmdline():
                    if argument.startswith("--node_id="):
                        return argument.partition("=")[2]
        raise AssertionError(f"node {self.name} has no raylet")

    def kill(self) -> None:
        """SIGKILL to all of it at once, as a power cut would."""
        victims = self.processes()
        for process in victims:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait()
        psutil.wait_procs(victims, timeout=20)


class RayNodes:
    """A cluster of a head and more nodes, on ports of its own outside of Ray's usual ones."""

    def __init__(self, folder: Path, environment: Mapping[str, str], alone: bool = False) -> None:
        self.folder = folder
        self._environment = dict(environment) if alone else {**os.environ, **_SETTINGS, **environment}
        self._port = _free_port()
        self._dashboard_port = _free_port()
        self._numbers = itertools.count()
        self._nodes: list[Node] = []

    @property
    def address(self) -> str:
        """For ``RAY_ADDRESS``."""
        return f"127.0.0.1:{self._port}"

    @property
    def dashboard(self) -> str:
        """Of the dashboard, with the job API."""
        return f"http://127.0.0.1:{self._dashboard_port}"

    def start_head(self, cpus: int) -> Node:
        """The node with Ray's own services, to which drivers connect."""
        head = ["--head", f"--port={self._port}", f"--temp-dir={self.folder}", "--node-ip-address=127.0.0.1"]
        head += [f"--ray-client-server-port={_free_port()}", f"--dashboard-port={self._dashboard_port}"]
        return self._start(head, cpus)

    def add(self, cpus: int) -> Node:
        """One more node."""
        return self._start([f"--address={self.address}", "--node-ip-address=127.0.0.1"], cpus)

    def drain(self, node: Node, seconds: float) -> None:
        """Tell Ray that a node will be taken away, as a provider of spot machines does."""
        command = [RAY, "drain-node", f"--address={self.address}", f"--node-id={node.id()}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=spot"]
        command += [f"--deadline-remaining-seconds={seconds:g}"]
        done = subprocess.run(
            command, env=self._environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr

    def stop(self) -> None:
        """End all nodes, the head last."""
        for node in reversed(self._nodes):
            node.kill()

    def _start(self, arguments: list[str], cpus: int) -> Node:
        name = f"node-{next(self._numbers)}"
        log = self.folder / f"{name}.log"
        command = [RAY, "start", "--block", *arguments, f"--num-cpus={cpus}", "--num-gpus=0"]
        command += [f"--object-store-memory={100 * 2**20}", f"--dashboard-agent-listen-port={_free_port()}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", f"--node-name={name}"]
        with log.open("wb") as out:
            process = subprocess.Popen(command, stdout=out, stderr=out, env=self._environment)
        node = Node(name, process, log)
        self._nodes.append(node)
        deadline = time.monotonic() + _LONGEST_START_S
        while _STARTED not in log.read_text(errors="replace"):
            assert process.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, log.read_text(errors="replace")
            time.sleep(0.1)
        return node


@contextlib.contextmanager
def ray_nodes(alone: bool = False, **environment: str) -> Iterator[RayNodes]:
    """A cluster without nodes yet; all of its nodes end with the block.

    ``alone``: the nodes get this environment and nothing else.
    """
    folder = Path(tempfile.mkdtemp(prefix="hcs-nodes-", dir="/tmp"))  # sockets' paths must be short
    nodes = RayNodes(folder, environment, alone)
    try:
        yield nodes
    finally:
        nodes.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
