"""What the tests of binding share: a study, and a job bound to it."""

from __future__ import annotations

from hcs_ray.config import StudyConfig, parse_study
from hcs_ray.jobs.bind import Run, bind
from hcs_ray.jobs.manifests import Manifest
from tests.k8s_manifests import composed, groups, job_of

ROOT = "root: s3://bucket/screen\n"
SWEEP = "space: {train.lr: {kind: loguniform, low: 1.0e-4, high: 1.0e-2}}\nsamples: 8\n"


def study(*overrides: str, text: str = ROOT) -> StudyConfig:
    return parse_study(text, "study.yaml", overrides)


def bound(config: StudyConfig, run: Run, *components: str) -> list[Manifest]:
    return bind(composed(run.stage, *components), config, run)


def sizes(manifests: list[Manifest]) -> dict[str, tuple[int, int, int, str, int]]:
    """Group -> replicas, least, most, CPU and GPUs of a pod, of those groups that have pods."""
    found = {}
    for name, group in groups(job_of(manifests)):
        if name != "head" and group["maxReplicas"]:
            limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            counts = (group["replicas"], group["minReplicas"], group["maxReplicas"])
            found[name] = (*counts, limits["cpu"], limits.get("nvidia.com/gpu", 0))
    return found
