"""One history of a run, however often it was killed: in tables, in W&B's files, in TensorBoard's."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from hcs_ray.config import StudyConfig
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.model import sinks, wandb_run
from hcs_ray.model.tracking import Final, Tracking, preflight
from hcs_ray.storage import LocalStorage, Storage, open_storage
from tests.http_server import closed_port, wait_until
from tests.tracked_run import (
    EPOCH_STEPS,
    FOLDER,
    REPOSITORY,
    Point,
    configuration,
    epoch_point,
    final,
    learn,
    point,
    run,
    start,
)
from tests.wandb_server import WandbServer, serving

KEY = "0123456789abcdefSECRET0123456789abcdef0123"
_MARKS = ("_timestamp", "_runtime")  # of the clock


def killed_at(root: Path, step: int) -> None:
    process = start(root, step, ends=False)
    assert process.stdout is not None
    assert process.stdout.readline() == "there\n", process.communicate()[1]
    services = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    wait_until(lambda: not any(map(alive, services)))


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


# --- W&B's offline files, read without W&B's reader ---------------------------------------------------


@dataclass
class Offline:
    """What one offline file holds; rows in order, without the times of the clock."""

    file: Path
    id: str = ""
    group: str = ""
    label: str = ""
    host: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    artifacts: dict[str, Path] = field(default_factory=dict)
    ended: bool = False


def log_records(data: bytes) -> Iterator[bytes]:
    """The records of a LevelDB-style log; a torn one at the end is left out."""
    place, parts = 7, b""  # after W&B's own header
    while place + 7 <= len(data):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        piece = data[place + 7 : place + 7 + size]
        if kind == 0 or len(piece) < size:
            return
        parts = piece if kind in (1, 2) else parts + piece
        place += 7 + size
        if kind in (1, 4):
            yield parts


def _nested(items: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for item in items:
        *path, last = list(item.nested_key) or [item.key]
        inner = found
        for name in path:
            inner = inner.setdefault(name, {})
        inner[last] = json.loads(item.value_json)
    return found


def offline(file: Path) -> Offline:
    import wandb.proto.wandb_internal_pb2

    protocol: Any = wandb.proto.wandb_internal_pb2

    found = Offline(file)
    for data in log_records(file.read_bytes()):
        record = protocol.Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            found.id, found.group, found.label, found.host = (
                run.run_id, run.run_group, run.display_name, run.host,
            )  # fmt: skip
            found.config = _nested(run.config.update)
        elif kind == "history":
            row = _nested(record.history.item)
            found.rows.append({name: value for name, value in row.items() if name not in _MARKS})
        elif kind == "summary":
            found.summary |= _nested(record.summary.update)
        elif kind == "artifact":
            files = record.artifact.manifest.contents
            found.artifacts[record.artifact.name] = Path(files[0].local_path)
        found.ended |= kind == "exit"
    return found


def all_offline(root: Path) -> list[Offline]:
    return [offline(file) for file in sorted(root.rglob("*.wandb"))]


def board(root: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import (  # type: ignore[import-untyped]
        EventAccumulator,
    )

    events = EventAccumulator(str(root / FOLDER / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def table(root: Path) -> pd.DataFrame:
    with (root / FOLDER / "points.csv").open(newline="") as file:
        rows = [{name: float(text or "nan") for name, text in row.items()} for row in csv.DictReader(file)]
    return pd.DataFrame(rows)


def comparable(row: Mapping[str, Any]) -> dict[str, Any]:
    """A history row; of pictures and tables, what they hold and not where."""
    return {name: value for name, value in row.items() if not isinstance(value, dict)}


# --- The story ----------------------------------------------------------------------------------------


def test_a_killed_and_resumed_run_has_one_history(tmp_path: Path) -> None:
    """SIGKILL at step 430; the checkpoint holds the points until 400."""
    killed, whole = tmp_path / "killed", tmp_path / "undisturbed"
    killed_at(killed, 430)
    (left,) = all_offline(killed)
    assert len(left.rows) > 100, "the first attempt has left steps that the second takes again"
    run(killed, 600, ends=True)
    whole.mkdir()
    run(whole, 600, ends=True)
    (found,), (expected,) = all_offline(killed), all_offline(whole)
    assert (found.id, found.group, found.label) == (left.id, "sweep", "one")
    assert found.id == json.loads((killed / FOLDER / "wandb_run.json").read_text())["id"]
    assert found.id != expected.id
    steps = [row["optimizer_steps"] for row in found.rows]
    assert steps == [row["_step"] for row in found.rows] == list(range(1, 601))
    assert list(map(comparable, found.rows)) == list(map(comparable, expected.rows))
    assert found.rows[299] == {"_step": 300} | point(300) | epoch_point(300)
    assert found.ended
    assert found.summary["test_accuracy"] == 0.75
    assert (killed / FOLDER / "points.csv").read_bytes() == (whole / FOLDER / "points.csv").read_bytes()
    assert board(killed) == board(whole)
    assert [step for step, _ in board(killed)["train_loss"]] == list(range(1, 601))


def test_the_end_of_a_run_leaves_its_figures_pictures_and_checkpoint(tmp_path: Path) -> None:
    config = configuration(tensorboard=True)
    tracking = Tracking(LocalStorage(tmp_path), FOLDER, config, name="trial 3", group="lr")
    learn(tracking, [], 20)
    tracking.finish(final())
    tracking.close()  # after the end it does nothing
    (found,) = all_offline(tmp_path)
    assert (found.label, found.group, found.host) == ("trial 3", "lr", "")
    noted = {name: value for name, value in found.config.items() if name != "_wandb"}
    assert noted == config.model_dump(mode="json")
    files = found.file.parent / "files"
    last = found.rows[-1]
    assert last["optimizer_steps"] == 20
    matrix = json.loads((files / last["confusion_table"]["path"]).read_text())
    assert matrix["data"] == [
        ["Actin", "Actin", 5],
        ["Actin", "DMSO $x_", 1],
        ["DMSO $x_", "Actin", 3],
        ["DMSO $x_", "DMSO $x_", 7],
    ]
    assert last["misclassified"]["captions"][1] == "P1_A01_s1: DMSO $x_, predicted Actin (0.80)"
    for one, name in zip(final().misclassified, last["misclassified"]["filenames"], strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(files / name)), one.image)
    assert found.summary["test_accuracy"] == 0.75
    model = found.artifacts[f"model-{found.id}"]
    assert model.read_bytes() == b"weights of a model"
    assert model.is_relative_to(tmp_path), "what is sent later lies in the run's folder"
    assert (tmp_path / FOLDER / "confusion.csv").read_text() == (
        "truth,Actin,DMSO $x_\nActin,5,1\nDMSO $x_,3,7\n"
    )
    with Image.open(tmp_path / FOLDER / "misclassified.png") as picture:
        assert picture.width > picture.height
        colours = picture.convert("RGB").getcolors(maxcolors=2**20)
    assert {(0, 0, 0), (40, 40, 40), (80, 80, 80)} <= {colour for _, colour in colours or []}
    assert board(tmp_path)["test_accuracy"] == [(20, 0.75)]


def test_no_file_holds_the_key_and_nothing_is_sent(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    with serving() as server:
        process = start(
            tmp_path / "study", 120, ends=True,
            WANDB_API_KEY=KEY, WANDB_BASE_URL=server.url, HTTPS_PROXY=server.url, HTTP_PROXY=server.url,
            HOME=str(home), NO_PROXY="", no_proxy="",
        )  # fmt: skip
        assert process.communicate() == ("", "")
        assert server.asked == []
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 10
    assert [file for file in files if KEY.encode() in file.read_bytes()] == []
    (found,) = all_offline(tmp_path)
    assert found.host == ""
    noted = b"\n".join(log_records(found.file.read_bytes()))
    assert str(REPOSITORY).encode() not in noted, "no code"
    assert b"git" not in noted
    if len(socket.gethostname()) > 4:
        assert socket.gethostname().encode() not in noted


def test_credentials_in_addresses_are_left_out(tmp_path: Path) -> None:
    address = "https://user:SECRETWORD@store.example:9000/x"
    config = StudyConfig.model_validate({"storage": {"endpoint": address}})
    Tracking(LocalStorage(tmp_path), FOLDER, config).finish(None)
    (found,) = all_offline(tmp_path)
    assert found.config["storage"]["endpoint"] == "https://store.example:9000/x"
    assert not [f for f in tmp_path.rglob("*") if f.is_file() and b"SECRETWORD" in f.read_bytes()]


def test_disabled_leaves_only_the_tables(tmp_path: Path) -> None:
    tracking = Tracking(LocalStorage(tmp_path), FOLDER, configuration("disabled"))
    learn(tracking, [], 10)
    tracking.finish(final())
    names = {file.name for file in (tmp_path / FOLDER).iterdir()}
    assert names == {"points.csv", "confusion.csv", "misclassified.png"}


def test_points_are_written_at_the_end_of_an_epoch_and_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tracking = Tracking(LocalStorage(tmp_path), FOLDER, configuration("disabled"))
    points: list[Point] = []
    learn(tracking, points, EPOCH_STEPS - 1)
    assert not (tmp_path / FOLDER / "points.csv").exists(), "not with every step"
    learn(tracking, points, EPOCH_STEPS)
    assert len(table(tmp_path)) == EPOCH_STEPS
    monkeypatch.setattr(sinks, "_WRITE_SECONDS", 0.0)
    learn(tracking, points, EPOCH_STEPS + 3)
    assert len(table(tmp_path)) == EPOCH_STEPS + 3
    tracking.close()
    assert "validation_score" in table(tmp_path)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(allow_nan=False, width=64), min_size=1, max_size=20), st.integers(0, 20))
def test_numbers_come_back_from_the_table(
    tmp_path_factory: pytest.TempPathFactory, values: list[float], resumed: int
) -> None:
    root = tmp_path_factory.mktemp("study")
    points = [{"optimizer_steps": 3 * i, "loss": value} for i, value in enumerate(values)]
    tracking = Tracking(LocalStorage(root), FOLDER, configuration("disabled"), told=points[:resumed])
    for figures in points[max(0, resumed - 2) :]:  # some are known, and said again
        tracking.log(figures)
    tracking.finish(None)
    found = table(root)
    assert found["loss"].tolist() == values
    assert found["optimizer_steps"].tolist() == [3 * i for i in range(len(values))]


def test_figures_that_are_no_number_are_told_from_missing_ones(tmp_path: Path) -> None:
    tracking = Tracking(LocalStorage(tmp_path), FOLDER, configuration("disabled"))
    tracking.log({"optimizer_steps": 1, "loss": float("nan")})
    tracking.log({"optimizer_steps": 2, "epoch": 0, "score": float("inf")})
    tracking.finish(None)
    text = (tmp_path / FOLDER / "points.csv").read_text()
    assert text == "optimizer_steps,loss,epoch,score\n1,nan,,\n2,,0.0,inf\n"


def test_two_runs_in_one_process_do_not_mix(tmp_path: Path) -> None:
    runs = [Tracking(LocalStorage(tmp_path / name), FOLDER, configuration()) for name in "ab"]
    for step in range(1, 11):
        for number, tracking in enumerate(runs):
            tracking.log({"optimizer_steps": step, "loss": 10.0 * number})
    for tracking in runs:
        tracking.finish(None)
    first, second = all_offline(tmp_path)
    assert first.id != second.id
    assert [row["loss"] for row in first.rows] == [0.0] * 10
    assert [row["loss"] for row in second.rows] == [10.0] * 10


# --- Trouble ------------------------------------------------------------------------------------------


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def test_a_dead_service_of_wandb_does_not_end_a_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, wandb_anew: None
) -> None:
    tracking = Tracking(LocalStorage(tmp_path), FOLDER, configuration())
    points: list[Point] = []
    learn(tracking, points, 50)
    (service,) = [p for p in psutil.Process().children() if p.name() == "wandb-core" and alive(p)]
    service.kill()
    service.wait()
    learn(tracking, points, 150)
    tracking.finish(final())
    (warning,) = warnings_of(caplog)
    assert warning.startswith("figures are missing in W&B, and the training goes on: ")
    assert len(table(tmp_path)) == 150
    assert (tmp_path / FOLDER / "misclassified.png").exists()


def test_a_folder_that_cannot_be_written_does_not_end_a_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracking = Tracking(LocalStorage(tmp_path), FOLDER, configuration("disabled"))
    folder = tmp_path / FOLDER
    folder.rmdir()
    folder.write_text("in the way")
    points: list[Point] = []
    learn(tracking, points, 250)
    assert len(warnings_of(caplog)) == 1
    folder.unlink()
    tracking.finish(None)
    assert len(table(tmp_path)) == 250, "once it can be written, nothing is missing"


def test_a_damaged_id_is_named(tmp_path: Path) -> None:
    file = tmp_path / FOLDER / "wandb_run.json"
    file.parent.mkdir(parents=True)
    for damaged in ("", "[]", '{"id": ""}', '{"id": "../x"}'):
        file.write_text(damaged)
        with pytest.raises(InputError, match=r"wandb_run\.json: holds no W&B id; delete it"):
            Tracking(LocalStorage(tmp_path), FOLDER, configuration())


# --- With a server ------------------------------------------------------------------------------------


@pytest.fixture
def wandb_anew(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B that starts anew in this process, and so reads its environment again."""
    import wandb

    wandb.teardown()
    yield
    monkeypatch.undo()
    with contextlib.suppress(ConnectionError):  # where the test has killed it
        wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, wandb_anew: None) -> Iterator[WandbServer]:
    with serving() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        yield running


def test_online_without_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    online = configuration("online")
    with pytest.raises(InputError, match=r"the environment has no WANDB_API_KEY: set it, or set wandb.mode"):
        Tracking(LocalStorage(tmp_path), FOLDER, online)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InputError, match="WANDB_API_KEY"):
        preflight(online.wandb)
    preflight(configuration().wandb)


def test_online_without_a_network_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb_anew: None, caplog: pytest.LogCaptureFixture
) -> None:
    """A new run ends with it; one that is resumed goes on without W&B."""
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{closed_port()}")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setattr(wandb_run, "_START_SECONDS", 1.5)
    begun = time.monotonic()
    with pytest.raises(HcsError, match=r"W&B does not start .*; set wandb.mode to offline") as raised:
        Tracking(LocalStorage(tmp_path), FOLDER, configuration("online"))
    assert "\n" not in str(raised.value)
    assert KEY not in str(raised.value)
    resumed = Tracking(LocalStorage(tmp_path), FOLDER, configuration("online"), told=[point(1)])
    learn(resumed, [point(1)], 5)
    resumed.finish(final())
    assert time.monotonic() - begun < 20
    (warning,) = warnings_of(caplog)
    assert "W&B does not start" in warning
    assert len(table(tmp_path)) == 5


def test_a_key_that_is_none_is_refused_without_showing_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: WandbServer
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "tooshort!")
    with pytest.raises(HcsError, match=r"W&B does not start .*API key") as raised:
        Tracking(LocalStorage(tmp_path), FOLDER, configuration("online"))
    assert "tooshort!" not in str(raised.value)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wandb_run.one_line(ValueError(f"refused: {KEY}\nand more")) == "refused: ***"


def test_an_online_run_is_taken_up_where_the_server_stands(tmp_path: Path, server: WandbServer) -> None:
    """The server has more than the checkpoint holds: what it has is not sent again."""
    study = LocalStorage(tmp_path)
    first = Tracking(study, FOLDER, configuration("online"), group="sweep")
    points: list[Point] = []
    learn(first, points, 180)
    first.close()
    (run,) = server.history
    assert server.steps(run) == list(range(1, 181))
    second = Tracking(study, FOLDER, configuration("online"), group="sweep", told=points[:150])
    learn(second, points[:150], 300)
    second.close()
    last = Tracking(study, FOLDER, configuration("online"), told=points[:150])  # when all was learned
    learn(last, points[:150], 300)
    last.finish(Final({"test_accuracy": 0.75}, misclassified=final().misclassified))
    assert list(server.history) == [run]
    assert server.steps(run) == [*range(1, 301), 300], "the pictures of the end stand at the last step"
    shown = [row["misclassified"] for row in server.history[run] if "misclassified" in row]
    assert [len(row["captions"]) for row in shown] == [3]
    assert server.groups[run] == "sweep"
    assert server.config[run]["wandb"]["value"]["project"] == "screens"
    assert json.loads(server.files["wandb-summary.json"])["test_accuracy"] == 0.75
    sent = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert [file for file in sent if KEY.encode() in file.read_bytes()] == []


def test_a_server_that_goes_away_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wandb_anew: None, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(wandb_run, "_FINISH_SECONDS", 1.0)
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with serving() as running:
        monkeypatch.setenv("WANDB_BASE_URL", running.url)
        tracking = Tracking(LocalStorage(tmp_path), FOLDER, configuration("online"))
        points: list[Point] = []
        learn(tracking, points, 20)
    learn(tracking, points, 40)
    begun = time.monotonic()
    tracking.finish(Final({"test_accuracy": 0.75}))
    assert time.monotonic() - begun < 15
    (warning,) = warnings_of(caplog)
    assert "W&B" in warning
    assert len(table(tmp_path)) == 40


def test_wandb_sync_sends_a_resumed_run_as_one(tmp_path: Path) -> None:
    """W&B's own reader on the offline files of a run that failed at step 180 and was resumed at 150."""
    study = LocalStorage(tmp_path)
    first = Tracking(study, FOLDER, configuration())
    points: list[Point] = []
    learn(first, points, 180)
    first.close()
    second = Tracking(study, FOLDER, configuration(), told=points[:150])
    learn(second, points[:150], 220)
    second.finish(final())
    (found,) = all_offline(tmp_path)
    with serving() as running:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("wandb")), "sync", str(found.file.parent)],
            env=os.environ | {"WANDB_BASE_URL": running.url, "WANDB_API_KEY": KEY, "HOME": str(tmp_path)},
            cwd=tmp_path,
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert running.steps(found.id) == list(range(1, 221))
    assert f"model-{found.id}" in running.artifacts
    pictures = [name for name in running.files if name.startswith("media/images/misclassified")]
    assert len(pictures) == 3


# --- On S3 --------------------------------------------------------------------------------------------


def downloaded(storage: Storage, target: Path) -> Path:
    for path in storage.sizes(FOLDER):
        file = target / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(storage.read(path))
    return target


def test_a_study_on_s3_gets_the_files_of_a_failed_and_of_an_ended_run(s3: str, tmp_path: Path) -> None:
    study = open_storage(f"{s3}/tracking")
    config = configuration(tensorboard=True)
    first = Tracking(study, FOLDER, config)
    points: list[Point] = []
    learn(first, points, 180)
    before = downloaded(study, tmp_path / "running")
    assert len(table(before)) == EPOCH_STEPS, "the points of an epoch are there when it ends"
    first.close()
    (left,) = all_offline(downloaded(study, tmp_path / "failed"))
    assert len(left.rows) == 180
    second = Tracking(study, FOLDER, config, told=points[:150])
    learn(second, points[:150], 250)
    second.finish(final())
    whole = downloaded(study, tmp_path / "whole")
    (found,) = all_offline(whole)
    assert found.id == left.id
    assert [row["optimizer_steps"] for row in found.rows] == list(range(1, 251))
    assert [step for step, _ in board(whole)["train_loss"]] == list(range(1, 251))
    assert len(table(whole)) == 250
    assert not [path for path in study.sizes(FOLDER) if "artifacts" in path], "where they would not be found"
    pictures = [path for path in study.sizes(FOLDER) if "/media/images/" in path]
    assert [np.asarray(Image.open(io.BytesIO(study.read(path)))).shape for path in pictures] == [
        (6, 8, 3)
    ] * 3
