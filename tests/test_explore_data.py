"""The explorer's data: tables joined, neighbours, thumbnails by ranged reads, numbers of linked views."""

from __future__ import annotations

import asyncio
import dataclasses
import io
import re
import shlex
import shutil
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bokeh.document import Document
from bokeh.server.callbacks import PeriodicCallback
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from scipy import stats
from tornado.httpclient import AsyncHTTPClient, HTTPResponse

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError
from hcs_ray.explore.access import OpenGate
from hcs_ray.explore.colourings import Colourings
from hcs_ray.explore.fields import percentile_limits, planes
from hcs_ray.explore.scene import Scene, open_scene
from hcs_ray.explore.server import LOOPBACK, _free_port, _server
from hcs_ray.explore.session import Session
from hcs_ray.explore.shared import Explorer, open_explorer
from hcs_ray.explore.summaries import dose_response, plate_grid
from hcs_ray.explore.thumbnails import Thumbnails
from hcs_ray.labels import Decision, LabelLog, decide, labels_csv, read_labels
from hcs_ray.labels.decision import EVENTS
from hcs_ray.maps import read_map
from hcs_ray.outliers import read_outliers
from hcs_ray.pictures.composite import composite, plate_contrasts
from hcs_ray.screen.wells import well_position
from hcs_ray.stage import Claim
from hcs_ray.storage import LocalStorage
from hcs_ray.storage.s3 import S3Storage
from hcs_ray.study import Study, open_study
from hcs_ray.tables import read_embeddings, read_split
from tests.command import hcs_ray
from tests.large_study import make_large_study
from tests.report_study import make_study
from tests.stored_fields import flip

UNREADABLE = slice(3, 5)
Calls = list[tuple[str, str, int]]  # what was called, path, bytes asked for


class CountingStorage(LocalStorage):
    """A folder that notes what is read of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: Calls = []

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        self.calls.append(("read_range", path, size))
        return super().read_range(path, offset, size)


class CountingBucket(S3Storage):
    """The same of a bucket, with whole reads."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.calls: Calls = []

    def read_range(self, path: str, offset: int, size: int) -> bytes:
        self.calls.append(("read_range", path, size))
        return super().read_range(path, offset, size)

    def read(self, path: str) -> bytes:
        self.calls.append(("read", path, -1))
        return super().read(path)

    def open(self, path: str) -> Any:
        self.calls.append(("open", path, -1))
        return super().open(path)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Study:
    """A whole run; two of its fields were damaged before they could be embedded."""
    return make_study(tmp_path_factory.mktemp("study"), UNREADABLE)


@pytest.fixture(scope="module")
def scene(study: Study) -> Scene:
    return open_scene(study)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """Plates of 384 wells, doses, light that falls off; a profile was not made."""
    return open_scene(make_large_study(tmp_path_factory.mktemp("large"), 1700, 16, (24, 30)))


@pytest.fixture
def own(study: Study, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(study.storage.url, tmp_path / "study"))


# --- One table ------------------------------------------------------------------------------------------


def test_every_field_has_what_each_stage_says_of_it(study: Study, scene: Scene) -> None:
    assert scene.missing == {}
    fields = scene.fields.set_index(c.KEY)
    assert fields.index.is_monotonic_increasing
    places = read_map(study).set_index(c.KEY)
    np.testing.assert_array_equal(fields.loc[places.index, ["x", "y"]], places[["x", "y"]])
    outliers = read_outliers(study)["field"].set_index(c.KEY)
    for column in ("score", "rank", "reason", "evidence"):
        found = fields.loc[outliers.index, f"outlier_{column}"].astype(object)
        pd.testing.assert_series_equal(found, outliers[column].astype(object), check_names=False)
    sides = read_split(study).set_index([c.PLATE, c.WELL])[c.SIDE]
    assert fields["side"].tolist() == [sides[place] for place in zip(fields[c.PLATE], fields[c.WELL])]  # noqa: B905
    meta, embeddings = read_embeddings(study)
    rows = [scene.row_of(key) for key in meta[c.KEY]]
    np.testing.assert_array_equal(scene.embeddings[rows], embeddings)


def test_a_prediction_is_the_most_probable_class_and_right_where_the_truth_is_known(
    study: Study, scene: Scene
) -> None:
    meta, _ = read_embeddings(study)
    chances = [str(name) for name in meta if str(name).startswith("Probability_")]
    for row in c.rows_of(meta):
        field = scene.fields.iloc[scene.row_of(row[c.KEY])]
        best = max(chances, key=lambda name: float(row[name]))
        assert field["predicted_moa"] == best.removeprefix("Probability_")
        assert field["probability"] == pytest.approx(row[best])
        truth = "DMSO" if row[c.PERT_TYPE] == c.NEGATIVE_CONTROL else row[c.MOA]
        assert pd.isna(field["is_right"]) if truth is None else field["is_right"] == (best[12:] == truth)
    assert scene.fields["is_right"].isna().any()  # the unknown compound


def test_a_field_that_could_not_be_embedded_is_there_without_a_place(scene: Scene) -> None:
    lost = np.flatnonzero(scene.fields["unreadable"].notna())
    assert lost.tolist() == [3, 4]
    assert (
        scene.fields.loc[lost, ["x", "y", "probability", "outlier_score", "is_right"]].isna().all(axis=None)
    )
    assert np.isnan(scene.embeddings[lost]).all()
    assert np.isfinite(np.delete(scene.embeddings, lost, axis=0)).all()
    assert scene.neighbours(int(lost[0])) == []
    assert not set(lost.tolist()) & set(scene.neighbours(0, len(scene.fields)))


@pytest.mark.parametrize("stage", ["split", "map", "outliers", "profile"])
def test_what_was_not_run_is_said_and_all_else_is_there(own: Path, stage: str) -> None:
    study = open_study(str(own))
    (own / study.place(stage).record).unlink()
    found = open_scene(study)
    assert found.missing[stage] == f"not run: hcs-ray {stage}"
    lacking = {"split": "side", "map": "x", "outliers": "outlier_rank"}.get(stage)
    assert lacking is None or lacking not in found.fields
    assert len(found.neighbours(0)) == (0 if "embed" in found.missing else 8)


def test_a_stale_stage_is_not_shown_and_says_why(own: Path) -> None:
    text = (own / "study.yaml").read_text()
    (own / "study.yaml").write_text(text.replace("{", '{"map": {"neighbors": 7}, ', 1))
    found = open_scene(open_study(str(own)))
    assert "map.neighbors changed from 15 to 7" in found.missing["map"]
    assert "x" not in found.fields
    assert "outlier_score" in found.fields or "outliers" in found.missing


def test_shards_alone_are_enough(own: Path) -> None:
    study = open_study(str(own))
    for stage in ("split", "train", "embed", "map", "outliers", "profile"):
        (own / study.place(stage).record).unlink()
    found = open_scene(study)
    assert found.missing["embed"] == "not run: hcs-ray embed"
    assert found.embeddings.shape == (len(found.fields), 0)
    assert found.neighbours(0) == []
    assert found.same_well(0) == [1]
    (own / study.place("shard").record).unlink()
    with pytest.raises(InputError, match="run hcs-ray shard first"):
        open_scene(study)


def test_a_map_is_coloured_by_what_says_something(scene: Scene) -> None:
    infos = {info.name: info for info in scene.columns()}
    assert (infos[c.MOA].title, infos[c.MOA].kind) == ("Mechanism of action", "category")
    assert (infos[c.CONCENTRATION].kind, infos[c.CONCENTRATION].unit) == ("number", "µM")
    assert infos["QC_P99_Actin"].title == "99th percentile, Actin"
    assert infos["QC_P99_Actin"].unit == "camera units"
    assert infos["is_right"].kind == infos[c.SITE].kind == "category"
    assert not {c.KEY, c.SMILES, "offset", "outlier_evidence", "x"} & infos.keys()
    assert all(scene.fields[name].notna().any() for name in infos)


# --- Which fields belong together -------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(
    values=hnp.arrays(
        np.float32, (12, 3), elements=st.floats(-4, 4, width=32).filter(lambda v: v == 0 or abs(v) > 1e-3)
    ),
    lost=st.sets(st.integers(0, 11), max_size=4),
    row=st.integers(0, 11),
    k=st.integers(1, 15),
)
def test_neighbours_are_the_nearest_by_the_cosine(
    scene: Scene, values: Any, lost: set[int], row: int, k: int
) -> None:
    values[sorted(lost)] = np.nan
    small = dataclasses.replace(scene, fields=scene.fields.head(12), embeddings=values)
    rows, distances = small.nearest(row, k)
    lengths = np.sqrt((values.astype(np.float64) ** 2).sum(axis=1))
    usable = [other for other in range(12) if other != row and lengths[other] > 0]
    if not lengths[row] > 0:
        assert rows.tolist() == []
        return
    exact = values.astype(np.float64)
    naive = {other: 1 - float(exact[other] @ exact[row]) / lengths[other] / lengths[row] for other in usable}
    assert len(rows) == min(k, len(usable)) == len(set(rows.tolist()))
    wanted = sorted(naive.values())[: len(rows)]
    np.testing.assert_allclose(sorted(naive[int(other)] for other in rows), wanted, atol=1e-5)
    np.testing.assert_allclose(distances, [naive[int(other)] for other in rows], atol=1e-5)
    assert (np.diff(distances) >= -1e-5).all()


def test_a_wells_other_fields_and_a_treatments_other_wells(large: Scene) -> None:
    fields = large.fields
    row = int(np.flatnonzero((fields[c.COMPOUND] == "compound 3") & (fields[c.CONCENTRATION] == 1.0))[0])
    well = fields.iloc[[row, *large.same_well(row)]]
    assert len(well) == 4
    assert well.groupby([c.PLATE, c.WELL]).ngroups == 1
    control = int(np.flatnonzero(fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL)[0])
    others = fields.iloc[large.same_treatment(control, 30)]
    assert set(others[c.TREATMENT]) == {"DMSO@0"}
    assert len(others) == 30
    assert not others.groupby([c.PLATE, c.WELL]).size().gt(1).any(), "of each well one first"
    again = fields.iloc[large.same_treatment(row, 5)]
    assert set(again[c.TREATMENT]) == {"compound 3@1"}
    assert set(again[c.PLATE]) == {"Week1_001"}  # its replicate, the only one there


def test_controls_beside_are_the_nearest_wells_of_the_plate(large: Scene) -> None:
    fields = large.fields
    row = large.row_of("Week1_000_H20_s1")
    found = fields.iloc[large.controls_beside(row, 8)]
    assert set(found[c.PLATE]) == {"Week1_000"}
    assert set(found[c.PERT_TYPE]) == {c.NEGATIVE_CONTROL}
    own = well_position("H20", "")
    away = [np.hypot(*np.subtract(well_position(well, ""), own)) for well in found[c.WELL]]
    assert away == sorted(away)
    assert away[0] == 18  # H02, the nearest
    assert large.row_of("Week1_000_A01_s1") not in large.controls_beside(large.row_of("Week1_000_A01_s1"))


def test_an_unknown_key_is_one_line(scene: Scene) -> None:
    with pytest.raises(InputError, match="has no field nonsense"):
        scene.row_of("nonsense")


# --- Pictures ---------------------------------------------------------------------------------------------


def counted(study: Study) -> tuple[Scene, CountingStorage]:
    storage = CountingStorage(Path(study.storage.url))
    return open_scene(dataclasses.replace(study, storage=storage)), storage


def image_of(data: bytes) -> Any:
    return np.asarray(Image.open(io.BytesIO(data)), np.float64)


def test_a_thumbnail_is_the_field_in_the_contrast_of_its_plate(large: Scene) -> None:
    row = 40
    thumbnail = image_of(Thumbnails(large, size_px=15).get([row])[row])
    assert thumbnail.shape == (12, 15, 3)
    raw = planes(large, row, corrected=False).reshape(3, 12, 2, 15, 2).mean(axis=(2, 4))
    contrast = plate_contrasts(large.fields, large.channels)["Week1_000"]
    drawn = composite(raw, contrast, large.channels)
    assert np.abs(thumbnail - drawn).mean() < 8  # as far as a JPEG


def test_thumbnails_are_read_by_ranges_and_once(study: Study) -> None:
    scene, storage = counted(study)
    storage.calls.clear()
    pictures = Thumbnails(scene)
    rows = [0, 1, 9, 9, 20]
    together = threading.Barrier(4)

    def ask() -> dict[int, bytes]:
        together.wait()
        return pictures.get(rows)

    with ThreadPoolExecutor(4) as pool:
        found = [asked.result() for asked in [pool.submit(ask) for _ in range(4)]]
    assert all(each == found[0] for each in found)
    fields = scene.fields.iloc[[0, 1, 9, 20]]
    assert Counter(storage.calls) == Counter(
        ("read_range", f"shards/{shard}", int(size) + 512)
        for shard, size in zip(fields[c.SHARD], fields[c.SIZE], strict=True)
    )
    assert dict(pictures.stream(rows)) == found[0]
    assert len(storage.calls) == 4


def test_pictures_stay_within_their_limit_of_bytes(scene: Scene) -> None:
    one = len(Thumbnails(scene).get([0])[0])
    pictures = Thumbnails(scene, limit_bytes=4 * one)
    rows = [row for row in range(len(scene.fields)) if row not in (3, 4)]
    assert len(pictures.get(rows)) == len(rows)
    assert 0 < pictures.kept_bytes <= 4 * one
    pictures.close()


def test_damage_has_a_picture_that_says_so_and_is_tried_again(own: Path) -> None:
    scene = open_scene(open_study(str(own)))
    field = scene.fields.iloc[8]
    tar, middle = own / "shards" / str(field[c.SHARD]), int(field[c.OFFSET]) + int(field[c.SIZE]) // 2
    flip(tar, middle)
    pictures = Thumbnails(scene)
    found = pictures.get([7, 8])
    assert pictures.problems.keys() == {field[c.KEY]}
    assert "damaged" in pictures.problems[str(field[c.KEY])]
    assert str(field[c.SHARD]) in pictures.problems[str(field[c.KEY])]
    assert image_of(found[8]).shape == (128, 160, 3)  # of the field's shape, and large enough to be read
    assert image_of(found[7]).shape == (32, 40, 3)
    with pytest.raises(HcsError, match="damaged"):
        planes(scene, 8, corrected=False)
    flip(tar, middle)
    assert pictures.get([8])[8] != found[8]
    assert pictures.problems == {}
    planes(scene, 8, corrected=False)


def test_a_shard_that_is_gone_spares_the_other_plates(own: Path) -> None:
    scene = open_scene(open_study(str(own)))
    gone = str(scene.fields[c.SHARD].iloc[8])
    (own / "shards" / gone).unlink()
    pictures = Thumbnails(scene)
    there = int(np.flatnonzero(scene.fields[c.SHARD] != gone)[0])
    assert len(pictures.get([8, there])) == 2
    assert list(pictures.problems) == [scene.fields[c.KEY].iloc[8]]
    assert gone in pictures.problems[scene.fields[c.KEY].iloc[8]]


@pytest.mark.timeout(120)
def test_from_a_store_only_the_members_that_are_looked_at_are_read(study: Study, s3: str) -> None:
    bucket = CountingBucket(f"{s3}/explored")
    root = Path(study.storage.url)
    for file in sorted(path for path in root.rglob("*") if path.is_file()):
        bucket.write(str(file.relative_to(root)), file.read_bytes())
    scene = open_scene(dataclasses.replace(study, storage=bucket))
    bucket.calls.clear()
    rows = [0, 13, 25]
    pictures = Thumbnails(scene).get(rows)
    assert pictures == Thumbnails(open_scene(study)).get(rows)
    planes(scene, 13, corrected=False)
    sizes = scene.fields[c.SIZE].iloc[[*rows, 13]]
    assert [call[0] for call in bucket.calls] == ["read_range"] * 4
    assert sum(call[2] for call in bucket.calls) == int(sizes.sum()) + 4 * 512
    assert sum(call[2] for call in bucket.calls) < sum(bucket.sizes("shards").values()) / 5


def test_planes_are_the_stored_pixels_or_without_the_fall_of_light(large: Scene) -> None:
    field = large.fields.iloc[100]
    raw = large.reader.pixels(field[c.SHARD], int(field[c.OFFSET]), int(field[c.SIZE]), field[c.SHA256])
    np.testing.assert_array_equal(planes(large, 100, corrected=False), raw)
    path = large.reader.manifest["plates"][field[c.PLATE]]["illumination"][0]
    light = np.load(Path(large.study.storage.url) / "shards" / path)
    assert np.ptp(light) > 0.3
    np.testing.assert_allclose(planes(large, 100, corrected=True), raw / light, rtol=1e-5)
    with pytest.raises(ValueError, match="read-only"):
        planes(large, 100, corrected=True)[:] = 0


def test_planes_are_kept(study: Study) -> None:
    scene, storage = counted(study)
    storage.calls.clear()
    first = planes(scene, 7, corrected=False)
    assert planes(scene, 7, corrected=False) is first
    assert len(storage.calls) == 1


def test_limits_are_percentiles_of_each_channel(large: Scene) -> None:
    found = planes(large, 5, corrected=False)
    assert percentile_limits(found, 5, 80) == [
        (np.percentile(plane, 5), np.percentile(plane, 80)) for plane in found
    ]


# --- What a server's sessions share ---------------------------------------------------------------------


@pytest.fixture
def shared(own: Path) -> Iterator[Explorer]:
    """All that a server shares, of a study that a test may change."""
    opened = open_explorer(open_scene(open_study(str(own))), "ada")
    yield opened
    opened.close()


def test_a_decision_more_leaves_the_other_labels_alone(shared: Explorer) -> None:
    labels, keys = shared.labels, [str(key) for key in shared.scene.keys]
    labels.decide("ada", keys, verdict="good", add_tags=["odd"])
    before = labels.by_row()
    labels.decide("ada", keys[3:4], verdict="bad")
    after = labels.by_row()
    assert (labels.of(3).verdict, before[3].verdict) == ("bad", "good")
    assert all(after[row] is before[row] for row in before if row != 3), "not computed again"
    labels.decide("ada", keys[4:5], clear=True, remove_tags=["odd"])
    assert 4 not in labels.by_row()
    assert labels.csv() == labels_csv(read_labels(shared.scene.study.storage))


def test_a_slow_look_at_the_labels_hides_nothing_decided_meanwhile(
    shared: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, other = (str(key) for key in shared.scene.keys[:2])
    decide(shared.scene.study.storage, "bo", [key], verdict="bad")
    read, written, decisions = threading.Event(), threading.Event(), vars(LabelLog)["decisions"]

    def slow(log: LabelLog) -> list[Decision]:
        found = decisions.fget(log)
        if not read.is_set():
            read.set()
            written.wait(10)
        return list(found)

    def decide_too() -> None:
        shared.labels.decide("ada", [other], verdict="good")

    monkeypatch.setattr(LabelLog, "decisions", property(slow))
    with ThreadPoolExecutor(2) as pool:
        looking = pool.submit(shared.labels.refresh)
        assert read.wait(10)
        deciding = pool.submit(decide_too)
        wait([deciding], timeout=0.3)  # where nothing holds it up it is through before the look is
        written.set()
        looking.result(10)
        deciding.result(10)
    assert shared.labels.verdicts() == {0: "bad", 1: "good"}


def turned(session: Session, document: Document) -> str:
    """What a page says once its work is done and its poll of the labels has come round."""
    session.explorer.writer.submit(int).result(10)
    for callback in list(document.session_callbacks):
        if not isinstance(callback, PeriodicCallback):
            document.remove_next_tick_callback(callback)  # type: ignore[arg-type]
        callback.callback()
    return session.said


def test_undo_takes_back_what_this_page_decided_and_nothing_of_another(shared: Explorer) -> None:
    one, other = (Document(), Document())
    mine, theirs = Session(shared, one), Session(shared, other)
    mine.go(2)
    mine.label(False, verdict="bad")
    assert "bad: " in turned(mine, one)
    theirs.undo()
    refusal = turned(theirs, other)
    assert "This page has decided nothing that still holds" in refusal
    assert shared.labels.verdicts() == {2: "bad"}
    command = refusal.partition("in a terminal: hcs-ray ")[2]
    mine.undo()
    assert "Taken back: bad" in turned(mine, one)
    mine.undo()
    assert "This page has decided nothing that still holds" in turned(mine, one)
    assert shared.labels.verdicts() == {}
    mine.label(False, verdict="good")
    turned(mine, one)
    assert "taken back: good" in hcs_ray(*shlex.split(command)).stderr
    mine.undo()
    assert "This page has decided nothing that still holds" in turned(mine, one), "it is taken back already"


def test_what_cannot_be_read_is_said_once_and_hides_no_confirmation(shared: Explorer) -> None:
    folder, document = Path(shared.scene.study.storage.url) / EVENTS, Document()
    session = Session(shared, document)
    assert session.said == ""
    folder.mkdir(parents=True)
    for name in (".DS_Store", "notes.txt"):
        (folder / name).write_text("x")
    shared.labels.refresh()
    assert re.fullmatch(r".*/\.DS_Store: not a label's file.* \(and 1 more .*\)", turned(session, document))
    session.go(1)
    session.label(False, verdict="bad")
    assert turned(session, document).startswith("bad: ")
    shared.labels.refresh()
    assert turned(session, document).startswith("bad: ")
    assert ".DS_Store" in Session(shared, Document()).said, "a page that is opened now has not heard it"
    shutil.rmtree(folder)
    shared.labels.refresh()
    assert turned(session, document) == "All labels can be read again."


def answers(explorer: Explorer, *paths: str) -> list[HTTPResponse]:
    """What the explorer's server answers to addresses that are asked for at once."""
    port = _free_port(LOOPBACK, 0)
    hosts = [f"{LOOPBACK}:{port}"]

    async def ask() -> list[HTTPResponse]:
        colourings = Colourings(explorer.scene, explorer.labels)
        server = _server(explorer, colourings, OpenGate(hosts), LOOPBACK, port, hosts)
        server.start()
        client = AsyncHTTPClient(force_instance=True, max_clients=20)
        urls = [f"http://{hosts[0]}/{path}" for path in paths]
        asked = [client.fetch(url, raise_error=False, request_timeout=90) for url in urls]
        found = await asyncio.gather(*asked)
        client.close()
        server.stop()
        return list(found)

    with ThreadPoolExecutor(1) as pool:  # a server in the main thread would take Ctrl-C from pytest
        return pool.submit(asyncio.run, ask()).result()


def test_pictures_that_wait_for_a_store_hold_nothing_else_up(
    shared: Explorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, read = threading.Barrier(12), LocalStorage.read_range
    rows, others = range(5, 13), range(13, 17)

    def slow(storage: LocalStorage, path: str, offset: int, size: int) -> bytes:
        together.wait(60)
        return read(storage, path, offset, size)

    expected = Thumbnails(shared.scene).get(rows)
    monkeypatch.setattr(LocalStorage, "read_range", slow)
    explorer = dataclasses.replace(shared, thumbnails=Thumbnails(shared.scene, threads=8))
    done = threading.Event()
    computed = [explorer.pool.submit(done.wait, 120) for _ in range(4)]  # for four sessions
    pictures, values = [f"thumb/{row}.jpg" for row in rows], [f"values/{row}.json?x=0&y=0" for row in others]
    found = answers(explorer, *pictures, *values)
    done.set()
    assert all(one.result() for one in computed)
    assert [one.code for one in found] == [200] * 12, "all twelve were read at once"
    assert [one.body for one in found[:8]] == [expected[row] for row in rows]
    explorer.thumbnails.close()


def test_no_address_imports_a_module(
    shared: Explorer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "named_by_nobody.py").write_text("part = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    found = answers(
        shared,
        "components/named_by_nobody/part/_css/a",
        "components/named_by_nobody/__doc__/_css/a",
        "components/%2E%2E/part/_css/a",
        "components/panel.template.vanilla/VanillaTemplate/_css/vanilla.css",
    )
    assert [one.code for one in found] == [404, 404, 404, 200]
    assert "named_by_nobody" not in set(sys.modules) - before


def test_a_browser_keeps_pictures_and_no_notices(tmp_path: Path) -> None:
    explorer = open_explorer(open_scene(make_study(tmp_path)), "ada")
    damaged = explorer.scene.about(3)
    flip(tmp_path / "shards" / str(damaged[c.SHARD]), int(damaged[c.OFFSET]) + int(damaged[c.SIZE]) // 2)
    field, gone = answers(explorer, "thumb/2.jpg", "thumb/3.jpg")
    explorer.close()
    assert (field.code, gone.code) == (200, 200)
    assert "immutable" in field.headers["Cache-Control"]
    assert gone.headers["Cache-Control"] == "no-store"


# --- Numbers of linked views --------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), size=st.integers(0, 300))
def test_a_plate_says_what_its_fields_say(large: Scene, seed: int, size: int) -> None:
    rows = np.random.default_rng(seed).choice(len(large.fields), size, replace=False)
    column = "QC_Mean_DAPI"
    grid = plate_grid(large, rows, "Week1_001", column).set_index(c.WELL)
    counts = plate_grid(large, rows, "Week1_001").set_index(c.WELL)
    fields = large.fields
    for found in c.rows_of(grid.reset_index()):
        well = found[c.WELL]
        values = [
            fields[column][row]
            for row in rows
            if fields[c.PLATE][row] == "Week1_001" and fields[c.WELL][row] == well
        ]
        assert (found["n"], counts["value"][str(well)]) == (len(values), len(values))
        assert found["value"] == pytest.approx(np.mean(values)) if values else np.isnan(found["value"])
        assert (found["row"], found["column"]) == well_position(str(well), "")
    there = fields[fields[c.PLATE] == "Week1_001"]
    assert set(grid.index) == set(there[c.WELL])


def test_a_category_of_a_well_is_its_most_frequent_member(scene: Scene) -> None:
    plate = scene.fields[c.PLATE].iloc[0]
    grid = plate_grid(scene, None, plate, "predicted_moa").set_index(c.WELL)["value"]
    for well, found in grid.items():
        fields = scene.fields[(scene.fields[c.PLATE] == plate) & (scene.fields[c.WELL] == well)]
        counts = Counter(fields["predicted_moa"].dropna())
        best = min((-count, name) for name, count in counts.items())[1] if counts else None
        assert found == best or (best is None and pd.isna(found))


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 99), size=st.integers(1, 400))
def test_doses_are_means_of_wells_with_their_interval(large: Scene, seed: int, size: int) -> None:
    rows = np.random.default_rng(seed).choice(len(large.fields), size, replace=False)
    found = dose_response(large, rows, "outlier_score")
    fields = large.fields.iloc[rows]
    assert set(found[c.TREATMENT]) == set(fields[c.TREATMENT])
    for line in c.rows_of(found):
        of_it = fields[fields[c.TREATMENT] == line[c.TREATMENT]]
        places = sorted({(p, w) for p, w in zip(of_it[c.PLATE], of_it[c.WELL], strict=True)})
        means = [
            of_it[(of_it[c.PLATE] == p) & (of_it[c.WELL] == w)]["outlier_score"].mean() for p, w in places
        ]
        assert line["n"] == len(means)
        assert line["mean"] == pytest.approx(np.mean(means))
        assert line["concentration_um"] == of_it[c.CONCENTRATION].iloc[0]
        if len(means) > 1:
            low, high = stats.t.interval(0.95, len(means) - 1, np.mean(means), stats.sem(means))
            assert (line["low"], line["high"]) == (pytest.approx(low), pytest.approx(high))
        else:
            assert np.isnan(line["low"])
            assert np.isnan(line["high"])


def test_doses_of_compounds_are_in_order(large: Scene) -> None:
    found = dose_response(large, ["compound 2", "DMSO"], "QC_NucleusCount")
    assert found["concentration_um"].tolist() == [0, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30]
    assert dose_response(large, [], "QC_NucleusCount").empty
    with pytest.raises(InputError, match=r"no column of numbers Metadata_MOA; there are Metadata_Conc"):
        dose_response(large, [0], c.MOA)


def test_the_drawn_study_is_whole(large: Scene) -> None:
    """What the explorer's benchmark measures is a study as any other."""
    assert large.missing == {"profile": "not run: hcs-ray profile"}
    assert large.study.claim("map").changes_since(Claim(inputs={}, config={}))
    assert len(large.fields) == 1700
