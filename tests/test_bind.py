"""A rendered job bound to a study: where its cluster section goes, what is derived, what is refused.

All of it is pure; that what comes out breaks no rule of the lint is held for any valid study.
"""

from __future__ import annotations

import copy
import json
import shlex
from functools import cache
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.config import StudyConfig, parse_study, parse_sweep, to_yaml
from hcs_ray.contracts import InputError
from hcs_ray.jobs.bind import Run, bind, new_submission
from hcs_ray.jobs.derive import Given, Pods, pods_of
from hcs_ray.jobs.findings import errors_of
from hcs_ray.jobs.kinds import PRICES
from hcs_ray.jobs.lint import lint
from hcs_ray.jobs.manifests import STAGES, Manifest
from tests.k8s_manifests import (
    changes,
    composed,
    containers,
    groups,
    job_of,
    objects_within,
    of_kind,
    pods,
    put,
)

ROOT = "root: s3://bucket/screen\n"
SWEEP = "space: {train.lr: {kind: loguniform, low: 1.0e-4, high: 1.0e-2}}\nsamples: 8\n"
MAP_SWEEP = "objective: map\nspace: {map.min_dist: {kind: uniform, low: 0.1, high: 0.2}}\n"
WHOLE_CLUSTER = """
image: mirror.example/hcs-ray:0.2
namespace: science
service_account: screens
image_pull_secrets: [registry]
node_selector: {pool: batch}
tolerations: [{key: batch, operator: Exists, effect: NoExecute, seconds: 60}]
runtime_class: nvidia
queue: team-a
priority_class: low
env_from: [bucket-key, wandb]
labels: {team: screening, example.org/cost: "42"}
ca_bundle: {config_map: trusted, key: all.pem}
prices: {cpu_hour: 0.04, gpu_hour: 2.5, currency: EUR}
"""


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


# --- The run ------------------------------------------------------------------------------------------------


def test_binding_is_pure_and_changes_just_what_it_says() -> None:
    rendered = composed("train")
    before = copy.deepcopy(rendered)
    run = Run("train", "main", "abc123", arguments=("--force",))
    once = bind(rendered, study("train.cpus_per_worker=6"), run)
    assert rendered == before
    assert once == bind(rendered, study("train.cpus_per_worker=6"), run)
    changed = changes(job_of(rendered), job_of(once))
    resources = "spec.rayClusterSpec.workerGroupSpecs[cpu].template.spec.containers[ray-worker].resources"
    config_map = "hcs-ray-train-abc123-study"
    assert {path: after for path, (_, after) in changed.items() if "configMap" not in path} == {
        "metadata.name": "hcs-ray-train-abc123",
        "metadata.annotations.hcs-ray/root": "s3://bucket/screen",
        "spec.entrypoint": "hcs-ray train /study/study.yaml --name main --force",
        f"{resources}.limits.cpu": "6",
        f"{resources}.requests.cpu": "6",
    }
    assert {after for path, (_, after) in changed.items() if "configMap" in path} == {config_map}
    assert [item["kind"] for item in once] == ["ConfigMap", "RayJob"]


def test_a_submission_has_a_name_of_its_own_and_the_run_keeps_its() -> None:
    names = {new_submission() for _ in range(100)}
    assert len(names) == 100
    job = job_of(bound(study(), Run("analyse", "Week-1.b_2", max(names))))
    assert len(job["metadata"]["name"]) <= 47
    words = shlex.split(job["spec"]["entrypoint"])
    assert words[words.index("--name") + 1] == "Week-1.b_2"
    labels = [job["metadata"]["labels"], *(template_labels(job).values())]
    assert {item["hcs-ray/run"] for item in labels} == {"Week-1.b_2"}
    assert {item["hcs-ray/stage"] for item in labels} == {"analyse"}


def template_labels(job: Manifest) -> dict[str, dict[str, str]]:
    found = {name: group["template"]["metadata"]["labels"] for name, group in groups(job)}
    return {"submitter": job["spec"]["submitterPodTemplate"]["metadata"]["labels"], **found}


# --- The study and the sweep --------------------------------------------------------------------------------


def test_the_study_travels_whole_but_for_the_section_that_no_pod_reads() -> None:
    config = study("train.lr=3e-4", "cluster.env_from=[bucket-key]", "cluster.labels.team=a")
    config_map = bound(config, Run("train"))[0]
    text = config_map["data"]["study.yaml"]
    assert config_map["immutable"] is True
    assert "cluster" not in yaml.safe_load(text)
    assert parse_study(text, "study.yaml") == config.model_copy(update={"cluster": study().cluster})
    assert "bucket-key" not in text


def test_a_sweep_travels_beside_its_study() -> None:
    config_map = bound(study(), Run("tune", sweep=SWEEP))[0]
    assert config_map["data"]["sweep.yaml"] == SWEEP
    assert "sweep.yaml" not in bound(study(), Run("train"))[0]["data"]


def test_every_pod_that_mounts_the_study_mounts_this_one() -> None:
    manifests = bound(study(), Run("study", submission="x1"))
    job = job_of(manifests)
    (name,) = (item["metadata"]["name"] for item in of_kind(manifests, "ConfigMap"))
    mounted = [
        volume["configMap"]["name"]
        for _, pod in pods(job)
        for volume in pod["volumes"]
        if volume["name"] == "study"
    ]
    assert mounted == [name] * 3  # head and both groups


def test_config_maps_of_components_are_the_submissions_own_too() -> None:
    first, second = (bound(study(), Run("train", submission=one), "air-gapped") for one in ("a", "b"))
    names = [{item["metadata"]["name"] for item in of_kind(made, "ConfigMap")} for made in (first, second)]
    assert all(len(found) == 2 for found in names)
    assert not names[0] & names[1]
    (environment,) = (name for name in names[0] if not name.endswith("-study"))
    references = {
        item["configMapRef"]["name"] for item in objects_within(job_of(first)) if "configMapRef" in item
    }
    assert references == {environment}


def test_what_a_component_sets_in_the_entrypoint_moves_into_the_study() -> None:
    manifests = bound(study(), Run("train"), "gpu")
    assert "--set" not in job_of(manifests)["spec"]["entrypoint"]
    assert parse_study(manifests[0]["data"]["study.yaml"], "").train.use_gpu
    assert set(sizes(manifests)) == {"gpu"}


# --- The cluster section ------------------------------------------------------------------------------------


def test_the_cluster_section_is_everywhere_that_it_must_be() -> None:
    config = parse_study(f"{ROOT}cluster: {yaml.safe_load(WHOLE_CLUSTER)}\n", "study.yaml")
    manifests = bound(config, Run("train"), "gpu", "queue")
    job, everywhere = job_of(manifests), dict(pods(job_of(manifests)))
    assert {item["image"] for item in containers(job).values()} == {"mirror.example/hcs-ray:0.2"}
    assert {item["metadata"]["namespace"] for item in manifests} == {"science"}
    for name, pod in everywhere.items():
        assert pod["imagePullSecrets"] == [{"name": "registry"}]
        assert pod["nodeSelector"] == {"pool": "batch"}
        toleration = {"key": "batch", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 60}
        assert toleration in pod["tolerations"]
        assert pod["priorityClassName"] == "low"
        assert pod.get("serviceAccountName") == (None if name == "submitter" else "screens")
        assert pod.get("runtimeClassName") == ("nvidia" if name == "gpu" else None)
    labels = [item["metadata"]["labels"] for item in manifests] + list(template_labels(job).values())
    assert all(item["team"] == "screening" and item["example.org/cost"] == "42" for item in labels)
    assert job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-a"
    assert job["spec"]["suspend"] is True
    assert json.loads(job["metadata"]["annotations"][PRICES])["currency"] == "EUR"  # for whoever watches
    assert lint(manifests) == []


def test_secrets_and_certificates_reach_every_container_that_speaks_to_the_store() -> None:
    config = study("cluster.env_from=[mine]", "cluster.ca_bundle={config_map: trusted, key: all.pem}")
    manifests = bound(config, Run("train"))
    for (pod, name), container in containers(job_of(manifests)).items():
        secrets = [item["secretRef"]["name"] for item in container.get("envFrom", ()) if "secretRef" in item]
        variables = {item["name"]: item.get("value") for item in container.get("env", ())}
        mounts = {item["mountPath"]: item for item in container["volumeMounts"]}
        if pod == "submitter":  # it speaks to the head alone
            assert secrets == []
            assert "/etc/hcs-ray/ca" not in mounts
            continue
        assert secrets == ["hcs-ray-credentials", "mine"], name
        bundle = "/etc/hcs-ray/ca/all.pem"
        names = ("AWS_CA_BUNDLE", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
        assert {variables[key] for key in names} == {bundle}
        assert mounts["/etc/hcs-ray/ca"]["readOnly"] is True
    for role, spec in pods(job_of(manifests)):
        sources = {item["name"]: item.get("configMap") for item in spec["volumes"]}
        assert role == "submitter" or sources["ca-bundle"] == {"name": "trusted"}
    shipped = parse_study(manifests[0]["data"]["study.yaml"], "")
    assert shipped.storage.ca_bundle == "/etc/hcs-ray/ca/all.pem"
    assert lint(manifests) == []


def test_a_bundle_of_ones_own_takes_the_place_of_the_components() -> None:
    config = study("cluster.ca_bundle={config_map: trusted}")
    job = job_of(bound(config, Run("train"), "air-gapped"))
    bundles = {
        volume["configMap"]["name"]
        for _, pod in pods(job)
        for volume in pod["volumes"]
        if volume["name"] == "ca-bundle"
    }
    assert bundles == {"trusted"}


def test_an_image_of_somebody_else_stays() -> None:
    manifests = composed("train")
    head = job_of(manifests)["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    head["containers"].append({"name": "proxy", "image": "proxy:1"})
    made = bind(manifests, study("cluster.image=reg.example/hcs-ray:0.2"), Run("train"))
    images = {name: item["image"] for (_, name), item in containers(job_of(made)).items()}
    assert images.pop("proxy") == "proxy:1"
    assert set(images.values()) == {"reg.example/hcs-ray:0.2"}


# --- What is derived ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "overrides", "components", "wanted"),
    [
        ("train", ["train.workers=3", "train.cpus_per_worker=6.5"], (), {"cpu": (0, 0, 3, "7", 0)}),
        ("train", ["train.workers=3", "train.use_gpu=true"], (), {"gpu": (0, 0, 3, "1", 1)}),
        ("train", ["train.workers=[2, 6]", "train.use_gpu=true"], (), {"gpu": (0, 0, 6, "1", 1)}),
        ("train", ["train.workers=5", "train.cpus_per_worker=0.5"], (), {"cpu": (0, 0, 3, "1", 0)}),
        ("train", ["train.workers=3"], ("gpu", "queue"), {"gpu": (3, 3, 3, "1", 1)}),
        ("embed", ["embed.workers=4", "embed.cpus_per_worker=2"], (), {"cpu": (0, 0, 4, "2", 0)}),
        ("embed", ["embed.workers=4"], ("gpu",), {"gpu": (0, 0, 4, "1", 1)}),
        ("shard", [], (), {"cpu": (0, 0, 4, "8", 0)}),
        ("shard", ["screen.plates=[a, b, c, d, e, f, g, h, i]"], (), {"cpu": (0, 0, 2, "8", 0)}),
        ("analyse", ["train.use_gpu=true"], (), {}),
        ("study", ["train.workers=6", "train.cpus_per_worker=12"], (), {"cpu": (0, 0, 6, "12", 0)}),
        (
            "study",
            ["train.workers=6", "train.use_gpu=true", "embed.workers=3"],
            (),
            {"cpu": (0, 0, 4, "8", 0), "gpu": (0, 0, 6, "1", 1)},
        ),
    ],
)
def test_workers_follow_from_the_study(
    stage: str, overrides: list[str], components: tuple[str, ...], wanted: dict[str, Any]
) -> None:
    made = bound(study(*overrides), Run(stage), *components)
    assert sizes(made) == wanted
    assert lint(made) == []


@pytest.mark.parametrize(
    ("sweep", "wanted"),
    [
        ("", {"cpu": (4, 4, 4, "1", 0)}),  # auto: as many as the job set has, there from the start
        ("concurrency: 6\n", {"cpu": (12, 12, 12, "1", 0)}),  # of two workers each
        ("concurrency: 100\n", {"cpu": (16, 16, 16, "1", 0)}),  # it has eight trials
        ("concurrency: 2\nresources: {workers: 1, use_gpu: true}\n", {"gpu": (2, 2, 2, "1", 1)}),
        ("concurrency: 3\nresources: {workers: 1, cpus_per_worker: 5}\n", {"cpu": (3, 3, 3, "5", 0)}),
    ],
)
def test_a_sweeps_workers_follow_from_its_trials(sweep: str, wanted: dict[str, Any]) -> None:
    made = bound(study(), Run("tune", sweep=SWEEP + sweep))
    assert sizes(made) == wanted
    assert lint(made) == []


def test_a_crossed_sweep_may_have_more_trials_than_samples() -> None:
    sweep = "space: {train.seed: {kind: grid, values: [0, 1, 2]}}\nconcurrency: 3\n"
    assert sizes(bound(study(), Run("tune", sweep=sweep))) == {"cpu": (6, 6, 6, "1", 0)}


def test_what_a_group_offers_in_rays_words_is_kept_in_step() -> None:
    manifests = composed("train")
    group = "spec rayClusterSpec workerGroupSpecs 1"
    put(job_of(manifests), f"{group} resources", {"CPU": "8", "GPU": "1", "accelerator_type:H200": "1"})
    overrides = ("train.use_gpu=true", "train.resources_per_worker={accelerator_type:H200: 0.001}")
    made = bind(manifests, study(*overrides, "train.cpus_per_worker=3"), Run("train"))
    offered = job_of(made)["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["resources"]
    assert offered == {"CPU": "3", "GPU": "1", "accelerator_type:H200": "1"}
    assert lint(made) == []


@settings(deadline=None, max_examples=200)
@given(
    workers=st.integers(1, 40),
    cpus=st.floats(0.05, 40).map(lambda value: round(value, 2)),
    use_gpu=st.booleans(),
)
def test_all_workers_fit_and_no_pod_is_left_over(workers: int, cpus: float, use_gpu: bool) -> None:
    config = study(f"train.workers={workers}", f"train.cpus_per_worker={cpus}", f"train.use_gpu={use_gpu}")
    ((_, found),) = pods_of("train", config, Given(4, 8)).items()

    def room(pods: int) -> int:
        by_cpu = int(found.cpus / cpus + 1e-9)
        return pods * (min(by_cpu, found.gpus) if use_gpu else by_cpu)

    assert isinstance(found, Pods)
    assert room(found.most) >= workers > room(found.most - 1)
    assert found.cpus - 1 < cpus


# --- Conflicts ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "run", "words"),
    [
        (["root=/data/screen"], Run("train"), "root /data/screen: pods share no folder"),
        (["root=null"], Run("train"), "root beside the file"),
        (["storage.endpoint=http://localhost:8333"], Run("train"), "in a pod that is the pod"),
        (
            ["storage.ca_bundle=/etc/ssl/own.pem"],
            Run("train"),
            "storage.ca_bundle /etc/ssl/own.pem: pods",
        ),
        (["model.weights=./weights"], Run("train"), "model.weights ./weights: pods do not have this path"),
        (["train.cache_folder=/fast"], Run("tune", sweep=SWEEP), "train.cache_folder /fast: pods do not"),
        (["screen.folder=/raw"], Run("shard"), "screen.folder /raw: pods do not have this path"),
        (
            ["screen={kind: load_data, path_prefixes: {a: /mnt}}"],
            Run("study"),
            "screen.path_prefixes.a /mnt: pods do not",
        ),
        (["cluster.queue=q"], Run("train"), "cluster.queue q: Kueue admits a fixed number of pods"),
        (["train.max_hours=24"], Run("train"), "train.max_hours 24: the job is ended after 24 hours"),
        (["train.resources_per_worker={TPU: 1}"], Run("train"), "no worker of group cpu offers it"),
        ([], Run("train", name="a-"), "--name a-: on a cluster a run's name begins and ends"),
        ([], Run("train", submission="A"), "submission A: use lower-case letters"),
        ([], Run("tune"), "--stage tune needs a sweep"),
        ([], Run("train", sweep=SWEEP), "--sweep is of --stage tune"),
        (
            [],
            Run("tune", sweep="objective: map\n" + SWEEP.replace("train.lr", "map.min_dist")),
            "objective map",
        ),
        ([], Run("tune", sweep="space: {}"), "--sweep: space"),
    ],
)
def test_what_contradicts_itself_is_refused(overrides: list[str], run: Run, words: str) -> None:
    with pytest.raises(InputError) as caught:
        bound(study(*overrides), run)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_paths_that_a_stage_does_not_read_may_be_of_this_machine() -> None:
    config = study("screen.folder=/raw", "model.weights=/weights", "train.cache_folder=/tmp/cache")
    assert bound(config, Run("embed"))
    assert bound(study("train.cache_folder=/tmp/cache"), Run("train"))  # a volume of the pods


def test_manifests_that_are_no_job_of_ours_are_refused() -> None:
    manifests = composed("train")
    with pytest.raises(InputError, match="renders 2 RayJobs"):
        bind([*manifests, job_of(manifests)], study(), Run("train"))
    with pytest.raises(InputError, match="--stage embed: this job set's job is of stage train"):
        bind(manifests, study(), Run("embed"))
    for text in ("python train.py", "hcs-ray train 'a", ""):
        put(job_of(manifests), "spec entrypoint", text)
        with pytest.raises(InputError, match="entrypoint"):
            bind(manifests, study(), Run("train"))
    base = composed("train")
    del job_of(base)["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]
    with pytest.raises(InputError, match="runs on the worker group gpu, and the job set has none"):
        bind(base, study("train.use_gpu=true"), Run("train"))


# --- Any valid study ----------------------------------------------------------------------------------------

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


# --- The section itself -------------------------------------------------------------------------------------


@cache
def _default() -> str:
    return to_yaml(study())


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "image=localhost:5000/hcs-ray",
            "cluster.image: an image needs a digest, or a tag",
        ),
        ("image=hcs-ray:latest", "cluster.image: an image needs a digest, or a tag"),
        ("image=a b:1", "cluster.image: it is no image"),
        ("namespace=Science", "cluster.namespace: a name on Kubernetes"),
        ("env_from=[A_B]", "cluster.env_from.0: a name on Kubernetes"),
        ("labels={hcs-ray/run: a}", "set the labels hcs-ray/"),
        ("labels={kueue.x-k8s.io/queue-name: a}", "set the labels hcs-ray/"),
        ("labels={a b: c}", "a label's key is a name"),
        ("node_selector={a: b c}", "the value of a label"),
        ("tolerations=[{key: a, operator: Exists, value: b}]", "operator Exists takes no value"),
        ("tolerations=[{value: b}]", "without key write operator: Exists"),
        ("tolerations=[{key: a, seconds: 3}]", "seconds are of effect NoExecute"),
        ("prices={cpu_hour: -1}", "cluster.prices.cpu_hour"),
        ("imag=a:1", "unknown key cluster.imag; did you mean image?"),
    ],
)
def test_a_section_that_kubernetes_would_not_take_is_refused_here(override: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        study(f"cluster.{override}")
    assert words in str(caught.value)


def test_where_a_study_runs_is_no_part_of_what_comes_out() -> None:
    from hcs_ray.study import EXTRAS, STAGES

    assert all("cluster" not in spec.sections for spec in (*STAGES.values(), *EXTRAS.values()))
    assert "cluster:" in _default()
