"""A look from inside the image: a line a check, and the reason last."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path

import pytest

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs import preflight as preflight_module
from hcs_ray.jobs.preflight import Request, preflight
from hcs_ray.storage import LocalStorage, clock_skew, open_storage
from hcs_ray.study import Study, open_study
from tests.command import hcs_ray


@pytest.fixture
def study(tmp_path: Path) -> Path:
    (tmp_path / "study.yaml").write_text("model: {backbone: tiny}\n")
    return tmp_path


def complete(folder: Path | str, *stages: str) -> None:
    """Records of finished stages, without the work."""
    opened = open_study(str(folder))
    for stage in stages:
        with opened.writing(stage, opened.claim(stage)) as writer:
            writer.write("_output", stage.encode())


def look(request: Request, screen: Callable[[Study], object] = lambda _: None) -> tuple[list[str], str]:
    """The lines of the checks, and the reason of a failure."""
    lines: list[str] = []
    try:
        preflight(request, screen, lines.append)
    except InputError:
        raise
    except HcsError as error:
        return lines, str(error)
    return lines, ""


def test_a_stage_that_can_run(study: Path) -> None:
    complete(study, "shard", "split")
    lines, reason = look(Request(str(study), "train", hcs_ray=version("hcs_ray"), ray=version("ray")))
    assert reason == ""
    assert [line.split()[:2] for line in lines] == [
        [name, "ok"] for name in ("versions", "study", "storage", "clock", "inputs")
    ]
    assert lines[0].endswith(f"Ray {version('ray')}")
    assert "shards/_stage.json, splits/main_stage.json" in lines[-1]
    assert not [path for path in LocalStorage(study).sizes() if "preflight" in path or "clock" in path]


def test_an_incomplete_input_is_named(study: Path) -> None:
    lines, reason = look(Request(str(study), "train"))
    assert reason.endswith("inputs: " + f"{study}: shard main is not complete; run hcs-ray shard first")
    complete(study, "shard", "split")
    assert "train main is not complete" in look(Request(str(study), "embed"))[1]
    assert "embed main is not complete" in look(Request(str(study), "analyse"))[1]
    assert "there is no finished sweep x" in look(Request(str(study), "embed", run="sweep:x/best"))[1]
    stale = look(Request(str(study), "train", overrides=["split.seed=5"]))
    assert "split main is stale: split.seed changed from 0 to 5" in stale[1]
    assert lines[-1].startswith("inputs    failed  ")


def test_the_raw_screen_is_opened_where_a_job_begins_with_it(study: Path) -> None:
    opened: list[str] = []
    for stage in ("shard", "study"):
        assert look(Request(str(study), stage), lambda found: opened.append(found.name))[1] == ""
    assert opened == ["main", "main"]
    done = hcs_ray("preflight", study, "--stage", "study")
    assert done.returncode == 1
    assert "BBBC021_v1_image.csv: no such file" in done.stderr.splitlines()[-1]


def test_every_failure_has_its_line_and_the_first_is_the_reason(study: Path) -> None:
    """As the preflight Job's log shows it, whose last line KubeRay's users see."""
    done = hcs_ray(
        "preflight", study, "--stage", "train", "--gpus", "1", "--sweep", study / "none.yaml",
        HCS_RAY_EXPECT_VERSION="99.0", HCS_RAY_EXPECT_RAY=version("ray"), CUDA_VISIBLE_DEVICES="",
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *lines, last = done.stderr.splitlines()
    failed = [line.split()[0] for line in lines if line.split()[1] == "failed"]
    assert failed == ["versions", "sweep", "inputs", "gpu"]
    wanted = f"the image has hcs_ray {version('hcs_ray')}, the job was made for 99.0"
    assert last == f"hcs-ray: preflight: versions: {wanted} (and 3 more failed)"


def test_the_wrong_ray_a_wrong_study_and_a_wrong_stage(study: Path) -> None:
    assert "the image has ray" in look(Request(str(study), "train", ray="2.52.0"))[1]
    (study / "study.yaml").write_text("train: {learning_rte: 1}\n")
    lines, reason = look(Request(str(study), "train"))
    assert "unknown key train.learning_rte" in reason
    assert len(lines) == 2
    with pytest.raises(InputError, match="--stage nothing: it is one of shard, split"):
        look(Request(str(study), "nothing"))


def test_a_sweep_s_file_is_checked(study: Path) -> None:
    complete(study, "shard", "split")
    sweep = study / "sweep.yaml"
    sweep.write_text("space: {train.lrr: {choice: [1]}}\n")
    assert "sweep: " in look(Request(str(study), "tune", sweep=str(sweep)))[1]
    good = Path(__file__).resolve().parents[1] / "tune_configs/smoke.yaml"
    assert look(Request(str(study), "tune", sweep=str(good)))[1] == ""


def test_a_store_that_cannot_be_written(tmp_path: Path, study: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    (study / "study.yaml").write_text(f"root: {tmp_path}/file/study\n")
    lines, reason = look(Request(str(study / "study.yaml"), "train"))
    assert reason.startswith(f"preflight: storage: {tmp_path}/file")
    assert len(lines) == 3, "nothing more is asked of it"


@pytest.mark.parametrize("wrong_s", [-90, 90])
def test_clocks_that_disagree(study: Path, monkeypatch: pytest.MonkeyPatch, wrong_s: int) -> None:
    complete(study, "shard", "split")

    def modified(self: LocalStorage, path: str) -> datetime:
        return datetime.now(UTC) + timedelta(seconds=wrong_s)

    monkeypatch.setattr(LocalStorage, "modified", modified)
    reason = look(Request(str(study), "train"))[1]
    where = "ahead of" if wrong_s > 0 else "behind"
    assert f"s {where} this machine's; leases hold within 30 s; set the clocks (NTP)" in reason


def test_gpus_are_counted_as_torch_sees_them(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one thing replaced is what torch would answer on a node with GPUs."""
    complete(study, "shard", "split")
    answer = 'print(\'a warning\'); print(\'{"cuda": "12.8", "names": ["H200", "H200"]}\')'
    monkeypatch.setattr(preflight_module, "_ASK_TORCH", answer)
    assert look(Request(str(study), "train", gpus=2))[0][-1] == "gpu       ok      H200, H200 (CUDA 12.8)"
    assert "sees 2 GPUs, 3 are needed" in look(Request(str(study), "train", gpus=3))[1]
    monkeypatch.setattr(preflight_module, "_ASK_TORCH", "import no_such_module")
    assert "torch cannot be asked: ModuleNotFoundError" in look(Request(str(study), "train", gpus=1))[1]


@pytest.mark.gpu
def test_the_gpu_of_this_machine_is_seen(study: Path) -> None:
    complete(study, "shard", "split")
    assert look(Request(str(study), "train", gpus=1))[1] == ""


def test_on_s3_every_check_is_made_and_nothing_is_left(s3: str, tmp_path: Path) -> None:
    root = f"{s3}/{uuid.uuid4().hex}"
    (tmp_path / "study.yaml").write_text(f"root: {root}\n")
    complete(tmp_path / "study.yaml", "shard", "split")
    before = open_storage(root).sizes()
    done = hcs_ray("preflight", tmp_path / "study.yaml", "--stage", "train")
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 5
    assert open_storage(root).sizes() == before
    assert abs(clock_skew(open_storage(root))) < 2
    wrong = hcs_ray(
        "preflight", tmp_path / "study.yaml", "--stage", "train", AWS_SECRET_ACCESS_KEY="not the secret"
    )
    last = wrong.stderr.splitlines()[-1]
    assert wrong.returncode == 1
    assert "preflight: storage: " in last
    assert root in last
    assert "not the secret" not in wrong.stderr + wrong.stdout


def test_an_unreachable_store_is_told_soon(tmp_path: Path) -> None:
    (tmp_path / "study.yaml").write_text(
        "root: s3://hcs/study\nstorage: {endpoint: http://127.0.0.1:1, region: us-east-1}\n"
    )
    started = time.monotonic()
    done = hcs_ray(
        "preflight", tmp_path / "study.yaml", "--stage", "train", AWS_ACCESS_KEY_ID="k",
        AWS_SECRET_ACCESS_KEY=os.environ.get("AWS_SECRET_ACCESS_KEY", "s"),
    )  # fmt: skip
    assert done.returncode == 1
    assert "cannot be written" in done.stderr.splitlines()[-1]
    assert time.monotonic() - started < 30
