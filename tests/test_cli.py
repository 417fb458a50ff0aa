"""The commands answer at once, and say in one line what is wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml

from tests.command import hcs_ray, refused


def test_help_needs_neither_torch_nor_ray() -> None:
    code = (
        "import sys; sys.argv = ['hcs-ray', '--help']\n"
        "from hcs_ray.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert stop.code == 0\n"
        "heavy = {'torch', 'ray', 'pandas', 'numpy', 'matplotlib'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize(
    "command",
    [
        "demo",
        "run",
        "generate",
        "download",
        "shard",
        "verify",
        "split",
        "train",
        "tune",
        "embed",
        "profile",
        "map",
        "outliers",
        "preflight",
        "ship-logs",
        "logs",
    ],
)
def test_every_command_explains_itself(command: str) -> None:
    done = hcs_ray(command, "--help")
    assert done.returncode == 0
    assert "Usage: hcs-ray" in done.stdout


def test_versions_are_told_in_lines_that_programs_can_read() -> None:
    done = hcs_ray("--version")
    assert done.stdout.splitlines() == [f"hcs_ray {version('hcs_ray')}", f"Ray {version('ray')}"]


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text("model: {backbone: tiny}\n")
    return tmp_path


def test_a_misspelt_key_is_named_with_the_right_one(study: Path) -> None:
    (study / "study.yaml").write_text("train: {learning_rte: 1}\n")
    assert "unknown key train.learning_rte" in refused("run", study)
    (study / "study.yaml").write_text("")
    assert "unknown key train.epoch; did you mean epochs?" in refused("run", study, "--set", "train.epoch=3")


def test_what_is_no_study_is_named(study: Path, tmp_path: Path) -> None:
    assert "nowhere/study.yaml: no such file" in refused("run", tmp_path / "nowhere")
    assert "missing.yaml: cannot be read" in refused("run", tmp_path / "missing.yaml")
    assert "--name '../x'" in refused("run", study, "--name", "../x")
    assert "storage is a local folder or s3://" in refused("run", "http://x/y")


def test_a_screen_without_images_is_named(study: Path) -> None:
    (study / "raw").mkdir()
    assert "BBBC021_v1_image.csv: no such file" in refused("run", study)
    assert not (study / "shards").exists()


def test_stages_say_what_comes_first(study: Path) -> None:
    assert "shard main is not complete; run hcs-ray shard first" in refused("split", study)
    assert "--from nothing: it is one of shard" in refused("run", study, "--from", "nothing")
    assert "comes after" in refused("run", study, "--from", "embed", "--to", "split")
    assert "no stage of main is complete" in refused("verify", study)
    assert "no_such.yaml: cannot be read" in refused("tune", study, study / "no_such.yaml")


def test_an_unwritable_output_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    message = refused("demo", tmp_path / "file" / "demo", "--size", "smallest", code=1)
    assert str(tmp_path / "file") in message


def test_a_folder_with_other_things_is_not_drawn_into(tmp_path: Path) -> None:
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "thesis.doc").write_text("precious")
    refused("demo", tmp_path, "--size", "smallest")
    assert (tmp_path / "raw" / "thesis.doc").read_text() == "precious"


def test_the_configuration_is_shown_whole(study: Path) -> None:
    shown = hcs_ray("config", "show", study, "--set", "train.lr=3e-4")
    config = yaml.safe_load(shown.stdout)
    assert config["train"]["lr"] == 3e-4
    assert config["model"]["backbone"] == "tiny"
    schema = json.loads(hcs_ray("config", "schema").stdout)
    assert schema["additionalProperties"] is False


def test_a_traceback_is_there_for_those_who_ask(study: Path) -> None:
    done = hcs_ray("profile", study, "--debug")
    assert "Traceback" in done.stderr
