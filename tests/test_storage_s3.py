"""A real S3 store: large writes, long listings, and who may do what, also over TLS."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pyarrow.fs
import pytest
import trustme
from botocore.exceptions import ClientError

from hcs_ray.contracts import HcsError
from hcs_ray.storage import S3Storage, StorageConfig, multipart, open_storage, preflight
from hcs_ray.storage import s3 as s3_module
from hcs_ray.storage.bucket import Bucket
from hcs_ray.storage.connection import Connection
from hcs_ray.study import open_study
from tests.s3_server import BUCKET, S3Server, running
from tests.token_service import TokenService, serving

READER = ("reader", "the reader's secret", ["Read:hcs", "List:hcs"])
FULL = ["Read", "Write", "List", "Tagging"]
PART_BYTES = 5 << 20  # the least that S3 takes
LARGE = np.random.default_rng(0).bytes(2 * PART_BYTES + 1000)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "PART_BYTES", PART_BYTES)


@pytest.fixture
def root(s3: str) -> str:
    return f"{s3}/{uuid.uuid4().hex}"


@pytest.fixture
def storage(root: str) -> S3Storage:
    return S3Storage(root)


def uploads(storage: S3Storage) -> list[str]:
    """The keys of the store's unfinished multipart uploads below a storage, relative to it."""
    prefix = f"{storage.prefix}/"
    return sorted(
        key.removeprefix(prefix) for key, _ in Bucket(Connection(storage.options), "hcs").uploads(prefix)
    )


def test_a_large_write_goes_in_parts(storage: S3Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    with storage.writing("streamed") as file:
        for start in range(0, len(LARGE), 2_000_000):
            file.write(LARGE[start : start + 2_000_000])
        assert uploads(storage) == ["streamed"]
    monkeypatch.setattr(s3_module, "_SINGLE_PUT_BYTES", PART_BYTES)
    storage.write("whole", LARGE)
    for path in ("streamed", "whole"):
        found = storage.read_versioned(path)
        assert found is not None
        assert found[0] == LARGE
        assert found[1].endswith('-3"'), "three parts"
    assert uploads(storage) == []


def test_an_aborted_upload_leaves_nothing(storage: S3Storage) -> None:
    with pytest.raises(KeyError), storage.writing("x") as file:
        file.write(LARGE)
        assert uploads(storage) == ["x"]
        raise KeyError
    assert uploads(storage) == []
    assert storage.sizes() == {}


def test_a_killed_writer_s_upload_is_swept(storage: S3Storage) -> None:
    code = (
        "import sys, time; from hcs_ray.storage import open_storage\n"
        "with open_storage(sys.argv[1]).writing('stage/inner/x') as file:\n"
        "    file.write(bytes(40 << 20)); print('written', flush=True); time.sleep(60)\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", code, storage.url], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    assert writer.stdout.readline() == "written\n"
    writer.send_signal(signal.SIGKILL)
    writer.communicate()
    bucket = Bucket(Connection(storage.options), "hcs")
    for other in ("stage-2/y", "stage/theirs.parquet"):
        bucket.begin(f"{storage.prefix}/{other}")
    assert uploads(storage) == ["stage-2/y", "stage/inner/x", "stage/theirs.parquet"]
    storage.sweep("stage", lambda path: path != "stage/theirs.parquet")
    assert uploads(storage) == ["stage-2/y", "stage/theirs.parquet"]
    storage.sweep("stage")
    assert uploads(storage) == ["stage-2/y"]
    assert storage.sizes() == {}
    storage.child("stage-2").sweep("")
    assert uploads(storage) == []


def test_a_writer_whose_upload_was_swept_fails(storage: S3Storage) -> None:
    with pytest.raises(HcsError, match=r"x: cannot be written: .*NoSuchUpload"), storage.writing("x") as file:
        file.write(LARGE)
        storage.sweep("")
    assert storage.sizes() == {}


def test_a_write_outlives_a_killed_store_that_comes_back(storage: S3Storage, s3_server: S3Server) -> None:
    with storage.writing("x") as file:
        file.write(LARGE[:-1000])
        s3_server.kill()
        back = threading.Thread(target=s3_server.start)
        back.start()
        file.write(LARGE[-1000:])
    back.join()
    assert storage.read("x") == LARGE
    assert uploads(storage) == []


def test_a_file_replaced_while_it_is_read_is_one_line(storage: S3Storage) -> None:
    storage.write("x", LARGE)
    with storage.open("x") as file:
        assert file.read(10) == LARGE[:10]
        storage.write("x", LARGE[::-1])
        with pytest.raises(HcsError, match="x: cannot be read: it was replaced meanwhile"):
            file.read()


def test_more_than_a_thousand_files_are_listed(storage: S3Storage) -> None:
    paths = {f"chunks/{number:04d}" for number in range(1005)}
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: storage.write(path, b"1"), paths))
    assert set(storage.sizes("chunks")) == paths
    filesystem, root = storage.arrow()
    assert len(filesystem.get_file_info(pyarrow.fs.FileSelector(f"{root}/chunks"))) == 1005
    filesystem.delete_dir(f"{root}/chunks")
    assert storage.sizes() == {}


def refused(url: str, options: StorageConfig | None = None) -> str:
    """What the preflight says of a store that it must refuse."""
    with pytest.raises(HcsError) as caught:
        preflight(open_storage(url, options or StorageConfig()))
    message = str(caught.value)
    assert message.startswith((f"{url}: ", "storage."))
    assert "\n" not in message
    return message


def test_what_is_wrong_with_a_store_is_one_line(root: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "there is no such bucket (NoSuchBucket)" in refused("s3://nowhere/x")
    started = time.monotonic()
    assert "the store does not answer" in refused(root, StorageConfig(endpoint="http://127.0.0.1:9"))
    assert time.monotonic() - started < 10
    assert "storage.endpoint 'nowhere'" in refused(root, StorageConfig(endpoint="nowhere"))
    assert "storage.ca_bundle /x.pem: no such file" in refused(root, StorageConfig(ca_bundle="/x.pem"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not the secret")
    message = refused(root)
    assert "the secret does not fit the access key (SignatureDoesNotMatch)" in message
    assert "not the secret" not in message
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    assert "the store does not know this access key (InvalidAccessKeyId)" in refused(root)
    monkeypatch.setenv("AWS_PROFILE", "missing")
    assert "profile (missing) could not be found" in refused(root)
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/dev/null")
    assert "no credentials: set AWS_PROFILE" in refused(root)


def test_who_may_only_read_is_told_so(
    root: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_storage(root).write("x", b"1")
    s3_server.take({"reader": READER})
    use_keys(monkeypatch, *READER[:2])
    reader = open_storage(root)
    eventually(lambda: reader.read("x") == b"1")
    assert "cannot be written: the credentials do not permit it (AccessDenied)" in refused(root)
    with pytest.raises(HcsError, match="x: cannot be deleted: the credentials do not permit it"):
        reader.delete("x")


def use_keys(monkeypatch: pytest.MonkeyPatch, key: str, secret: str) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)


def eventually(check: Callable[[], object]) -> None:
    """Wait until a check neither fails nor is False: the server takes identities a moment after that."""
    deadline = time.monotonic() + 10
    while True:
        try:
            assert check() is not False
            return
        except (HcsError, AssertionError):
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def use_profile(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, key: str, secret: str) -> None:
    """Leave the environment without keys, and a profile ``lab`` with these."""
    file = tmp_path / "credentials"
    file.write_text(f"[lab]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID", raising=False)
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY", raising=False)


def test_a_profile_serves_our_own_io_and_arrow_s(
    root: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    s3_server.take({"lab": ("lab-key", "lab-secret", FULL)})
    use_profile(monkeypatch, tmp_path, "lab-key", "lab-secret")
    storage = open_storage(root)
    eventually(partial(preflight, storage))
    storage.write("x", b"1")
    filesystem, top = storage.arrow()
    with filesystem.open_input_file(f"{top}/x") as file:
        assert file.read() == b"1"


@pytest.mark.parametrize("lifetime_s", [3, 3600], ids=["expiring", "revoked before their time"])
def test_a_run_outlives_its_credentials(
    root: str, s3_server: S3Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lifetime_s: float
) -> None:
    """Web identity: what was begun with one pair of keys ends with the next, when the first is refused."""
    first, second = (f"first-{lifetime_s}", "secret one"), (f"second-{lifetime_s}", "secret two")
    service = TokenService(token="signed by the cluster", lifetime_s=lifetime_s)
    (tmp_path / "token").write_text(service.token)
    service.keys = first
    s3_server.take({"worker": (*first, FULL)})
    with serving(service) as address:
        use_web_identity(monkeypatch, tmp_path / "token", address)
        storage = open_storage(root)
        eventually(partial(preflight, storage))
        storage.write("before", b"1")
        filesystem, top = storage.arrow()
        stream = filesystem.open_output_stream(f"{top}/through arrow")
        with storage.writing("ours") as file:
            file.write(LARGE[:-1000])
            stream.write(LARGE[:-1000])
            service.keys = second
            s3_server.take({"worker": (*second, FULL)})
            eventually(lambda: is_refused(s3_server.endpoint, *first))
            file.write(LARGE[-1000:])
            stream.write(LARGE[-1000:])
        stream.close()
        assert storage.read("ours") == storage.read("through arrow") == LARGE
        assert storage.sizes("") == {"before": 1, "ours": len(LARGE), "through arrow": len(LARGE)}
        assert filesystem.get_file_info(f"{top}/before").size == 1
    assert set(service.handed) == {first[0], second[0]}


def use_web_identity(monkeypatch: pytest.MonkeyPatch, token: Path, service: str) -> None:
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(token))
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/hcs-ray")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", service)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")


def is_refused(endpoint: str, key: str, secret: str) -> bool:
    """Whether the store knows a key no more; the environment, which an upload reads, stays as it is."""
    client: Any = boto3.client(
        "s3",
        endpoint_url=endpoint,
        aws_access_key_id=key,
        aws_secret_access_key=secret,
    )
    try:
        client.list_objects_v2(Bucket="hcs", MaxKeys=1)
    except ClientError as error:
        return bool(error.response["Error"]["Code"] == "InvalidAccessKeyId")
    return False


def test_a_token_that_is_refused_is_one_line(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(TokenService(token="good", lifetime_s=60)) as address:
        (tmp_path / "token").write_text("a bad one")
        use_web_identity(monkeypatch, tmp_path / "token", address)
        assert "the credentials' own service answers: Token is not valid" in refused(root)
        (tmp_path / "token").unlink()
        assert f"No such file or directory: '{tmp_path}/token'" in refused(root)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StorageConfig]:
    """How to reach a store whose certificate a private authority has signed."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    options = StorageConfig(region="eu-central-1", ca_bundle=str(folder / "ca.pem"))
    with running(tmp_path_factory.mktemp("weed"), folder / "cert.pem", folder / "key.pem", options) as server:
        yield options.model_copy(update={"endpoint": server.endpoint})


def test_a_private_authority_is_trusted_where_it_is_named(
    s3: str, tls: StorageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_storage(f"{BUCKET}/secure", tls)
    preflight(storage)
    storage.child("inner").write("x", LARGE)
    filesystem, top = storage.arrow()
    with filesystem.open_input_file(f"{top}/inner/x") as file:
        assert file.read() == LARGE
    started = time.monotonic()
    bare = tls.model_copy(update={"ca_bundle": None})
    assert "not trusted; name its authority's file in storage.ca_bundle" in refused(f"{BUCKET}/secure", bare)
    with pytest.raises(HcsError, match="not trusted"):
        open_storage(BUCKET, bare).read("x")
    assert time.monotonic() - started < 5, "a bad certificate is not tried again"
    monkeypatch.setenv("AWS_CA_BUNDLE", str(tls.ca_bundle))
    assert open_storage(f"{BUCKET}/secure", bare).size("inner/x") == len(LARGE)


def test_a_study_goes_where_its_storage_section_says(root: str, tls: StorageConfig, tmp_path: Path) -> None:
    section = f"storage: {{endpoint: '{tls.endpoint}', ca_bundle: '{tls.ca_bundle}', region: eu-central-1}}\n"
    (tmp_path / "study.yaml").write_text(f"root: {root}\n{section}")
    study = open_study(str(tmp_path / "study.yaml"))
    assert study.storage.options == tls
    study.storage.write("here", b"1")
    assert open_storage(root).size("here") is None, "the store of the environment is another one"
    open_storage(root).write("study.yaml", section.encode())
    assert open_study(root).storage.size("here") == 1
    (tmp_path / "study.yaml").write_text(section)
    assert open_study(str(tmp_path)).storage.child("raw").options == tls, "for raw images on S3"
