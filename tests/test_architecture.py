"""Imports point one way, and heavy libraries stay where work is distributed or tensors live."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hcs_ray"
FOUNDATION = {"contracts", "config", "storage", "lease", "stage", "labels", "pipeline", "study"}
ONLY_FOR_CLI = {"report", "explore", "jobs", "cli", "demo"}
TORCH = {"model", "train", "tune", "embed"}
RAY = {"shards.write", "train", "tune", "embed", "session", "jobs.plain_ray"}


def modules() -> list[str]:
    files = sorted(PACKAGE.rglob("*.py"))
    return [".".join(file.relative_to(PACKAGE).with_suffix("").parts) for file in files]


def imports(module: str) -> set[str]:
    """Every module that a module imports, at its top or inside a function, with names from packages."""
    tree = ast.parse((PACKAGE / Path(*module.split("."))).with_suffix(".py").read_text())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def ours(module: str) -> set[str]:
    return {name.removeprefix("hcs_ray.") for name in imports(module) if name.startswith("hcs_ray.")}


def top(module: str) -> str:
    return module.split(".")[0]


def within(module: str, allowed: set[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


@pytest.mark.parametrize("module", modules())
def test_imports_point_one_way(module: str) -> None:
    used = {top(name) for name in ours(module)}
    assert top(module) == "cli" or "cli" not in used, "nothing imports the commands"
    if top(module) in FOUNDATION:
        assert used <= FOUNDATION, f"{module} is part of the foundation"
    if top(module) != "cli":
        foreign = (used & ONLY_FOR_CLI) - {top(module)}
        assert not foreign, f"only the commands import {foreign}"


@pytest.mark.parametrize("module", modules())
def test_heavy_libraries_stay_where_they_belong(module: str) -> None:
    used = {top(name) for name in imports(module)}
    if not within(module, TORCH):
        assert not used & {"torch", "pytorch_lightning", "transformers", "torchmetrics"}, module
    if not within(module, RAY):
        assert "ray" not in used, module


def test_the_foundation_has_an_order() -> None:
    order = ["contracts", "config", "storage", "lease", "stage", "labels", "pipeline", "study"]
    for module in order:
        later = set(order[order.index(module) :])
        for part in (name for name in modules() if top(name) == module):
            assert not ({top(name) for name in ours(part)} - {module}) & later, part


def test_there_are_no_cycles() -> None:
    known = set(modules())
    graph = {module: {name for name in ours(module) if name in known and name != module} for module in known}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"a cycle: {' -> '.join((*path, module))}"
        if module not in done:
            for name in graph[module]:
                visit(name, (*path, module))
            done.add(module)

    for module in known:
        visit(module, ())
