"""A rendered job bound to a study: what changes, how the study travels, where its cluster section goes."""

from __future__ import annotations

import copy
import json
import shlex

import yaml

from hcs_ray.config import parse_study
from hcs_ray.jobs.bind import Run, bind, new_submission
from hcs_ray.jobs.kinds import PRICES
from hcs_ray.jobs.lint import lint
from hcs_ray.jobs.manifests import Manifest
from tests.bound_jobs import ROOT, SWEEP, bound, sizes, study
from tests.k8s_manifests import (
    changes,
    composed,
    containers,
    groups,
    job_of,
    objects_within,
    of_kind,
    pods,
)

WHOLE_CLUSTER = """
image: mirror.example/hcs-ray:0.2
namespace: science
service_account: screens
image_pull_secrets: [registry]
node_selector: {pool: batch}
tolerations: [{key: batch, operator: Exists, effect: NoExecute, seconds: 60}]
runtime_class: nvidia
queue: team-a
priority_class: low
env_from: [bucket-key, wandb]
labels: {team: screening, example.org/cost: "42"}
ca_bundle: {config_map: trusted, key: all.pem}
prices: {cpu_hour: 0.04, gpu_hour: 2.5, currency: EUR}
"""


# --- The run ------------------------------------------------------------------------------------------------


def test_binding_is_pure_and_changes_just_what_it_says() -> None:
    rendered = composed("train")
    before = copy.deepcopy(rendered)
    run = Run("train", "main", "abc123", arguments=("--force",))
    once = bind(rendered, study("train.cpus_per_worker=6"), run)
    assert rendered == before
    assert once == bind(rendered, study("train.cpus_per_worker=6"), run)
    changed = changes(job_of(rendered), job_of(once))
    resources = "spec.rayClusterSpec.workerGroupSpecs[cpu].template.spec.containers[ray-worker].resources"
    config_map = "hcs-ray-train-abc123-study"
    assert {path: after for path, (_, after) in changed.items() if "configMap" not in path} == {
        "metadata.name": "hcs-ray-train-abc123",
        "metadata.annotations.hcs-ray/root": "s3://bucket/screen",
        "spec.entrypoint": "hcs-ray train /study/study.yaml --name main --force",
        f"{resources}.limits.cpu": "6",
        f"{resources}.requests.cpu": "6",
    }
    assert {after for path, (_, after) in changed.items() if "configMap" in path} == {config_map}
    assert [item["kind"] for item in once] == ["ConfigMap", "RayJob"]


def test_a_submission_has_a_name_of_its_own_and_the_run_keeps_its() -> None:
    names = {new_submission() for _ in range(100)}
    assert len(names) == 100
    job = job_of(bound(study(), Run("analyse", "Week-1.b_2", max(names))))
    assert len(job["metadata"]["name"]) <= 47
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[words.index("--name") + 1] == "Week-1.b_2"
    labels = [job["metadata"]["labels"], *(template_labels(job).values())]
    assert {item["hcs-ray/run"] for item in labels} == {"Week-1.b_2"}
    assert {item["hcs-ray/stage"] for item in labels} == {"analyse"}


def template_labels(job: Manifest) -> dict[str, dict[str, str]]:
    found = {name: group["template"]["metadata"]["labels"] for name, group in groups(job)}
    return {"submitter": job["spec"]["submitterPodTemplate"]["metadata"]["labels"], **found}


# --- The study and the sweep --------------------------------------------------------------------------------


def test_the_study_travels_whole_but_for_the_section_that_no_pod_reads() -> None:
    config = study("train.lr=3e-4", "cluster.env_from=[bucket-key]", "cluster.labels.team=a")
    config_map = bound(config, Run("train"))[0]
    text = config_map["data"]["study.yaml"]
    assert config_map["immutable"] is True
    assert "cluster" not in yaml.safe_load(text)
    assert parse_study(text, "study.yaml") == config.model_copy(update={"cluster": study().cluster})
    assert "bucket-key" not in text


def test_a_sweep_travels_beside_its_study() -> None:
    config_map = bound(study(), Run("tune", sweep=SWEEP))[0]
    assert config_map["data"]["sweep.yaml"] == SWEEP
    assert "sweep.yaml" not in bound(study(), Run("train"))[0]["data"]


def test_every_pod_that_mounts_the_study_mounts_this_one() -> None:
    manifests = bound(study(), Run("study", submission="x1"))
    job = job_of(manifests)
    (name,) = (item["metadata"]["name"] for item in of_kind(manifests, "ConfigMap"))
    mounted = [
        volume["configMap"]["name"]
        for _, pod in pods(job)
        for volume in pod["volumes"]
        if volume["name"] == "study"
    ]
    assert mounted == [name] * 3  # head and both groups


def test_config_maps_of_components_are_the_submissions_own_too() -> None:
    first, second = (bound(study(), Run("train", submission=one), "air-gapped") for one in ("a", "b"))
    names = [{item["metadata"]["name"] for item in of_kind(made, "ConfigMap")} for made in (first, second)]
    assert all(len(found) == 2 for found in names)
    assert not names[0] & names[1]
    (environment,) = (name for name in names[0] if not name.endswith("-study"))
    references = {
        item["configMapRef"]["name"] for item in objects_within(job_of(first)) if "configMapRef" in item
    }
    assert references == {environment}


def test_what_a_component_sets_in_the_entrypoint_moves_into_the_study() -> None:
    manifests = bound(study(), Run("train"), "gpu")
    assert "--set" not in job_of(manifests)["spec"]["entrypoint"]
    assert parse_study(manifests[0]["data"]["study.yaml"], "").train.use_gpu
    assert set(sizes(manifests)) == {"gpu"}


# --- The cluster section ------------------------------------------------------------------------------------


def test_the_cluster_section_is_everywhere_that_it_must_be() -> None:
    config = parse_study(f"{ROOT}cluster: {yaml.safe_load(WHOLE_CLUSTER)}\n", "study.yaml")
    manifests = bound(config, Run("train"), "gpu", "queue")
    job, everywhere = job_of(manifests), dict(pods(job_of(manifests)))
    assert {item["image"] for item in containers(job).values()} == {"mirror.example/hcs-ray:0.2"}
    assert {item["metadata"]["namespace"] for item in manifests} == {"science"}
    for name, pod in everywhere.items():
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["nodeSelector"] == {"pool": "batch"}
        toleration = {"key": "batch", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
        assert toleration in pod["tolerations"]
        assert pod["priorityClassName"] == "low"
        assert pod.get("serviceAccountName") == (None if name == "submitter" else "screens")
        assert pod.get("runtimeClassName") == ("nvidia" if name == "gpu" else None)
    labels = [item["metadata"]["labels"] for item in manifests] + list(template_labels(job).values())
    assert all(item["team"] == "screening" and item["example.org/cost"] == "42" for item in labels)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert job["spec"]["suspend"] is True
    assert json.loads(job["metadata"]["annotations"][PRICES])["currency"] == "EUR"  # for whoever watches
    assert lint(manifests) == []


def test_secrets_and_certificates_reach_every_container_that_speaks_to_the_store() -> None:
    config = study("cluster.env_from=[mine]", "cluster.ca_bundle={config_map: trusted, key: all.pem}")
    manifests = bound(config, Run("train"))
    for (pod, name), container in containers(job_of(manifests)).items():
        secrets = [item["secretRef"]["name"] for item in container.get("envFrom", ()) if "secretRef" in item]
        variables = {item["name"]: item.get("value") for item in container.get("env", ())}
        mounts = {item["mountPath"]: item for item in container["volumeMounts"]}
        if pod == "submitter":  # it speaks to the head alone
            assert secrets == []
            assert "/etc/hcs-ray/ca" not in mounts
            continue
        assert secrets == ["hcs-ray-credentials", "mine"], name
        bundle = "/etc/hcs-ray/ca/all.pem"
        names = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
        assert {variables[key] for key in names} == {bundle}
        assert mounts["/etc/hcs-ray/ca"]["readOnly"] is True
    for role, spec in pods(job_of(manifests)):
        sources = {item["name"]: item.get("configMap") for item in spec["volumes"]}
        assert role == "submitter" or sources["ca-bundle"] == {"name": "trusted"}
    shipped = parse_study(manifests[0]["data"]["study.yaml"], "")
    assert shipped.storage.ca_bundle == "/etc/hcs-ray/ca/all.pem"
    assert lint(manifests) == []


def test_what_is_named_twice_is_there_once() -> None:
    """The API server refuses a pull secret that stands there twice."""
    manifests = bound(
        study("cluster.image_pull_secrets=[hcs-ray-registry, a, a]"), Run("train"), "air-gapped"
    )
    for _, pod in pods(job_of(manifests)):
        assert pod["imagePullSecrets"] == [{"name": "hcs-ray-registry"}, {"name": "a"}]


def test_a_kind_of_gpu_is_of_pods_with_a_gpu_alone() -> None:
    config = study("cluster.node_selector.zone=a", "cluster.gpu_node_selector={gpu: h200}")
    found = {name: pod["nodeSelector"] for name, pod in pods(job_of(bound(config, Run("train"), "gpu")))}
    assert found.pop("gpu") == {"zone": "a", "gpu": "h200"}
    assert all(selector == {"zone": "a"} for selector in found.values())


def test_a_bundle_of_ones_own_takes_the_place_of_the_components() -> None:
    config = study("cluster.ca_bundle={config_map: trusted}")
    job = job_of(bound(config, Run("train"), "air-gapped"))
    bundles = {
        volume["configMap"]["name"]
        for _, pod in pods(job)
        for volume in pod["volumes"]
        if volume["name"] == "ca-bundle"
    }
    assert bundles == {"trusted"}


def test_an_image_of_somebody_else_stays() -> None:
    manifests = composed("train")
    head = job_of(manifests)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    head["containers"].append({"name": "proxy", "image": "proxy:1"})
    made = bind(manifests, study("cluster.image=reg.example/hcs-ray:0.2"), Run("train"))
    images = {name: item["image"] for (_, name), item in containers(job_of(made)).items()}
    assert images.pop("proxy") == "proxy:1"
    assert set(images.values()) == {"reg.example/hcs-ray:0.2"}
