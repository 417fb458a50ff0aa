"""`hcs-ray verify --repair`: what is damaged or missing in ``shards/`` is made again from the raw images.

Shards follow from the raw images byte for byte, so a repaired file is the one that the stage record lists;
one that would differ is not written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping

import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError, InputError, Progress
from hcs_ray.lease import Lease
from hcs_ray.screen.sources import open_screen
from hcs_ray.shards.plate import (
    FOLDER,
    PlateJob,
    illumination_path,
    read_part,
    rewrite_tar,
    write_plate,
)
from hcs_ray.shards.tar import other_than_written
from hcs_ray.shards.write import INDEX, claim_of, plate_jobs, run_jobs, screen_files
from hcs_ray.stage import OutputFile, StageRecord, read_record
from hcs_ray.study import Study

Report = Callable[[int], None]


def repair_shards(study: Study, paths: Collection[str], progress: Progress) -> None:
    """Make the files at ``paths``, outputs of the shard stage, again.

    Raises:
        InputError: the raw images or the configuration are no longer those that were sharded.
        HcsError: a file that is made again differs from the one that the record lists.
    """
    place = study.place("shard")
    with Lease(study.storage, place.lease, "shard main").held():
        record = read_record(study.storage, place)
        if record is None:
            raise InputError(f"{study.storage.url}: shard is not complete; run hcs-ray shard first")
        study.storage.sweep(place.folder, place.owns)
        screen = open_screen(study.config.screen, study.storage)
        claim = claim_of(study, screen)
        if changes := claim.changes_since(record.claim):
            raise InputError(
                f"the raw screen has changed ({'; '.join(changes[:3])}); run hcs-ray shard --force"
            )
        damaged = {path.removeprefix(f"{FOLDER}/") for path in paths}
        listed = {path.removeprefix(f"{FOLDER}/"): file for path, file in record.outputs.items()}
        jobs = [dataclasses.replace(job, expected=listed) for job in plate_jobs(study, screen, claim)]
        broken = [job for job in jobs if _needs_all(job, damaged)]
        run_jobs(write_plate, broken, sum(len(job.fields) for job in broken), progress)
        parts = {job.plate: part for job in jobs if (part := read_part(job)) is not None}
        for name, data in screen_files(study, screen, parts).items():
            if name in damaged:
                _put(study, record, name, data)
        whole = {job.plate for job in broken}
        tars = {name for name in damaged if name.endswith(".tar")}
        _repair_tars(study, record, [job for job in jobs if job.plate not in whole], tars, progress)


def _needs_all(job: PlateJob, damaged: Collection[str]) -> bool:
    """Whether a plate's own part or an illumination function is damaged: they follow from all its fields."""
    own = {job.part_path.removeprefix(f"{FOLDER}/")}
    own |= {illumination_path(job, channel) for channel in job.channels}
    return not own.isdisjoint(damaged)


def _put(study: Study, record: StageRecord, name: str, data: bytes) -> None:
    path = f"{FOLDER}/{name}"
    if not record.outputs[path].matches([data]):
        raise HcsError(other_than_written(f"{study.storage.url}/{path}"))
    study.storage.write(path, data)


def _repair_tars(
    study: Study, record: StageRecord, jobs: list[PlateJob], tars: set[str], progress: Progress
) -> None:
    index = record.read_table(study.storage, f"{FOLDER}/{INDEX}", [c.KEY, c.SHARD])
    keys = {str(shard): set(rows) for shard, rows in index[index[c.SHARD].isin(tars)].groupby(c.SHARD)[c.KEY]}
    work = [(job, part) for job in jobs if (part := _fields_of(job, keys))]
    smaller = [dataclasses.replace(job, fields=pd.concat(part.values())) for job, part in work]
    expected = {name: record.outputs[f"{FOLDER}/{name}"] for name in tars}
    shards = {job.plate: {name: list(rows[c.KEY]) for name, rows in part.items()} for job, part in work}
    run_jobs(_TarRepair(shards, expected), smaller, sum(len(job.fields) for job in smaller), progress)


def _fields_of(job: PlateJob, keys: Mapping[str, set[str]]) -> dict[str, pd.DataFrame]:
    rows = {name: job.fields[job.fields[c.KEY].isin(wanted)] for name, wanted in sorted(keys.items())}
    return {name: fields for name, fields in rows.items() if len(fields)}


@dataclasses.dataclass(frozen=True)
class _TarRepair:
    """Writes a plate's damaged tars again."""

    shards: dict[str, dict[str, list[str]]]  # plate -> tar -> keys
    expected: dict[str, OutputFile]

    def __call__(self, job: PlateJob, report: Report) -> None:
        done = 0
        for name, keys in self.shards[job.plate].items():
            fields = job.fields[job.fields[c.KEY].isin(keys)]
            rewrite_tar(dataclasses.replace(job, fields=fields), name, self.expected[name])
            done += len(fields)
            report(done)
