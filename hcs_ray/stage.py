"""The stage record: what makes a stage whole, resumable and traceable.

A stage writes into a folder of the study. While it runs, the folder holds a lease (`hcs_ray.lease`) and a
note of what it was begun with; when all outputs are there, ``_stage.json`` is written last, by one put. It
lists the digests of the records before it, the configuration it depends on, the code, and every output with
size and hash: that chain is the lineage of every number. Readers read only what a record lists. Records carry
no times, so the same inputs, configuration and code give the same record.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import xxhash
from pydantic import BaseModel, ConfigDict, ValidationError

from hcs_ray.contracts import STAGE_FORMAT, HcsError, InputError
from hcs_ray.lease import Lease
from hcs_ray.storage import Storage

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

LABELS: Final = "labels"  # of a claim's configuration: which fields labels leave out
COMMANDS: Final = {"folds": "profile --folds", "compare": "profile --compare"}  # where not the stage's name


@dataclass(frozen=True)
class Place:
    """Where a stage writes: a folder of its own, or (``flat``) files of its name in a shared folder.

    A stage that ``grows`` writes each input's part by itself, and knows which parts are whole: added inputs
    do not make it stale, and changed ones let ``force`` keep the others' parts. Of two stages in one folder,
    the files of one begin with its ``prefix``, which the other has among its ``foreign`` ones.
    """

    stage: str
    name: str
    folder: str
    flat: bool = False
    grows: bool = False
    prefix: str = ""
    foreign: tuple[str, ...] = ()

    def _note(self, kind: str) -> str:
        return f"{self.folder}/{self.name if self.flat else self.prefix}_{kind}.json"

    @property
    def record(self) -> str:
        return self._note("stage")

    @property
    def begun(self) -> str:
        return self._note("begun")

    @property
    def lease(self) -> str:
        return self._note("lease")

    def owns(self, path: str) -> bool:
        """Whether a file of the study belongs to this stage's output."""
        if not self.flat:
            ours = path.startswith(f"{self.folder}/{self.prefix}")
            return ours and not any(path.startswith(f"{self.folder}/{other}") for other in self.foreign)
        return path in {self.record, self.begun, self.lease, f"{self.folder}/{self.name}.parquet"}


class Claim(BaseModel):
    """What the result of a stage follows from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    inputs: dict[str, str]  # a record before this one, or a raw table -> its SHA-256
    config: dict[str, Any]

    def changes_since(self, other: Claim) -> list[str]:
        """What differs, in words: ``train.lr changed from 0.001 to 0.01``."""
        changed = [
            f"{path} {'changed' if path in other.inputs and path in self.inputs else 'is new or gone'}"
            for path in sorted(self.inputs.keys() | other.inputs.keys())
            if self.inputs.get(path) != other.inputs.get(path)
        ]
        before, now = (_flat(claim.without_labels().config) for claim in (other, self))
        changed += [
            f"{key} changed from {before.get(key)} to {now.get(key)}"
            for key in sorted(before.keys() | now.keys())
            if before.get(key) != now.get(key)
        ]
        return changed + self.label_changes(other)

    def label_changes(self, other: Claim) -> list[str]:
        """What differs in the fields that labels leave out, in words."""
        before, now = (claim.config.get(LABELS, {}) for claim in (other, self))
        if before.get("exclude") != now.get("exclude"):
            rules = (", ".join(found.get("exclude", ())) or "nothing" for found in (before, now))
            return [f"labels.exclude changed from {' to '.join(rules)}"]
        if before.get("sha256") != now.get("sha256"):
            others = " (others)" if now["fields"] == before["fields"] else ""
            return [
                f"labels changed: {now['fields']} fields are left out now, {before['fields']} then{others}"
            ]
        return []

    def without_labels(self) -> Claim:
        """The same but for what labels leave out."""
        config = {key: value for key, value in self.config.items() if key != LABELS}
        return self.model_copy(update={"config": config})

    def grew_from(self, other: Claim) -> bool:
        """Whether this claim only has more inputs than another."""
        return self.config == other.config and other.inputs.items() <= self.inputs.items()


class OutputFile(BaseModel):
    """One file of a finished stage, with one hash: SHA-256, or for large files XXH3-128, which is cheaper."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: int
    sha256: str | None = None
    xxh3_128: str | None = None

    def matches(self, chunks: Iterable[bytes]) -> bool:
        """Whether a file's content is the one that was written."""
        digest: Any = hashlib.sha256() if self.sha256 else xxhash.xxh3_128()
        size = 0
        for chunk in chunks:
            digest.update(chunk)
            size += len(chunk)
        return size == self.size and digest.hexdigest() == (self.sha256 or self.xxh3_128)


class StageRecord(BaseModel):
    """``_stage.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    stage: str
    name: str
    inputs: dict[str, str]
    config: dict[str, Any]
    study_config: str
    code: dict[str, str | None]
    outputs: dict[str, OutputFile]  # path below the study's root -> size and hash

    @property
    def claim(self) -> Claim:
        return Claim(inputs=self.inputs, config=self.config)

    def missing(self, storage: Storage, place: Place) -> list[str]:
        """Outputs that are not there, or not with their size; one listing of the stage's folder."""
        there = storage.sizes(place.folder)
        return [path for path, file in self.outputs.items() if there.get(path) != file.size]

    def read(self, storage: Storage, path: str) -> bytes:
        """An output of this stage, checked against its hash."""
        if path not in self.outputs:
            raise InputError(f"{storage.url}/{path} is not an output of stage {self.stage} {self.name}")
        data = storage.read(path)
        if not self.outputs[path].matches([data]):
            raise HcsError(
                f"{storage.url}/{path} is damaged: it does not match {self.stage}'s stage record; "
                f"make it again with hcs-ray {COMMANDS.get(self.stage, self.stage)} --force"
            )
        return data

    def read_table(self, storage: Storage, path: str, columns: list[str] | None = None) -> pd.DataFrame:
        """A Parquet output of this stage."""
        import pandas as pd

        return pd.read_parquet(io.BytesIO(self.read(storage, path)), columns=columns)

    def read_json(self, storage: Storage, path: str) -> Any:
        """A JSON output of this stage."""
        return json.loads(self.read(storage, path))


def read_record(storage: Storage, place: Place) -> StageRecord | None:
    """The record of a stage, or None where it is not complete."""
    found = storage.read_versioned(place.record)
    return None if found is None else _parse_record(found[0], f"{storage.url}/{place.record}")


def chain_of(storage: Storage, place: Place) -> list[str] | None:
    """What has changed or gone of the files and records that a finished stage stands on, back to the shards.

    Whatever the present configuration says: a stage of another run was made with another. Empty where nothing
    has changed, None where the stage is not complete.
    """
    record = read_record(storage, place)
    if record is None:
        return None
    changed = [f"{path} is missing or has another size" for path in record.missing(storage, place)]
    waiting, seen = [record], set[str]()
    while waiting:
        for path, digest in sorted(waiting.pop().inputs.items()):
            if not path.endswith("_stage.json") or path in seen:
                continue
            seen.add(path)
            found = storage.read_versioned(path)
            if found is None or hashlib.sha256(found[0]).hexdigest() != digest:
                changed.append(f"{path} {'is gone' if found is None else 'changed'}")
            else:
                waiting.append(_parse_record(found[0], f"{storage.url}/{path}"))
    return changed


def killed_claim(storage: Storage, place: Place) -> Claim | None:
    """What a stage was begun with that has not come to its end; None where it has, or was not begun."""
    if read_record(storage, place) is not None:
        return None
    begun = storage.read_versioned(place.begun)
    return None if begun is None else _parse_claim(begun[0])


def record_digest(storage: Storage, place: Place) -> str | None:
    """SHA-256 of a record's bytes: what the next stage names as its input."""
    found = storage.read_versioned(place.record)
    return None if found is None else hashlib.sha256(found[0]).hexdigest()


def stale_reasons(storage: Storage, place: Place, claim: Claim) -> list[str] | None:
    """Why a finished stage does not match ``claim``; empty where it does, None where it is not finished.

    A stage that grows is not stale but unfinished where only inputs were added.
    """
    record = read_record(storage, place)
    if record is None or record.missing(storage, place):
        return None
    reasons = claim.changes_since(record.claim)
    return None if reasons and place.grows and claim.grew_from(record.claim) else reasons


class StaleStageError(InputError):
    """A finished or begun stage no longer follows from the present inputs and configuration."""


class StageWriter:
    """Collects the outputs of a running stage; handed out by `writing_stage`."""

    def __init__(self, storage: Storage, place: Place, lease: Lease) -> None:
        self.storage = storage
        self.place = place
        self._lease = lease
        self.outputs: dict[str, OutputFile] = {}

    def path(self, file: str) -> str:
        """The path of a file of this stage, below the study's root."""
        return f"{self.place.folder}/{file}"

    def write(self, file: str, data: bytes) -> None:
        """Write one output, whole."""
        self._lease.check()
        self.storage.write(self.path(file), data)
        self.add(file, len(data), hashlib.sha256(data).hexdigest())

    def write_parts(self, file: str, parts: Iterable[bytes]) -> None:
        """Write one output bit by bit: whole, or not at all."""
        self._lease.check()
        digest, size = xxhash.xxh3_128(), 0
        with self.storage.writing(self.path(file)) as out:
            for part in parts:
                out.write(part)
                digest.update(part)
                size += len(part)
        self.list(file, OutputFile(size=size, xxh3_128=digest.hexdigest()))

    def write_table(self, file: str, table: pd.DataFrame) -> None:
        """Write one table as Parquet."""
        import pyarrow as pa

        self.write(file, parquet_bytes(pa.Table.from_pandas(table, preserve_index=False)))

    def add(self, file: str, size: int, sha256: str) -> None:
        """List an output that a worker has written."""
        self.list(file, OutputFile(size=size, sha256=sha256))

    def list(self, file: str, output: OutputFile) -> None:
        """List an output that a worker has written."""
        self.outputs[self.path(file)] = output

    def prune(self, made: Callable[[str], bool]) -> None:
        """Delete files of the stage's folder that are no outputs any more, if they are of its own making.

        ``made`` tells that from a file's path below the folder.
        """
        self._lease.check()
        kept = {*self.outputs, self.place.lease, self.place.begun}
        for path in self.storage.sizes(self.place.folder):
            if path not in kept and made(path.removeprefix(f"{self.place.folder}/")):
                self.storage.delete(path)


@contextlib.contextmanager
def writing_stage(
    storage: Storage, place: Place, claim: Claim, *, study_config: str, force: bool = False
) -> Iterator[StageWriter]:
    """Hold the lease of a stage, let the caller write, and write the record where all went well.

    Outputs of a killed run with the same claim are left for the caller to go on with; of another claim, they
    are an error unless ``force``, which deletes them first.
    """
    with Lease(storage, place.lease, f"{place.stage} {place.name}").held() as lease:
        _begin(storage, place, claim, force)
        writer = StageWriter(storage, place, lease)
        yield writer
        record = StageRecord(
            format=STAGE_FORMAT,
            stage=place.stage,
            name=place.name,
            inputs=claim.inputs,
            config=claim.config,
            study_config=study_config,
            code=code_identity(),
            outputs=dict(sorted(writer.outputs.items())),
        )
        lease.check()
        storage.sweep(
            place.folder, place.owns
        )  # what workers left that were killed, and whose work others did
        storage.write(place.record, _json(record.model_dump(mode="json")))
        storage.delete(place.begun)


def _begin(storage: Storage, place: Place, claim: Claim, force: bool) -> None:
    finished, begun = read_record(storage, place), storage.read_versioned(place.begun)
    before = finished.claim if finished else _parse_claim(begun[0]) if begun else claim
    changes = claim.changes_since(before)
    if changes and not force and not (place.grows and claim.grew_from(before)):
        raise StaleStageError(f"{place.stage} {place.name} is {stale_message(place, changes)}")
    storage.sweep(place.folder, place.owns)
    if force and not (place.grows and changes and claim.config == before.config):
        _clear(storage, place)
    storage.write(place.begun, _json(claim.model_dump(mode="json")))
    storage.delete(place.record)


def _clear(storage: Storage, place: Place) -> None:
    """Delete a stage's outputs; killed half-way, only another ``--force`` goes on."""
    cleared = Claim(inputs={"outputs that --force began to delete": ""}, config={})
    storage.write(place.begun, _json(cleared.model_dump(mode="json")))
    storage.delete(place.record)
    for path in storage.sizes(place.folder):
        if place.owns(path) and path not in (place.lease, place.begun):
            storage.delete(path)


def stale_message(place: Place, changes: list[str]) -> str:
    """One line that says why a stage is stale, and what to do."""
    shown = "; ".join(changes[:4]) + (f"; and {len(changes) - 4} more" if len(changes) > 4 else "")
    named = "" if place.stage == "shard" else ", or give the result another --name"
    return f"stale: {shown}. Make it again with --force{named}"


def parquet_bytes(table: pa.Table, group_rows: int = 2**20) -> bytes:
    """A table as the bytes of a Parquet file, the same for the same table.

    ``group_rows`` are written together: who wants fewer of them still reads that many.
    """
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=group_rows, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def code_identity() -> dict[str, str | None]:
    """Version and revision of this code; the revision from git or ``HCS_RAY_REVISION``."""
    from importlib.metadata import version

    return {"version": version("hcs_ray"), "revision": _revision()}


@functools.cache
def _revision() -> str | None:
    if given := os.environ.get("HCS_RAY_REVISION"):
        return given
    top = Path(__file__).resolve().parents[1]
    if not (top / ".git").exists():
        return None
    command = ["git", "-C", str(top), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{prefix}{key}.") if isinstance(inner, Mapping) else {f"{prefix}{key}": inner}
    return flat


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=1, sort_keys=True) + "\n").encode()


def _parse_record(data: bytes, source: str) -> StageRecord:
    try:
        document = json.loads(data)
        found = document.get("format")
        if found != STAGE_FORMAT:
            raise InputError(f"{source}: stage format {found}; this version reads format {STAGE_FORMAT}")
        return StageRecord.model_validate(document)
    except (ValueError, ValidationError, AttributeError):
        raise InputError(f"{source}: not a stage record; delete it and run the stage again") from None


def _parse_claim(data: bytes) -> Claim:
    return Claim.model_validate_json(data)
