"""`hcs-ray verify`: every output of every complete stage and export is read again, as its record has it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError, Progress
from hcs_ray.labels import LabelLog
from hcs_ray.pipeline import EXTRAS, STAGES
from hcs_ray.shards.members import flaws_of_tar
from hcs_ray.shards.read import MANIFEST
from hcs_ray.stage import OutputFile, Place, StageRecord, read_record
from hcs_ray.storage import Storage
from hcs_ray.study import Study

_THREADS = 8
_CHUNK_BYTES = 8 * 2**20
_SURPLUS = "surplus: no record lists it, nothing reads it; delete it where it is not yours"


Index = tuple[pd.DataFrame, str]  # the shards' index, and the extension of the image members


@dataclass(frozen=True)
class Flaw:
    """What is wrong with one file, or with one member of it."""

    stage: str
    path: str
    what: str
    mendable: bool = True  # a file that no record lists is the user's to delete

    def __str__(self) -> str:
        return f"{self.path}: {self.what}"


def verify(study: Study, progress: Progress) -> tuple[int, list[Flaw]]:
    """How many files the records list (and labels there are), and every flaw: of stages, exports, labels.

    Raises:
        InputError: no stage of this run is complete.
    """
    records = {
        stage: (place, record)
        for stage, place in _places(study).items()
        if (record := read_record(study.storage, place))
    }
    if not records:
        raise InputError(f"{study.storage.url}: no stage of {study.name} is complete")
    total, flaws = sum(len(record.outputs) for _, record in records.values()), list[Flaw]()
    done = 0
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="verify") as pool:
        for stage, (place, record) in records.items():
            sizes = study.storage.sizes(place.folder)
            index = functools.cache(functools.partial(_index, study.storage, record))
            checks = {
                path: pool.submit(_flaw_of_file, study.storage, path, file, sizes.get(path))
                for path, file in record.outputs.items()
            }
            for path, check in checks.items():
                if what := check.result():
                    flaws += [Flaw(stage, path, line) for line in _closer(study.storage, index, path, what)]
                done += 1
                progress(done, total)
            if stage == "shard":  # other folders also hold what Ray and W&B keep for themselves
                flaws += [
                    Flaw(stage, path, _SURPLUS, mendable=False) for path in _surplus(place, record, sizes)
                ]
    decisions, damaged = _labels(study.storage)
    return total + decisions, [*flaws, *damaged]


def _labels(storage: Storage) -> tuple[int, list[Flaw]]:
    """How many decisions on labels there are, and what below ``labels/events`` is none."""
    log = LabelLog(storage)
    log.refresh()
    return len(log.decisions), [Flaw("labels", path, why, False) for path, why in log.flaws().items()]


def _places(study: Study) -> dict[str, Place]:
    """Where stages write, and finished exports lie: ``export anndata``, and whatever else there is."""
    places = {stage: study.place(stage) for stage in (*STAGES, *EXTRAS)}
    top = study.export_place("").folder
    for path in sorted(study.storage.sizes(top.rstrip("/"))):
        form = path.removeprefix(top).partition("/")[0]
        if path == study.export_place(form).record:
            places[f"export {form}"] = study.export_place(form)
    return places


def _flaw_of_file(storage: Storage, path: str, file: OutputFile, size: int | None) -> str | None:
    if size is None:
        return "missing"
    if size != file.size:
        return f"damaged: {size} bytes instead of {file.size}"
    try:
        with storage.open(path) as stream:
            sound = file.matches(iter(lambda: stream.read(_CHUNK_BYTES), b""))
    except OSError as error:  # a bad sector, a share that stalls: the other files are looked at all the same
        return f"damaged: cannot be read ({error.strerror or error})"
    return None if sound else "damaged: other content than was written"


def _closer(storage: Storage, index: Callable[[], Index | None], path: str, what: str) -> Iterator[str]:
    """A tar's flaw by its members, where the index and the manifest can still be read."""
    yield what
    found = index() if path.endswith(".tar") and what != "missing" else None
    if found is not None:
        rows, extension = found
        yield from flaws_of_tar(storage, path, rows[rows[c.SHARD] == path.rpartition("/")[2]], extension)


def _index(storage: Storage, record: StageRecord) -> Index | None:
    """The index and the image members' extension, where both can be read."""
    try:
        columns = [c.KEY, c.SHARD, c.SHA256, c.SAMPLE_SHA256]
        extension = str(record.read_json(storage, MANIFEST)["member"])
        return record.read_table(storage, "shards/index.parquet", columns), extension
    except c.HcsError:
        return None


def _surplus(place: Place, record: StageRecord, sizes: dict[str, int]) -> list[str]:
    known = {*record.outputs, place.record, place.begun, place.lease}
    return sorted(path for path in sizes if place.owns(path) and path not in known)
