"""The image: its Dockerfile, its pip steps, and that it agrees with the manifests.

No image is built here: that needs a daemon. What is run for real are the pip steps, by the script that the
Dockerfile runs.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from hcs_ray.jobs.manifests import Manifest
from tests.k8s_manifests import (
    K8S,
    cluster,
    containers,
    pinned_ray,
    pods,
    ray_job,
)

REPOSITORY = Path(__file__).resolve().parents[1]
DOCKERFILE = (REPOSITORY / "Dockerfile").read_text()
SCRIPT = REPOSITORY / ".ci" / "install_image.sh"
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
BASE: Manifest = ray_job("base")


# --- What the Dockerfile says -------------------------------------------------------------------------------


def hadolint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    command = shutil.which("hadolint", path=sysconfig.get_path("scripts")) or "hadolint"
    return subprocess.run([command, str(dockerfile)], capture_output=True, text=True, check=False)


def test_hadolint_has_nothing_to_say() -> None:
    done = hadolint(REPOSITORY / "Dockerfile")
    assert (done.returncode, done.stdout) == (0, "")


def test_hadolint_would_say_it(tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(DOCKERFILE.replace(" --no-install-recommends", ""))
    assert "DL3015" in hadolint(tmp_path / "Dockerfile").stdout


def test_base_and_index_are_arguments_and_name_no_host() -> None:
    assert re.search(r"^ARG BASE_IMAGE=python:3\.11-slim[-a-z]*$", DOCKERFILE, re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, re.MULTILINE)) == {"${BASE_IMAGE}"}
    for argument in ("PIP_INDEX_URL", "TORCH_INDEX_URL", "REVISION"):
        assert f"\nARG {argument}\n" in DOCKERFILE
    for text in (DOCKERFILE, SCRIPT.read_text()):
        assert not re.search(r"https?://|\b[\w-]+\.(io|com|org|net)/", text)


def test_it_is_labelled_with_version_and_revision() -> None:
    assert f"\nARG VERSION={PROJECT['version']}\n" in DOCKERFILE
    assert 'org.opencontainers.image.version="${VERSION}"' in DOCKERFILE
    assert 'org.opencontainers.image.revision="${REVISION}"' in DOCKERFILE


def test_packages_come_in_a_layer_below_ours_and_both_by_the_script() -> None:
    runs = re.findall(r"^RUN (?:[^\n]*\\\n)*[^\n]*", DOCKERFILE, re.MULTILINE)
    pip = [run for run in runs if "pip.conf" in run]
    assert [re.search(r"install_image\.sh (\w+) (\S+)$", run) is not None for run in pip] == [True, True]
    assert "packages /requirements" in pip[0]
    assert "hcs_ray /source" in pip[1]
    assert "pip install" not in DOCKERFILE
    assert not re.search(r"\b(gcc|g\+\+|build-essential|python3-dev|git)\b", "".join(runs))


def test_it_ends_as_the_user_that_runs_it_and_has_been_run() -> None:
    last = DOCKERFILE.split("\nUSER ")[1]
    assert "RUN hcs-ray --help && ray --version" in last


def test_the_context_holds_what_the_build_reads() -> None:
    kept = re.findall("^!(.+)$", (REPOSITORY / ".dockerignore").read_text(), re.MULTILINE)
    assert all((REPOSITORY / name).exists() for name in kept if name != "wheels")
    assert {"pyproject.toml", "constraints.txt", "hcs_ray", "k8s", "tune_configs"} <= set(kept)
    assert str(SCRIPT.relative_to(REPOSITORY)) in kept


# --- Image and manifests agree ------------------------------------------------------------------------------


def test_they_have_one_user() -> None:
    contexts = [cluster(BASE)["autoscalerOptions"]["securityContext"]]
    contexts += [container["securityContext"] for container in containers(BASE).values()]
    contexts += [pod["securityContext"] for _, pod in pods(BASE)]
    ((user, group),) = {(context["runAsUser"], context["runAsGroup"]) for context in contexts}
    assert f"useradd --uid {user} --gid {group} " in DOCKERFILE
    assert re.findall("^USER (.+)$", DOCKERFILE, re.MULTILINE) == [f"{user}:{group}"]


def test_they_have_one_version_and_one_ray() -> None:
    assert {container["image"] for container in containers(BASE).values()} == {
        f"hcs-ray:{PROJECT['version']}"
    }
    text = "".join(path.read_text() for path in K8S.rglob("*.yaml"))
    assert text.count(pinned_ray()) == 1
    assert cluster(BASE)["rayVersion"] == pinned_ray()


# --- The pip steps, run -------------------------------------------------------------------------------------


def new_environment(folder: Path) -> dict[str, str]:
    """A new virtual environment, and the variables with which its programs are found first."""
    venv.create(folder, with_pip=True)
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "PYTHONPATH")}
    return kept | {
        "PATH": f"{folder / 'bin'}:{os.environ.get('PATH', os.defpath)}",
        "VIRTUAL_ENV": str(folder),
    }


def install(step: str, source: Path, environment: dict[str, str]) -> None:
    command = ["bash", str(SCRIPT), step, str(source)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def a_copy_of_the_sources(folder: Path) -> Path:
    folder.mkdir()
    for name in ("pyproject.toml", "README.md", "constraints.txt"):
        shutil.copy(REPOSITORY / name, folder)
    for name in ("hcs_ray", "k8s", "tune_configs"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(REPOSITORY / name, folder / name, symlinks=True, ignore=ignored)
    return folder


def said(environment: dict[str, str], folder: Path, *command: str) -> str:
    done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def prove(environment: dict[str, str], folder: Path) -> None:
    """The commands of the image work in an empty folder, on the packages that are there."""
    folder.mkdir()
    assert "hcs-ray" in said(environment, folder, "hcs-ray", "--help")
    assert said(environment, folder, "ray", "--version").strip().endswith(f"version {pinned_ray()}")
    said(environment, folder, "hcs-ray", "k8s", "export", "mine")
    assert (folder / "mine/k8s/base/rayjob.yaml").read_bytes() == (K8S / "base/rayjob.yaml").read_bytes()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_steps_install_what_is_missing_beside_the_packages_that_are_here(tmp_path: Path) -> None:
    """A new environment above this one, so that only what this one lacks, and hcs_ray, is installed: 10 s."""
    environment = new_environment(tmp_path / "venv")
    own = Path(sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")}))
    (own / "below.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    environment["PATH"] += f":{sysconfig.get_path('scripts')}"
    source = a_copy_of_the_sources(tmp_path / "source")
    install("packages", source, environment)
    assert not (own / "hcs_ray").exists()
    install("hcs_ray", source, environment)
    where = said(environment, tmp_path, "python", "-c", "import hcs_ray; print(hcs_ray.__path__[0])")
    assert Path(where.strip()) == own / "hcs_ray"
    prove(environment, tmp_path / "empty")


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_the_steps_fill_a_new_environment_with_just_what_is_pinned(tmp_path: Path) -> None:
    """From nothing: 100 s of processor time, 2.9 GB of disk."""
    environment = new_environment(tmp_path / "venv")
    source = a_copy_of_the_sources(tmp_path / "source")
    install("packages", source, environment)
    install("hcs_ray", source, environment)
    said(environment, tmp_path, "python", "-m", "pip", "check")
    listed = json.loads(said(environment, tmp_path, "python", "-m", "pip", "list", "--format", "json"))
    installed = {canonicalize_name(item["name"]): item["version"] for item in listed}
    installed = {name: version for name, version in installed.items() if name not in ("hcs-ray", "pip")}
    lines = (REPOSITORY / "constraints.txt").read_text().splitlines()
    pinned = [Requirement(line) for line in lines if "==" in line]
    pins = {
        canonicalize_name(item.name): str(item.specifier).removeprefix("==")
        for item in pinned
        if item.marker is None or item.marker.evaluate()
    }
    assert {name: version.partition("+")[0] for name, version in installed.items()}.items() <= pins.items()
    prove(environment, tmp_path / "empty")


@pytest.mark.parametrize("arguments", [[], ["packages"], ["everything", "."]])
def test_another_step_is_refused(arguments: list[str]) -> None:
    done = subprocess.run(["bash", str(SCRIPT), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "install_image.sh" in done.stderr
