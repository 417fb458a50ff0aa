"""A job for every rule of the lint that it breaks."""

from __future__ import annotations

import copy
from typing import Any

from hcs_ray.jobs.manifests import Manifest
from tests.k8s_manifests import composed, job_of, put

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
    (
        QUEUED
        | {
            "metadata labels hcs-ray/stage": "train",
            "metadata annotations": {"kueue.x-k8s.io/elastic-job": "true"},
        },
        "annotations[kueue.x-k8s.io/elastic-job]",
        "needs all its workers at once",
    ),
    (
        QUEUED
        | FIXED
        | {"metadata labels hcs-ray/stage": "study", f"{CLUSTER} workerGroupSpecs 1 replicas": 1},
        "labels[kueue.x-k8s.io/queue-name]",
        "stages run that use none",
    ),
    # --- Ours: the job.
    ({f"{SPEC} activeDeadlineSeconds": None}, "spec.activeDeadlineSeconds", "waits for ever"),
    ({f"{SPEC} preRunningDeadlineSeconds": None}, "spec.preRunningDeadlineSeconds", "does not start"),
    ({f"{SPEC} ttlSecondsAfterFinished": 0}, "spec.ttlSecondsAfterFinished", "for a while"),
    ({f"{CPU} minReplicas": 1, f"{CPU} replicas": 1}, "spec.ttlSecondsAfterFinished", "idle so long"),
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
