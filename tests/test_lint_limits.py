"""The lint against what a cluster has and allows, and against a budget of GPU-hours."""

from __future__ import annotations

from typing import Any

import pytest

from hcs_ray.jobs.lint import ClusterLimits, gpu_hours, lint
from hcs_ray.jobs.lint.node import quantity
from tests.broken_jobs import HEAD_POD, SPEC, changed
from tests.k8s_manifests import composed, job_of, put

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
    assert "2.3 cpu, 9.5Gi memory" in finding.rule  # with the autoscaler, which KubeRay adds
    put(job_of(manifests), f"{HEAD_POD} tolerations", [{"key": "k", "operator": "Exists"}])
    labelled = node([{"key": "k", "value": "v", "effect": "NoExecute"}], {"zone": "a"})
    assert lint(manifests, limits=ClusterLimits(nodes=[node(), one, labelled])) == []
