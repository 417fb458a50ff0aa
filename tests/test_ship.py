"""Logs that outlive their pod: parts in the bucket, each byte of a file once and in order."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.jobs import ship as ship_module
from hcs_ray.jobs.parts import Pod, content, shipped_files, shipped_pods
from hcs_ray.jobs.redact import Redactor
from hcs_ray.jobs.ship import Shipper, keep_shipping
from hcs_ray.storage import LocalStorage, Storage

POD = Pod("main", "hcs-ray-train-abc-x1y2z", "hcs-ray-train-abc-x1y2z-head-7")


class Logs:
    """A folder of logs and what was shipped of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.storage = folder / "session/logs", LocalStorage(folder / "study")
        self.folder.mkdir(parents=True)
        self.shipper = self.restarted()

    def restarted(self, **options: int) -> Shipper:
        """Another process, which knows nothing of the first."""
        self.shipper = Shipper(self.storage, POD, self.folder, Redactor((b"secret",)), **options)
        return self.shipper

    def append(self, name: str, data: bytes) -> None:
        (self.folder / name).parent.mkdir(exist_ok=True)
        with (self.folder / name).open("ab") as file:
            file.write(data)

    def shipped(self) -> dict[str, bytes]:
        files = shipped_files(self.storage, POD)
        return {name: b"".join(content(self.storage, file)) for name, file in files.items()}


@pytest.fixture
def logs(tmp_path: Path) -> Logs:
    return Logs(tmp_path)


def test_what_is_new_goes_out_in_numbered_parts(logs: Logs) -> None:
    assert logs.shipper.ship() == 0
    logs.append("raylet.out", b"one\n")
    logs.append("events/event_GCS.log", b"event\n")
    logs.append("debug_state.txt", b"the state of the moment\n")
    assert logs.shipper.ship() == 10
    logs.append("raylet.out", b"a secret\n")
    assert logs.shipper.ship() == 9
    assert logs.shipper.ship() == 0
    assert sorted(logs.storage.sizes("logs")) == [
        f"{POD.folder}/events/event_GCS.log.0000",
        f"{POD.folder}/raylet.out.0000",
        f"{POD.folder}/raylet.out.0001",
    ]
    assert logs.shipped() == {"events/event_GCS.log": b"event\n", "raylet.out": b"one\na ******\n"}


def test_unfinished_words_wait_for_the_end(logs: Logs) -> None:
    logs.append("x.log", b"it said secr")
    logs.shipper.ship()
    assert logs.shipped() == {"x.log": b"it said "}
    logs.shipper.ship(final=True)
    assert logs.shipped() == {"x.log": b"it said ****"}


def test_large_files_go_in_bounded_parts_and_not_for_ever(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ship_module, "PART_BYTES", 10_000)
    line = b"a line of a log\n"
    logs.append("x.log", line * 5000)
    logs.restarted(longest=40_000).ship()
    parts = logs.storage.sizes("logs")
    assert max(parts.values()) <= 10_000
    said = logs.shipped()["x.log"]
    assert said.startswith(line * 2400)
    assert said.endswith(b"the rest is not shipped (--longest-mb)\n")
    logs.append("x.log", line)
    assert logs.shipper.ship() == 0
    assert logs.restarted(longest=40_000).ship() == 0


def test_a_rotated_log_goes_on_under_its_own_name(logs: Logs) -> None:
    logs.append("dashboard.log", b"first\n")
    logs.shipper.ship()
    for turn in (b"second\n", b"third\n"):
        logs.append("dashboard.log", b"late\n")  # after the last round, before the turn
        if (logs.folder / "dashboard.log.1").exists():
            (logs.folder / "dashboard.log.1").rename(logs.folder / "dashboard.log.2")
        (logs.folder / "dashboard.log").rename(logs.folder / "dashboard.log.1")
        logs.append("dashboard.log", turn)
        logs.shipper.ship()
    assert logs.shipped() == {"dashboard.log": b"first\nlate\nsecond\nlate\nthird\n"}


def test_a_log_that_was_cut_begins_again(logs: Logs) -> None:
    logs.append("x.log", b"before it was cut\n")
    logs.shipper.ship()
    (logs.folder / "x.log").write_bytes(b"after\n")
    logs.shipper.ship()
    (logs.folder / "x.log").write_bytes(b"cut again, and longer than before\n")
    logs.shipper.ship()
    assert logs.shipped() == {"x.log": b"before it was cut\nafter\ncut again, and longer than before\n"}


def test_restarted_in_place_it_goes_on_after_the_last_part(logs: Logs) -> None:
    logs.append("x.log", b"one secret\n")
    logs.shipper.ship()
    logs.append("x.log", b"two secret\n")
    logs.shipper.ship()
    logs.append("x.log", b"three\n")
    assert logs.restarted().ship() == 6
    assert logs.shipped() == {"x.log": b"one ******\ntwo ******\nthree\n"}
    (logs.folder / "x.log").write_bytes(b"another file of the same name, and of a length beyond\n")
    assert logs.restarted().ship() == 54
    assert logs.shipped()["x.log"].endswith(b"three\nanother file of the same name, and of a length beyond\n")


def test_the_link_to_the_session_is_followed_and_others_are_not(logs: Logs, tmp_path: Path) -> None:
    logs.append("x.log", b"one\n")
    (tmp_path / "passwd").write_text("root\n")
    (logs.folder / "passwd").symlink_to(tmp_path / "passwd")
    (tmp_path / "session_latest").symlink_to(logs.folder.parent)
    shipper = Shipper(logs.storage, POD, tmp_path / "session_latest/logs", Redactor())
    assert shipper.ship() == 4
    assert logs.shipped() == {"x.log": b"one\n"}


@settings(deadline=None, max_examples=40)
@given(turns=st.lists(st.sampled_from(["write", "ship", "rotate", "restart"]), min_size=1, max_size=25))
def test_every_line_arrives_and_in_order(turns: list[str], tmp_path_factory: pytest.TempPathFactory) -> None:
    """However a log is written, rotated and shipped, and the shipper restarted while nothing turned."""
    logs, written, turned = Logs(tmp_path_factory.mktemp("turns")), b"", False
    for number, turn in enumerate(turns):
        if turn == "write":
            line = b"line %d of the log\n" % number
            logs.append("x.log", line)
            written += line
        elif turn == "rotate" and (logs.folder / "x.log").exists():
            logs.shipper.ship()  # a log that turns twice between rounds and is deleted is lost
            turned = True
            (logs.folder / "x.log").rename(logs.folder / "x.log.1")
        elif turn == "restart" and not turned:
            logs.restarted()
        else:
            logs.shipper.ship()
    logs.shipper.ship(final=True)
    assert logs.shipped().get("x.log", b"") == written


class Away(LocalStorage):
    """A store that does not answer the first so many times."""

    away = 0

    def write(self, path: str, data: bytes) -> None:
        if self.away:
            self.away -= 1
            raise HcsError("s3://away: cannot be written: no answer")
        super().write(path, data)


def keep(storage: Storage, logs: Logs, rounds: int, grace: float = 5.0) -> list[str]:
    """Ship for some rounds, then stop; what was said."""
    said: list[str] = []
    stop = threading.Event()
    waited: list[float] = []

    def wait(timeout: float | None = None) -> bool:
        waited.append(timeout or 0)
        if len(waited) >= rounds:
            stop.set()
        return stop.is_set()

    stop.wait = wait  # type: ignore[method-assign]
    shipper = Shipper(storage, POD, logs.folder, Redactor())
    keep_shipping(lambda: shipper, stop, said.append, interval=1, grace=grace)
    said.append(str(waited))
    return said


def test_a_store_that_is_away_is_said_once_and_nothing_is_lost(logs: Logs, tmp_path: Path) -> None:
    logs.append("x.log", b"one\n")
    storage = Away(tmp_path / "study")
    storage.away = 3
    said = keep(storage, logs, rounds=5)
    assert said[:-1] == [
        "logs cannot be shipped, and will be tried again: s3://away: cannot be written: no answer",
        "logs are shipped again",
    ]
    assert said[-1] == "[2, 4, 8, 1, 1]"
    assert logs.shipped() == {"x.log": b"one\n"}


def test_a_store_that_stays_away_is_given_up_within_the_grace(logs: Logs, tmp_path: Path) -> None:
    logs.append("x.log", b"one\n")
    storage = Away(tmp_path / "study")
    storage.away = 1000
    assert keep(storage, logs, rounds=1, grace=1.5)[1] == "the last logs of this pod were not shipped"


def test_the_rest_goes_out_when_the_store_is_back_in_time(logs: Logs, tmp_path: Path) -> None:
    logs.append("x.log", b"one\n")
    storage = Away(tmp_path / "study")
    storage.away = 3
    keep(storage, logs, rounds=1)
    assert logs.shipped() == {"x.log": b"one\n"}


def test_the_pods_of_a_job_are_found_by_its_name(logs: Logs) -> None:
    others = [
        Pod("main", "hcs-ray-train-abc-x1y2z", "worker-1"),
        Pod("main", "hcs-ray-train-abc-second", "head"),
        Pod("other", "hcs-ray-train-abcd-x", "head"),
    ]
    for pod in (POD, *others):
        logs.storage.write(f"{pod.folder}/x.log.0000", b"one\n")
    assert shipped_pods(logs.storage, "hcs-ray-train-abc") == [others[1], POD, others[0]]
    assert shipped_pods(logs.storage, "hcs-ray-train-abc-second", "main") == [others[1]]
    assert shipped_pods(logs.storage, "hcs-ray-train-abc", "other") == []
    with pytest.raises(InputError, match="--pod"):
        Pod("main", "attempt", "../../shards")


def test_parts_beyond_four_digits_stay_in_order(logs: Logs) -> None:
    for number in (9999, 10000, 10):
        logs.storage.write(f"{POD.folder}/x.log.{number:04d}", b"%d\n" % number)
    file = shipped_files(logs.storage, POD)["x.log"]
    assert b"".join(content(logs.storage, file)) == b"10\n9999\n10000\n"
    assert file.next_number == 10001
