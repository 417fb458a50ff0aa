"""The kinds of objects that are made, read or deleted on a cluster, and the marks that we set on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from hcs_ray.contracts import InputError

Object = dict[str, Any]  # a Kubernetes object, as its JSON has it
Objects = list[Object]
KUBERAY: Final = "ray.io"
KUEUE: Final = "kueue.x-k8s.io"


@dataclass(frozen=True)
class Kind:
    """A kind of object; ``versions`` of its group that we can read, the newest first."""

    name: str
    plural: str
    group: str = ""
    versions: tuple[str, ...] = ("v1",)
    namespaced: bool = True


_KUEUE_VERSIONS: Final = ("v1beta2", "v1beta1")
RAY_JOB: Final = Kind("RayJob", "rayjobs", KUBERAY)
RAY_CLUSTER: Final = Kind("RayCluster", "rayclusters", KUBERAY)
JOB: Final = Kind("Job", "jobs", "batch")
POD: Final = Kind("Pod", "pods")
CONFIG_MAP: Final = Kind("ConfigMap", "configmaps")
SECRET: Final = Kind("Secret", "secrets")
EVENT: Final = Kind("Event", "events")
NODE: Final = Kind("Node", "nodes", namespaced=False)
RESOURCE_QUOTA: Final = Kind("ResourceQuota", "resourcequotas")
NETWORK_POLICY: Final = Kind("NetworkPolicy", "networkpolicies", "networking.k8s.io")
LOCAL_QUEUE: Final = Kind("LocalQueue", "localqueues", KUEUE, _KUEUE_VERSIONS)
CLUSTER_QUEUE: Final = Kind("ClusterQueue", "clusterqueues", KUEUE, _KUEUE_VERSIONS, namespaced=False)
WORKLOAD: Final = Kind("Workload", "workloads", KUEUE, _KUEUE_VERSIONS)
_CREATED: Final = {kind.name: kind for kind in (RAY_JOB, JOB, CONFIG_MAP, NETWORK_POLICY)}

PART_OF: Final = "app.kubernetes.io/part-of"
OURS: Final = f"{PART_OF}=hcs-ray"  # the selector of every object that we make
RUN: Final = "hcs-ray/run"
STAGE: Final = "hcs-ray/stage"
ROOT: Final = "hcs-ray/root"  # annotation of a RayJob: where its study lies
PRICES: Final = "hcs-ray/prices"  # annotation of a RayJob: cluster.prices of its study, as JSON
SUBMITTING: Final = "hcs-ray/submitting"  # annotation of a RayJob that is not whole yet: since when
PREFLIGHT: Final = "hcs-ray/preflight"  # label of a preflight's Job: the RayJob that it goes before
QUEUE: Final = "kueue.x-k8s.io/queue-name"
CLUSTER: Final = "ray.io/cluster"  # label of pods
JOB_NAME: Final = "batch.kubernetes.io/job-name"  # label of pods


def name_of(found: Object) -> str:
    return str(found["metadata"]["name"])


def uid_of(found: Object) -> str:
    return str(found["metadata"].get("uid", ""))


def label(found: Object, key: str) -> str:
    """A label's value; empty where there is none."""
    return str((found["metadata"].get("labels") or {}).get(key, ""))


def annotation(found: Object, key: str) -> str:
    """An annotation's value; empty where there is none."""
    return str((found["metadata"].get("annotations") or {}).get(key, ""))


def owners(found: Object) -> list[str]:
    """The uids of the objects that an object goes with."""
    return [str(owner["uid"]) for owner in found["metadata"].get("ownerReferences") or ()]


def status_of(found: Object | None) -> Object:
    """An object's status; empty where there is none yet."""
    return dict((found or {}).get("status") or {})


def condition(found: Object | None, kind: str) -> Object:
    """A condition of an object's status; empty where it was never set."""
    conditions = status_of(found).get("conditions") or ()
    return next((dict(one) for one in conditions if one.get("type") == kind), {})


def instant(text: object) -> datetime | None:
    """A time as Kubernetes writes it."""
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None


def created(found: Mapping[str, Any]) -> datetime | None:
    return instant(found["metadata"].get("creationTimestamp"))


def creatable(manifest: Mapping[str, Any]) -> Kind:
    """The kind of an object that a submission makes.

    Raises:
        InputError: it is none of these.
    """
    kind = _CREATED.get(str(manifest["kind"]))
    if kind is None:
        raise InputError(
            f"the job set renders a {manifest['kind']}, and a submission makes {', '.join(_CREATED)} alone; "
            "apply it beforehand, with kubectl"
        )
    return kind
