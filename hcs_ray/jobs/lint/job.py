"""The parts of a RayJob that rules speak of: its groups, pods and containers."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

from hcs_ray.jobs.lint.node import Node, quantity

# What KubeRay gives the autoscaler where autoscalerOptions do not say.
_AUTOSCALER = {"cpu": "500m", "memory": "512Mi"}
UNBOUNDED = 2**31 - 1  # the CRD's default of maxReplicas
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode")


@dataclass(frozen=True)
class Pod:
    """A pod template of a job.

    Args:
        role: ``submitter``, ``head`` or ``worker``.
        group: the head or worker group, the job's spec of the submitter.
        most: so many such pods at most.
        added: resources of a container that KubeRay adds to it, which is not in the template.
    """

    role: str
    group: Node
    template: Node
    most: int
    added: Node | None = None

    @property
    def spec(self) -> Node:
        return self.template["spec"]

    @property
    def containers(self) -> list[Node]:
        """All, the init containers first."""
        return [*self.spec["initContainers"], *self.spec["containers"]]

    @property
    def main(self) -> Node:
        """The container that Ray, or the submission, runs in: KubeRay takes the first."""
        return self.spec["containers"][0]

    def amount(self, kind: str, part: str = "requests") -> Decimal:
        """What one pod takes of a resource: its containers with native sidecars, or its largest init."""
        own = sum((_of(item, part, kind) for item in self.spec["containers"]), Decimal(0))
        own += _amount(self.added[part][kind]) if self.added else Decimal(0)
        inits = list(self.spec["initContainers"])
        sidecars = [item for item in inits if item["restartPolicy"].value == "Always"]
        lasting = own + sum((_of(item, part, kind) for item in sidecars), Decimal(0))
        return max([lasting, *(_of(item, part, kind) for item in inits if item not in sidecars)])

    @property
    def kinds(self) -> set[str]:
        """The names of all resources that its containers ask for."""
        return {
            kind
            for item in self.containers
            for part in ("requests", "limits")
            for kind in item["resources"][part].keys
        }

    @property
    def gpus(self) -> int:
        """GPUs of the container that Ray runs in, of whatever make."""
        limits = self.main["resources"]["limits"]
        return int(sum(quantity(limits[kind].value) for kind in limits.keys if is_gpu(kind)))


@dataclass(frozen=True)
class Job:
    """A RayJob."""

    node: Node

    @property
    def spec(self) -> Node:
        return self.node["spec"]

    @property
    def cluster(self) -> Node:
        return self.spec["rayClusterSpec"]

    @property
    def head(self) -> Node:
        return self.cluster["headGroupSpec"]

    @property
    def workers(self) -> list[Node]:
        return list(self.cluster["workerGroupSpecs"])

    @property
    def groups(self) -> list[Node]:
        return [self.head, *self.workers] if self.cluster else []

    @property
    def mode(self) -> str:
        return str(self.spec["submissionMode"].value or "K8sJobMode")

    @property
    def autoscales(self) -> bool:
        return bool(self.cluster["enableInTreeAutoscaling"])

    @property
    def autoscaler_v2(self) -> bool:
        return bool(self.cluster.at("autoscalerOptions.version").value == "v2")

    @property
    def labels(self) -> Node:
        return self.node.at("metadata.labels")

    @cached_property
    def pods(self) -> list[Pod]:
        """The pod templates that are written down; a submitter's may be missing."""
        found = []
        if self.spec["submitterPodTemplate"]:
            found.append(Pod("submitter", self.spec, self.spec["submitterPodTemplate"], 1))
        if self.cluster:
            found.append(Pod("head", self.head, self.head["template"], 1, self._autoscaler))
        found += [
            Pod("worker", group, group["template"], most(group, self.autoscales)) for group in self.workers
        ]
        return found

    def total(self, kind: str, part: str = "requests") -> Decimal:
        """What all pods take of a resource at most."""
        return sum((pod.most * pod.amount(kind, part) for pod in self.pods), Decimal(0))

    @property
    def _autoscaler(self) -> Node | None:
        """The resources of the container that KubeRay adds to the head of a cluster that scales."""
        if not self.autoscales:
            return None
        given = self.cluster.at("autoscalerOptions.resources")
        return given or Node(given.path, {"requests": _AUTOSCALER, "limits": _AUTOSCALER})

    @property
    def gpus(self) -> int:
        """GPUs of all pods at most."""
        return sum(pod.most * pod.gpus for pod in self.pods)


def most(group: Node, autoscales: bool) -> int:
    """Pods of a worker group at most: hosts times replicas."""
    key, default = ("maxReplicas", UNBOUNDED) if autoscales else ("replicas", 0)
    replicas, hosts = group[key].value, group["numOfHosts"].value
    return int(default if replicas is None else replicas) * int(1 if hosts is None else hosts)


def is_gpu(kind: str) -> bool:
    """Whether a resource is a GPU or a part of one: ``nvidia.com/gpu``, ``nvidia.com/mig-1g.5gb``."""
    return str(kind).endswith("gpu") or "/mig-" in str(kind)


def has_variable(container: Node, name: str) -> Node | None:
    """The environment variable of that name, if a container has it."""
    return next((item for item in container["env"] if item["name"].value == name), None)


def _of(container: Node, part: str, kind: str) -> Decimal:
    """A request that is not written is the limit, as Kubernetes has it."""
    found = _amount(container["resources"][part][kind])
    if part == "requests" and container["resources"][part][kind].value is None:
        return _amount(container["resources"]["limits"][kind])
    return found


def _amount(node: Node) -> Decimal:
    return Decimal(0) if node.value is None else quantity(node.value)
