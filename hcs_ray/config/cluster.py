"""Where on a cluster a study's jobs run, and as whom."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pydantic
from pydantic import AfterValidator, Field

from hcs_ray.config.base import NonNegativeInt, Section

_SUBDOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_FILE_KEY = re.compile(r"[-._A-Za-z0-9]{1,253}")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_IMAGE = re.compile(
    r"([\w.-]+(:\d+)?/)?[\w.-]+(/[\w.-]+)*(:(?P<tag>\w[\w.-]{0,127}))?(?P<digest>@sha256:[0-9a-f]{64})?"
)
_OURS = ("hcs-ray/", "ray.io/", "kueue.x-k8s.io/", "app.kubernetes.io/part-of")


def _object_name(name: str) -> str:
    if not _SUBDOMAIN.fullmatch(name):
        raise ValueError("a name on Kubernetes has lower-case letters, digits, dashes and dots")
    return name


def checked_namespace(name: str) -> str:
    """A namespace's name, or ValueError."""
    if not _DNS_LABEL.fullmatch(name):
        raise ValueError("a namespace has at most 63 lower-case letters, digits and dashes")
    return name


def _file_key(key: str) -> str:
    if not _FILE_KEY.fullmatch(key) or key == "." or key.startswith(".."):
        raise ValueError("a key of a ConfigMap is a file's name: letters, digits, dots, dashes, underscores")
    return key


def _label_value(value: str) -> str:
    if value and not _LABEL_NAME.fullmatch(value):
        raise ValueError(
            "the value of a label has at most 63 letters, digits, dashes, dots and underscores, "
            "and begins and ends with a letter or a digit"
        )
    return value


def _label_key(key: str) -> str:
    prefix, slash, name = key.rpartition("/")
    if not _LABEL_NAME.fullmatch(name) or (slash and not _SUBDOMAIN.fullmatch(prefix)):
        raise ValueError("a label's key is a name of at most 63 characters, or example.org/name")
    return key


def _own_key(key: str) -> str:
    if key.startswith(_OURS):
        raise ValueError(f"hcs-ray, KubeRay and Kueue set the labels {', '.join(_OURS)} themselves")
    return _label_key(key)


def _image(image: str) -> str:
    """A full reference; ``latest`` and no tag at all are another image tomorrow."""
    found = _IMAGE.fullmatch(image)
    if found is None:
        raise ValueError("it is no image; write repository:tag or repository@sha256:...")
    if found["digest"] is None and found["tag"] in (None, "latest"):
        raise ValueError(
            "an image needs a digest, or a tag other than latest, so that all pods have the same"
        )
    return image


Image = Annotated[str, AfterValidator(_image)]
Name = Annotated[str, AfterValidator(_object_name)]
Namespace = Annotated[str, AfterValidator(checked_namespace)]
LabelValue = Annotated[str, AfterValidator(_label_value)]
Labels = dict[Annotated[str, AfterValidator(_label_key)], LabelValue]
OwnLabels = dict[Annotated[str, AfterValidator(_own_key)], LabelValue]


class Toleration(Section):
    """A taint that pods tolerate, in the words of a pod's own ``tolerations``."""

    key: str | None = Field(None, description="none, with operator Exists: every taint")
    operator: Literal["Exists", "Equal"] = "Equal"
    value: LabelValue | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="none: all effects"
    )
    seconds: NonNegativeInt | None = Field(None, description="of NoExecute: how long; none: for ever")

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Toleration:
        if self.operator == "Exists" and self.value is not None:
            raise ValueError("operator Exists takes no value")
        if self.operator == "Equal" and self.key is None:
            raise ValueError("without key write operator: Exists")
        if self.seconds is not None and self.effect != "NoExecute":
            raise ValueError("seconds are of effect NoExecute")
        return self

    def manifest(self) -> dict[str, Any]:
        """As Kubernetes writes it."""
        found = self.model_dump(exclude_none=True)
        if "seconds" in found:
            found["tolerationSeconds"] = found.pop("seconds")
        return found


class CaBundle(Section):
    """A ConfigMap of the namespace with the certificates that the pods trust, PEM."""

    config_map: Name
    key: Annotated[str, AfterValidator(_file_key)] = "ca.crt"


class Prices(Section):
    """What an hour costs; `hcs-ray status` adds it up."""

    cpu_hour: Annotated[float, Field(ge=0)] = 0.0
    gpu_hour: Annotated[float, Field(ge=0)] = 0.0
    currency: str = "USD"


class ClusterConfig(Section):
    """`hcs-ray submit`: where jobs run. It says nothing of what comes out, so no stage reads it."""

    image: Image | None = Field(None, description="with a tag or digest; none: hcs-ray:<this version>")
    namespace: Namespace | None = Field(None, description="none: the one of kubectl's context")
    service_account: Name | None = Field(None, description="of head and workers, for workload identity")
    image_pull_secrets: tuple[Name, ...] = ()
    node_selector: Labels = Field(default_factory=dict, description="labels of the nodes, for all pods")
    gpu_node_selector: Labels = Field(
        default_factory=dict, description="more labels of the nodes, for pods with a GPU: which kind of GPU"
    )
    tolerations: tuple[Toleration, ...] = Field((), description="taints that all pods tolerate")
    runtime_class: Name | None = Field(None, description="of pods with a GPU, as nvidia")
    queue: Name | None = Field(None, description="a LocalQueue of Kueue")
    priority_class: Name | None = Field(None, description="a PriorityClass, for all pods")
    env_from: tuple[Name, ...] = Field(
        (), description="Secrets whose keys are variables of head, workers and logs: AWS_..., WANDB_API_KEY"
    )
    labels: OwnLabels = Field(default_factory=dict, description="for every object and pod")
    ca_bundle: CaBundle | None = None
    prices: Prices | None = None
