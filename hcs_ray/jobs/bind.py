"""A rendered job set bound to one run of a study: pure, from manifests to manifests."""

from __future__ import annotations

import copy
import secrets
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import yaml

from hcs_ray.config import StudyConfig, parse_sweep, with_overrides
from hcs_ray.contracts import InputError
from hcs_ray.jobs.conflicts import check_names, check_offered, check_stage, check_study
from hcs_ray.jobs.derive import Given, Pods, pods_of
from hcs_ray.jobs.kinds import PRICES, ROOT, RUN, STAGE
from hcs_ray.jobs.lint.job import is_gpu
from hcs_ray.jobs.lint.node import quantity
from hcs_ray.jobs.manifests import STAGES, Manifest
from hcs_ray.jobs.place import CA_FOLDER, label, place

STUDY_PATH: Final = "/study/study.yaml"
SWEEP_PATH: Final = "/study/sweep.yaml"
_STUDY_VOLUME: Final = "study"
_REFERENCES: Final = ("configMap", "configMapRef", "configMapKeyRef")


@dataclass(frozen=True)
class Run:
    """One submission of a stage.

    Args:
        stage: one of `hcs_ray.jobs.manifests.STAGES`.
        name: the run's name, the entrypoint's ``--name``.
        submission: part of the RayJob's name, another one for each submission; see `new_submission`.
        sweep: of ``tune``: the sweep file's text.
        arguments: further arguments of the entrypoint, as ``--force``.
    """

    stage: str
    name: str = "main"
    submission: str = "0"
    sweep: str | None = None
    arguments: tuple[str, ...] = ()

    @property
    def job(self) -> str:
        """The name of the RayJob."""
        return f"hcs-ray-{self.stage}-{self.submission}"


def new_submission() -> str:
    """A part of a name that no other submission has: eight random hexadecimal digits."""
    return secrets.token_hex(4)


def bind(manifests: Sequence[Manifest], study: StudyConfig, run: Run) -> list[Manifest]:
    """What is created for a run: ConfigMaps, with its study first, the RayJob, and what else was rendered.

    ``study`` is as resolved, with its ``root``. ``--set`` in the rendered entrypoint, which a component may
    have added, is applied to it: the study that travels is all there is to say.

    Raises:
        InputError: the study, the run and the manifests contradict each other.
    """
    found = copy.deepcopy(list(manifests))
    job = _one_job(found)
    check_names(run.name, run.submission)
    check_stage(job, run.stage)
    words, overrides = _entrypoint(job)
    study = with_overrides(study, overrides, "--set in the job's entrypoint")
    study = _trusting(study)
    place(job, study.cluster)
    check_study(job, study, run.stage)
    _size(job, study, run)
    job["spec"]["entrypoint"] = shlex.join([*_named(words, run.name), *run.arguments])
    job["metadata"]["name"] = run.job
    job["metadata"].setdefault("annotations", {})[ROOT] = study.root
    if study.cluster.prices is not None:
        job["metadata"]["annotations"][PRICES] = study.cluster.prices.model_dump_json()
    others = _rename_config_maps(found, job, run)
    bound = [_study_map(job, study, run), *others]
    for manifest in bound:
        label(manifest, {**study.cluster.labels, RUN: run.name, STAGE: run.stage})
        if study.cluster.namespace:
            manifest["metadata"]["namespace"] = study.cluster.namespace
    return bound


def _one_job(manifests: list[Manifest]) -> Manifest:
    jobs = [manifest for manifest in manifests if manifest["kind"] == "RayJob"]
    if len(jobs) != 1:
        raise InputError(f"the job set renders {len(jobs)} RayJobs; a submission is one")
    return jobs[0]


# --- The entrypoint -----------------------------------------------------------------------------------------


def _entrypoint(job: Manifest) -> tuple[list[str], list[str]]:
    """The words of the entrypoint without ``--set``, and what these set."""
    text = job["spec"].get("entrypoint", "")
    try:
        rest = iter(shlex.split(text))
    except ValueError as error:
        raise InputError(f"the job's entrypoint {text!r}: {error}") from None
    words, overrides = [], []
    for word in rest:
        if word == "--set":
            overrides.append(next(rest, ""))
        else:
            words.append(word)
    if words[:1] != ["hcs-ray"] or STUDY_PATH not in words:
        raise InputError(f"the job's entrypoint {text!r}: write hcs-ray COMMAND {STUDY_PATH} --name main")
    return words, overrides


def _named(words: list[str], name: str) -> list[str]:
    """The words with the run's name, whatever it was before."""
    if "--name" not in words:
        return [*words, "--name", name]
    place_of = words.index("--name") + 1
    return [*words[:place_of], name, *words[place_of + 1 :]]


# --- The study ----------------------------------------------------------------------------------------------


def _trusting(study: StudyConfig) -> StudyConfig:
    """With the certificates where the pods have them."""
    if study.cluster.ca_bundle is None:
        return study
    bundle = f"{CA_FOLDER}/{study.cluster.ca_bundle.key}"
    return study.model_copy(update={"storage": study.storage.model_copy(update={"ca_bundle": bundle})})


def _study_map(job: Manifest, study: StudyConfig, run: Run) -> Manifest:
    """The ConfigMap that the job's pods mount at /study.

    It goes without the section ``cluster``: the job reads nothing of it, so a run that goes on elsewhere has
    the same configuration, and no name of a Secret reaches the bucket.
    """
    config = study.model_dump(mode="json", exclude={"cluster"})
    data = {"study.yaml": yaml.safe_dump(config, sort_keys=False, allow_unicode=True)}
    if run.sweep is not None:
        data["sweep.yaml"] = run.sweep
    metadata: dict[str, Any] = {"name": f"{run.job}-study"}
    if "namespace" in job["metadata"]:
        metadata["namespace"] = job["metadata"]["namespace"]
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "immutable": True, "data": data}


def _rename_config_maps(manifests: list[Manifest], job: Manifest, run: Run) -> list[Manifest]:
    """The manifests but the rendered study, their ConfigMaps named for the submission, and so in the job.

    Two submissions that share a ConfigMap could not each own it.
    """
    pods = job["spec"]["rayClusterSpec"]
    studies = {
        volume["configMap"]["name"]
        for volume in _dicts(pods)
        if volume.get("name") == _STUDY_VOLUME and "configMap" in volume
    }
    if not studies:
        raise InputError(f"no pod of the job has the volume {_STUDY_VOLUME}, in which its study travels")
    rendered = [item for item in manifests if item["kind"] == "ConfigMap"]
    names = dict.fromkeys(studies, f"{run.job}-study")
    for item in rendered:
        old = item["metadata"]["name"]
        if old not in studies:
            names[old] = f"{run.job}-{old.removeprefix('hcs-ray-')}"
            item["metadata"]["name"] = names[old]
    for holder in _dicts(job["spec"]):
        for key in _REFERENCES:
            reference = holder.get(key)
            if isinstance(reference, dict) and reference.get("name") in names:
                reference["name"] = names[reference["name"]]
    kept = [
        item for item in manifests if item["kind"] != "ConfigMap" or item["metadata"]["name"] not in studies
    ]
    return sorted(kept, key=lambda item: (item["kind"] == "RayJob", item["kind"] != "ConfigMap"))


def _dicts(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for value in node.values():
            yield from _dicts(value)
    elif isinstance(node, list):
        for item in node:
            yield from _dicts(item)


# --- The worker groups --------------------------------------------------------------------------------------


def _size(job: Manifest, study: StudyConfig, run: Run) -> None:
    """Make the worker groups as many and as large as the study wants."""
    if run.stage not in STAGES:
        raise InputError(f"--stage {run.stage}: it is one of {', '.join(STAGES)}")
    if run.sweep is not None and run.stage != "tune":
        raise InputError(f"--sweep is of --stage tune, not of {run.stage}")
    sweep = None if run.sweep is None else parse_sweep(run.sweep, "--sweep")
    cluster = job["spec"]["rayClusterSpec"]
    groups = {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    wanted = pods_of(run.stage, study, _given(groups), sweep)
    for name in wanted:
        if name not in groups:
            raise InputError(f"stage {run.stage} runs on the worker group {name}, and the job set has none")
    grows = bool(cluster.get("enableInTreeAutoscaling"))
    for name, group in groups.items():
        pods = wanted.get(name)
        _count(group, pods, grows)
        if pods is not None:
            check_offered(group, dict(pods.resources or {}))
            _resources(group, pods)


def _given(groups: dict[str, Manifest]) -> Given:
    most = max((group.get("maxReplicas", 0) for group in groups.values()), default=0)
    cpus = [_limits(group)["cpu"] for name, group in groups.items() if name == "cpu"]
    return Given(max(1, most), max(1, int(quantity(cpus[0]))) if cpus else 1)


def _count(group: Manifest, pods: Pods | None, grows: bool) -> None:
    most = pods.most if pods else 0
    least = most if pods and (pods.always or not grows) else 0
    group.update(replicas=least, minReplicas=least, maxReplicas=most)


def _resources(group: Manifest, pods: Pods) -> None:
    """Cores and GPUs, as request and as limit. Ray offers them as its own resources; memory stays."""
    limits = _limits(group)
    gpu = next((kind for kind in limits if is_gpu(kind)), None)
    if pods.gpus and gpu is None:
        raise InputError(f"worker group {group['groupName']}: its container has no limit for a GPU")
    amounts: dict[str, Any] = {"cpu": str(pods.cpus)} | ({gpu: pods.gpus} if gpu and pods.gpus else {})
    for part in ("requests", "limits"):
        group["template"]["spec"]["containers"][0]["resources"].setdefault(part, {}).update(amounts)
    offered = group.get("resources", {})
    for name, amount in (("CPU", pods.cpus), ("GPU", pods.gpus)):
        if name in offered:
            offered[name] = str(amount)


def _limits(group: Manifest) -> dict[str, Any]:
    limits: dict[str, Any] = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    return limits
