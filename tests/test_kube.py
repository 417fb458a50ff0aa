"""The client of the API server: what it asks, what it understands, and the one line for what goes wrong."""

from __future__ import annotations

import json
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs.kinds import CONFIG_MAP, EVENT, NODE, POD, RAY_JOB, WORKLOAD
from hcs_ray.jobs.kube import Kube, KubeError, connect
from tests.api_server import ApiServer, serving
from tests.api_store import Store
from tests.http_server import closed_port
from tests.http_server import serving as files
from tests.k8s_manifests import crd_validator


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with serving() as server:
        yield server


@pytest.fixture
def kube(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kube:
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
    return connect()


def config_map(name: str, **labels: str) -> dict[str, Any]:
    about = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": about, "data": {"study.yaml": "version: 1"}}


# --- Objects ------------------------------------------------------------------------------------------------


def test_an_object_is_made_read_changed_and_deleted(kube: Kube, api: ApiServer) -> None:
    made = kube.create(config_map("study"))
    assert made["metadata"]["namespace"] == "science"
    assert kube.get(CONFIG_MAP, "study") == made
    patched = kube.patch(
        CONFIG_MAP, "study", {"metadata": {"labels": {"a": "b"}}, "data": {"study.yaml": None}}
    )
    assert patched["metadata"]["labels"] == {"a": "b"}
    assert patched["data"] == {}
    assert kube.delete(CONFIG_MAP, "study", made["metadata"]["uid"])
    assert not kube.delete(CONFIG_MAP, "study")
    assert kube.get(CONFIG_MAP, "study") is None
    created = next(path for verb, path in api.asked if verb == "create")
    assert "fieldManager=hcs-ray" in created
    assert "fieldValidation=Strict" in created


def test_a_dry_run_makes_nothing(kube: Kube, api: ApiServer) -> None:
    assert kube.create(config_map("study"), dry_run=True)["metadata"]["uid"]
    assert api.store.names("configmaps") == []


def test_another_object_of_the_same_name_is_not_deleted(kube: Kube) -> None:
    kube.create(config_map("study"))
    with pytest.raises(KubeError, match="Precondition failed") as caught:
        kube.delete(CONFIG_MAP, "study", "the-uid-of-one-before")
    assert caught.value.code == 409
    assert kube.get(CONFIG_MAP, "study")


def test_a_list_comes_in_pages_and_its_objects_are_whole(
    kube: Kube, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcs_ray.jobs.kube._PAGE", 3)
    for number in range(8):
        api.store.put("pods", {"metadata": {"name": f"p{number}", "labels": {"even": str(number % 2 == 0)}}})
    assert [pod["metadata"]["name"] for pod in kube.list(POD)] == [f"p{number}" for number in range(8)]
    assert all((pod["kind"], pod["apiVersion"]) == ("Pod", "v1") for pod in kube.list(POD))
    assert len(kube.list(POD, labels="even=True")) == 4
    assert len(kube.list(POD, fields="metadata.name=p3")) == 1
    assert kube.list(EVENT) == []


def test_a_list_whose_first_pages_are_forgotten_begins_again(
    kube: Kube, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hcs_ray.jobs.kube._PAGE", 2)
    for number in range(4):
        api.store.put("pods", {"metadata": {"name": f"p{number}"}})
    ask, asked = kube._ask, []

    def forgetful(*values: Any) -> Any:
        answer = ask(*values)
        asked.append(values)
        if len(asked) == 1:
            api.store.put("pods", {"metadata": {"name": "later"}})
            api.store.forget()
        return answer

    monkeypatch.setattr(kube, "_ask", forgetful)
    assert [pod["metadata"]["name"] for pod in kube.list(POD)] == ["later", "p0", "p1", "p2", "p3"]


def test_an_older_version_of_a_group_is_found(kube: Kube, api: ApiServer) -> None:
    """Kueue serves v1beta1 or v1beta2, by its age."""
    api.store.put("workloads", {"metadata": {"name": "w"}, "spec": {}})
    assert [item["apiVersion"] for item in kube.list(WORKLOAD)] == ["kueue.x-k8s.io/v1beta1"]
    kube.list(WORKLOAD)
    assert [path.split("/")[3] for _, path in api.asked] == ["v1beta2", "v1beta1", "v1beta1"]


def test_nodes_have_no_namespace(kube: Kube, api: ApiServer) -> None:
    api.store.put("nodes", {"metadata": {"name": "n"}})
    assert len(kube.list(NODE)) == 1
    assert api.asked[-1][1].startswith("/api/v1/nodes?")


def test_an_object_whose_creation_was_not_answered_is_found(kube: Kube, api: ApiServer) -> None:
    api.faults = [0]
    assert kube.create(config_map("study"))["metadata"]["uid"]
    assert api.verbs("configmaps") == ["create", "get"]  # sent once


def test_a_busy_server_is_asked_again(kube: Kube, api: ApiServer) -> None:
    api.faults = [429, 429]
    kube.create(config_map("study"))
    assert api.verbs("configmaps") == ["create"] * 3


def test_the_lines_of_a_log(kube: Kube, api: ApiServer) -> None:
    api.store.put("pods", {"metadata": {"name": "head"}})
    api.logs["head", "ray-head"] = ["one", "", "dr\u00fcei"]
    assert list(kube.log("head", "ray-head")) == ["one", "", "dr\u00fcei"]
    assert list(kube.log("head", "ray-head", tail=1)) == ["dr\u00fcei"]
    followed = kube.log("head", "ray-head", follow=True)
    assert [next(followed) for _ in range(3)] == ["one", "", "dr\u00fcei"]
    api.logs["head", "ray-head"].append("four")
    assert next(followed) == "four"
    api.following.set()
    assert list(followed) == []
    with pytest.raises(KubeError, match=r"log pods/head/log: container \"autoscaler\".* is waiting to start"):
        list(kube.log("head", "autoscaler"))


# --- Watching -----------------------------------------------------------------------------------------------


def test_a_watch_tells_what_is_there_and_then_every_change(kube: Kube, api: ApiServer) -> None:
    api.store.put("pods", {"metadata": {"name": "a"}})
    api.store.put("pods", {"metadata": {"name": "b"}})
    told = kube.watch(POD, name="a", seconds=30)
    assert next(told).type == "ADDED"
    threading.Timer(0.1, api.store.set_status, ("pods", "b"), {"phase": "Running"}).start()
    threading.Timer(0.2, api.store.set_status, ("pods", "a"), {"phase": "Running"}).start()
    change = next(told)
    assert (change.type, change.object["status"]["phase"]) == ("MODIFIED", "Running")
    api.store.finalize("pods", "a")
    assert next(told).type == "DELETED"


@pytest.mark.parametrize("by_status", [False, True])
def test_a_watch_outlives_a_version_that_is_forgotten(kube: Kube, api: ApiServer, by_status: bool) -> None:
    api.expire_by_status = by_status
    api.store.put("pods", {"metadata": {"name": "a"}})
    told = kube.watch(POD, seconds=30)
    assert next(told).object["metadata"]["name"] == "a"
    api.store.put("pods", {"metadata": {"name": "b"}})
    api.store.forget()  # before the watch stands
    names = {next(told).object["metadata"]["name"] for _ in range(2)}
    assert names == {"a", "b"}
    assert api.verbs("pods").count("list") == 2


def test_a_watch_ends_in_time(kube: Kube) -> None:
    assert list(kube.watch(POD, seconds=1)) == []


# --- What is refused ----------------------------------------------------------------------------------------


def refused(kube: Kube) -> KubeError:
    with pytest.raises(KubeError) as caught:
        kube.create({"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "job"}, "spec": {}})
    assert "\n" not in str(caught.value)
    return caught.value


def test_what_the_user_may_not(kube: Kube, api: ApiServer) -> None:
    api.denied.add(("create", "rayjobs"))
    error = refused(kube)
    assert str(error) == (
        'create rayjobs/job: rayjobs.ray.io is forbidden: User "scientist" cannot create resource "rayjobs" '
        'in API group "ray.io" in the namespace "science"; ask for the Role of k8s/setup in namespace '
        "science (context lab)"
    )
    assert (error.code, error.exit_code) == (403, 1)


def test_a_cluster_without_kuberay(kube: Kube, api: ApiServer) -> None:
    api.served.remove("rayjobs")
    assert str(refused(kube)).endswith(
        "404 page not found; the cluster has no rayjobs: install KubeRay 1.7 first"
    )
    with pytest.raises(KubeError, match="install KubeRay"):
        kube.get(RAY_JOB, "job")


def test_a_namespace_that_is_not_there(kube: Kube, api: ApiServer) -> None:
    kube.namespace = "sciense"
    assert 'namespaces "sciense" not found; make it with k8s/setup, or name another' in str(refused(kube))


def test_a_token_that_has_expired(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path, token="last-week's")))
    error = refused(connect())
    assert "credentials of context lab are wrong or have expired: log in again" in str(error)
    assert "last-week" not in str(error)


def test_a_name_that_is_taken(kube: Kube) -> None:
    kube.create(config_map("study"))
    with pytest.raises(KubeError, match='configmaps "study" already exists') as caught:
        kube.create(config_map("study"))
    assert caught.value.code == 409


def test_an_invalid_object_and_an_unknown_field_are_bad_input(kube: Kube) -> None:
    with pytest.raises(KubeError, match=r"metadata\.name: Invalid value: \"UPPER\"") as caught:
        kube.create(config_map("UPPER"))
    assert (caught.value.code, caught.value.exit_code) == (422, 2)
    with pytest.raises(KubeError, match=r"strict decoding error: unknown field .*dat") as caught:
        kube.create({**config_map("study"), "dat": {}})
    assert (caught.value.code, caught.value.exit_code) == (400, 2)


def test_a_server_that_fails(kube: Kube, api: ApiServer) -> None:
    api.faults = [500]
    assert str(refused(kube)).endswith("fault 500; the server is busy or ill: run the command again later")


def test_a_server_that_cannot_be_reached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ApiServer(Store(), url=f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
    error = refused(connect())
    assert str(error).startswith(f"the API server {server.url} (context lab) cannot be reached: ")
    assert "Connection refused; is the context the right one" in str(error)
    assert error.code == 0


def test_another_server_than_an_api_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy's page of welcome, say."""
    with files({"pods": b"<html>Welcome</html>"}) as site:
        server = ApiServer(Store(), url=f"{site.url}/x")
        monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
        site.files["pods?limit=500"] = site.files["pods"]
        with pytest.raises(KubeError, match="answers as no API server does"):
            connect().list(POD)


def test_a_certificate_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    theirs, ours = trustme.CA(), trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    theirs.issue_cert("127.0.0.1").configure_cert(context)
    with serving(tls=context) as api:
        for ca, reached in ((theirs, True), (ours, False)):
            path = api.kubeconfig(tmp_path, ca=ca.cert_pem.bytes())
            monkeypatch.setenv("KUBECONFIG", str(path))
            if reached:
                assert connect().list(POD) == []
            else:
                assert "its certificate is not the one that the context trusts" in str(refused(connect()))


# --- Which cluster ------------------------------------------------------------------------------------------


def test_contexts_and_namespaces_are_kubectls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ApiServer(Store(), url="http://127.0.0.1:1")
    first = server.kubeconfig(tmp_path)
    second = tmp_path / "second"
    document = yaml.safe_load(first.read_text())
    document["contexts"] = [{"name": "other", "context": {"cluster": "c", "user": "u"}}]
    del document["current-context"]
    second.write_text(yaml.safe_dump(document))
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'none'}:{first}:{second}")
    assert (connect().context, connect().namespace) == ("lab", "science")
    assert (connect("other").context, connect("other").namespace) == ("other", "default")
    assert connect("other", "mine").namespace == "mine"
    with pytest.raises(InputError, match=r"--context elsewhere; it has lab, other"):
        connect("elsewhere")
    monkeypatch.setenv("KUBECONFIG", str(second))
    with pytest.raises(InputError, match="current-context is not set; it has other"):
        connect()
    assert connect("other").context == "other"


def test_a_kubeconfig_that_is_missing_or_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    path = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(path))
    with pytest.raises(InputError, match="no cluster is configured: there is no "):
        connect()
    for text in ("", "a: [", "[]", "contexts: 3", json.dumps({"current-context": "x", "contexts": None})):
        path.write_text(text)
        with pytest.raises(InputError, match="kubeconfig: "):
            connect()


def test_in_a_pod_its_service_account_is_taken(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ca = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    ca.cert_pem.write_to_path(tmp_path / "ca.crt")
    (tmp_path / "token").write_text("a-token-of-the-tests")
    (tmp_path / "namespace").write_text("science\n")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.delenv("POD_NAMESPACE", raising=False)
    library = "kubernetes.config.incluster_config"
    monkeypatch.setattr("hcs_ray.jobs.kube_config._POD_NAMESPACE", str(tmp_path / "namespace"))
    monkeypatch.setattr(f"{library}.SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(f"{library}.SERVICE_CERT_FILENAME", str(tmp_path / "ca.crt"))
    with serving(tls=context) as server:
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.url.rpartition(":")[2])
        kube = connect()
        assert (kube.context, kube.namespace) == ("in-cluster", "science")
        assert kube.list(POD) == []
    (tmp_path / "token").unlink()
    with pytest.raises(InputError, match=r"this pod cannot ask its API server: .*token"):
        connect()


# --- The server itself --------------------------------------------------------------------------------------


def test_the_tests_server_checks_rayjobs_strictly(
    shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against KubeRay's own CRD: what is refused here was refused by a real API server."""
    validator = crd_validator(shared / "kuberay-crds")
    job: dict[str, Any] = {
        "apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": {"name": "job"},
        "spec": {"entrypoint": "hcs-ray --help", "submissionMode": "NoSuchMode"},  # the real one takes it too
    }  # fmt: skip
    with serving(Store(schemas={"rayjobs": validator})) as api:
        monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(tmp_path)))
        kube = connect()
        kube.create(job, dry_run=True)
        with pytest.raises(KubeError, match=r'strict decoding error: unknown field "spec\.backofLimit"'):
            kube.create({**job, "spec": {**job["spec"], "backofLimit": 1}})
        with pytest.raises(HcsError, match=r'RayJob\.ray\.io "job" is invalid: spec\.backoffLimit: .* type'):
            kube.create({**job, "spec": {**job["spec"], "backoffLimit": "two"}})
