"""Raw images in, answers out: the whole path as its user runs it, killed, damaged, changed and on S3.

One undisturbed run of the smallest demo is the reference; commands that need no Ray of their own share one
cluster.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from hcs_ray import contracts as c
from hcs_ray.pipeline import STAGES
from hcs_ray.storage import LocalStorage, Storage, open_storage
from hcs_ray.study import open_study
from hcs_ray.tables import read_embeddings, read_index
from tests.command import HCS_RAY, hcs_ray, refused

pytestmark = pytest.mark.timeout(400)

STAGE_NAMES = [stage for stage in STAGES if stage != "tune"]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The smallest demo, run once and undisturbed; tests copy it."""
    folder = tmp_path_factory.mktemp("reference") / "demo"
    done = hcs_ray("demo", folder, "--size", "smallest")
    assert done.returncode == 0, done.stderr
    (folder.parent / "terminal").write_text(done.stderr)
    return folder


@pytest.fixture
def study(reference: Path, tmp_path: Path) -> Path:
    """A copy of the finished study that a test may change."""
    return Path(shutil.copytree(reference, tmp_path / "demo"))


@pytest.fixture
def fresh(reference: Path, tmp_path: Path) -> Path:
    """A study of which only the raw screen is there, without the truth that no stage may read."""
    folder = tmp_path / "fresh"
    shutil.copytree(reference / "raw", folder / "raw", ignore=shutil.ignore_patterns("truth.parquet"))
    shutil.copy(reference / "study.yaml", folder)
    return folder


def assert_equal_results(one: Storage, other: Storage) -> None:
    """Index, shards and splits byte for byte; embeddings and scores within 1e-5."""
    for prefix in ("shards", "splits"):
        files = {path for path in one.sizes(prefix) if not path.endswith("_stage.json")}
        assert files == {path for path in other.sizes(prefix) if not path.endswith("_stage.json")}
        for path in files:
            assert one.read(path) == other.read(path), path
    studies = [open_study(storage.url) for storage in (one, other)]
    (meta, features), (other_meta, other_features) = (read_embeddings(study) for study in studies)
    assert list(meta[c.KEY]) == list(other_meta[c.KEY])
    assert meta[c.KEY].is_unique
    np.testing.assert_allclose(features, other_features, rtol=1e-5, atol=1e-5)
    scores = [json.loads(storage.read("profiles/main/evaluation.json")) for storage in (one, other)]
    for name in ("nsc", "nscb"):
        assert scores[0][name]["correct"] == scores[1][name]["correct"]
    assert (
        scores[0]["classification"]["field"]["confusion"] == scores[1]["classification"]["field"]["confusion"]
    )


def test_every_stage_says_what_it_did_and_leaves_a_record(reference: Path) -> None:
    said = (reference.parent / "terminal").read_text()
    study = open_study(str(reference))
    for stage in STAGE_NAMES:
        assert stage in said
        record = study.require(stage)
        assert record.outputs
        assert not record.missing(study.storage, study.place(stage))
    assert "NSCB, held-out compounds" in said
    assert "index.html" in said
    assert "Traceback" not in said


def test_the_lineage_leads_from_the_report_to_the_raw_tables(reference: Path) -> None:
    import hashlib

    storage = LocalStorage(reference)
    digests = {path: hashlib.sha256(storage.read(path)).hexdigest() for path in storage.sizes()}
    to_see, raw = ["reports/main/_stage.json"], set()
    while to_see:
        record = json.loads(storage.read(to_see.pop()))
        assert record["code"]["version"]
        assert record["study_config"] in digests
        for path, digest in record["inputs"].items():
            if path in digests:
                assert digests[path] == digest
            if path.endswith("_stage.json"):
                to_see.append(path)
            else:
                raw.add(path)
    index = read_index(open_study(str(reference)))
    assert raw == {f"raw {plate}" for plate in index[c.PLATE].unique()}
    manifest = json.loads(storage.read("shards/manifest.json"))
    for table, digest in manifest["tables"].items():
        assert digests[f"raw/{table}"] == digest


def test_answers_cover_every_field_and_treatment(reference: Path) -> None:
    study = open_study(str(reference))
    index = read_index(study)
    meta, features = read_embeddings(study)
    assert list(meta[c.KEY]) == list(index[c.KEY])
    assert features.dtype == np.float32
    assert features.std(0).max() > 0
    probabilities = meta[[name for name in meta if str(name).startswith(c.PROBABILITY_PREFIX)]]
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, atol=1e-5)
    layout = pd.read_parquet(reference / "maps/main.parquet")
    assert list(layout[c.KEY]) == list(index[c.KEY])
    outliers = pd.read_parquet(reference / "outliers/main/field.parquet")
    assert sorted(outliers["rank"]) == list(range(1, len(index) + 1))
    treatments = pd.read_parquet(reference / "profiles/main/treatment.parquet")
    assert set(treatments[c.TREATMENT]) == set(index[c.TREATMENT])
    assert not list(reference.rglob("*truth*")) or list(reference.rglob("*truth*")) == [
        reference / "raw/truth.parquet"
    ]


def test_two_workers_trained_and_the_history_is_whole(reference: Path) -> None:
    metrics = pd.read_csv(reference / "runs/main/metrics.csv")
    assert list(metrics["epoch"]) == [0, 1]
    assert metrics["optimizer_steps"].is_monotonic_increasing
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "mcc"):
        for level in ("", "treatment_"):
            assert metrics[f"validation_{level}{name}"].notna().all()
    offline = list(reference.glob("runs/main/wandb/offline-run-*/*.wandb"))
    assert len(offline) == 1
    assert b"validation_balanced_accuracy" in offline[0].read_bytes()
    split = pd.read_parquet(reference / "splits/main.parquet")
    seen = json.loads((reference / "runs/main/metrics.json").read_text())
    tested = set(split.loc[split[c.SIDE] == c.TEST, c.COMPOUND]) - {"DMSO"}
    assert tested
    assert not tested & {*seen["train_compounds"], *seen["validation_compounds"]}


def test_a_second_run_finds_everything_complete(reference: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()}
    done = hcs_ray("demo", reference, "--size", "smallest")
    assert done.returncode == 0
    assert done.stderr.count("complete") == len(["generate", *STAGE_NAMES])
    assert {path: path.stat().st_mtime_ns for path in reference.rglob("*") if path.is_file()} == before


def test_a_changed_setting_makes_later_stages_stale_and_names_them(study: Path) -> None:
    message = refused("run", study, "--set", "train.lr=0.5")
    assert "train.lr changed from 0.003 to 0.5" in message
    assert "embed, profile, map, outliers, report" in message
    assert "--force" in message
    message = refused("embed", study, "--set", "train.lr=0.5")
    assert "train main is stale" in message
    assert "map.neighbors changed from 15 to 9" in refused("map", study, "--set", "map.neighbors=9")
    again = hcs_ray("run", study, "--set", "map.neighbors=9", "--force")
    assert again.returncode == 0, again.stderr
    assert again.stderr.count("complete") == STAGE_NAMES.index("map")


def test_another_name_stands_beside_the_first(study: Path) -> None:
    done = hcs_ray("split", study, "--name", "second", "--set", "split.seed=5")
    assert done.returncode == 0, done.stderr
    assert (study / "splits/second.parquet").read_bytes() != (study / "splits/main.parquet").read_bytes()
    assert hcs_ray("split", study).returncode == 0


def test_a_resharded_screen_makes_the_split_stale(study: Path, cluster: str) -> None:
    codec = ("--set", "shards.codec=jpegxl")
    assert "shards.codec changed" in refused("run", study, *codec)
    assert hcs_ray("shard", study, *codec, "--force", RAY_ADDRESS=cluster).returncode == 0
    message = refused("run", study, *codec)
    assert "split main is stale: shards/_stage.json changed" in message
    assert "train, embed" in message


def test_a_changed_image_makes_the_shards_stale(study: Path) -> None:
    image = next((study / "raw").glob("Week*/*.tif"))
    image.write_bytes(image.read_bytes() + b"more")
    assert f"raw {image.parent.name} changed" in refused("run", study)


def test_a_flipped_byte_in_a_tar_is_found_with_its_field(study: Path, cluster: str) -> None:
    row = read_index(open_study(str(study))).iloc[7]
    tar = study / "shards" / str(row[c.SHARD])
    data = bytearray(tar.read_bytes())
    data[int(row[c.OFFSET]) + int(row[c.SIZE]) // 2] ^= 1
    tar.write_bytes(data)
    done = hcs_ray("verify", study)
    assert done.returncode == 1
    assert f"member {row[c.KEY]}.blosc2 is damaged" in done.stdout
    message = refused("embed", study, "--force", code=1, RAY_ADDRESS=cluster)
    assert f"field {row[c.KEY]}" in message
    assert f"{tar}: the member at byte {row[c.OFFSET]} is damaged" in message
    assert not (study / "embeddings/main/_stage.json").exists()


def test_a_truncated_image_is_named_and_the_run_goes_on_once_it_is_whole(fresh: Path, cluster: str) -> None:
    image = sorted((fresh / "raw").glob("Week*/*.tif"))[-1]
    whole = image.read_bytes()
    image.write_bytes(whole[:-1000])
    message = refused("run", fresh, "--to", "split", RAY_ADDRESS=cluster)
    assert image.name in message
    assert "truncated" in message
    assert not (fresh / "shards/_stage.json").exists()
    image.write_bytes(whole)
    stale = refused("run", fresh, "--to", "split", RAY_ADDRESS=cluster)
    assert f"raw {image.parent.name} changed" in stale
    done = hcs_ray("run", fresh, "--to", "split", "--force", RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr


def test_a_lost_tar_and_a_damaged_chunk_are_made_again(reference: Path, study: Path, cluster: str) -> None:
    tar = sorted((study / "shards").glob("*.tar"))[2]
    chunks = sorted((study / "embeddings/main").glob("*.parquet"))
    tar.unlink()
    assert f"{tar.name} is missing or has another size; run hcs-ray shard again" in refused("split", study)
    damaged = bytearray(chunks[1].read_bytes())
    damaged[len(damaged) // 3] ^= 1
    chunks[1].write_bytes(damaged)
    chunks[0].unlink()
    done = hcs_ray("run", study, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    assert_equal_results(LocalStorage(reference), LocalStorage(study))


def test_a_missing_image_is_named(fresh: Path) -> None:
    image = sorted((fresh / "raw").glob("Week*/*.tif"))[3]
    image.unlink()
    assert image.name in refused("run", fresh)


def kill_and_go_on(folder: Path, after_s: float) -> None:
    """Start a run, SIGKILL its process after a while, and run it again to the end."""
    command = [HCS_RAY, "run", str(folder)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as first:
        time.sleep(after_s)
        first.send_signal(signal.SIGKILL)
    done = hcs_ray("run", folder)
    assert done.returncode == 0, f"killed after {after_s} s: {done.stderr}"


@pytest.mark.timeout(600)
def test_a_second_writer_stops_and_a_killed_run_goes_on(reference: Path, fresh: Path) -> None:
    command = [HCS_RAY, "run", str(fresh)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as first:
        ray_files = fresh / "runs/main/ray"
        deadline = time.monotonic() + 300
        while not any(ray_files.glob("step_*")) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert any(ray_files.glob("step_*"))
        os.kill(first.pid, signal.SIGSTOP)  # the rest of so short a training must not end before the second
        message = refused("train", fresh, code=1)
        assert f"process {first.pid}" in message
        assert "being written by" in message
        os.kill(first.pid, signal.SIGKILL)
    done = hcs_ray("run", fresh, "--to", "profile")
    assert done.returncode == 0, done.stderr
    assert_equal_results(LocalStorage(reference), LocalStorage(fresh))
    history = pd.read_csv(fresh / "runs/main/metrics.csv")
    undisturbed = pd.read_csv(reference / "runs/main/metrics.csv")
    pd.testing.assert_frame_equal(history, undisturbed, rtol=1e-5)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(12))
def test_a_run_killed_at_any_moment_ends_as_the_undisturbed_one(
    reference: Path, fresh: Path, seed: int
) -> None:
    kill_and_go_on(fresh, random.Random(seed).uniform(0.5, 50))
    assert_equal_results(LocalStorage(reference), LocalStorage(fresh))


def test_the_whole_path_on_s3_gives_the_same(reference: Path, s3: str, cluster: str, tmp_path: Path) -> None:
    root = f"{s3}/studies/demo"
    config = (reference / "study.yaml").read_text() + f"screen: {{folder: {reference / 'raw'}}}\n"
    storage = open_storage(root)
    storage.write("study.yaml", config.encode())
    done = hcs_ray("run", root, RAY_ADDRESS=cluster)
    assert done.returncode == 0, done.stderr
    assert_equal_but_for_raw(LocalStorage(reference), storage)
    again = hcs_ray("run", root, RAY_ADDRESS=cluster)
    assert again.stderr.count("complete") == len(STAGE_NAMES)
    report = storage.read("reports/main/index.html")
    secret = os.environ["AWS_SECRET_ACCESS_KEY"].encode()
    assert secret not in report
    for path in storage.sizes():
        if not path.endswith((".tar", ".npy")):
            assert secret not in storage.read(path), path


def assert_equal_but_for_raw(one: Storage, other: Storage) -> None:
    """As `assert_equal_results`; the manifest names the raw folder, which differs."""
    for path in one.sizes("shards"):
        if path.endswith((".tar", ".npy", ".parquet")):
            assert one.read(path) == other.read(path), path
    embedded = [read_embeddings(open_study(storage.url)) for storage in (one, other)]
    np.testing.assert_allclose(embedded[0][1], embedded[1][1], rtol=1e-5, atol=1e-5)
    assert pd.read_parquet(io.BytesIO(other.read("maps/main.parquet"))).shape[0] == len(embedded[1][1])
