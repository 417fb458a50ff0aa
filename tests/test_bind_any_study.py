"""For any valid study, whatever its cluster section, the bound job passes the lint."""

from __future__ import annotations

import shlex
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.config import parse_study, parse_sweep
from hcs_ray.jobs.bind import Run, new_submission
from hcs_ray.jobs.findings import errors_of
from hcs_ray.jobs.lint import lint
from hcs_ray.jobs.manifests import STAGES
from tests.bound_jobs import bound
from tests.k8s_manifests import job_of

NAMES = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,20}[a-z0-9])?", fullmatch=True)
VALUES = st.from_regex(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,20}[A-Za-z0-9])?", fullmatch=True)
LABELS = st.dictionaries(st.from_regex(r"(x\.example/)?[a-z]{1,8}", fullmatch=True), VALUES, max_size=3)
TOLERATIONS = st.lists(
    st.one_of(
        st.fixed_dictionaries({"key": NAMES, "operator": st.just("Exists")}),
        st.fixed_dictionaries({"key": NAMES, "value": VALUES, "effect": st.just("NoSchedule")}),
        st.just({"operator": "Exists"}),
    ),
    max_size=2,
)
CLUSTERS = st.fixed_dictionaries(
    {},
    optional={
        "image": st.sampled_from(["a:1", "reg.example:5000/x/y:0.1.0", f"reg.example/x@sha256:{'0' * 64}"]),
        "namespace": NAMES,
        "service_account": NAMES,
        "image_pull_secrets": st.lists(NAMES, max_size=2),
        "node_selector": LABELS,
        "tolerations": TOLERATIONS,
        "runtime_class": NAMES,
        "priority_class": NAMES,
        "env_from": st.lists(NAMES, max_size=2),
        "labels": LABELS,
        "ca_bundle": st.fixed_dictionaries({"config_map": NAMES}),
    },
)
CORES = st.floats(0.1, 64).map(lambda value: round(value, 1))
STUDIES = st.fixed_dictionaries(
    {
        "root": st.sampled_from(["s3://bucket", "s3://bucket/some where/ü"]),
        "cluster": CLUSTERS,
        "screen": st.fixed_dictionaries({}, optional={"plates": st.lists(VALUES, min_size=1, max_size=30)}),
        "train": st.fixed_dictionaries(
            {
                "workers": st.one_of(st.integers(1, 64), st.tuples(st.integers(1, 4), st.integers(4, 64))),
                "use_gpu": st.booleans(),
                "cpus_per_worker": CORES,
            },
            optional={"max_hours": st.floats(0.1, 23)},
        ),
        "embed": st.fixed_dictionaries(
            {"workers": st.integers(1, 64), "use_gpu": st.booleans(), "cpus_per_worker": CORES}
        ),
    }
)
SWEEPS = st.fixed_dictionaries(
    {
        "space": st.just({"train.lr": {"kind": "uniform", "low": 0.1, "high": 0.2}}),
        "samples": st.integers(1, 50),
        "concurrency": st.one_of(st.just("auto"), st.integers(1, 50)),
    },
    optional={"resources": st.fixed_dictionaries({}, optional={"workers": st.integers(1, 4)})},
)
COMPONENTS = [(), ("gpu",), ("spot",), ("gpu", "spot"), ("queue",), ("gpu", "queue"), ("queue-elastic",)]
RUN_NAMES = st.from_regex(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", fullmatch=True)


@settings(deadline=None, max_examples=80)
@given(
    document=STUDIES,
    sweep=SWEEPS,
    stage=st.sampled_from(STAGES),
    components=st.sampled_from(COMPONENTS),
    queue=st.none() | NAMES,
    name=RUN_NAMES,
)
def test_for_any_valid_study_the_job_passes_the_lint(
    document: dict[str, Any],
    sweep: dict[str, Any],
    stage: str,
    components: tuple[str, ...],
    queue: str | None,
    name: str,
) -> None:
    queued = [item for item in components if item.startswith("queue")]
    cluster = document["cluster"] | ({"queue": queue} if queued and queue else {})
    config = parse_study(yaml.safe_dump(_lists({**document, "cluster": cluster})), "study.yaml")
    text = yaml.safe_dump(sweep) if stage == "tune" else None
    run = Run(stage, name, new_submission(), text)
    made = bound(config, run, *components)
    assert errors_of(lint(made)) == []
    shipped = parse_study(made[0]["data"]["study.yaml"], "")
    assert shipped.root == config.root
    assert (shipped.train.workers, shipped.split) == (config.train.workers, config.split)
    assert text is None or parse_sweep(made[0]["data"]["sweep.yaml"], "").samples == sweep["samples"]
    words = shlex.split(job_of(made)["spec"]["entrypoint"])
    assert words[words.index("--name") + 1] == name


def _lists(node: Any) -> Any:
    """YAML has no tuples."""
    if isinstance(node, dict):
        return {key: _lists(value) for key, value in node.items()}
    return [_lists(item) for item in node] if isinstance(node, list | tuple) else node
