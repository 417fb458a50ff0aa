"""The lint: every rule has a job that breaks it, and the packaged jobs break none.

The schema has a file of its own (test_lint_schema.py).
"""

from __future__ import annotations

import ast
import copy
import re
import sys
from collections.abc import Callable
from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest

from hcs_ray.jobs import lint as package
from hcs_ray.jobs.findings import Finding, errors_of
from hcs_ray.jobs.lint import lint
from hcs_ray.jobs.lint.node import Node, quantity
from hcs_ray.jobs.manifests import STAGES
from tests.broken_jobs import BREAKS, CPU_POD, HEAD, SPEC, WORKER, changed
from tests.k8s_manifests import (
    EXAMPLES,
    composed,
    job_of,
    pinned_ray,
    rendered,
)

FOLDER = Path(package.__file__).parent


@cache
def broken_by(number: int) -> tuple[list[Finding], frozenset[tuple[str, int]]]:
    """What the lint finds in a job of `BREAKS`, and the lines of its source that said so."""
    lines = set[tuple[str, int]]()

    def noting(make: Callable[[Node, str, str], Finding]) -> Callable[[Node, str, str], Finding]:
        def noted(node: Node, broken: str, mend: str) -> Finding:
            caller = sys._getframe(1)
            lines.add((Path(caller.f_code.co_filename).name, caller.f_lineno))
            return make(node, broken, mend)

        return noted

    with pytest.MonkeyPatch.context() as patch:
        for name in ("error", "warning"):
            patch.setattr(Node, name, noting(getattr(Node, name)))
        return lint(changed(BREAKS[number][0])), frozenset(lines)


@pytest.mark.parametrize("number", range(len(BREAKS)), ids=[" ".join(case[1:]) for case in BREAKS])
def test_every_rule_has_a_job_that_breaks_it(number: int) -> None:
    _, path, broken = BREAKS[number]
    found, _ = broken_by(number)
    said = [finding for finding in found if broken in finding.rule and path in finding.path]
    assert said, "\n".join(map(str, found))
    assert all(finding.mend and finding.path.startswith("RayJob/") for finding in found)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("components", [(), ("gpu",), ("gpu", "queue"), ("spot",), ("queue-elastic",)])
def test_the_packaged_jobs_break_none(stage: str, components: tuple[str, ...]) -> None:
    """But for the combinations that the table of k8s/README.md says no to, with its reasons."""
    reasons = {
        ("study", "gpu", "queue"): "GPUs are held while stages run that use none",
        ("train", "queue-elastic"): "half of them would hold quota and wait",
        ("tune", "queue-elastic"): "half of them would hold quota and wait",
    }
    found = lint(composed(stage, *components))
    assert errors_of(found) == []
    reason = reasons.get((stage, *components))
    assert [reason in finding.rule for finding in found if reason] == ([True] if reason else [])
    assert reason or found == []


@pytest.mark.parametrize("folder", EXAMPLES)
def test_the_examples_break_none(folder: str) -> None:
    assert lint(rendered(folder)) == []


def test_a_finding_is_one_line_with_field_rule_and_mend() -> None:
    (finding,) = lint(changed({f"{SPEC} submissionMode": "K8sJob"}))
    assert str(finding) == (
        "error: RayJob/hcs-ray-train spec.submissionMode: there is no mode K8sJob, though the schema takes "
        "any text; it is one of K8sJobMode, HTTPMode, SidecarMode, InteractiveMode"
    )


def test_errors_come_before_warnings_and_each_once() -> None:
    manifests = changed(
        {f"{CPU_POD} automountServiceAccountToken": True, f"{HEAD} rayStartParams num-cpus": "1"}
    )
    found = lint([*manifests, *manifests])
    assert [finding.severity for finding in found] == ["error", "warning"]
    assert [finding.path.split(".")[-1] for finding in errors_of(found)] == ["num-cpus"]


def test_the_ray_of_the_manifests_is_the_one_that_is_installed() -> None:
    assert pinned_ray() == version("ray")


# --- Beside the job -----------------------------------------------------------------------------------------


def test_a_secret_is_in_no_manifest() -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": {"a": "b"}}
    study = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "c"},
        "data": {"study.yaml": "storage:\n  endpoint: https://me:pass@store.example\n"},
    }
    found = lint([secret, study])
    assert [finding.path for finding in found] == ["Secret/s stringData", "ConfigMap/c data[study.yaml]"]
    assert "pass" not in "".join(map(str, found)).replace("password", "")


def test_names_that_only_sound_like_secrets_are_left_alone() -> None:
    names = ("TOKENIZERS_PARALLELISM", "AWS_WEB_IDENTITY_TOKEN_FILE", "RAY_AUTH_MODE", "HCS_RAY_KEYS")
    assert lint(changed({f"{WORKER} env": [{"name": name, "value": "1"} for name in names]})) == []
    reference = {"valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}
    assert lint(changed({f"{WORKER} env": [{"name": "WANDB_API_KEY", **reference}]})) == []


def test_a_study_that_etcd_would_not_take() -> None:
    manifests = composed("train")
    (config_map,) = (item for item in manifests if item["kind"] == "ConfigMap")
    config_map["data"]["more"] = "x" * 2**20
    (finding,) = lint(manifests)
    assert finding.path.startswith("ConfigMap/")
    assert "may have 1048576" in finding.rule


def test_more_worker_groups_than_kueue_takes() -> None:
    manifests = composed("train", "queue")
    job = job_of(manifests)
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    job["spec"]["rayClusterSpec"]["workerGroupSpecs"] = [
        copy.deepcopy(group) | {"groupName": f"cpu{number}"} for number in range(18)
    ]
    (finding,) = lint(manifests)
    assert "at most 17" in finding.rule


# --- Parts --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("500m", "0.5"),
        ("2Gi", "2147483648"),
        ("1e3", "1000"),
        ("1E", "1e18"),
        ("5", "5"),
        (3, "3"),
        ("1k", "1000"),
    ],
)
def test_a_quantity(text: str | int, number: str) -> None:
    assert quantity(text) == quantity(number)


def test_a_place_that_is_not_there_has_a_path_all_the_same() -> None:
    node = Node("RayJob/a ", {"spec": {"list": [1]}})
    assert node.at("spec.list")[1]["x"].path == "RayJob/a spec.list[1].x"
    assert node["a/b"]["c"].value is None
    assert [item.value for item in node.at("spec.list")] == [1]


# --- All of it ----------------------------------------------------------------------------------------------


def places_of_rules() -> set[tuple[str, int, int]]:
    """File, first and last line of every statement that makes a finding, in the rules."""
    found = set()
    for file in FOLDER.glob("*.py"):
        for statement in ast.walk(ast.parse(file.read_text())):
            if isinstance(statement, ast.Expr) and re.search(r"\.(error|warning)\(", ast.unparse(statement)):
                found.add((file.name, statement.lineno, statement.end_lineno or statement.lineno))
    return found


def test_no_rule_is_without_a_job_that_breaks_it() -> None:
    """Of the rules that hold for a job by itself: those for clusters and other objects are above."""
    elsewhere = {"limits.py", "schema.py"}
    rules = {place for place in places_of_rules() if place[0] not in elsewhere}
    assert len(rules) > 90
    made = {line for number in range(len(BREAKS)) for line in broken_by(number)[1]}
    missed = [
        (name, first)
        for name, first, last in rules
        if not made & {(name, line) for line in range(first, last + 1)}
    ]
    tested_above = ("a secret is in no manifest", "may have 1048576", "_MOST_GROUPS")
    for name, first in missed:
        text = " ".join((FOLDER / name).read_text().splitlines()[first - 1 : first + 3])
        assert any(word in text for word in tested_above), f"{name}:{first} is broken by no job"


def test_a_finding_is_plain_text() -> None:
    assert str(Finding("a b", "rule\n  two", "mend", "warning")) == "warning: a b: rule two; mend"
