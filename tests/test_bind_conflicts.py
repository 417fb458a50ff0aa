"""What a study, its cluster section or a run cannot have on a cluster is refused in one line."""

from __future__ import annotations

import pytest

from hcs_ray.contracts import InputError
from hcs_ray.jobs.bind import Run, bind
from tests.bound_jobs import SWEEP, bound, study
from tests.k8s_manifests import composed, job_of, put

MAP_SWEEP = "objective: map\nspace: {map.min_dist: {kind: uniform, low: 0.1, high: 0.2}}\n"


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


# --- The section itself -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "image=localhost:5000/hcs-ray",
            "cluster.image: an image needs a digest, or a tag",
        ),
        ("image=hcs-ray:latest", "cluster.image: an image needs a digest, or a tag"),
        ("image=a b:1", "cluster.image: it is no image"),
        ("namespace=Science", "cluster.namespace: a namespace has at most 63 lower-case letters"),
        ("namespace=a.b", "cluster.namespace: a namespace has at most 63 lower-case letters"),
        ("ca_bundle={config_map: ca, key: ../other/ca.crt}", "ca_bundle.key: a key of a ConfigMap is a file"),
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
    from hcs_ray.pipeline import EXTRAS, STAGES

    assert all("cluster" not in spec.sections for spec in (*STAGES.values(), *EXTRAS.values()))
