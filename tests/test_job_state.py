"""One truthful state of a job: for everything that the API server may say, and its usage."""

from __future__ import annotations

import copy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.config.cluster import Prices
from hcs_ray.jobs.kinds import QUEUE, SUBMITTING
from hcs_ray.jobs.state import Facts, JobState, State, state_of
from hcs_ray.jobs.usage import usage_of
from hcs_ray.jobs.waiting import losses, waits

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
STATES = set(State.__args__)  # type: ignore[attr-defined]
DEPLOYMENTS = (
    "", "Initializing", "Running", "Complete", "Failed", "ValidationFailed", "Suspending", "Suspended",
    "Retrying", "Waiting",
)  # fmt: skip
RAY = ("", "PENDING", "RUNNING", "STOPPED", "SUCCEEDED", "FAILED")

Object = dict[str, Any]


def at(minutes: float) -> str:
    return (NOW + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%SZ")


def job(
    deployment: str = "", ray: str = "", *, queue: bool = False, suspend: bool = False, **status: Any
) -> Object:
    labels = {QUEUE: "gpus"} if queue else {}
    return {
        "metadata": {"name": "job", "uid": "j", "labels": labels, "creationTimestamp": at(-30)},
        "spec": {"suspend": suspend, "backoffLimit": 2},
        "status": {"jobDeploymentStatus": deployment, "jobStatus": ray, **status},
    }  # fmt: skip


def pod(role: str = "worker", group: str = "gpu", phase: str = "Pending", **status: Any) -> Object:
    labels = {"ray.io/node-type": role, "ray.io/group": group}
    return {
        "metadata": {"name": role, "uid": f"p-{role}", "labels": labels},
        "status": {"phase": phase, **status},
    }


def unschedulable(message: str) -> list[Object]:
    return [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}]


def container(name: str, **state: Any) -> list[Object]:
    return [{"name": name, "state": state}]


def event(uid: str, reason: str, message: str, minutes: float = -1) -> Object:
    return {
        "type": "Warning", "reason": reason, "message": message, "lastTimestamp": at(minutes),
        "involvedObject": {"uid": uid}, "metadata": {"name": f"{uid}.{reason}"},
    }  # fmt: skip


def workload(*conditions: tuple[str, str, str, str], **spec: Any) -> Object:
    told = [
        {"type": kind, "status": status, "reason": reason, "message": message}
        for kind, status, reason, message in conditions
    ]
    return {"metadata": {"name": "w"}, "spec": spec, "status": {"conditions": told}}


def seen(found: Object | None, **facts: Any) -> JobState:
    return state_of(Facts(found, **facts), NOW)


# --- What the two statuses say together -------------------------------------------------------------------


@pytest.mark.parametrize(
    ("deployment", "ray", "state", "final"),
    [
        ("", "", "starting", False),
        ("Initializing", "", "starting", False),
        ("Running", "PENDING", "starting", False),
        ("Running", "RUNNING", "running", False),
        ("Running", "SUCCEEDED", "ending", False),  # the submitter has not ended yet
        ("Complete", "SUCCEEDED", "succeeded", True),
        ("Complete", "STOPPED", "stopped", True),  # Complete is not success
        ("Complete", "RUNNING", "unknown", True),
        ("Complete", "", "unknown", True),
        ("Failed", "FAILED", "failed", True),
        ("Failed", "RUNNING", "failed", True),  # past its deadline
        ("Failed", "", "failed", True),
        ("Failed", "SUCCEEDED", "succeeded", True),  # the submitter's pod died after the program's end
        ("ValidationFailed", "", "invalid", True),
        ("ValidationFailed", "SUCCEEDED", "invalid", True),
        ("Retrying", "FAILED", "retrying", False),
        ("Retrying", "SUCCEEDED", "retrying", False),  # it will run once more
        ("Suspending", "RUNNING", "suspended", False),
        ("Suspended", "", "starting", False),  # somebody has just resumed it
        ("Scheduling", "", "unknown", False),  # a later KubeRay's
        ("Running", "SCHEDULED", "unknown", False),  # a later Ray's
    ],
)
def test_both_statuses_make_one_state(deployment: str, ray: str, state: str, final: bool) -> None:
    found = seen(job(deployment, ray))
    assert (found.state, found.final) == (state, final)


def conditions_of(kind: str) -> st.SearchStrategy[list[Object]]:
    one = st.fixed_dictionaries(
        {
            "type": st.sampled_from(["PodScheduled", "Evicted", "QuotaReserved", "Admitted", "Preempted"]),
            "status": st.sampled_from(["True", "False"]),
            "reason": st.sampled_from(["", kind]),
            "message": st.text(max_size=20),
        }
    )
    return st.lists(one, max_size=3)


PODS = st.lists(
    st.builds(
        pod,
        role=st.sampled_from(["head", "worker", ""]),
        phase=st.sampled_from(["Pending", "Running", "Succeeded", "Failed"]),
        conditions=conditions_of("Unschedulable"),
    ),
    max_size=4,
)


@given(
    deployment=st.sampled_from([*DEPLOYMENTS, "Scheduled"]),
    ray=st.sampled_from([*RAY, "SCHEDULED"]),
    queue=st.booleans(),
    suspend=st.booleans(),
    deleting=st.booleans(),
    submitting=st.booleans(),
    failed=st.integers(0, 4),
    message=st.one_of(st.none(), st.text(max_size=60)),
    reason=st.sampled_from(["", "AppFailed", "DeadlineExceeded", "SubmissionFailed"]),
    pods=PODS,
    held=st.one_of(st.none(), conditions_of("Pending")),
    unreached=st.booleans(),
)
@settings(deadline=None, max_examples=150)
def test_there_is_one_state_for_whatever_is_said(
    deployment: str,
    ray: str,
    queue: bool,
    suspend: bool,
    deleting: bool,
    submitting: bool,
    failed: int,
    message: str | None,
    reason: str,
    pods: list[Object],
    held: list[Object] | None,
    unreached: bool,
) -> None:
    status = {"failed": failed, "message": message, "reason": reason}
    status |= {"jobStatusCheckFailureStartTime": at(-3)} if unreached else {}
    found = job(deployment, ray, queue=queue, suspend=suspend, **status)
    if deleting:
        found["metadata"]["deletionTimestamp"] = at(-1)
    if submitting:
        found["metadata"]["annotations"] = {SUBMITTING: at(-1)}
    queued_as = None if held is None else {"metadata": {}, "spec": {}, "status": {"conditions": held}}
    facts = Facts(found, pods=pods, workload=queued_as)
    before = copy.deepcopy(facts)
    state = state_of(facts, NOW)
    assert state.state in STATES
    assert state == state_of(facts, NOW)
    assert facts == before
    assert "\n" not in state.line
    # Success is Ray's word alone, and an end is KubeRay's.
    assert state.state != "succeeded" or (ray == "SUCCEEDED" and deployment in ("Complete", "Failed"))
    assert state.final == (deployment in ("Complete", "Failed", "ValidationFailed"))
    assert state.state != "running" or (deployment == "Running" and ray == "RUNNING")
    assert 1 <= state.attempt <= state.attempts
    if suspend and not state.final and not deleting and not submitting and deployment != "Retrying":
        assert state.state in ("queued" if queue else "suspended", "starting", "unknown")


def test_a_job_that_is_not_there() -> None:
    assert (seen(None).state, seen(None).final) == ("gone", True)


# --- Why it ended -------------------------------------------------------------------------------------------


def test_the_line_of_our_own_program_is_the_reason() -> None:
    message = (
        "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\n"
        "train     3 of 30 epochs\nhcs-ray: s3://b/s: train main is stale: train.lr changed\n"
    )
    found = seen(job("Failed", "FAILED", reason="AppFailed", message=message, failed=3))
    assert found.line == "failed (attempt 3 of 3): s3://b/s: train main is stale: train.lr changed"


def test_without_one_kuberays_words_and_the_dead_pods_are() -> None:
    dead = pod("head", phase="Failed", containerStatuses=container(
        "ray-head", terminated={"exitCode": 137, "reason": "OOMKilled"}
    ))  # fmt: skip
    found = seen(
        job("Failed", "RUNNING", reason="DeadlineExceeded", message="The RayJob has passed"), pods=[dead]
    )
    assert found.reason == (
        "DeadlineExceeded: The RayJob has passed; head lost: OOMKilled: ray-head needed more memory than its "
        "limit; Ray's last word was RUNNING"
    )


def test_contradictions_are_told() -> None:
    late = seen(job("Failed", "SUCCEEDED", reason="SubmissionFailed", message="BackoffLimitExceeded"))
    assert late.line == "succeeded: though KubeRay calls it Failed: SubmissionFailed: BackoffLimitExceeded"
    assert (
        "KubeRay calls it Complete, but Ray's last word was RUNNING" in seen(job("Complete", "RUNNING")).line
    )
    assert "Ray says FAILED; KubeRay winds up" in seen(job("Running", "FAILED")).line


def test_what_kuberay_refuses_for_good() -> None:
    spec = "the ttlSecondsAfterFinished is negative"
    assert seen(job("ValidationFailed", message=spec)).line == f"invalid: KubeRay refuses it: {spec}"
    by_event = seen(job("ValidationFailed"), events=[event("j", "InvalidRayJobSpec", spec)])
    assert by_event.line == f"invalid: KubeRay refuses it: InvalidRayJobSpec: {spec}"


def test_a_retry_says_what_failed_and_counts() -> None:
    found = seen(job("Retrying", "FAILED", failed=1, reason="AppFailed", message="hcs-ray: no GPU"))
    assert found.line == "retrying (attempt 2 of 3): the last attempt failed: no GPU; a new cluster follows"
    assert seen(job("Running", "RUNNING", failed=2)).line == "running (attempt 3 of 3)"


# --- Why it waits -------------------------------------------------------------------------------------------


def test_pods_that_no_node_takes_are_counted() -> None:
    full = unschedulable("0/5 nodes are available: 5 Insufficient nvidia.com/gpu.")
    pods = [pod(conditions=full), pod(conditions=full), pod("head", phase="Running")]
    assert seen(job("Initializing"), pods=pods).line == (
        "starting: 2 gpu workers: no node takes it: 0/5 nodes are available: 5 Insufficient nvidia.com/gpu."
    )
    # KubeRay calls it Running, while the program waits for its workers.
    assert seen(job("Running", "RUNNING"), pods=pods).line.startswith(
        "running: 2 gpu workers: no node takes it"
    )


@pytest.mark.parametrize(
    ("reason", "message", "told"),
    [
        ("ImagePullBackOff", "Back-off", "ImagePullBackOff (ray-worker): Back-off"),
        ("CreateContainerConfigError", "no secret", "CreateContainerConfigError (ray-worker): no secret"),
        ("ContainerCreating", None, "its containers are being started"),
    ],
)
def test_containers_that_do_not_start(reason: str, message: str | None, told: str) -> None:
    found = pod(containerStatuses=container("ray-worker", waiting={"reason": reason, "message": message}))
    assert waits([found], []) == [f"gpu worker: {told}"]


def test_events_say_what_statuses_do_not() -> None:
    creating = pod(containerStatuses=container("ray-worker", waiting={"reason": "ContainerCreating"}))
    mount = event("p-worker", "FailedMount", 'configmap "study" not found')
    assert waits([creating], [mount]) == ['gpu worker: FailedMount: configmap "study" not found']
    # Pods that a quota forbids are never made.
    quota = event("c", "FailedToCreateHeadPod", "exceeded quota: team, requested: cpu=8, limited: cpu=4")
    cluster = {"metadata": {"name": "job-x", "uid": "c"}}
    found = seen(job("Initializing"), cluster=cluster, events=[quota])
    assert found.line == f"starting: FailedToCreateHeadPod: {quota['message']}"
    old = event("c", "FailedToCreateHeadPod", "exceeded quota", minutes=-60)
    assert seen(job("Initializing"), cluster=cluster, events=[old]).reason == ""


def test_a_job_that_no_operator_takes_up() -> None:
    assert "does its operator run, and watch this namespace?" in seen(job()).reason
    fresh = job()
    fresh["metadata"]["creationTimestamp"] = at(-0.1)
    assert seen(fresh).reason == "KubeRay has not taken it up yet"


def test_lost_workers_are_told_while_the_job_runs() -> None:
    spot = pod(phase="Failed", conditions=[{
        "type": "DisruptionTarget", "status": "True", "reason": "DeletionByTaintManager",
        "message": "Taint manager: deleting due to NoExecute taint",
    }])  # fmt: skip
    evicted = pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory.")
    assert losses([spot, evicted, evicted]) == [
        "gpu worker lost: DeletionByTaintManager: Taint manager: deleting due to NoExecute taint",
        "2 gpu workers lost: Evicted: The node was low on resource: memory.",
    ]
    assert seen(job("Running", "RUNNING"), pods=[spot]).reason.startswith("gpu worker lost: ")
    away = seen(job("Running", "RUNNING", jobStatusCheckFailureStartTime=at(-2)), pods=[spot])
    assert away.reason.startswith(f"KubeRay has not reached its head since {at(-2)}; gpu worker lost")


# --- Queues -------------------------------------------------------------------------------------------------


def queued(*conditions: tuple[str, str, str, str], **spec: Any) -> str:
    return seen(job("Suspended", queue=True, suspend=True), workload=workload(*conditions, **spec)).line


def test_kueue_says_why_a_job_waits() -> None:
    short = (
        "couldn't assign flavors to pod set gpu: insufficient unused quota for nvidia.com/gpu, 2 more needed"
    )
    assert queued(("QuotaReserved", "False", "Pending", short)) == f"queued: in gpus: {short}"
    assert queued() == "queued: in gpus: Kueue has not looked at it yet"
    assert "deactivated" in queued(active=False)
    assert queued(("Admitted", "True", "Admitted", "")) == "queued: in gpus: admitted; it starts"
    assert "no Workload that may be read" in seen(job("Suspended", queue=True, suspend=True)).line


def test_preemption_is_told_with_what_it_waits_for() -> None:
    line = queued(
        ("Evicted", "True", "Preempted", "Preempted to accommodate another"),
        ("Preempted", "True", "InClusterQueue", "Preempted to accommodate a workload (UID: 7)"),
        ("QuotaReserved", "False", "Pending", "2 more needed"),
    )
    assert line == (
        "queued: in gpus: preempted (InClusterQueue): Preempted to accommodate a workload (UID: 7); "
        "2 more needed"
    )
    stopped = queued(("Evicted", "True", "ClusterQueueStopped", "The ClusterQueue is stopped"))
    assert stopped == "queued: in gpus: evicted (ClusterQueueStopped): The ClusterQueue is stopped"


def test_held_by_hand_and_half_made() -> None:
    assert seen(job("Suspended", suspend=True)).line == "suspended: until somebody sets spec.suspend to false"
    half = job("Suspended", suspend=True)
    half["metadata"]["annotations"] = {SUBMITTING: at(-5)}
    assert seen(half).state == "submitting"


# --- What it takes ----------------------------------------------------------------------------------------


def timed(began: float, ended: float | None = None, **resources: Any) -> Object:
    found = pod(phase="Running" if ended is None else "Succeeded")
    found["spec"] = {"containers": [{"name": "ray-worker", "resources": resources}]}
    found["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "True", "lastTransitionTime": at(began)}
    ]
    if ended is not None:
        found["status"]["containerStatuses"] = container("ray-worker", terminated={"finishedAt": at(ended)})
    return found


FIXED = {**job("Running", "RUNNING"), "spec": {"rayClusterSpec": {}}}


def test_hours_count_from_the_node_to_the_end() -> None:
    pods = [
        timed(-120, -60, requests={"cpu": "4"}),
        timed(-30, limits={"cpu": "500m", "nvidia.com/gpu": 2}),
        pod(conditions=unschedulable("none")) | {"spec": {"containers": []}},
    ]
    usage = usage_of(FIXED, pods, NOW)
    assert (usage.cpu_hours, usage.gpu_hours) == pytest.approx((4 + 0.25, 1.0))
    prices = Prices(cpu_hour=0.1, gpu_hour=2.0, currency="EUR")
    assert usage.cost(prices) == pytest.approx(2.425)
    assert usage.words(prices) == "4.2 CPU-hours, 1.0 GPU-hours, 2.42 EUR"
    assert usage.words(None) == "4.2 CPU-hours, 1.0 GPU-hours"


def test_a_sidecar_counts_and_an_init_container_only_where_it_is_larger() -> None:
    both = timed(-60, requests={"cpu": "2"})
    both["spec"]["initContainers"] = [
        {"name": "ship-logs", "restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}},
        {"name": "wait", "resources": {"requests": {"cpu": "2500m"}}},
    ]
    assert usage_of(FIXED, [both], NOW).cpu_hours == pytest.approx(3)
    both["spec"]["initContainers"][1]["resources"]["requests"]["cpu"] = "5"
    assert usage_of(FIXED, [both], NOW).cpu_hours == pytest.approx(5)


def test_figures_are_a_lower_bound_where_pods_may_be_forgotten() -> None:
    assert not usage_of(FIXED, [], NOW).at_least
    scaling = {**FIXED, "spec": {"rayClusterSpec": {"enableInTreeAutoscaling": True}}}
    retried = {**FIXED, "status": {"jobDeploymentStatus": "Running", "failed": 1}}
    over = {**FIXED, "status": {"jobDeploymentStatus": "Complete"}}
    assert all(usage_of(found, [], NOW).at_least for found in (scaling, retried, over))
    assert usage_of(over, [], NOW).words(None) == "at least 0.0 CPU-hours, 0.0 GPU-hours"


@given(began=st.floats(-600, -0.1), ended=st.floats(-600, 0), cpus=st.integers(0, 64), gpus=st.integers(0, 8))
@settings(deadline=None, max_examples=50)
def test_no_pod_takes_less_than_nothing_nor_more_than_it_lived(
    began: float, ended: float, cpus: int, gpus: int
) -> None:
    usage = usage_of(FIXED, [timed(began, ended, requests={"cpu": cpus}, limits={"amd.com/gpu": gpus})], NOW)
    longest = -began / 60 + 1 / 3600
    assert 0 <= usage.cpu_hours <= cpus * longest
    assert 0 <= usage.gpu_hours <= gpus * longest
