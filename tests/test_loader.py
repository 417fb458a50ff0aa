"""The loader: the right fields in the right order, whatever the threads do."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray import contracts as c
from hcs_ray.config import TrainConfig
from hcs_ray.contracts import HcsError
from hcs_ray.model import augment, epochs
from hcs_ray.model import targets as t
from hcs_ray.model.augment import Crop
from hcs_ray.model.epochs import Share
from hcs_ray.model.loader import Batch, BatchLoader, FieldSource, plain_batches, training_batches
from hcs_ray.shards import read
from hcs_ray.shards.codec import Floats
from hcs_ray.storage import LocalStorage, Storage, open_storage
from tests.stored_fields import FIELDS, SHAPE, WHOLE, flip, image_of, source_in, tar_of


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read, "_PAUSES", (0.01, 0.01, 0.01))


@pytest.fixture(scope="module")
def shared_source(tmp_path_factory: pytest.TempPathFactory) -> FieldSource:
    """One that no test damages."""
    return source_in(LocalStorage(tmp_path_factory.mktemp("study")))


@pytest.fixture
def source(tmp_path: Path) -> FieldSource:
    return source_in(LocalStorage(tmp_path / "study"))


@pytest.fixture
def on_s3(s3: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Storage:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return open_storage(f"{s3}/loader/{request.node.name}")


def rows_of(batch: Batch) -> list[int]:
    rows: list[int] = batch["rows"].tolist()
    return rows


def loader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("loader")]


def dealt(sizes: list[int], seed: int = 0) -> list[Share]:
    rng = np.random.default_rng(seed)
    return [Share(rng.integers(0, len(FIELDS), size), max(size, 1) + 2) for size in sizes]


@settings(deadline=None, max_examples=15)
@given(sizes=st.lists(st.integers(0, 5), max_size=9), threads=st.integers(1, 5), anchors=st.integers(0, 2))
def test_batches_come_in_the_order_of_the_shares(
    shared_source: FieldSource, sizes: list[int], threads: int, anchors: int
) -> None:
    shares = [dataclasses.replace(share, anchors=np.arange(anchors)) for share in dealt(sizes)]

    def crop(key: str) -> Crop:
        left = int(key[-4:-3])
        return Crop(slice(2, 30), slice(left, left + 24))

    loader = BatchLoader(
        shared_source,
        shares,
        crop,
        lambda key: np.array([len(key), hash(key) % 99], np.float32),
        threads=threads,
    )
    assert len(loader) == len(shares)
    for _ in range(2):
        batches = 0
        for share, batch in zip(shares, loader, strict=True):
            batches += 1
            read_rows = [*(share.rows if len(share.rows) else [0]), *share.anchors]
            assert rows_of(batch) == read_rows
            real = len(read_rows) - anchors
            weight = 1 / share.batch if len(share.rows) else 0
            np.testing.assert_allclose(batch["weights"], [weight] * real + [0] * anchors, rtol=1e-6)
            assert batch["anchors"].tolist() == [False] * real + [True] * anchors
            for image, change, row in zip(batch["images"], batch["changes"], read_rows, strict=True):
                key = shared_source.key(row)
                np.testing.assert_array_equal(image, shared_source.image(row, crop(key)))
                assert change.tolist() == [len(key), hash(key) % 99]
        assert batches == len(shares)
    assert not loader_threads()
    assert (
        {name: batch[name].dtype for name in ("images", "weights", "changes")}
        == dict.fromkeys(("images", "weights", "changes"), torch.float32)
        if shares
        else True
    )


def test_a_batch_lasts_until_the_second_one_after_it(shared_source: FieldSource) -> None:
    shares = [Share(np.array([row, (row + 3) % len(FIELDS)]), 2) for row in range(len(FIELDS))]
    loader = BatchLoader(shared_source, shares, lambda _: WHOLE, threads=3)
    before: Batch | None = None
    places = Counter[int]()
    for batch in loader:
        time.sleep(0.003)  # the readers run as far ahead as they may
        for held in (before, batch):
            for image, row in zip(held["images"], rows_of(held), strict=True) if held else ():
                np.testing.assert_array_equal(image, image_of(shared_source, row))
        before = batch
        places[batch["images"].data_ptr()] += 1
    assert len(places) < len(shares), "memory is used again"
    first = set(places)
    assert {batch["images"].data_ptr() for batch in loader} == first, "also in the next epoch"


def test_what_cannot_be_read_raises_where_its_batch_would_come(source: FieldSource) -> None:
    row = source.fields.iloc[7]
    flip(tar_of(source, 7), int(row[c.OFFSET]) + 50)
    loader = BatchLoader(
        source, [Share(np.array([n, n + 1]), 2) for n in (0, 2, 6, 8)], lambda _: WHOLE, threads=4
    )
    seen = []
    with pytest.raises(
        HcsError, match=f"field {row[c.KEY]}: .*the member at byte {row[c.OFFSET]} is damaged"
    ):
        for batch in loader:
            seen.append(rows_of(batch))
    assert seen == [[0, 1], [2, 3]]
    assert not loader_threads()


def test_an_iteration_that_is_left_leaves_no_threads(shared_source: FieldSource) -> None:
    loader = BatchLoader(shared_source, dealt([3] * 30), lambda _: WHOLE, threads=3)
    left = iter(loader)
    next(left)
    assert loader_threads()
    loader.close()
    assert not loader_threads()
    assert next(left, None) is None
    again = iter(loader)
    next(again)
    assert len(list(loader)) == 30, "a new iteration ends the one before and begins at the beginning"
    assert next(again, None) is None
    for _ in loader:
        break
    assert not loader_threads(), "without a word, too"


def test_a_distant_store_gets_more_readers_and_no_more_decoders(
    on_s3: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = source_in(on_s3)
    most = Counter[str]()
    now = Counter[str]()
    lock = threading.Lock()

    def counted(name: str, action: Callable[..., object], pause: float) -> Callable[..., object]:
        def count(*arguments: object) -> object:
            with lock:
                now[name] += 1
                most[name] = max(most[name], now[name])
            try:
                time.sleep(pause)
                return action(*arguments)
            finally:
                with lock:
                    now[name] -= 1

        return count

    monkeypatch.setattr(source.reader, "fetch", counted("fetch", source.reader.fetch, 0.05))
    monkeypatch.setattr(source.reader, "floats", counted("floats", source.reader.floats, 0.005))
    shares = [Share(np.array([row, 12 - row]), 2) for row in range(len(FIELDS))]
    loader = BatchLoader(source, shares, lambda _: WHOLE, threads=2)
    assert [rows_of(batch) for batch in loader] == [share.rows.tolist() for share in shares]
    assert most["floats"] == 2
    assert most["fetch"] > 4


def train_config(**changes: object) -> TrainConfig:
    return TrainConfig.model_validate({"global_batch": 5, "crop_px": 16, "threads": 2, **changes})


def test_the_ranks_read_the_epochs_list_from_any_cursor_on(shared_source: FieldSource) -> None:
    config = train_config()
    listed = epochs.epoch_list(shared_source.fields, config, 3).tolist()
    whole: dict[int, dict[int, Floats]] = {}
    for world in (1, 2, 3):
        for start in (0, 5, 10, len(FIELDS)):
            loaders = [
                training_batches(shared_source, config, 3, rank, world, start) for rank in range(world)
            ]
            assert len({len(loader) for loader in loaders}) == 1
            seen = []
            for batches in zip(*loaders, strict=True):
                real = [row for batch in batches for row in batch["rows"][batch["weights"] > 0].tolist()]
                seen += sorted(real)
                assert sum(float(batch["weights"].sum()) for batch in batches) == pytest.approx(1)
                for batch in batches:
                    for row, image, change in zip(
                        rows_of(batch), batch["images"], batch["changes"], strict=True
                    ):
                        look = {0: image.numpy().copy(), 1: change.numpy().copy()}
                        for part, found in look.items():
                            np.testing.assert_array_equal(found, whole.setdefault(row, look)[part])
            wanted = [sorted(listed[i : i + 5]) for i in range(start, len(FIELDS), 5)]
            assert seen == [row for batch in wanted for row in batch]


def test_another_epoch_is_another_look(shared_source: FieldSource) -> None:
    config = train_config(global_batch=len(FIELDS))
    images = []
    for epoch in (0, 1):
        batch = next(iter(training_batches(shared_source, config, epoch, 0, 1)))
        assert batch["images"].shape == (len(FIELDS), 2, 16, 16)
        assert batch["changes"].shape[1] > 0
        images.append(batch["images"][batch["rows"].argsort()].clone())
    assert not torch.equal(*images)


def test_judging_reads_every_listed_field_once_in_the_middle(shared_source: FieldSource) -> None:
    listed = shared_source.fields.assign(**{t.LISTED: np.arange(len(FIELDS)) % 4 != 1})
    source = dataclasses.replace(shared_source, fields=listed)
    middle = augment.centre(SHAPE, 16)
    seen = []
    for rank in (0, 1):
        for batch in plain_batches(source, train_config(), rank, 2):
            assert batch["changes"].shape == (len(batch["rows"]), 0)
            for row, image, weight in zip(rows_of(batch), batch["images"], batch["weights"], strict=True):
                np.testing.assert_array_equal(image, image_of(source, row, middle))
                seen += [row] if weight > 0 else []
    assert sorted(seen) == np.flatnonzero(listed[t.LISTED]).tolist()


@pytest.mark.parametrize("world", [1, 2, 7])
def test_anchors_come_last_and_weigh_nothing(shared_source: FieldSource, world: int) -> None:
    table = shared_source.fields
    for rank in range(world):
        for loader in (
            training_batches(shared_source, train_config(), 0, rank, world, 0, 2),
            plain_batches(shared_source, train_config(), rank, world, 2),
        ):
            for batch in loader:
                anchors = batch["anchors"].numpy()
                rows = batch["rows"].numpy()
                assert (np.diff(anchors.astype(int)) >= 0).all(), "at the end"
                assert not batch["weights"][batch["anchors"]].any()
                assert table[t.ANCHOR].to_numpy()[rows[anchors]].all()
                held = Counter(table[c.PLATE].iloc[rows[anchors]])
                assert held == dict.fromkeys(table[c.PLATE].iloc[rows[~anchors]], 2), "also for a stand-in"
