"""A stage is whole when its record says so, is written by one at a time, and says why it is stale."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from hcs_ray import lease
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.lease import Lease
from hcs_ray.stage import Claim, Place, StaleStageError, read_record, stale_reasons, writing_stage
from hcs_ray.storage import LocalStorage

PLACE = Place("embed", "main", "embeddings/main")
CLAIM = Claim(inputs={"shards/_stage.json": "1"}, config={"embed": {"batch": 8}})


@pytest.fixture
def storage(tmp_path: Path) -> LocalStorage:
    return LocalStorage(tmp_path)


def write(storage: LocalStorage, claim: Claim = CLAIM, force: bool = False, place: Place = PLACE) -> None:
    with writing_stage(storage, place, claim, study_config="configs/x.yaml", force=force) as writer:
        writer.write("x.bin", b"content")


def test_a_finished_stage_has_a_record_and_nothing_else_beside_its_outputs(storage: LocalStorage) -> None:
    write(storage)
    assert set(storage.sizes()) == {"embeddings/main/x.bin", "embeddings/main/_stage.json"}
    record = read_record(storage, PLACE)
    assert record is not None
    assert record.read(storage, "embeddings/main/x.bin") == b"content"
    assert stale_reasons(storage, PLACE, CLAIM) == []


def test_the_record_is_the_same_for_the_same_work(storage: LocalStorage, tmp_path: Path) -> None:
    other = LocalStorage(tmp_path / "other")
    write(storage)
    write(other)
    assert storage.read(PLACE.record) == other.read(PLACE.record)


def test_an_interrupted_stage_is_not_finished_and_can_be_gone_on_with(storage: LocalStorage) -> None:
    with (
        pytest.raises(RuntimeError),
        writing_stage(storage, PLACE, CLAIM, study_config="", force=False) as writer,
    ):
        writer.write("first.bin", b"1")
        raise RuntimeError
    assert read_record(storage, PLACE) is None
    assert storage.read("embeddings/main/first.bin") == b"1"
    write(storage)
    assert read_record(storage, PLACE) is not None


def test_a_stage_begun_with_other_settings_is_not_mixed_with_these(storage: LocalStorage) -> None:
    other = Claim(inputs=CLAIM.inputs, config={"embed": {"batch": 9}})
    with pytest.raises(RuntimeError), writing_stage(storage, PLACE, CLAIM, study_config="") as writer:
        writer.write("first.bin", b"1")
        raise RuntimeError
    with pytest.raises(StaleStageError, match=r"embed\.batch changed from 8 to 9"):
        write(storage, other)
    write(storage, other, force=True)
    assert "embeddings/main/first.bin" not in storage.sizes()


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        (Claim(inputs={"shards/_stage.json": "2"}, config=CLAIM.config), "shards/_stage.json changed"),
        (Claim(inputs=CLAIM.inputs, config={"embed": {"batch": 1}}), "embed.batch changed from 8 to 1"),
        (Claim(inputs=CLAIM.inputs | {"y": "1"}, config=CLAIM.config), "y is new or gone"),
    ],
)
def test_a_stale_stage_says_what_changed(storage: LocalStorage, claim: Claim, words: str) -> None:
    write(storage)
    reasons = stale_reasons(storage, PLACE, claim)
    assert reasons == [words]
    with pytest.raises(StaleStageError, match="Make it again with --force"):
        write(storage, claim)
    assert storage.read("embeddings/main/x.bin") == b"content"


def test_stages_that_share_a_folder_do_not_touch_each_other(storage: LocalStorage) -> None:
    one, two = (Place("map", name, "maps", flat=True) for name in ("main", "main2"))
    for place in (one, two):
        with writing_stage(storage, place, CLAIM, study_config="") as writer:
            writer.write(f"{place.name}.parquet", place.name.encode())
    with writing_stage(storage, one, CLAIM, study_config="", force=True) as writer:
        writer.write("main.parquet", b"again")
    assert storage.read("maps/main2.parquet") == b"main2"
    assert read_record(storage, two) is not None


def test_a_damaged_or_missing_output_is_found(storage: LocalStorage) -> None:
    write(storage)
    record = read_record(storage, PLACE)
    assert record is not None
    storage.write("embeddings/main/x.bin", b"CONTENT")
    with pytest.raises(HcsError, match=r"x\.bin is damaged"):
        record.read(storage, "embeddings/main/x.bin")
    storage.delete("embeddings/main/x.bin")
    assert stale_reasons(storage, PLACE, CLAIM) is None, "a stage with a missing output is not complete"
    with pytest.raises(InputError, match="not an output"):
        record.read(storage, "embeddings/main/leftover.bin")


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"format": 99}', b"\xff"])
def test_a_foreign_record_is_one_line(storage: LocalStorage, content: bytes) -> None:
    storage.write(PLACE.record, content)
    with pytest.raises(InputError, match=r"_stage\.json"):
        read_record(storage, PLACE)


def test_a_second_writer_stops_and_names_the_holder(storage: LocalStorage) -> None:
    with (
        Lease(storage, PLACE.lease, "embed main").held(),
        pytest.raises(HcsError, match=f"is being written by .*process {os.getpid()}"),
    ):
        write(storage)
    write(storage)


def test_the_lease_of_a_killed_process_is_taken_over_at_once(storage: LocalStorage) -> None:
    code = (
        "import sys, time; from hcs_ray.lease import Lease; from hcs_ray.storage import LocalStorage\n"
        "from pathlib import Path\n"
        "with Lease(LocalStorage(Path(sys.argv[1])), 'embeddings/main/_lease.json', 'embed main').held():\n"
        "    print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, storage.url], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(HcsError, match=f"process {holder.pid}"):
            write(storage)
        holder.send_signal(signal.SIGKILL)
        holder.wait()
    write(storage)


def test_a_lease_that_ran_out_elsewhere_is_taken_over_and_the_loser_does_not_finish(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_SECONDS", 0.05)
    with (
        pytest.raises(HcsError, match="taken over"),
        writing_stage(storage, PLACE, CLAIM, study_config="") as writer,
    ):
        holder = json.loads(storage.read(PLACE.lease))
        storage.write(PLACE.lease, json.dumps({**holder, "token": "another"}).encode())
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            writer.write("x.bin", b"1")
            time.sleep(0.05)
    assert read_record(storage, PLACE) is None


def test_an_expired_lease_of_another_machine_is_taken_over(storage: LocalStorage) -> None:
    holder = {"token": "t", "user": "u", "host": "elsewhere", "boot": "b", "pid": 1, "process_started": 0.0}
    storage.write(PLACE.lease, json.dumps({**holder, "expires": time.time() - 1}).encode())
    write(storage)
    storage.write(PLACE.lease, json.dumps({**holder, "expires": time.time() + 2}).encode())
    write(storage)  # waits until it has run out, since nobody renews it


def test_a_lease_that_another_machine_renews_is_left_to_it(storage: LocalStorage) -> None:
    def renewed(seconds: float) -> bytes:
        holder = {"token": "t", "user": "u", "host": "elsewhere", "boot": "b", "pid": 1, "process_started": 0}
        return json.dumps({**holder, "expires": time.time() + seconds}).encode()

    storage.write(PLACE.lease, renewed(60))
    timer = threading.Timer(0.5, storage.write, (PLACE.lease, renewed(61)))
    timer.start()
    with pytest.raises(HcsError, match="u@elsewhere"):
        write(storage)
    timer.join()
    assert storage.size("embeddings/main/x.bin") is None


def test_forcing_one_name_leaves_names_that_begin_like_it(storage: LocalStorage) -> None:
    places = [Place("map", name, "maps", flat=True) for name in ("main", "main_2", "main.v2")]
    for place in places:
        with writing_stage(storage, place, CLAIM, study_config="") as writer:
            writer.write(f"{place.name}.parquet", place.name.encode())
    with writing_stage(storage, places[0], CLAIM, study_config="", force=True) as writer:
        writer.write("main.parquet", b"again")
    for place in places[1:]:
        assert storage.read(f"maps/{place.name}.parquet") == place.name.encode()
        assert read_record(storage, place) is not None


@pytest.mark.parametrize("deletions", range(7))
def test_outputs_of_another_claim_are_never_gone_on_with(
    storage: LocalStorage, monkeypatch: pytest.MonkeyPatch, deletions: int
) -> None:
    """However far a forced run came with deleting before it was killed."""
    with writing_stage(storage, PLACE, CLAIM, study_config="") as writer:
        for number in range(4):
            writer.write(f"{number}.bin", b"old")
    other = Claim(inputs=CLAIM.inputs, config={"embed": {"batch": 9}})
    deleted: list[str] = []
    delete = LocalStorage.delete

    def killed(self: LocalStorage, path: str) -> None:
        if len(deleted) == deletions and path != PLACE.lease:
            raise KeyboardInterrupt
        deleted.append(path)
        delete(self, path)

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, RuntimeError)):
        patch.setattr(LocalStorage, "delete", killed)
        with writing_stage(storage, PLACE, other, study_config="", force=True):
            raise RuntimeError("killed")
    old = [path for path in storage.sizes() if path.endswith(".bin")]
    if not old:
        return
    for claim in (CLAIM, other) if read_record(storage, PLACE) is None else (other,):
        with pytest.raises(StaleStageError), writing_stage(storage, PLACE, claim, study_config=""):
            pass


def test_what_killed_writers_left_long_ago_is_swept(storage: LocalStorage) -> None:
    write(storage)
    old, young = (Path(storage.url, "embeddings/main", f".hcs-tmp-{name}") for name in ("old", "young"))
    for file in (old, young):
        file.write_bytes(b"half")
    os.utime(old, (0, 0))
    write(storage, force=True)
    assert (old.exists(), young.exists()) == (False, True)
