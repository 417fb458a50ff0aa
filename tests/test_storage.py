"""One behaviour on a local folder and on a real S3 store."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import threading
import uuid
import zipfile
from pathlib import Path
from typing import Any, cast

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hcs_ray.contracts import HcsError, InputError
from hcs_ray.storage import LocalStorage, Storage, checked, open_storage, preflight
from hcs_ray.storage import ranged as ranged_module
from hcs_ray.storage.ranged import RangedFile, buffered


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
    assert storage.read_range("a/b.bin", 10, 10) == storage.read_range("a/b.bin", 3, 0) == b""
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
    with pytest.raises(InputError, match="no such"):
        storage.open("nothing.parquet")
    assert storage.read_versioned("nothing.parquet") is None


def test_an_empty_file_is_a_file(storage: Storage) -> None:
    storage.write("empty", b"")
    with storage.writing("streamed"):
        pass
    with storage.open("empty") as file:
        assert file.read() == storage.read("streamed") == b""
    assert storage.sizes() == {"empty": 0, "streamed": 0}


def test_a_streamed_write_is_whole_or_not_there(storage: Storage) -> None:
    with storage.writing("a/x.tar") as file, tarfile.open(fileobj=cast(Any, file), mode="w|") as tar:
        for number in range(3):
            member = tarfile.TarInfo(f"{number}")
            member.size = 5000
            tar.addfile(member, io.BytesIO(bytes(5000)))
        assert storage.sizes() == {}, "nothing is seen before the end"
    with tarfile.open(fileobj=io.BytesIO(storage.read("a/x.tar"))) as tar:
        assert tar.getnames() == ["0", "1", "2"]
    with pytest.raises(KeyError), storage.writing("a/x.tar") as file:
        file.write(b"the beginning")
        assert file.tell() == 13
        raise KeyError
    assert storage.sizes() == {"a/x.tar": len(storage.read("a/x.tar"))}
    assert storage.read("a/x.tar") != b"the beginning"


def test_a_failure_of_the_caller_stays_what_it_is(storage: Storage) -> None:
    with pytest.raises(OSError, match="of the microscope"), storage.writing("x"):
        raise OSError("of the microscope")


def test_zips_and_hdf5_files_are_read_in_place(storage: Storage) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (3, 200, 300), dtype=np.uint16)
    with storage.writing("plate.zip") as raw, zipfile.ZipFile(buffer := io.BytesIO(), "w") as archive:
        archive.writestr("readme", "x")
        archive.writestr("images/B02.raw", pixels.tobytes())
        archive.close()
        raw.write(buffer.getbuffer())
    with storage.open("plate.zip") as file, zipfile.ZipFile(file) as archive:
        assert archive.read("images/B02.raw") == pixels.tobytes()
    with h5py.File(content := io.BytesIO(), "w") as written:
        written.create_dataset("images", data=pixels.astype(np.float16), chunks=(1, 50, 60))
    storage.write("plate.h5", content.getvalue())
    with storage.open("plate.h5") as file, h5py.File(file) as plate:
        np.testing.assert_array_equal(plate["images"][1], pixels[1].astype(np.float16))


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
    for race in range(3):
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


class Careless(LocalStorage):
    """A folder that does one thing as a poor store would."""

    def __init__(self, root: Path, fault: str) -> None:
        super().__init__(root)
        self.fault = fault

    def put_if_absent(self, path: str, data: bytes) -> bool:
        if self.fault == "refuses":
            return False
        if self.fault == "ignores absence":
            self.write(path, data)
            return True
        return super().put_if_absent(path, data)

    def put_if_match(self, path: str, data: bytes, version: str) -> bool:
        if self.fault == "ignores versions":
            self.write(path, data)
            return True
        return self.fault != "refuses versions" and super().put_if_match(path, data, version)

    def read(self, path: str) -> bytes:
        return super().read(path)[::-1] if self.fault == "garbles" else super().read(path)

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        return self.read(path) if self.fault == "ignores ranges" else super().read_range(path, offset, size)

    def delete(self, path: str) -> None:
        if self.fault != "keeps":
            super().delete(path)


@pytest.mark.parametrize(
    ("fault", "told"),
    [
        ("refuses", "refuses a new file"),
        ("ignores absence", r"ignores conditional puts \(If-None-Match\)"),
        ("ignores versions", r"ignores conditional puts \(If-Match\)"),
        ("refuses versions", "refuses a conditional put whose condition holds"),
        ("garbles", "otherwise than it was written"),
        ("ignores ranges", "ignores ranges"),
        ("keeps", "a deleted file is still there"),
    ],
)
def test_a_store_that_cannot_do_what_a_study_needs_is_found(tmp_path: Path, fault: str, told: str) -> None:
    with pytest.raises(HcsError, match=told) as caught:
        preflight(Careless(tmp_path, fault))
    assert str(caught.value).startswith(f"{tmp_path}: the store" if "store" in told else f"{tmp_path}: ")
    if fault != "keeps":
        assert list(tmp_path.iterdir()) == []


def test_an_unwritable_root_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(HcsError, match="file"):
        preflight(open_storage(str(tmp_path / "file" / "study")))


def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("root writes everywhere")
    tmp_path.chmod(0o500)
    with pytest.raises(HcsError, match="cannot be written: Permission denied"):
        preflight(open_storage(str(tmp_path)))


def test_what_cannot_be_listed_is_an_error_and_never_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "labels").mkdir()
    storage = open_storage(str(tmp_path))
    assert storage.sizes("labels/events") == {}
    (tmp_path / "labels/events").symlink_to("events")  # a circle: it stops root, too
    with pytest.raises(HcsError, match=r"labels/events: cannot be listed: Too many levels"):
        storage.sizes("labels/events")
    with pytest.raises(HcsError, match=r"labels/events: cannot be listed: Too many levels"):
        storage.sizes()


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../x", "", "a\\b", "a\0b"])
def test_paths_cannot_leave_the_root(path: str) -> None:
    with pytest.raises(InputError):
        checked(path)


@given(st.lists(st.sampled_from(["a", "b.c", "_d", "..."]), min_size=1, max_size=4))
def test_plain_paths_stay_as_they_are(parts: list[str]) -> None:
    assert checked("/".join(parts)) == "/".join(parts)


@given(
    size=st.integers(0, 400),
    reads=st.lists(st.tuples(st.integers(0, 450), st.integers(-1, 450)), max_size=12),
)
def test_any_reads_by_ranges_give_what_the_file_holds(size: int, reads: list[tuple[int, int]]) -> None:
    content = bytes(number % 251 for number in range(size))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranged_module, "_BLOCK_BYTES", 32)
        patch.setattr(ranged_module, "_KEPT_BLOCKS", 2)
        file = io.BufferedReader(
            RangedFile(size, lambda offset, length: content[offset : offset + length]), 8
        )
        for position, length in reads:
            assert file.seek(position) == position
            assert file.read(length) == content[position:][: length if length >= 0 else None]


def test_a_member_of_a_large_zip_costs_little_more_than_itself() -> None:
    content = io.BytesIO()
    member = np.random.default_rng(0).bytes(3 << 20)
    with zipfile.ZipFile(content, "w") as archive:
        for number in range(10):
            archive.writestr(f"{number}.tif", member)
    fetched: list[int] = []

    def fetch(offset: int, size: int) -> bytes:
        fetched.append(size)
        return content.getvalue()[offset : offset + size]

    with zipfile.ZipFile(buffered(RangedFile(len(content.getvalue()), fetch))) as archive:
        fetched.clear()
        assert archive.read("5.tif") == member
    assert len(fetched) <= 3
    assert sum(fetched) < len(member) + (2 << 20)
