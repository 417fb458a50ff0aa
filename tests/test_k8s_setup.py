"""The setup of a cluster: valid, restricted, and with just the rights that submitting needs."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

import kubernetes_validate
import pytest
import yaml

from hcs_ray.jobs import kinds
from hcs_ray.jobs.lint.node import quantity
from hcs_ray.jobs.manifests import Manifest
from tests.k8s_manifests import (
    K8S,
    REPOSITORY,
    groups,
    of_kind,
    pods,
    ray_job,
    rendered,
)


def one(manifests: list[Manifest], kind: str, name: str = "hcs-ray") -> Manifest:
    (found,) = (item for item in of_kind(manifests, kind) if item["metadata"]["name"] == name)
    return found


def test_every_object_is_valid_for_the_api_server() -> None:
    secrets = list(yaml.safe_load_all((K8S / "setup/secrets.example.yaml").read_text()))
    manifests = [*rendered("setup"), *secrets]
    assert len(manifests) == 9
    for item in manifests:
        kubernetes_validate.validate(item, "1.34", strict=True)


def test_the_api_servers_schema_refuses_what_it_does_not_know() -> None:
    policy = one(rendered("setup"), "NetworkPolicy")
    policy["spec"]["ingres"] = policy["spec"].pop("ingress")
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(policy, "1.34", strict=True)


def test_the_namespace_admits_restricted_pods_only() -> None:
    labels = one(rendered("setup"), "Namespace")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_no_secret_is_made_and_the_examples_hold_no_value() -> None:
    assert of_kind(rendered("setup"), "Secret") == []
    credentials, registry = yaml.safe_load_all((K8S / "setup/secrets.example.yaml").read_text())
    assert set(credentials["stringData"].values()) == {""}
    assert registry["stringData"] == {".dockerconfigjson": '{"auths": {}}'}


# --- Rights ------------------------------------------------------------------------------------------------


def granted(role: Manifest) -> set[tuple[str, str, str]]:
    """Every (group, resource, verb) of a role."""
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


JOBS = REPOSITORY / "hcs_ray" / "jobs"
CALL = re.compile(
    r"kube\.(?P<verb>get|list|watch|patch|delete)\((?P<kind>[A-Z_]+)\b|_got\(kube, (?P<got>[A-Z_]+)\b"
    r"|(?:listed|list_if_allowed)\(kube, (?P<listed>[A-Z_]+)\b"
)


def asked() -> set[tuple[str, str, str]]:
    """Every (group, resource, verb) that calls in hcs_ray.jobs name outright, or that make and delete."""
    found = set()
    for path in JOBS.rglob("*.py"):
        for call in CALL.finditer(path.read_text()):
            kind = getattr(kinds, call["kind"] or call["got"] or call["listed"])
            verb = call["verb"] or ("get" if call["got"] else "list")
            found.add((kind.group, kind.plural, verb))
    for name in ("RayJob", "Job", "ConfigMap"):
        kind = kinds.creatable({"kind": name, "apiVersion": "v1", "metadata": {"name": name}})
        found |= {(kind.group, kind.plural, verb) for verb in ("create", "delete")}
    return found


def test_people_may_do_what_the_commands_ask_and_no_more() -> None:
    manifests = rendered("setup")
    rights = granted(one(manifests, "Role", "hcs-ray-submit"))
    rights |= granted(one(manifests, "ClusterRole", "hcs-ray-capacity"))
    assert len(asked()) > 15
    assert asked() - rights == set()
    # Logs, ConfigMaps that change their owner, RayClusters without a job; what OpenShift asks for.
    assert rights - asked() == {
        ("", "pods/log", "get"),
        ("", "configmaps", "patch"),
        ("ray.io", "rayclusters", "delete"),
        ("ray.io", "rayjobs/finalizers", "update"),
        ("batch", "jobs/finalizers", "update"),
    }


def test_the_service_account_has_no_rights_of_its_own() -> None:
    """KubeRay makes and binds the autoscaler's Role itself, a cluster at a time."""
    manifests = rendered("setup")
    bindings = of_kind(manifests, "RoleBinding") + of_kind(manifests, "ClusterRoleBinding")
    assert {subject["kind"] for binding in bindings for subject in binding["subjects"]} == {"Group"}
    assert one(manifests, "ServiceAccount")["automountServiceAccountToken"] is False
    for binding in bindings:
        assert one(manifests, binding["roleRef"]["kind"], binding["roleRef"]["name"])


# --- Network ------------------------------------------------------------------------------------------------


def test_the_network_policy_holds_for_every_pod_of_a_job() -> None:
    selector = one(rendered("setup"), "NetworkPolicy")["spec"]["podSelector"]["matchLabels"]
    job = ray_job("jobs/train")
    templates = [job["spec"]["submitterPodTemplate"], *(group["template"] for _, group in groups(job))]
    assert selector
    for template in templates:
        assert selector.items() <= template["metadata"]["labels"].items()


def test_the_flows_are_those_of_the_table() -> None:
    spec = one(rendered("setup"), "NetworkPolicy")["spec"]
    ours = {"podSelector": {"matchLabels": {"app.kubernetes.io/part-of": "hcs-ray"}}}
    assert spec["policyTypes"] == ["Ingress", "Egress"]

    def ports(rule: dict[str, Any]) -> list[str]:
        return [f"{port['protocol']} {port['port']}" for port in rule.get("ports", [])]

    inward = {str(rule["from"]): ports(rule) for rule in spec["ingress"]}
    operator = {
        "namespaceSelector": {},
        "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}},
    }
    monitoring = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}}
    assert inward == {str([ours]): [], str([operator]): ["TCP 8265"], str([monitoring]): ["TCP 8080"]}
    outward = [(rule.get("to"), ports(rule)) for rule in spec["egress"]]
    assert outward == [([ours], []), (None, ["UDP 53", "TCP 53"]), (None, ["TCP 443", "TCP 6443"])]
    table = (K8S / "README.md").read_text()
    for line in ("| TCP 8265 |", "| TCP 8080 |", "| TCP 443 |", "| TCP 443, 6443 |", "| UDP and TCP 53 |"):
        assert line in table


# --- Queue --------------------------------------------------------------------------------------------------


def requested(job: Manifest) -> dict[str, Decimal]:
    """What Kueue counts of a job with fixed groups: requests of all pods, sidecars and submitter included."""
    sizes = {"submitter": 1, "head": 1} | {name: group.get("replicas", 1) for name, group in groups(job)}
    total: dict[str, Decimal] = {}
    for name, pod in pods(job):
        for container in (*pod.get("initContainers", ()), *pod["containers"]):
            for resource, amount in container["resources"]["requests"].items():
                total[resource] = total.get(resource, Decimal(0)) + sizes[name] * quantity(amount)
    return total


@pytest.mark.parametrize(("example", "jobs"), [("train-gpu-queue", 2), ("tune-gpu-queue", 1)])
def test_the_queue_admits_what_its_comment_says(example: str, jobs: int) -> None:
    manifests = rendered("setup/queue")
    (group,) = one(manifests, "ClusterQueue")["spec"]["resourceGroups"]
    quota = {item["name"]: quantity(item["nominalQuota"]) for item in group["flavors"][0]["resources"]}
    job = ray_job(f"examples/{example}")
    wanted = requested(job)
    assert set(wanted) == set(quota) == set(group["coveredResources"])
    assert {name: jobs * amount for name, amount in wanted.items() if jobs * amount > quota[name]} == {}
    assert jobs * wanted["nvidia.com/gpu"] == quota["nvidia.com/gpu"]


def test_the_queue_of_the_component_leads_to_quota() -> None:
    manifests = rendered("setup/queue")
    job = ray_job("examples/train-gpu-queue")
    queue = one(manifests, "LocalQueue", job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"])
    assert queue["metadata"]["namespace"] == job["metadata"]["namespace"]
    admitting = one(manifests, "ClusterQueue", queue["spec"]["clusterQueue"])
    for group in admitting["spec"]["resourceGroups"]:
        for flavor in group["flavors"]:
            assert one(manifests, "ResourceFlavor", flavor["name"])
