"""A job's logs: from the API server while its pods live, from the bucket afterwards."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Final

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs.gather import facts_of
from hcs_ray.jobs.held import study_of
from hcs_ray.jobs.kinds import CLUSTER, JOB_NAME, POD, RAY_JOB, RUN, Object, label, name_of, status_of
from hcs_ray.jobs.kube import Kube, KubeError
from hcs_ray.jobs.parts import Pod, Shipped, content, shipped_files, shipped_pods
from hcs_ray.jobs.ship import impatient
from hcs_ray.jobs.state import state_of
from hcs_ray.jobs.waiting import why_lost, why_waiting
from hcs_ray.jobs.words import Say
from hcs_ray.storage import Storage

_SUBMITTER: Final = "ray-job-submitter"
_DRIVER_FILES: Final = "job-driver-*.log"
_HEAD_FILES: Final = "gcs_server*"  # only a head has them
_POLL_S: Final = 5.0


@dataclass(frozen=True)
class Wanted:
    """Which logs: of the driver, unless a pod, the head or a worker (counted from 0) is named.

    Args:
        files: shipped files whose names match, as ``worker-*.err``; the pod's own log is not asked for then.
        attempt: the RayCluster's name; none: the newest.
        tail: at most so many lines of a pod's own log.
    """

    pod: str | None = None
    head: bool = False
    worker: int | None = None
    files: str | None = None
    attempt: str | None = None
    tail: int | None = None

    def __post_init__(self) -> None:
        if sum((self.pod is not None, self.head, self.worker is not None)) > 1:
            raise InputError("--pod, --head and --worker: one at a time")

    @property
    def words(self) -> str:
        """What it is of."""
        if self.pod is not None:
            return f"pod {self.pod}"
        if self.head:
            return "the head"
        return "the driver" if self.worker is None else f"worker {self.worker}"

    @property
    def is_driver(self) -> bool:
        return self.pod is None and not self.head and self.worker is None


@dataclass(frozen=True)
class Job:
    """A RayJob as far as it is still there, and its bucket as far as that may be read."""

    name: str
    kube: Kube | None = None
    found: Object | None = None
    storage: Storage | None = None
    run: str | None = None
    no_bucket: str = ""  # why there is no storage

    @property
    def cluster(self) -> str:
        """The RayCluster of its present or last attempt; empty where that is not known."""
        return str(status_of(self.found).get("rayClusterName", ""))

    def pods(self, wanted: Wanted) -> list[Object]:
        """The live pods that can be meant, the oldest first."""
        if self.kube is None:
            return []
        if wanted.pod is not None:
            found = self.kube.get(POD, wanted.pod)
            return [found] if found else []
        if wanted.is_driver:
            if wanted.attempt not in (None, self.cluster):
                return []
            selector = f"{JOB_NAME}={self.name}"
        elif cluster := wanted.attempt or self.cluster:
            selector = f"{CLUSTER}={cluster},ray.io/node-type={'head' if wanted.head else 'worker'}"
        else:
            return []
        found_pods = self.kube.list(POD, selector)
        return sorted(
            found_pods, key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), name_of(pod))
        )


def find_job(
    name: str, kube: Callable[[], Kube] | None, given: Callable[[], Storage] | None, say: Say
) -> Job:
    """A job by its name.

    ``given`` opens the study that the user has named; without it the RayJob's own ConfigMap says where its
    study lies. What cannot be reached is said, and the other asked.
    """
    cluster, found, storage, why = None, None, None, ""
    if kube is not None:
        try:
            cluster = kube()
            found = cluster.get(RAY_JOB, name)
        except HcsError as error:
            if given is None:
                raise
            say(f"without the API server: {error}")
            cluster = None
    try:
        storage = given() if given else _storage_of(cluster, found, name)
    except HcsError as error:
        why = str(error)
    run = label(found, RUN) if found else None
    return Job(name, cluster, found, storage, run or None, why)


def _storage_of(kube: Kube | None, job: Object | None, name: str) -> Storage:
    if kube is None or job is None:
        raise HcsError(f"there is no RayJob {name}; --study STUDY says in which study its logs are")
    try:
        return study_of(kube, job).storage
    except HcsError as error:
        raise HcsError(f"{error}; --study STUDY says where its logs are") from None


def logs(job: Job, wanted: Wanted, follow: bool, out: Callable[[bytes], None], say: Say) -> None:
    """Write the logs that are wanted, from where they are.

    Raises:
        HcsError: they are in neither place, and what the API server knows instead.
    """
    pods = job.pods(wanted) if wanted.files is None else []
    chosen = _chosen(pods, wanted)
    readable = chosen is not None and why_waiting(chosen) is None
    if chosen is not None and readable and _from_pod(job, chosen, wanted, follow, out, say):
        return
    if job.storage is None:
        raise HcsError(f"no logs of {wanted.words} in the bucket: {job.no_bucket}; {_known(job, chosen)}")
    storage = job.storage if follow else impatient(job.storage)  # who follows waits for a store that is away
    try:
        found = _from_bucket(job, storage, wanted, follow, out, say)
    except HcsError as error:
        raise HcsError(f"no logs of {wanted.words} in the bucket: {error}; {_known(job, chosen)}") from None
    if not found:
        raise HcsError(
            f"{job.storage.url}: no logs of {wanted.words} of {job.name} were shipped; {_known(job, chosen)}"
        )


def _chosen(pods: list[Object], wanted: Wanted) -> Object | None:
    if wanted.worker is None:
        return pods[-1] if pods else None  # a submitter that was tried again is the later one
    return pods[wanted.worker] if wanted.worker < len(pods) else None


def _from_pod(
    job: Job, pod: Object, wanted: Wanted, follow: bool, out: Callable[[bytes], None], say: Say
) -> bool:
    """The pod's own log; False where its node does not give it."""
    assert job.kube is not None
    container = _SUBMITTER if wanted.is_driver else str(pod["spec"]["containers"][0]["name"])
    told = False
    try:
        for line in job.kube.log(name_of(pod), container, follow=follow, tail=wanted.tail):
            out(f"{line}\n".encode())
            told = True
    except KubeError as error:
        if told or job.storage is None:
            raise
        say(f"from the bucket instead: {error}")
        return False
    if not wanted.is_driver:
        say(f"That is what {container} printed; its tasks' and Ray's own files: --files 'worker-*'")
    return True


def _known(job: Job, pod: Object | None) -> str:
    """What the API server says where there is no log."""
    if job.kube is None:
        return "the API server was not asked"
    if job.found is None:
        return f"there is no RayJob {job.name} in namespace {job.kube.namespace} any more"
    told = f"{job.name} is {state_of(facts_of(job.kube, job.name)).line}"
    why = (why_lost(pod) or why_waiting(pod)) if pod is not None else None
    return f"{told}, pod {name_of(pod)}: {why}" if pod is not None and why else told


# --- the bucket -------------------------------------------------------------------------------------------


def _from_bucket(
    job: Job, storage: Storage, wanted: Wanted, follow: bool, out: Callable[[bytes], None], say: Say
) -> bool:
    pods = shipped_pods(storage, job.name, job.run)
    attempt = wanted.attempt or job.cluster or newest_attempt(storage, pods)
    others = sorted({pod.attempt for pod in pods} - {attempt})
    pods = [pod for pod in pods if pod.attempt == attempt]
    if others:
        say(f"attempt {attempt}; --attempt takes another: {', '.join(others)}")
    written: dict[tuple[Pod, str], int] = {}
    several = not wanted.is_driver or wanted.files is not None
    while True:
        live = follow and _is_live(job)
        for pod, file in _wanted_files(storage, pods, wanted):
            key, since = (pod, file.file), written.get((pod, file.file), 0)
            if several and len(file.parts) > since:
                out(f"==> {pod.pod}: {file.file} <==\n".encode())
            for data in content(storage, file, since):
                out(data)
            written[key] = len(file.parts)
        if not live:
            return bool(written)
        time.sleep(_POLL_S)
        pods = [pod for pod in shipped_pods(storage, job.name, job.run) if pod.attempt == attempt]


def _is_live(job: Job) -> bool:
    """Whether more may come."""
    found = job.kube.get(RAY_JOB, job.name) if job.kube else None
    ended = ("Complete", "Failed", "ValidationFailed")
    return found is not None and status_of(found).get("jobDeploymentStatus") not in ended


def newest_attempt(storage: Storage, pods: list[Pod]) -> str:
    """The attempt that has written last: its name tells nothing of its time."""
    times: dict[str, float] = {}
    for pod in pods:
        for file in shipped_files(storage, pod).values():
            last = storage.modified(file.parts[-1][0])
            if last is not None:
                times[pod.attempt] = max(times.get(pod.attempt, 0.0), last.timestamp())
    return max(times, key=lambda attempt: times[attempt], default="")


def _wanted_files(storage: Storage, pods: list[Pod], wanted: Wanted) -> Iterator[tuple[Pod, Shipped]]:
    files = {pod: shipped_files(storage, pod) for pod in pods}
    heads = {pod for pod in pods if any(fnmatchcase(file, _HEAD_FILES) for file in files[pod])}
    workers = [pod for pod in pods if pod not in heads]
    if wanted.pod is not None:
        chosen = [pod for pod in pods if pod.pod == wanted.pod]
    elif wanted.worker is not None:
        chosen = workers[wanted.worker : wanted.worker + 1]
    elif wanted.files is not None and not wanted.head:
        chosen = pods
    else:
        chosen = sorted(heads, key=lambda pod: pod.pod)
    pattern = wanted.files or (_DRIVER_FILES if wanted.is_driver else "*")
    for pod in chosen:
        yield from ((pod, file) for name, file in files[pod].items() if fnmatchcase(name, pattern))
