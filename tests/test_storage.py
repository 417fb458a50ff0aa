"""One behaviour on a local folder and on a real S3 store."""

from __future__ import annotations

import pickle
import threading
import uuid
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.storage import Storage, checked, open_storage, preflight


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        return open_storage(str(tmp_path / "study"))
    return open_storage(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


def test_a_file_is_written_read_listed_and_deleted(storage: Storage) -> None:
    storage.write("a/b.bin", b"0123456789")
    assert storage.read("a/b.bin") == b"0123456789"
    assert storage.read_range("a/b.bin", 3, 4) == b"3456"
    assert storage.read_range("a/b.bin", 8, 10) == b"89"
    assert storage.size("a/b.bin") == 10
    assert storage.sizes() == {"a/b.bin": 10} == storage.sizes("a")
    assert storage.child("a").read("b.bin") == b"0123456789"
    storage.delete("a/b.bin")
    storage.delete("a/b.bin")
    assert storage.sizes() == {}
    assert storage.size("a/b.bin") is None


def test_a_missing_file_is_one_line(storage: Storage) -> None:
    with pytest.raises(InputError, match=r"nothing\.parquet: no such"):
        storage.read("nothing.parquet")
    with pytest.raises(InputError, match="no such"):
        storage.read_range("nothing.parquet", 0, 1)
    assert storage.read_versioned("nothing.parquet") is None


def test_only_the_first_of_two_conditional_puts_wins(storage: Storage) -> None:
    assert storage.put_if_absent("lease", b"1")
    assert not storage.put_if_absent("lease", b"2")
    found = storage.read_versioned("lease")
    assert found is not None
    assert found[0] == b"1"
    assert storage.put_if_match("lease", b"3", found[1])
    assert not storage.put_if_match("lease", b"4", found[1])
    assert storage.read("lease") == b"3"


def test_one_of_many_racing_writers_wins(storage: Storage) -> None:
    for race in range(5):
        wins: list[int] = []
        gate = threading.Barrier(6)

        def run(
            number: int, path: str = f"race-{race}", won: list[int] = wins, gate: threading.Barrier = gate
        ) -> None:
            gate.wait()
            if storage.put_if_absent(path, str(number).encode()):
                won.append(number)

        threads = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(wins) == 1
        assert storage.read(f"race-{race}") == str(wins[0]).encode()


def test_a_good_store_passes_the_preflight_and_nothing_stays(storage: Storage) -> None:
    preflight(storage)
    assert storage.sizes() == {}


def test_a_store_travels_to_other_processes_without_its_secrets(storage: Storage) -> None:
    data = pickle.dumps(storage)
    assert b"secret" not in data
    storage.write("x", b"1")
    assert pickle.loads(data).read("x") == b"1"


def test_arrow_reads_what_was_written(storage: Storage) -> None:
    storage.write("folder/x", b"content")
    filesystem, root = storage.arrow()
    with filesystem.open_input_file(f"{root}/folder/x") as file:
        assert file.read() == b"content"


def test_the_markers_that_arrow_makes_for_folders_are_no_files(storage: Storage) -> None:
    filesystem, root = storage.arrow()
    filesystem.create_dir(f"{root}/folder/inner", recursive=True)
    storage.write("folder/x", b"1")
    assert storage.sizes() == {"folder/x": 1}


def test_a_store_that_ignores_conditions_is_found(tmp_path: Path) -> None:
    from hcs_ray.storage import LocalStorage

    class Careless(LocalStorage):
        def put_if_absent(self, path: str, data: bytes) -> bool:
            self.write(path, data)
            return True

    with pytest.raises(HcsError, match="ignores conditional puts"):
        preflight(Careless(tmp_path))


def test_an_unwritable_root_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(HcsError, match="file"):
        preflight(open_storage(str(tmp_path / "file" / "study")))


def test_wrong_credentials_are_one_line(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(HcsError) as caught:
        open_storage(s3).read("x")
    assert "SignatureDoesNotMatch" in str(caught.value)
    assert "wrong" not in str(caught.value)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a\\b", "a\0b"])
def test_paths_cannot_leave_the_root(path: str) -> None:
    with pytest.raises(InputError):
        checked(path)


@given(st.lists(st.sampled_from(["a", "b.c", "_d", "..."]), min_size=1, max_size=4))
def test_plain_paths_stay_as_they_are(parts: list[str]) -> None:
    assert checked("/".join(parts)) == "/".join(parts)
