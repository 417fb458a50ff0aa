"""What several test files share."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.s3_server import BUCKET, S3Server, running
from tests.wheel import build_wheel

# Before anything imports Ray: every session of the tests, which listens on all interfaces, wants this token.
os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real BBBC021 tables and the CRDs; tests that need it are skipped without it."""
    folder = Path(os.environ.get("HCS_RAY_SHARED", REPOSITORY.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no folder {folder} with the real tables; name one in HCS_RAY_SHARED")
    return folder


@pytest.fixture(scope="session")
def crd(shared: Path) -> Any:
    """A validator of RayJobs, made of KubeRay's own CRD, closed to unknown fields."""
    from tests.k8s_manifests import crd_validator

    return crd_validator(shared / "kuberay-crds")


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    return build_wheel(tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """The store behind `s3`, for tests that change who may do what, or kill it."""
    with running(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def s3(s3_server: S3Server) -> Iterator[str]:
    """A real S3 store, SeaweedFS on loopback with credentials: the URL of an empty bucket.

    Its address and credentials stand in the environment from the first test that uses it.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment.items():
            patch.setenv(name, value)
        yield BUCKET


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the small study of the report, complete up to its outliers; whoever writes copies it."""
    from tests.report_study import make_study

    folder = tmp_path_factory.mktemp("report-study")
    make_study(folder)
    return folder


@pytest.fixture(scope="module")
def cluster(s3: str) -> Iterator[str]:
    """The address of a Ray cluster of two cores, one a test file, whose workers know the S3 store."""
    import ray

    context: Any = ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=True,
        object_store_memory=256 * 2**20,
        log_to_driver=False,
    )
    yield context.address_info["gcs_address"]
    ray.shutdown()
