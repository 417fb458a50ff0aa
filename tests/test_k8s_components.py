"""The components of k8s/: what each changes in a job, and which jobs they go with.

A patch that matches nothing is silent, and so is a component that was applied too late: so every component is
held to the exact list of fields that it changes.
"""

from __future__ import annotations

import re
import shutil
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml

from hcs_ray.jobs.lint import lint
from hcs_ray.jobs.manifests import render
from tests.k8s_manifests import (
    EXAMPLES,
    K8S,
    REPOSITORY,
    changes,
    cluster,
    composed,
    containers,
    flat,
    groups,
    job_of,
    of_kind,
    pods,
    ray_job,
    rendered,
    study_of,
    sweep_of,
)

SUPPORTED = {  # as the table of k8s/README.md
    "shard": ("spot", "queue", "queue-elastic"),
    "train": ("gpu", "spot", "queue"),
    "tune": ("gpu", "spot", "queue"),
    "embed": ("gpu", "spot", "queue", "queue-elastic"),
    "analyse": ("queue",),
    "study": ("gpu", "spot", "queue-elastic"),
}
EVERYWHERE = ("identity", "air-gapped")
COMPONENTS = sorted(path.name for path in (K8S / "components").iterdir())


# --- What each component changes ----------------------------------------------------------------------------

CLUSTER = "spec.rayClusterSpec"
HEAD_POD = f"{CLUSTER}.headGroupSpec.template.spec"
CPU, GPU = (f"{CLUSTER}.workerGroupSpecs[{name}]" for name in ("cpu", "gpu"))
RAY_PODS = (HEAD_POD, f"{CPU}.template.spec", f"{GPU}.template.spec")
SUBMITTER_POD = "spec.submitterPodTemplate.spec"
ON_SPOT = {
    "karpenter.sh/capacity-type": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
    "hcs-ray/spot": "true",
}


def test_gpu_moves_the_workers_and_tells_the_stages() -> None:
    for stage in ("train", "tune", "embed", "study"):
        before = job_of(composed(stage))
        entrypoint, cpu = before["spec"]["entrypoint"], dict(groups(before))["cpu"]
        expected: dict[str, tuple[Any, Any]] = {
            "spec.entrypoint": (
                entrypoint, f"{entrypoint} --set train.use_gpu=true --set embed.use_gpu=true",
            )
        }  # fmt: skip
        for key in ("replicas", "minReplicas", "maxReplicas"):
            if cpu[key]:
                expected |= {f"{CPU}.{key}": (cpu[key], 0), f"{GPU}.{key}": (0, cpu[key])}
        assert changes(before, job_of(composed(stage, "gpu"))) == expected
        assert len(composed(stage, "gpu")) == len(composed(stage))  # its own ConfigMap stays behind


def test_the_gpu_groups_pods_have_a_gpu_and_go_where_gpus_are() -> None:
    pod = dict(pods(ray_job("base")))["gpu"]
    resources = pod["containers"][0]["resources"]
    assert resources["requests"]["nvidia.com/gpu"] == resources["limits"]["nvidia.com/gpu"] == 1
    assert pod["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]


QUEUED = {
    "metadata.labels.kueue.x-k8s.io/queue-name": (None, "hcs-ray"),
    "spec.suspend": (None, True),
}
SOON_GONE = {"spec.ttlSecondsAfterFinished": (3600, 300)}


def test_queue_has_a_fixed_number_of_pods_and_no_autoscaler() -> None:
    before = job_of(composed("train"))
    gone = {
        path: (value, None)
        for path, value in flat(before).items()
        if path.startswith(f"{CLUSTER}.autoscalerOptions.")
    }
    assert len(gone) > 10
    assert changes(before, job_of(composed("train", "queue"))) == {
        **QUEUED,
        **SOON_GONE,
        **gone,
        f"{CLUSTER}.enableInTreeAutoscaling": (True, False),
        f"{HEAD_POD}.automountServiceAccountToken": (True, False),
        f"{CPU}.replicas": (0, 2),
        f"{CPU}.minReplicas": (0, 2),
    }


@pytest.mark.parametrize("order", [("gpu", "queue"), ("queue", "gpu")])
def test_queue_counts_the_gpu_pods_in_either_order(order: tuple[str, str]) -> None:
    for name, group in groups(job_of(composed("train", *order))):
        if name != "head":
            expected = 2 if name == "gpu" else 0
            assert [group[key] for key in ("replicas", "minReplicas", "maxReplicas")] == [expected] * 3


def test_queue_elastic_asks_kueue_to_follow_the_autoscaler() -> None:
    before, after = job_of(composed("embed")), job_of(composed("embed", "queue-elastic"))
    elastic = {"metadata.annotations.kueue.x-k8s.io/elastic-job": (None, "true")}
    assert changes(before, after) == QUEUED | elastic
    assert cluster(after)["enableInTreeAutoscaling"] is True


def test_spot_takes_workers_there_and_nothing_else() -> None:
    before, after = job_of(composed("train")), job_of(composed("train", "spot"))
    terms = "affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms"
    for pod in (HEAD_POD, SUBMITTER_POD):
        expected: dict[str, tuple[Any, Any]] = {}
        for key, value in ON_SPOT.items():
            expected |= {
                f"{pod}.{terms}[0].matchExpressions[{key}].{name}": (None, told)
                for name, told in (("key", key), ("operator", "NotIn"), ("values[0]", value))
            }
        assert {
            path: pair for path, pair in changes(before, after).items() if path.startswith(pod)
        } == expected
    for name, pod in (("cpu", f"{CPU}.template.spec"), ("gpu", f"{GPU}.template.spec")):
        spec = dict(pods(after))[name]
        required = spec["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
        (any_of,) = (required["nodeSelectorTerms"],)
        assert [term["matchExpressions"] for term in any_of] == [
            [{"key": key, "operator": "In", "values": [value]}] for key, value in ON_SPOT.items()
        ]
        rest = {
            path.removeprefix(f"{pod}."): pair
            for path, pair in changes(before, after).items()
            if path.startswith(pod) and ".affinity." not in path and ".tolerations[" not in path
        }
        assert rest == {
            "terminationGracePeriodSeconds": (90, 25),
            "containers[ray-worker].lifecycle.preStop.exec.command[3]": ("60", "15"),
        }
        taints = {item["key"] for item in spec["tolerations"] if item["operator"] == "Exists"}
        assert taints - {"nvidia.com/gpu"} == {
            "cloud.google.com/gke-spot", "kubernetes.azure.com/scalesetpriority", "hcs-ray/spot",
        }  # fmt: skip
    elsewhere = [
        path
        for path in changes(before, after)
        if not path.startswith((HEAD_POD, SUBMITTER_POD, f"{CPU}.template", f"{GPU}.template"))
    ]
    assert elsewhere == []


def test_identity_names_the_service_account_of_setup() -> None:
    found = changes(job_of(composed("train")), job_of(composed("train", "identity")))
    assert found == {f"{pod}.serviceAccountName": (None, "hcs-ray") for pod in RAY_PODS}
    (account,) = of_kind(rendered("setup"), "ServiceAccount")
    assert account["metadata"]["name"] == "hcs-ray"


def test_air_gapped_trusts_a_private_authority_and_looks_nothing_up() -> None:
    manifests = composed("train", "air-gapped")
    before, after = job_of(composed("train")), job_of(manifests)
    (environment,) = (item for item in of_kind(manifests, "ConfigMap") if "WANDB_MODE" in item["data"])
    name = environment["metadata"]["name"]
    assert environment["data"] == {
        "AWS_CA_BUNDLE": "/etc/hcs-ray/ca/ca.crt",
        "SSL_CERT_FILE": "/etc/hcs-ray/ca/ca.crt",
        "REQUESTS_CA_BUNDLE": "/etc/hcs-ray/ca/ca.crt",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "WANDB_MODE": "offline",
    }
    expected: dict[str, tuple[Any, Any]] = {}
    for pod in (*RAY_PODS, SUBMITTER_POD):
        expected[f"{pod}.imagePullSecrets[hcs-ray-registry].name"] = (None, "hcs-ray-registry")
    for pod in RAY_PODS:
        volume = f"{pod}.volumes[ca-bundle]"
        expected |= {f"{volume}.name": (None, "ca-bundle"), f"{volume}.configMap.name": (None, "hcs-ray-ca")}
        for container in (
            "initContainers[ship-logs]",
            f"containers[{'ray-head' if pod == HEAD_POD else 'ray-worker'}]",
        ):
            mount = f"{pod}.{container}.volumeMounts[/etc/hcs-ray/ca]"
            expected |= {
                f"{mount}.name": (None, "ca-bundle"),
                f"{mount}.mountPath": (None, "/etc/hcs-ray/ca"),
                f"{mount}.readOnly": (None, True),
                f"{pod}.{container}.envFrom[1].configMapRef.name": ("hcs-ray-environment", name),
            }
    assert changes(before, after) == expected


def test_every_component_is_shown_above() -> None:
    shown = {name.removeprefix("test_").replace("_", "-") for name in globals() if name.startswith("test_")}
    for component in COMPONENTS:
        assert any(name.startswith(f"{component}-") for name in shown), component


# --- What goes together -------------------------------------------------------------------------------------


def combinations() -> list[tuple[str, tuple[str, ...]]]:
    """Every supported combination of a job with components, and with all of them."""
    found = []
    for stage, allowed in SUPPORTED.items():
        queues = [(), *((name,) for name in allowed if name.startswith("queue"))]
        others = [name for name in allowed if not name.startswith("queue")]
        for taken in product(*([(), (name,)] for name in others), queues):
            chosen = tuple(name for part in taken for name in part)
            found.append((stage, chosen))
        found.append((stage, (*EVERYWHERE, *others, *queues[-1])))
    return found


@pytest.mark.parametrize(
    ("stage", "components"),
    combinations(),
    ids=lambda value: value if isinstance(value, str) else "+".join(value),
)
def test_a_supported_combination_breaks_no_rule(crd: Any, stage: str, components: tuple[str, ...]) -> None:
    manifests = composed(stage, *components)
    assert [str(finding) for finding in lint(manifests)] == []
    job = job_of(manifests)
    assert [error.message for error in crd.iter_errors(job)] == []
    assert [name for name, group in groups(job) if "containers" in group["template"]["spec"]] == [
        "head",
        "cpu",
        "gpu",
    ]


def test_an_example_is_a_supported_combination_in_the_namespace_of_setup() -> None:
    (namespace,) = of_kind(rendered("setup"), "Namespace")
    for example in EXAMPLES:
        document = yaml.safe_load((K8S / example / "kustomization.yaml").read_text())
        stage = document["resources"][0].removeprefix("../../jobs/")
        components = {name.removeprefix("../../components/") for name in document["components"]}
        assert components <= {*SUPPORTED[stage], *EVERYWHERE}, example
        for item in rendered(example):
            assert item["metadata"]["namespace"] == namespace["metadata"]["name"]


def test_the_table_says_what_is_supported() -> None:
    lines = (K8S / "README.md").read_text().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    header = next(row for row in rows if row[0] == "job")
    for stage, components in SUPPORTED.items():
        (row,) = (row for row in rows if row[0] == f"`{stage}`")
        told = {name.strip("`") for name, cell in zip(header, row, strict=True) if cell.startswith("yes")}
        assert told == {*components, *EVERYWHERE}, stage
    for example in EXAMPLES:
        assert f"`{example}`" in "\n".join(lines), example


def test_an_overlay_of_ones_own_moves_every_image_and_brings_its_study(tmp_path: Path) -> None:
    shutil.copytree(K8S, tmp_path / "k8s")
    overlay = tmp_path / "overlay"
    overlay.mkdir()
    document = {
        "kind": "Kustomization",
        "resources": ["../k8s/jobs/tune"],
        "images": [{"name": "hcs-ray", "newName": "mirror.example/hcs-ray", "newTag": "7"}],
        "configMapGenerator": [{"name": "hcs-ray-study", "behavior": "merge", "files": ["study.yaml"]}],
    }
    (overlay / "kustomization.yaml").write_text(yaml.safe_dump(document))
    (overlay / "study.yaml").write_text("root: s3://mine/study\n")
    manifests = render(overlay)
    assert {container["image"] for container in containers(job_of(manifests)).values()} == {
        "mirror.example/hcs-ray:7"
    }
    assert study_of(manifests).root == "s3://mine/study"
    assert sweep_of(manifests).samples == 32


def test_nothing_here_names_a_registry() -> None:
    for path in K8S.rglob("*"):
        if path.is_file():
            hosts = re.findall(r"[\w-]+\.(?:io|com|org|net|dev)/[\w./-]+:[\w.-]+", path.read_text())
            assert hosts == [], f"{path.relative_to(REPOSITORY)}"
