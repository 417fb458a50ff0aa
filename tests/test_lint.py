"""The lint: every rule has a job that breaks it, and the packaged jobs break none.

The schema has a file of its own (test_lint_schema.py).
"""

from __future__ import annotations

import ast
import copy
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from hcs_ray.jobs import lint as package
from hcs_ray.jobs.findings import Finding, errors_of
from hcs_ray.jobs.lint import ClusterLimits, gpu_hours, lint
from hcs_ray.jobs.lint.node import Node, quantity
from hcs_ray.jobs.manifests import STAGES, Manifest
from tests.k8s_manifests import (
    EXAMPLES,
    composed,
    job_of,
    pinned_ray,
    put,
    rendered,
)

SPEC = "spec"
CLUSTER = "spec rayClusterSpec"
HEAD = f"{CLUSTER} headGroupSpec"
HEAD_POD = f"{HEAD} template spec"
HEAD_CONTAINER = f"{HEAD_POD} containers 0"
CPU = f"{CLUSTER} workerGroupSpecs 0"
CPU_POD = f"{CPU} template spec"
WORKER = f"{CPU_POD} containers 0"
SUBMITTER = "spec submitterPodTemplate spec"
CONTEXT = f"{WORKER} securityContext"
AUTOSCALER = f"{CLUSTER} autoscalerOptions"
QUEUED = {"metadata labels": {"kueue.x-k8s.io/queue-name": "q"}}
FIXED = {f"{CLUSTER} enableInTreeAutoscaling": False}
FOLDER = Path(package.__file__).parent


def rule(state: str, policy: str, seconds: int = 0, key: str = "jobStatus") -> dict[str, Any]:
    return {"condition": {key: state, "ttlSeconds": seconds}, "policy": policy}


def deleting(*rules: dict[str, Any], **policies: str) -> dict[str, Any]:
    """Changes to a job that deletes by rules or policies, and so does not shut its cluster down."""
    strategy: dict[str, Any] = {"deletionRules": list(rules)} if rules else {}
    strategy |= {key: {"policy": policy} for key, policy in policies.items()}
    unset = {f"{SPEC} shutdownAfterJobFinishes": False, f"{SPEC} ttlSecondsAfterFinished": 0}
    return {**unset, f"{SPEC} deletionStrategy": strategy}


def variable(name: str, value: str = "1") -> list[dict[str, Any]]:
    return [{"name": name, "value": value}]


BREAKS: list[tuple[dict[str, Any], str, str]] = [
    # --- KubeRay: the job. Changes, the path that is named, part of the rule.
    ({"metadata name": "a" * 48}, "metadata.name", "at most 47"),
    ({"metadata name": "train.1"}, "metadata.name", "at most 47"),
    ({"metadata name": "1train"}, "metadata.name", "at most 47"),
    ({"metadata name": None, "metadata generateName": "a-"}, "metadata.name", "generateName"),
    ({f"{SPEC} activeDeadlineSeconds": 0}, "spec.activeDeadlineSeconds", "a deadline is positive"),
    ({f"{SPEC} preRunningDeadlineSeconds": -1}, "spec.preRunningDeadlineSeconds", "the API server refuses"),
    ({f"{SPEC} ttlSecondsAfterFinished": -5}, "spec.ttlSecondsAfterFinished", "not negative"),
    ({f"{SPEC} backoffLimit": -1}, "spec.backoffLimit", "not negative"),
    ({f"{SPEC} submissionMode": "K8sJob"}, "spec.submissionMode", "there is no mode K8sJob"),
    ({f"{SPEC} submissionMode": "InteractiveMode"}, "spec.backoffLimit", "has no retries"),
    ({f"{SPEC} submissionMode": "SidecarMode"}, "spec.submitterPodTemplate", "SidecarMode has no submitter"),
    (
        {f"{SPEC} submissionMode": "SidecarMode", f"{HEAD_POD} restartPolicy": "Always"},
        "headGroupSpec.template.spec.restartPolicy",
        "in SidecarMode",
    ),
    (
        {f"{SPEC} shutdownAfterJobFinishes": False, f"{SPEC} suspend": True},
        "spec.suspend",
        "only a job that shuts",
    ),
    ({f"{SPEC} shutdownAfterJobFinishes": False}, "spec.ttlSecondsAfterFinished", "of jobs that shut"),
    (
        {f"{SPEC} deletionStrategy": {"deletionRules": [rule("FAILED", "DeleteSelf")]}},
        "spec.deletionStrategy.deletionRules",
        "excludes shutdownAfterJobFinishes",
    ),
    (
        deleting(rule("FAILED", "DeleteSelf"), onSuccess="DeleteSelf"),
        "spec.deletionStrategy",
        "exclude deletionRules",
    ),
    (deleting(onSuccess="DeleteSelf"), "spec.deletionStrategy", "needs deletionRules, or onSuccess"),
    (
        deleting(onSuccess="DeleteSelf") | {f"{SPEC} deletionStrategy": {"onSuccess": {}, "onFailure": {}}},
        "onSuccess.policy",
        "it must be there",
    ),
    (deleting(rule("FAILED", "DeleteWorkers")), "deletionRules[0].policy", "start workers again"),
    (
        deleting(rule("FAILED", "DeleteCluster"))
        | {f"{SPEC} clusterSelector": {"ray.io/cluster": "c"}, f"{SPEC} backoffLimit": 0},
        "deletionRules[0].policy",
        "not the job's own",
    ),
    (
        deleting(onSuccess="DeleteNone", onFailure="DeleteSelf") | {f"{SPEC} shutdownAfterJobFinishes": True},
        "onSuccess.policy",
        "shutdownAfterJobFinishes deletes",
    ),
    (
        deleting({"condition": {"ttlSeconds": 1}, "policy": "DeleteSelf"}),
        "deletionRules[0].condition",
        "one of jobStatus",
    ),
    (deleting(rule("FAILED", "DeleteSelf", -1)), "condition.ttlSeconds", "the API server refuses"),
    (deleting(rule("FAILED", "DeleteSelf"), rule("FAILED", "DeleteSelf")), "deletionRules[1]", "before"),
    (
        deleting(rule("FAILED", "DeleteSelf", 1), rule("FAILED", "DeleteCluster", 2)),
        "deletionRules[1].condition.ttlSeconds",
        "come in this order",
    ),
    ({CLUSTER: None}, "spec.rayClusterSpec", "a cluster of its own"),
    ({f"{SPEC} clusterSelector": {"a": "b"}}, "clusterSelector[ray.io/cluster]", "names the cluster"),
    (
        {f"{SPEC} clusterSelector": {"ray.io/cluster": "c"}, f"{SPEC} suspend": True},
        "spec.suspend",
        "cannot be suspended",
    ),
    ({f"{SPEC} clusterSelector": {"ray.io/cluster": "c"}}, "spec.backoffLimit", "has no retries"),
    (
        {f"{SPEC} clusterSelector": {"ray.io/cluster": "c"}, f"{SPEC} submissionMode": "SidecarMode"},
        "spec.submissionMode",
        "a cluster of its own",
    ),
    ({f"{SPEC} managedBy": "me"}, "spec.managedBy", "nobody else"),
    ({f"{SPEC} runtimeEnvYAML": "a: [b"}, "spec.runtimeEnvYAML", "not valid YAML"),
    # --- KubeRay: the cluster.
    ({f"{CPU_POD} containers": []}, "template.spec.containers", "the first container"),
    ({f"{CPU} resources": {"CPU": "1"}, f"{CPU} rayStartParams num-cpus": "1"}, "[0].resources", "exclude"),
    ({f"{HEAD} rayStartParams labels": "a=b"}, "rayStartParams.labels", "forbids"),
    ({f"{CPU} labels": {"a b": "c"}}, "labels.a b", "it is no label"),
    ({f"{CPU} minReplicas": -1}, "workerGroupSpecs[0].minReplicas", "not negative"),
    ({f"{CPU} minReplicas": 9}, "workerGroupSpecs[0].minReplicas", "above maxReplicas"),
    ({f"{CPU} suspend": True}, "workerGroupSpecs[0].suspend", "autoscaling cluster"),
    ({f"{CPU} idleTimeoutSeconds": -1}, "workerGroupSpecs[0].idleTimeoutSeconds", "not negative"),
    (
        {f"{CPU} idleTimeoutSeconds": 5, f"{AUTOSCALER} version": "v1"},
        "workerGroupSpecs[0].idleTimeoutSeconds",
        "of autoscaler v2",
    ),
    (
        {f"{CPU} priority": 1, f"{CLUSTER} rayVersion": "2.55.0"},
        "workerGroupSpecs[0].priority",
        "need Ray 2.56",
    ),
    (
        FIXED | {f"{HEAD_CONTAINER} env": variable("RAY_enable_autoscaler_v2")},
        "containers[0].env[0]",
        "without autoscaling",
    ),
    ({f"{HEAD_CONTAINER} env": variable("RAY_enable_autoscaler_v2")}, "env[0]", "says it already"),
    ({f"{CPU_POD} restartPolicy": "OnFailure"}, "spec.restartPolicy", "autoscaler v2 replaces"),
    ({f"{AUTOSCALER} idleTimeoutSeconds": -1}, "autoscalerOptions.idleTimeoutSeconds", "not negative"),
    ({f"{AUTOSCALER} env": variable("KUBERAY_GEN_AUTOSCALER_START_CMD")}, "env[0]", "KubeRay sets it"),
    ({f"{CLUSTER} upgradeStrategy": {"type": "None"}}, "upgradeStrategy", "not of a job's cluster"),
    ({f"{CLUSTER} rayVersion": "2.51.0"}, "rayClusterSpec.rayVersion", "needs Ray 2.52"),
    ({f"{CLUSTER} rayVersion": "nightly"}, "rayClusterSpec.rayVersion", "needs Ray 2.52"),
    ({f"{CLUSTER} authOptions enableK8sTokenAuth": True}, "enableK8sTokenAuth", "cannot submit"),
    (
        {
            f"{CLUSTER} gcsFaultToleranceOptions": {"redisAddress": "r:6379"},
            "metadata annotations": {"ray.io/ft-enabled": "true"},
        },
        "annotations[ray.io/ft-enabled]",
        "gcsFaultToleranceOptions say it",
    ),
    (
        {
            f"{CLUSTER} gcsFaultToleranceOptions": {"redisAddress": "r:6379"},
            "metadata annotations": {"ray.io/external-storage-namespace": "a"},
        },
        "annotations[ray.io/external-storage-namespace]",
        "gcsFaultToleranceOptions say it",
    ),
    ({f"{HEAD_CONTAINER} env": variable("RAY_REDIS_ADDRESS")}, "containers[0].env[0]", "Redis is set up in"),
    ({f"{HEAD} rayStartParams redis-username": "a"}, "rayStartParams.redis-username", "Redis is set up in"),
    ({f"{CLUSTER} networkPolicy": {"mode": "DenyAll"}}, "rayClusterSpec.networkPolicy", "feature gate"),
    # --- Kueue, and other queues.
    (
        {"metadata labels": {"kueue.x-k8s.io/queue-name": "q", "volcano.sh/queue-name": "v"}},
        "labels[volcano.sh/queue-name]",
        "another queue",
    ),
    ({"metadata annotations": {"kueue.x-k8s.io/elastic-job": "true"}}, "elastic-job]", "in a queue of Kueue"),
    (QUEUED | {f"{SPEC} clusterSelector": {"ray.io/cluster": "c"}}, "spec.clusterSelector", "Kueue ignores"),
    (
        QUEUED | {f"{SPEC} shutdownAfterJobFinishes": False},
        "spec.shutdownAfterJobFinishes",
        "gives its cluster",
    ),
    (QUEUED, "rayClusterSpec.enableInTreeAutoscaling", "a fixed number of pods"),
    (QUEUED | FIXED | {f"{CPU} groupName": "head"}, "workerGroupSpecs[0].groupName", "pods of that name"),
    (QUEUED | FIXED, "workerGroupSpecs[0].replicas", "are one number"),
    # --- Ours: the job.
    ({f"{SPEC} activeDeadlineSeconds": None}, "spec.activeDeadlineSeconds", "waits for ever"),
    ({f"{SPEC} preRunningDeadlineSeconds": None}, "spec.preRunningDeadlineSeconds", "does not start"),
    ({f"{SPEC} ttlSecondsAfterFinished": 0}, "spec.ttlSecondsAfterFinished", "for a while"),
    ({f"{SPEC} backoffLimit": 0}, "spec.backoffLimit", "where the run goes on"),
    ({f"{SPEC} shutdownAfterJobFinishes": False}, "spec.shutdownAfterJobFinishes", "costs money"),
    ({f"{SPEC} entrypoint": "hcs-ray train s --name a > log"}, "spec.entrypoint", "one plain command"),
    ({f"{SPEC} entrypoint": "hcs-ray train 's --name a"}, "spec.entrypoint", "one plain command"),
    ({f"{SPEC} entrypoint": None}, "spec.entrypoint", "one plain command"),
    ({f"{SPEC} entrypoint": "hcs-ray train s"}, "spec.entrypoint", "without --name"),
    (
        {f"{SPEC} entrypoint": "hcs-ray train s --name=hcs-ray-train"},
        "spec.entrypoint",
        "for every submission",
    ),
    ({f"{CLUSTER} rayVersion": "2.59.0"}, "rayClusterSpec.rayVersion", "hcs_ray runs on Ray"),
    ({f"{CLUSTER} rayVersion": "2.60.99"}, "rayClusterSpec.rayVersion", "the image must have 2.60.99"),
    ({f"{CLUSTER} authOptions mode": "disabled"}, "authOptions.mode", "open to everybody"),
    ({f"{SPEC} submitterPodTemplate": None}, "spec.submitterPodTemplate", "neither quotas nor"),
    ({f"{HEAD_CONTAINER} image": "reg.example:5000/hcs-ray"}, "containers[0].image", "today and tomorrow"),
    ({f"{HEAD_CONTAINER} image": "hcs-ray:latest"}, "containers[0].image", "today and tomorrow"),
    ({f"{AUTOSCALER} image": "ray"}, "autoscalerOptions.image", "today and tomorrow"),
    ({f"{WORKER} image": "reg.example/hcs-ray:0.2"}, "image", "Ray must be the same"),
    ({f"{CPU} groupName": "a_b"}, "workerGroupSpecs[0].groupName", "part of pods' names"),
    ({f"{CPU} maxReplicas": 2**31 - 1}, "workerGroupSpecs[0].maxReplicas", "grow for ever"),
    ({f"{CPU} replicas": 9}, "workerGroupSpecs[0].replicas", "between"),
    ({"metadata labels": {"team": "a b"}}, "metadata.labels.team", "it is no label"),
    (
        {f"{HEAD_POD} volumes 2": {"name": "study", "configMap": {"name": "c"}}},
        "configMap.name",
        "wait for ever",
    ),
    # --- Ours: pods.
    ({f"{SUBMITTER} restartPolicy": "OnFailure"}, "spec.restartPolicy", "replaced by a new one"),
    ({f"{CPU_POD} automountServiceAccountToken": True}, "automountServiceAccountToken", "does not speak"),
    ({f"{CPU} template metadata labels team": "-"}, "metadata.labels.team", "no pod is made"),
    ({f"{CPU_POD} initContainers 0 name": "ray-worker"}, "containers[0].name", "two containers of one name"),
    ({f"{WORKER} volumeMounts 0 name": "tmp"}, "volumeMounts[0].name", "no volume tmp"),
    ({f"{CPU_POD} volumes 1 emptyDir sizeLimit": None}, "emptyDir.sizeLimit", "may fill the node"),
    ({f"{WORKER} resources limits memory": None}, "resources.limits.memory", "ResourceQuota"),
    ({f"{AUTOSCALER} resources": {}}, "autoscalerOptions.resources.requests.cpu", "ResourceQuota"),
    ({f"{SUBMITTER} containers 0 resources limits cpu": None}, "resources.limits.cpu", "ResourceQuota"),
    ({f"{WORKER} resources limits nvidia.com/gpu": 1}, "requests[nvidia.com/gpu]", "one amount"),
    ({f"{WORKER} resources requests memory": "1Gi"}, "requests.memory", "killed under pressure"),
    ({f"{WORKER} resources requests cpu": 99}, "resources.requests.cpu", "above its limit"),
    ({f"{HEAD} rayStartParams object-store-memory": None}, "object-store-memory", "a third of the memory"),
    ({f"{HEAD_POD} volumes 1 emptyDir sizeLimit": "1000Mi"}, "emptyDir.sizeLimit", "smaller than the object"),
    ({f"{HEAD_POD} volumes 1 emptyDir medium": None}, "emptyDir.sizeLimit", "smaller than the object"),
    (
        {f"{CPU} rayStartParams object-store-memory": str(2**33)},
        "emptyDir.sizeLimit",
        "smaller than the object",
    ),
    ({f"{WORKER} volumeMounts": []}, "template.spec.volumes", "smaller than the object"),
    ({f"{CPU_POD} volumes 1 emptyDir sizeLimit": "64Gi"}, "limits.memory", "counts as memory"),
    ({f"{CPU_POD} terminationGracePeriodSeconds": None}, "preStop.exec.command", "lets Ray end"),
    ({f"{WORKER} lifecycle": None}, "preStop.exec.command", "lets Ray end"),
    ({f"{CPU} rayStartParams num-gpus": "1"}, "rayStartParams.num-gpus", "follows from the container"),
    ({f"{HEAD} rayStartParams num-cpus": "8"}, "rayStartParams.num-cpus", "takes no work"),
    ({f"{HEAD_CONTAINER} resources limits nvidia.com/gpu": 1}, "limits[nvidia.com/gpu]", "idles"),
    ({f"{HEAD} template metadata annotations": None}, "safe-to-evict]", "must not move the head"),
    # --- Pod Security, and secrets.
    ({f"{HEAD_POD} hostNetwork": True}, "spec.hostNetwork", "shares no namespace"),
    ({f"{HEAD_POD} volumes 0": {"name": "scratch", "hostPath": {"path": "/"}}}, "hostPath", "forbids such"),
    ({f"{HEAD_POD} securityContext sysctls": [{"name": "a", "value": "1"}]}, "sysctls", "forbids them"),
    ({f"{CONTEXT} readOnlyRootFilesystem": None}, "readOnlyRootFilesystem", "true in every container"),
    ({f"{CONTEXT} allowPrivilegeEscalation": True}, "allowPrivilegeEscalation", "false in every container"),
    (
        {f"{AUTOSCALER} securityContext": {}},
        "autoscalerOptions.securityContext.runAsNonRoot",
        "true in every",
    ),
    (
        {f"{CPU_POD} initContainers 0 securityContext runAsNonRoot": False},
        "initContainers[0]",
        "true in every",
    ),
    ({f"{CONTEXT} runAsUser": 0}, "securityContext.runAsUser", "not root"),
    ({f"{CONTEXT} privileged": True}, "securityContext.privileged", "no container is"),
    ({f"{CONTEXT} capabilities": None}, "capabilities.drop", "drops all"),
    ({f"{CONTEXT} capabilities add": ["SYS_PTRACE"]}, "capabilities.add", "forbids them"),
    ({f"{CONTEXT} procMount": "Unmasked"}, "securityContext.procMount", "forbids it"),
    ({f"{CONTEXT} seccompProfile": None}, "seccompProfile.type", "has a profile"),
    ({f"{CONTEXT} seccompProfile type": "Unconfined"}, "seccompProfile.type", "wants a profile"),
    ({f"{CONTEXT} seLinuxOptions": {"user": "root"}}, "seLinuxOptions.user", "forbids it"),
    ({f"{CONTEXT} appArmorProfile": {"type": "Unconfined"}}, "appArmorProfile.type", "forbids it"),
    ({f"{CONTEXT} windowsOptions": {"hostProcess": True}}, "windowsOptions.hostProcess", "forbids it"),
    ({f"{WORKER} ports": [{"containerPort": 1, "hostPort": 1}]}, "ports[0].hostPort", "ports of the node"),
    ({f"{WORKER} volumeMounts 0 mountPath": "/scratch"}, "volumeMounts", "Ray writes to /tmp"),
    ({f"{WORKER} env": variable("WANDB_API_KEY")}, "containers[0].env[0]", "in plain sight"),
    ({f"{SPEC} entrypoint": "x --name a --key AKIA" + "A" * 16}, "spec.entrypoint", "a key or a password"),
]


def changed(changes: dict[str, Any], *components: str) -> list[Manifest]:
    """The training job, with fields set; None takes one out."""
    manifests = composed("train", *components)
    for place, value in changes.items():
        put(job_of(manifests), place, copy.deepcopy(value))
    return manifests


@cache
def broken_by(number: int) -> tuple[list[Finding], frozenset[tuple[str, int]]]:
    """What the lint finds in a job of `BREAKS`, and the lines of its source that said so."""
    lines = set[tuple[str, int]]()

    def noting(make: Callable[[Node, str, str], Finding]) -> Callable[[Node, str, str], Finding]:
        def noted(node: Node, broken: str, mend: str) -> Finding:
            caller = sys._getframe(1)
            lines.add((Path(caller.f_code.co_filename).name, caller.f_lineno))
            return make(node, broken, mend)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("error", "warning"):
            patch.setattr(Node, name, noting(getattr(Node, name)))
        return lint(changed(BREAKS[number][0])), frozenset(lines)


@pytest.mark.parametrize("number", range(len(BREAKS)), ids=[" ".join(case[1:]) for case in BREAKS])
def test_every_rule_has_a_job_that_breaks_it(number: int) -> None:
    _, path, broken = BREAKS[number]
    found, _ = broken_by(number)
    said = [finding for finding in found if broken in finding.rule and path in finding.path]
    assert said, "\n".join(map(str, found))
    assert all(finding.mend and finding.path.startswith("RayJob/") for finding in found)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("components", [(), ("gpu",), ("gpu", "queue"), ("spot",), ("queue-elastic",)])
def test_the_packaged_jobs_break_none(stage: str, components: tuple[str, ...]) -> None:
    assert lint(composed(stage, *components)) == []


@pytest.mark.parametrize("folder", EXAMPLES)
def test_the_examples_break_none(folder: str) -> None:
    assert lint(rendered(folder)) == []


def test_a_finding_is_one_line_with_field_rule_and_mend() -> None:
    (finding,) = lint(changed({f"{SPEC} submissionMode": "K8sJob"}))
    assert str(finding) == (
        "error: RayJob/hcs-ray-train spec.submissionMode: there is no mode K8sJob, though the schema takes "
        "any text; it is one of K8sJobMode, HTTPMode, SidecarMode, InteractiveMode"
    )


def test_errors_come_before_warnings_and_each_once() -> None:
    manifests = changed(
        {f"{CPU_POD} automountServiceAccountToken": True, f"{HEAD} rayStartParams num-cpus": "1"}
    )
    found = lint([*manifests, *manifests])
    assert [finding.severity for finding in found] == ["error", "warning"]
    assert [finding.path.split(".")[-1] for finding in errors_of(found)] == ["num-cpus"]


def test_the_ray_of_the_manifests_is_the_one_that_is_installed() -> None:
    assert pinned_ray() == version("ray")


# --- Beside the job -----------------------------------------------------------------------------------------


def test_a_secret_is_in_no_manifest() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}}
    study = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c"},
        "data": {"study.yaml": "storage:\n  endpoint: https://me:pass@store.example\n"},
    }
    found = lint([secret, study])
    assert [finding.path for finding in found] == ["Secret/s stringData", "ConfigMap/c data[study.yaml]"]
    assert "pass" not in "".join(map(str, found)).replace("password", "")


def test_names_that_only_sound_like_secrets_are_left_alone() -> None:
    names = ("TOKENIZERS_PARALLELISM", "AWS_WEB_IDENTITY_TOKEN_FILE", "RAY_AUTH_MODE", "HCS_RAY_KEYS")
    assert lint(changed({f"{WORKER} env": [{"name": name, "value": "1"} for name in names]})) == []
    reference = {"valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}
    assert lint(changed({f"{WORKER} env": [{"name": "WANDB_API_KEY", **reference}]})) == []


def test_a_study_that_etcd_would_not_take() -> None:
    manifests = composed("train")
    (config_map,) = (item for item in manifests if item["kind"] == "ConfigMap")
    config_map["data"]["more"] = "x" * 2**20
    (finding,) = lint(manifests)
    assert finding.path.startswith("ConfigMap/")
    assert "may have 1048576" in finding.rule


def test_more_worker_groups_than_kueue_takes() -> None:
    manifests = composed("train", "queue")
    job = job_of(manifests)
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"] = [
        copy.deepcopy(group) | {"groupName": f"cpu{number}"} for number in range(18)
    ]
    (finding,) = lint(manifests)
    assert "at most 17" in finding.rule


# --- GPU-hours ----------------------------------------------------------------------------------------------


def test_gpu_hours_are_those_of_every_attempt_until_its_deadline() -> None:
    manifests = changed({f"{SPEC} activeDeadlineSeconds": 7200, f"{SPEC} backoffLimit": 2}, "gpu")
    assert gpu_hours(job_of(manifests)) == 2 * 2 * 3  # GPUs, hours, attempts
    assert lint(manifests, max_gpu_hours=12) == []
    (finding,) = lint(manifests, max_gpu_hours=11.5)
    assert "up to 12 GPU-hours, and 11.5 are allowed" in finding.rule
    assert gpu_hours(job_of(composed("train"))) == 0
    put(job_of(manifests), f"{SPEC} activeDeadlineSeconds", None)
    assert gpu_hours(job_of(manifests)) == float("inf")


# --- What the cluster has -----------------------------------------------------------------------------------


def quota(hard: dict[str, str], used: dict[str, str] | None = None, **spec: Any) -> ClusterLimits:
    one = {"metadata": {"name": "science"}, "spec": {"hard": hard, **spec}, "status": {"used": used or {}}}
    return ClusterLimits(resource_quotas=[one])


def test_a_quota_is_counted_over_all_pods_with_sidecars_and_the_autoscaler() -> None:
    manifests = composed("train", "gpu")
    # head 2 + sidecar 0.1 + autoscaler 0.2, two workers of 8 + 0.1, the submitter 0.2
    exact = {
        "requests.cpu": "18700m",
        "cpu": "18.7",
        "requests.nvidia.com/gpu": "2",
        "pods": "4",
        "memory": "75.5Gi",  # 8 + 0.5 + 1, two times 32.5, 1
        "limits.memory": "75.5Gi",
        "count/rayjobs.ray.io": "1",
        "services": "0",  # what a job does not take
    }
    assert lint(manifests, limits=quota(exact)) == []
    for key in exact.keys() - {"services"}:
        tight = str(quantity(exact[key]) - quantity("1m"))
        (finding,) = lint(manifests, limits=quota({key: tight}))
        assert finding.severity == "error"
        assert f"allows {tight} {key}" in finding.rule
    assert lint(manifests, limits=quota({"pods": "1"}, scopes=["BestEffort"])) == []


def test_what_others_use_of_a_quota_is_waited_for() -> None:
    (finding,) = lint(composed("train"), limits=quota({"pods": "10"}, {"pods": "7"}))
    assert (finding.severity, "of which 7 are in use" in finding.rule) == ("warning", True)
    assert lint(composed("train"), limits=quota({"pods": "11"}, {"pods": "7"})) == []


def queue_of(cohort: str = "", **quotas: dict[str, str]) -> ClusterLimits:
    """A LocalQueue ``hcs-ray`` whose ClusterQueue has flavors with quotas."""
    flavors = [
        {
            "name": name,
            "resources": [{"name": kind, "nominalQuota": amount} for kind, amount in amounts.items()],
        }
        for name, amounts in quotas.items()
    ]
    return ClusterLimits(
        local_queues=[{"metadata": {"name": "hcs-ray"}, "spec": {"clusterQueue": "all"}}],
        cluster_queues=[
            {
                "metadata": {"name": "all"},
                "spec": {"cohort": cohort, "resourceGroups": [{"flavors": flavors}]},
            }
        ],
    )


def test_a_queue_that_can_never_admit_the_job() -> None:
    manifests = composed("train", "gpu", "queue")
    gpus = {"nvidia.com/gpu": "1"}
    enough = {"cpu": "19", "memory": "80Gi", "nvidia.com/gpu": "2"}
    assert lint(manifests, limits=queue_of(one=enough)) == []
    assert lint(manifests, limits=queue_of(one=enough | gpus, two=enough | gpus)) == []  # flavors add up
    (finding,) = lint(manifests, limits=queue_of(one=enough | gpus))
    assert "gives at most 1 nvidia.com/gpu, and the job takes 2" in finding.rule
    assert finding.path.endswith("labels[kueue.x-k8s.io/queue-name]")
    assert lint(manifests, limits=queue_of("cohort", one=enough | gpus)) == []  # it may borrow
    del enough["nvidia.com/gpu"]
    (finding,) = lint(manifests, limits=queue_of(one=enough))
    assert "has no quota for nvidia.com/gpu" in finding.rule


def test_borrowing_has_its_own_limit() -> None:
    limits = queue_of("cohort", one={"cpu": "19", "memory": "80Gi", "nvidia.com/gpu": "0"})
    assert limits.cluster_queues is not None
    resources = limits.cluster_queues[0]["spec"]["resourceGroups"][0]["flavors"][0]["resources"]
    resources[2]["borrowingLimit"] = "1"
    (finding,) = lint(composed("train", "gpu", "queue"), limits=limits)
    assert "gives at most 1 nvidia.com/gpu" in finding.rule


def test_a_queue_that_is_not_there() -> None:
    manifests = composed("train", "queue")
    (finding,) = lint(manifests, limits=ClusterLimits(local_queues=[]))
    assert "no LocalQueue hcs-ray" in finding.rule
    other = [{"metadata": {"name": "other"}, "spec": {"clusterQueue": "all"}}]
    (finding,) = lint(manifests, limits=ClusterLimits(local_queues=other))
    assert finding.mend == "there are: other"
    mine = [{"metadata": {"name": "hcs-ray"}, "spec": {"clusterQueue": "all"}}]
    (finding,) = lint(manifests, limits=ClusterLimits(local_queues=mine, cluster_queues=[]))
    assert "ClusterQueue all does not exist" in finding.rule
    assert lint(manifests, limits=ClusterLimits()) == []  # nothing may be listed, nothing is said
    assert lint(manifests, limits=ClusterLimits(local_queues=mine)) == []


def node(
    taints: list[dict[str, str]] | None = None, labels: dict[str, str] | None = None, **room: str
) -> Any:
    have = {"cpu": "16", "memory": "64Gi"} | {key.replace("_", "/"): value for key, value in room.items()}
    return {
        "metadata": {"name": "n", "labels": labels or {}},
        "spec": {"taints": taints or []},
        "status": {"allocatable": have},
    }


GPU_TAINT = {"key": "nvidia.com/gpu", "value": "present", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ([node(), node([GPU_TAINT], nvidia_com="")], ["no node has a GPU"]),
        ([node([{"key": "a", "effect": "NoSchedule"}])], ["submitter", "head", "worker"]),
        ([node([{"key": "a", "effect": "PreferNoSchedule"}])], ["worker"]),
        ([], ["submitter", "head", "worker"]),
        ([node(cpu="8")], ["worker"]),
    ],
)
def test_no_node_can_hold_a_pod(nodes: list[Any], said: list[str]) -> None:
    found = lint(composed("train", "gpu"), limits=ClusterLimits(nodes=nodes))
    assert len(found) == len(said)
    assert all(finding.severity == "warning" and "can hold this pod" in finding.rule for finding in found)


def test_a_node_that_can_hold_every_pod() -> None:
    one = node([GPU_TAINT])
    one["status"]["allocatable"]["nvidia.com/gpu"] = "1"
    limits = ClusterLimits(nodes=[node(), one])
    manifests = composed("train", "gpu")
    assert lint(manifests, limits=limits) == []
    put(job_of(manifests), f"{HEAD_POD} nodeSelector", {"zone": "a"})
    (finding,) = lint(manifests, limits=limits)
    assert "no node with its labels and tolerated taints" in finding.rule
    assert "2.1 cpu, 8.5Gi memory" in finding.rule
    put(job_of(manifests), f"{HEAD_POD} tolerations", [{"key": "k", "operator": "Exists"}])
    labelled = node([{"key": "k", "value": "v", "effect": "NoExecute"}], {"zone": "a"})
    assert lint(manifests, limits=ClusterLimits(nodes=[node(), one, labelled])) == []


# --- Parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500m", "0.5"),
        ("2Gi", "2147483648"),
        ("1e3", "1000"),
        ("1E", "1e18"),
        ("5", "5"),
        (3, "3"),
        ("1k", "1000"),
    ],
)
def test_a_quantity(text: str | int, number: str) -> None:
    assert quantity(text) == quantity(number)


def test_a_place_that_is_not_there_has_a_path_all_the_same() -> None:
    node = Node("RayJob/a ", {"spec": {"list": [1]}})
    assert node.at("spec.list")[1]["x"].path == "RayJob/a spec.list[1].x"
    assert node["a/b"]["c"].value is None
    assert [item.value for item in node.at("spec.list")] == [1]


# --- All of it ----------------------------------------------------------------------------------------------


def places_of_rules() -> set[tuple[str, int, int]]:
    """File, first and last line of every statement that makes a finding, in the rules."""
    found = set()
    for file in FOLDER.glob("*.py"):
        for statement in ast.walk(ast.parse(file.read_text())):
            if isinstance(statement, ast.Expr) and re.search(r"\.(error|warning)\(", ast.unparse(statement)):
                found.add((file.name, statement.lineno, statement.end_lineno or statement.lineno))
    return found


def test_no_rule_is_without_a_job_that_breaks_it() -> None:
    """Of the rules that hold for a job by itself: those for clusters and other objects are above."""
    elsewhere = {"limits.py", "schema.py"}
    rules = {place for place in places_of_rules() if place[0] not in elsewhere}
    assert len(rules) > 90
    made = {line for number in range(len(BREAKS)) for line in broken_by(number)[1]}
    missed = [
        (name, first)
        for name, first, last in rules
        if not made & {(name, line) for line in range(first, last + 1)}
    ]
    tested_above = ("a secret is in no manifest", "may have 1048576", "_MOST_GROUPS")
    for name, first in missed:
        text = " ".join((FOLDER / name).read_text().splitlines()[first - 1 : first + 3])
        assert any(word in text for word in tested_above), f"{name}:{first} is broken by no job"


def test_a_finding_is_plain_text() -> None:
    assert str(Finding("a b", "rule\n  two", "mend", "warning")) == "warning: a b: rule two; mend"
