"""What the pages about clusters name is there: commands with their options, files, arguments of the image."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import hcs_ray.cli  # noqa: F401  every command is on the application then
from hcs_ray.cli.app import app
from tests.k8s_manifests import REPOSITORY

PAGES = ("docs/kubernetes.md", "docs/image.md", "k8s/README.md")
COMMANDS: Any = typer.main.get_command(app)


def commands(text: str) -> set[str]:
    """Every ``hcs-ray ...`` of a page: in its blocks of code, and between backticks."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.partition(" #")[0] for block in blocks for line in block.splitlines()]
    return {
        line.strip()
        for line in [*lines, *re.findall(r"`([^`\n]+)`", text)]
        if line.strip().startswith("hcs-ray ")
    }


def option_names(command: Any) -> set[str]:
    return {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}


@pytest.mark.parametrize("page", PAGES)
def test_every_command_of_a_page_exists_with_its_options(page: str) -> None:
    found = commands((REPOSITORY / page).read_text())
    assert found or page == "docs/image.md"
    for line in found:
        words = shlex.split(line)[1:]
        command = COMMANDS
        while words and words[0] in getattr(command, "commands", {}):
            command = command.commands[words.pop(0)]
        assert not hasattr(command, "commands"), line
        options = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert options <= option_names(command), line


@pytest.mark.parametrize("page", PAGES)
def test_every_file_of_a_page_exists(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    links = [target for target in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in target]
    assert all((REPOSITORY / page).parent.joinpath(target).exists() for target in links)
    paths = re.findall(
        r"(?:`|kubectl \w+ -k )((?:k8s|tests|setup|jobs|base|components|examples|\.ci)/[\w./-]+)", text
    )
    assert paths
    for path in paths:
        assert (REPOSITORY / path).exists() or (REPOSITORY / "k8s" / path).exists(), path


def test_the_arguments_of_the_image_are_those_of_the_dockerfile() -> None:
    told = re.findall(r"^\| (`[^|]+) \|", (REPOSITORY / "docs/image.md").read_text(), re.MULTILINE)
    names = {name for cell in told for name in re.findall(r"`(\w+)`", cell)}
    dockerfile = Path(REPOSITORY / "Dockerfile").read_text()
    assert names == set(re.findall(r"^ARG (\w+)", dockerfile, re.MULTILINE)) - {"PIP_NO_CACHE_DIR"}
