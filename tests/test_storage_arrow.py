"""The filesystem that Ray Train, Tune and Data write through: Arrow's contract on our own S3 client."""

from __future__ import annotations

import gc
import pickle
import tempfile
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.fs
import pyarrow.parquet
import pytest
from pyarrow.fs import FileSelector, FileType

from hcs_ray.contracts import HcsError
from hcs_ray.storage import S3Storage, Storage, StorageConfig, open_storage

LARGE = np.random.default_rng(0).bytes(20_000_000)


@pytest.fixture(params=["local", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "local":
        (tmp_path / "study").mkdir()
        return open_storage(str(tmp_path / "study"))
    return open_storage(f"{request.getfixturevalue('s3')}/{uuid.uuid4().hex}")


def listed(filesystem: Any, folder: str, recursive: bool = False) -> dict[str, FileType]:
    infos = filesystem.get_file_info(FileSelector(folder, recursive=recursive))
    return {info.path.removeprefix(f"{folder}/"): info.type for info in infos}


def test_arrow_reads_what_was_written(storage: Storage) -> None:
    storage.write("folder/x", b"content")
    filesystem, root = storage.arrow()
    with filesystem.open_input_file(f"{root}/folder/x") as file:
        assert file.size() == 7
        assert file.read_at(4, 3) == b"tent"
        file.seek(3)
        assert file.read() == b"tent"
    with filesystem.open_input_stream(f"{root}/folder/x") as file:
        assert file.read() == b"content"


def test_the_markers_that_arrow_makes_for_folders_are_no_files(storage: Storage) -> None:
    filesystem, root = storage.arrow()
    filesystem.create_dir(f"{root}/folder/inner", recursive=True)
    assert filesystem.get_file_info(f"{root}/folder/inner").type == FileType.Directory
    storage.write("folder/x", b"1")
    assert storage.sizes() == {"folder/x": 1}


def test_files_and_folders_are_told_apart_and_listed(storage: Storage) -> None:
    filesystem, root = storage.arrow()
    for path in ("a/b/x", "a/y", "ab"):
        storage.write(path, b"123")
    found = filesystem.get_file_info([f"{root}/{path}" for path in ("a", "a/b", "a/b/x", "ab", "c")])
    kinds = [FileType.Directory, FileType.Directory, FileType.File, FileType.File, FileType.NotFound]
    assert [info.type for info in found] == kinds
    assert found[2].size == 3
    assert found[2].mtime is not None
    assert listed(filesystem, f"{root}/a") == {"b": FileType.Directory, "y": FileType.File}
    assert listed(filesystem, root, recursive=True) == {
        "a": FileType.Directory, "a/b": FileType.Directory,
        "a/b/x": FileType.File, "a/y": FileType.File, "ab": FileType.File,
    }  # fmt: skip
    assert filesystem.get_file_info(FileSelector(f"{root}/c", allow_not_found=True)) == []
    for selector in (f"{root}/c", f"{root}/ab"):
        with pytest.raises(OSError, match=selector):
            filesystem.get_file_info(FileSelector(selector))


def test_folders_are_copied_moved_and_deleted(storage: Storage, tmp_path: Path) -> None:
    source, back = tmp_path / "checkpoint", tmp_path / "back"
    (source / "inner").mkdir(parents=True)
    (source / "inner/weights").write_bytes(LARGE)
    (source / "note").write_bytes(b"")
    filesystem, root = storage.arrow()
    pyarrow.fs.copy_files(str(source), f"{root}/first", destination_filesystem=filesystem)
    pyarrow.fs.copy_files(f"{root}/first", str(back), source_filesystem=filesystem)
    assert (back / "inner/weights").read_bytes() == LARGE
    assert (back / "note").read_bytes() == b""
    filesystem.copy_file(f"{root}/first/note", f"{root}/first/other")
    filesystem.move(f"{root}/first/note", f"{root}/first/renamed")
    filesystem.move(f"{root}/first", f"{root}/second")
    assert set(storage.sizes()) == {f"second/{name}" for name in ("inner/weights", "other", "renamed")}
    filesystem.delete_file(f"{root}/second/other")
    filesystem.delete_dir(f"{root}/second/inner")
    assert set(storage.sizes()) == {"second/renamed"}
    filesystem.delete_dir_contents(f"{root}/second")
    assert storage.sizes() == {}
    assert filesystem.get_file_info(f"{root}/second").type == FileType.Directory


def test_what_is_not_there_is_an_error(storage: Storage) -> None:
    filesystem, root = storage.arrow()
    for action in (
        filesystem.open_input_file, filesystem.open_input_stream, filesystem.delete_file,
        filesystem.delete_dir, filesystem.delete_dir_contents,
        lambda path: filesystem.move(path, f"{root}/x"), lambda path: filesystem.copy_file(path, f"{root}/x"),
        lambda path: filesystem.create_dir(f"{path}/x", recursive=False),
    ):  # fmt: skip
        with pytest.raises(FileNotFoundError):
            action(f"{root}/nothing")
    filesystem.delete_dir_contents(f"{root}/nothing", missing_dir_ok=True)


def test_tables_are_written_and_read(storage: Storage) -> None:
    filesystem, root = storage.arrow()
    table = pa.table({"key": [f"P1_B02_s{site}" for site in range(1000)], "value": np.arange(1000.0)})
    pyarrow.parquet.write_table(table, f"{root}/one.parquet", filesystem=filesystem)
    assert pyarrow.parquet.read_table(f"{root}/one.parquet", filesystem=filesystem) == table
    pyarrow.dataset.write_dataset(table, f"{root}/many", filesystem=filesystem, format="parquet")
    pyarrow.dataset.write_dataset(
        table, f"{root}/many", filesystem=filesystem, format="parquet",
        existing_data_behavior="delete_matching",
    )  # fmt: skip
    assert pyarrow.dataset.dataset(f"{root}/many", filesystem=filesystem).to_table() == table


def test_a_filesystem_travels_with_its_options_and_no_secrets(s3: str) -> None:
    options = StorageConfig(region="eu-west-1")
    filesystem, root = open_storage(f"{s3}/x", options).arrow()
    data = pickle.dumps(filesystem)
    assert b"secret" not in data
    assert b"eu-west-1" in data
    other = pickle.loads(data)
    assert other == filesystem
    assert other != open_storage(s3).arrow()[0]
    with other.open_output_stream(f"{root}/travelled") as file:
        file.write(b"1")
    assert open_storage(f"{s3}/x").read("travelled") == b"1"


def test_a_stream_that_is_dropped_leaves_nothing(s3: str) -> None:
    storage = S3Storage(f"{s3}/{uuid.uuid4().hex}")
    filesystem, root = storage.arrow()
    stream = filesystem.open_output_stream(f"{root}/x")
    stream.write(LARGE)
    assert storage.sizes() == {}, "nothing is seen before the end"
    del stream
    gc.collect()
    assert storage.sizes() == {}
    stream = filesystem.open_output_stream(f"{root}/x")
    stream.write(LARGE)
    stream.close()
    assert storage.read("x") == LARGE


def test_a_missing_bucket_is_one_line(s3: str) -> None:
    filesystem, root = open_storage("s3://nowhere/x").arrow()
    with pytest.raises(HcsError, match=r"s3://nowhere/x/: cannot be listed: there is no such bucket"):
        filesystem.create_dir(root)
    with pytest.raises(NotImplementedError):
        filesystem.open_append_stream(f"{root}/y")


@pytest.mark.soak
def test_ray_data_and_train_write_and_go_on_through_it(s3: str) -> None:
    """About a minute; the default tests of the whole path train through it as well."""
    import ray
    import ray.data
    from ray.train import CheckpointConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    storage = open_storage(f"{s3}/{uuid.uuid4().hex}")
    filesystem, root = storage.arrow()
    ray.init(address="local", num_cpus=2, object_store_memory=256 * 2**20, log_to_driver=False)
    try:
        ray.data.range(1000).write_parquet(f"{root}/table", filesystem=filesystem)
        assert ray.data.read_parquet(f"{root}/table", filesystem=filesystem).sum("id") == 499500
        for steps in (2, 4):
            run = RunConfig(
                name="run",
                storage_path=f"{root}/runs",
                storage_filesystem=filesystem,
                checkpoint_config=CheckpointConfig(num_to_keep=1),
            )
            result = TorchTrainer(
                _count_on, scaling_config=ScalingConfig(num_workers=1), run_config=run
            ).fit()
            assert result.metrics == {"steps": steps}
        kept = [path for path in storage.sizes("runs") if path.endswith("weights")]
        assert len(kept) == 1
        assert storage.read(kept[0]) == LARGE
    finally:
        ray.shutdown()


def _count_on() -> None:
    """Two steps from the newest checkpoint on, each with a checkpoint of its own."""
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    before = int(Path(checkpoint.to_directory(), "steps").read_text()) if checkpoint else 0
    for steps in (before + 1, before + 2):
        with tempfile.TemporaryDirectory() as folder:
            Path(folder, "steps").write_text(str(steps))
            Path(folder, "weights").write_bytes(LARGE)
            ray.train.report({"steps": steps}, checkpoint=ray.train.Checkpoint.from_directory(folder))
