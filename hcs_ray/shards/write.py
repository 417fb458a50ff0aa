"""`hcs-ray shard`: a raw screen into verified WebDataset tars, an index and a manifest.

One Ray task a plate (`hcs_ray.shards.plate`). A plate that is whole is never written again by a resumed run,
nor by one after plates were added, and the bytes do not depend on the number of workers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import pyarrow as pa
import ray

from hcs_ray import contracts as c
from hcs_ray.config import canonical_digest
from hcs_ray.contracts import HcsError, InputError, Progress
from hcs_ray.screen import Screen
from hcs_ray.screen.sources import open_screen, raw_storage
from hcs_ray.screen.tables import TEXT, typed
from hcs_ray.session import ensure_session, plainly
from hcs_ray.shards import codec
from hcs_ray.shards.plate import FOLDER, Part, PlateJob, is_whole, read_part, write_plate
from hcs_ray.stage import Claim, parquet_bytes
from hcs_ray.study import Study

INDEX, MANIFEST, PLATES, QUARANTINE = "index.parquet", "manifest.json", "plates.parquet", "quarantine.parquet"
_POLL_SECONDS = 0.5
_INDEX_GROUP_ROWS = 8192  # so that a worker which embeds a few hundred fields need not read all rows
_MADE = re.compile(
    r"[^/]+-[0-9]{3,}\.tar|parts/[^/]+\.parquet|illumination/[^/]+_Illum[^/]+\.npy|quarantine\.parquet"
)
_QUARANTINE_COLUMNS = (c.KEY, c.PLATE, c.WELL, c.SITE, "reason")


def shard(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``shards/``; does nothing where it is complete for this screen and configuration."""
    screen = open_screen(study.config.screen, study.storage)
    claim = claim_of(study, screen)
    if not force and study.is_complete("shard", claim) and _is_of_this_kind(study):
        return _figures(study)
    if screen.absent and study.config.shards.on_error == "fail":
        first = next(iter(screen.absent.values()))
        more = f" ({len(screen.absent)} fields lack an image)" if len(screen.absent) > 1 else ""
        raise InputError(f"{first}{more}; or set shards.on_error to quarantine to leave such fields out")
    with study.writing("shard", claim, force) as writer:
        jobs = plate_jobs(study, screen, claim)
        sizes = study.storage.sizes(FOLDER)
        open_jobs = [job for job in jobs if not is_whole(job, sizes)]
        run_jobs(write_plate, open_jobs, len(screen.fields), progress)
        parts = {job.plate: _sound_part(study, job) for job in jobs}
        for part, job in zip(parts.values(), jobs, strict=True):
            for path, file in part.about["files"].items():
                writer.list(path, file)
            writer.list(job.part_path.removeprefix(f"{FOLDER}/"), part.output)
        for name, data in screen_files(study, screen, parts).items():
            writer.write(name, data)
        writer.prune(lambda name: _MADE.fullmatch(name) is not None)
    return _figures(study)


def _is_of_this_kind(study: Study) -> bool:
    """Whether a quarantine was kept, or not, as it is wanted now; plates without bad fields are the same."""
    quarantined = f"{FOLDER}/{QUARANTINE}" in study.require("shard").outputs
    return quarantined == (study.config.shards.on_error == "quarantine")


def claim_of(study: Study, screen: Screen) -> Claim:
    """What the shards follow from: each plate by itself, so that adding one changes no other."""
    return study.claim("shard", {f"raw {plate}": digest for plate, digest in screen.plates.items()})


def plate_jobs(study: Study, screen: Screen, claim: Claim) -> list[PlateJob]:
    """A job a plate, in the order of the index."""
    jobs = []
    for plate, rows in screen.fields.groupby(c.PLATE, sort=True):
        follows = {"plate": screen.plates[str(plate)], "config": claim.config, "format": c.MANIFEST_FORMAT}
        jobs.append(
            PlateJob(
                plate=str(plate),
                fields=of_its_own(rows).sort_values(c.KEY, ignore_index=True),
                channels=screen.channels,
                source=screen.source,
                study=study.storage,
                config=study.config.shards,
                claim=canonical_digest(follows),
                absent={key: screen.absent[key] for key in rows[c.KEY] if key in screen.absent},
                nuclear_channel=screen.nuclear_channel,
                camera_maximum=screen.camera_maximum,
            )
        )
    return jobs


def of_its_own(rows: pd.DataFrame) -> pd.DataFrame:
    """A plate's rows without the columns that only other plates fill."""
    more = [name for name in c.metadata_columns(rows) if name not in c.FIELD_COLUMNS]
    return rows.drop(columns=[name for name in more if rows[name].isna().all()])


class _Counter:
    """Counts the fields that running tasks have done, for the progress bar."""

    def __init__(self) -> None:
        self._done: dict[str, int] = {}

    def set(self, plate: str, fields: int) -> None:
        self._done[plate] = fields

    def total(self, plates: list[str]) -> int:
        return sum(self._done.get(plate, 0) for plate in plates)


def run_jobs(work: Callable[..., None], jobs: Sequence[PlateJob], fields: int, progress: Progress) -> None:
    """Run ``work(job, report)`` for each plate as a Ray task; the first failure cancels the others."""
    done = fields - sum(len(job.fields) for job in jobs)
    progress(done, fields)
    if not jobs:
        return
    ensure_session()
    counter: Any = ray.remote(num_cpus=0, max_restarts=-1)(_Counter).remote()

    def task(job: PlateJob, counter: Any) -> None:
        work(job, lambda fields: counter.set.remote(job.plate, fields))

    remote = ray.remote(num_cpus=1)(task)
    running = {remote.remote(job, counter): job for job in jobs}
    try:
        while running:
            finished, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_SECONDS)
            for first in finished:
                job = running.pop(first)
                with plainly(f"plate {job.plate}"):
                    ray.get(first)
                done += len(job.fields)
            progress(done + _under_way(counter, list(running.values())), fields)
    except BaseException:
        for reference in running:
            ray.cancel(reference, force=True)
        raise


def _under_way(counter: Any, jobs: list[PlateJob]) -> int:
    """Fields of unfinished plates; 0 where the counter is being restarted, since it only serves the bar."""
    try:
        return int(ray.get(counter.total.remote([job.plate for job in jobs]), timeout=_POLL_SECONDS))
    except ray.exceptions.RayError:
        return 0


def _sound_part(study: Study, job: PlateJob) -> Part:
    part = read_part(job)
    if part is None or part.about["claim"] != job.claim:
        raise HcsError(f"{study.storage.url}/{job.part_path}: has changed since it was written; run it again")
    return part


def screen_files(study: Study, screen: Screen, parts: Mapping[str, Part]) -> dict[str, bytes]:
    """What is written of the screen as a whole, from its plates' parts: file below ``shards/`` -> bytes."""
    whole = {plate: part for plate, part in parts.items() if part.rows.num_rows}
    files = {}
    if study.config.shards.on_error == "quarantine":
        files[QUARANTINE] = _quarantine(parts)
    if not whole:
        raise InputError("no field of the screen can be read; the first: " + _first_reason(parts))
    files[INDEX] = _index(whole)
    files[PLATES] = _plate_table(whole)
    files[MANIFEST] = _manifest(study, screen, whole)
    return files


def _first_reason(parts: Mapping[str, Part]) -> str:
    return str(next(row["reason"] for part in parts.values() for row in part.about["quarantine"]))


def _index(parts: Mapping[str, Part]) -> bytes:
    """All plates' rows; a screen's further metadata, text in the plates' parts, are numbers where all are."""
    rows = [part.rows for part in parts.values()]
    table = pa.concat_tables(rows, promote_options="permissive").sort_by(c.KEY)
    for name in c.metadata_columns(table.column_names):
        if name not in c.FIELD_COLUMNS:
            values = typed(table[name].to_pandas().astype(TEXT).fillna(""))
            place = table.column_names.index(name)
            table = table.set_column(place, name, pa.Array.from_pandas(values))
    return parquet_bytes(table, _INDEX_GROUP_ROWS)


def _plate_table(parts: Mapping[str, Part]) -> bytes:
    rows = [
        {c.PLATE: plate, "fields": part.rows.num_rows, "quarantined": len(part.about["quarantine"])}
        | part.about["quality"]
        for plate, part in parts.items()
    ]
    return parquet_bytes(pa.Table.from_pandas(pd.DataFrame(rows), preserve_index=False))


def _quarantine(parts: Mapping[str, Part]) -> bytes:
    rows = [row for part in parts.values() for row in part.about["quarantine"]]
    table = pd.DataFrame(rows, columns=list(_QUARANTINE_COLUMNS)).astype({c.SITE: "int64"})
    return parquet_bytes(pa.Table.from_pandas(table.sort_values(c.KEY), preserve_index=False))


def _manifest(study: Study, screen: Screen, parts: Mapping[str, Part]) -> bytes:
    kept = ("claim", "raw_xxh3_128", "low", "high", "sites", "illumination")
    raw = f"{raw_storage(study.config.screen.folder, study.storage).url}/"
    manifest = {
        "format": c.MANIFEST_FORMAT,
        "fields": sum(part.rows.num_rows for part in parts.values()),
        "channels": list(screen.channels),
        "field_px": _field_px(parts),
        "codec": study.config.shards.codec,
        "member": codec.member(study.config.shards.codec),
        "correction": "(pixel / illumination - low) / (high - low), by plate and channel",
        "plates": {plate: {name: part.about[name] for name in kept} for plate, part in parts.items()},
        "tables": {path.removeprefix(raw): digest for path, digest in screen.tables.items()},
    }
    return (json.dumps(manifest, indent=1, sort_keys=True) + "\n").encode()


def _field_px(parts: Mapping[str, Part]) -> list[int]:
    sizes = {plate: tuple(part.about["shape"][1:]) for plate, part in parts.items()}
    first, size = next(iter(sizes.items()))
    if other := next((plate for plate in sizes if sizes[plate] != size), None):
        raise InputError(
            f"the fields of plate {other} have {sizes[other][0]} x {sizes[other][1]} px, those of {first} "
            f"{size[0]} x {size[1]}; choose plates of one size with screen.plates"
        )
    return list(size)


def _figures(study: Study) -> dict[str, Any]:
    record = study.require("shard")
    table = record.read_table(study.storage, f"{FOLDER}/{PLATES}", ["fields"])
    figures: dict[str, Any] = {"fields": int(table["fields"].sum()), "plates": len(table)}
    if f"{FOLDER}/{QUARANTINE}" in record.outputs:
        left_out = len(record.read_table(study.storage, f"{FOLDER}/{QUARANTINE}", [c.KEY]))
        if left_out:
            figures["QUARANTINED"] = f"{left_out} fields (shards/{QUARANTINE} says why)"
    return figures
