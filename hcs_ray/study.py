"""A study: its storage, its configuration, its run's name, and the chain of its stages."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hcs_ray.config import StudyConfig, canonical_digest, parse_study, stage_config, to_yaml
from hcs_ray.contracts import InputError
from hcs_ray.stage import (
    Claim,
    Place,
    StageRecord,
    StageWriter,
    StaleStageError,
    read_record,
    record_digest,
    stale_message,
    stale_reasons,
    writing_stage,
)
from hcs_ray.storage import Storage, open_storage

STUDY_FILE = "study.yaml"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class StageSpec:
    """What a stage reads and writes; ``{name}`` in the folder is the run's name."""

    folder: str
    inputs: tuple[str, ...]
    sections: tuple[str, ...]
    flat: bool = False
    grows: bool = False


# The pipeline in its order, and the sweep beside it.
STAGES: Mapping[str, StageSpec] = {
    "shard": StageSpec("shards", (), ("screen", "shards"), grows=True),
    "split": StageSpec("splits", ("shard",), ("split",), flat=True),
    "train": StageSpec("runs/{name}", ("shard", "split"), ("model", "train")),
    "embed": StageSpec("embeddings/{name}", ("shard", "train"), ("embed",)),
    "profile": StageSpec("profiles/{name}", ("embed", "split"), ("profile",)),
    "map": StageSpec("maps", ("embed",), ("map",), flat=True),
    "outliers": StageSpec("outliers/{name}", ("shard", "embed"), ("outliers",)),
    "report": StageSpec(
        "reports/{name}", ("shard", "train", "embed", "profile", "map", "outliers"), ("report",)
    ),
    "tune": StageSpec("sweeps/{name}", ("shard", "split"), ("model", "train")),
}


@dataclass(frozen=True)
class Study:
    """One run of a study; made by `open_study`."""

    storage: Storage
    config: StudyConfig
    name: str

    def place(self, stage: str) -> Place:
        """Where a stage of this run writes."""
        spec = STAGES[stage]
        name = "main" if stage == "shard" else self.name
        return Place(stage, name, spec.folder.format(name=self.name), spec.flat, spec.grows)

    def claim(
        self,
        stage: str,
        raw_inputs: Mapping[str, str] | None = None,
        known: dict[str, StageRecord] | None = None,
    ) -> Claim:
        """What the result of a stage follows from now; `InputError` where a stage before is not complete.

        ``raw_inputs`` names what does not come from another stage: the raw tables and images of a screen;
        ``known`` holds records that were found sound a moment ago.
        """
        spec, known = STAGES[stage], {} if known is None else known
        inputs = dict(raw_inputs or {})
        for before in spec.inputs:
            self.require(before, known)
            inputs[self.place(before).record] = record_digest(self.storage, self.place(before)) or ""
        return Claim(inputs=inputs, config=stage_config(self.config, spec.sections))

    def require(self, stage: str, known: dict[str, StageRecord] | None = None) -> StageRecord:
        """The record of a stage that is complete and up to date, or one line that says what to run."""
        known = {} if known is None else known
        if stage in known:
            return known[stage]
        place = self.place(stage)
        record = read_record(self.storage, place)
        if record is None:
            raise InputError(
                f"{self.storage.url}: {stage} {place.name} is not complete; run hcs-ray {stage} first"
            )
        if missing := record.missing(self.storage, place):
            raise InputError(
                f"{self.storage.url}/{missing[0]} is missing or has another size; run hcs-ray {stage} again"
            )
        raw = {path: digest for path, digest in record.inputs.items() if not path.endswith("_stage.json")}
        if changes := self.claim(stage, raw, known).changes_since(record.claim):
            raise InputError(
                f"{stage} {place.name} is {stale_message(place, changes)} (hcs-ray {stage} --force)"
            )
        known[stage] = record
        return record

    def is_complete(self, stage: str, claim: Claim) -> bool:
        """Whether a stage is finished with just this claim; a stale one is an error that says why."""
        place = self.place(stage)
        reasons = stale_reasons(self.storage, place, claim)
        if reasons:
            raise StaleStageError(f"{stage} {place.name} is {stale_message(place, reasons)}")
        return reasons is not None

    @contextlib.contextmanager
    def writing(self, stage: str, claim: Claim, force: bool = False) -> Iterator[StageWriter]:
        """Write a stage under its lease (`hcs_ray.stage.writing_stage`), keeping this use's configuration."""
        kept = self.keep_config()
        with writing_stage(self.storage, self.place(stage), claim, study_config=kept, force=force) as writer:
            yield writer

    def keep_config(self) -> str:
        """Keep the configuration of this use, immutable, and return its path."""
        path = f"configs/{canonical_digest(self.config.model_dump(mode='json'))}.yaml"
        self.storage.put_if_absent(path, to_yaml(self.config).encode())
        return path

    def downstream(self, stage: str) -> list[str]:
        """The stages of the pipeline that follow from this one, in order."""
        follows = {stage}
        for other, spec in STAGES.items():
            if follows & set(spec.inputs):
                follows.add(other)
        return [other for other in STAGES if other in follows - {stage, "tune"}]


def open_study(target: str, name: str = "main", overrides: Sequence[str] = ()) -> Study:
    """The study of a YAML file, a study folder or an ``s3://`` prefix.

    A YAML file's ``root`` says where the study lies (relative to the file); without it, beside the file. One
    that itself lies on S3 is read as the environment says, the study then as its ``storage`` section does.
    """
    checked_name(name)
    if target.endswith((".yaml", ".yml")) and "://" not in target:
        return _from_file(Path(target), name, overrides)
    storage = open_storage(target)
    source = f"{storage.url}/{STUDY_FILE}"
    found = storage.read_versioned(STUDY_FILE)
    if found is None:
        raise InputError(
            f"{source}: no such file; STUDY is a YAML file, or a folder or s3:// prefix with {STUDY_FILE}"
        )
    config = parse_study(_text(found[0], source), source, overrides)
    return Study(_rooted(config, target, source), config, name)


def _from_file(file: Path, name: str, overrides: Sequence[str]) -> Study:
    try:
        data = file.read_bytes()
    except OSError as error:
        raise InputError(f"{file}: cannot be read: {error.strerror}") from None
    config = parse_study(_text(data, str(file)), str(file), overrides)
    return Study(_rooted(config, str(file.parent), str(file)), config, name)


def _rooted(config: StudyConfig, folder: str, source: str) -> Storage:
    """The storage of the ``root``, which is relative to the folder of its file; without one, that folder."""
    if not config.root or "://" in config.root:
        return open_storage(config.root or folder, config.storage)
    path = Path(config.root).expanduser()
    if "://" not in folder:
        path = Path(folder).expanduser() / path
    elif not path.is_absolute():
        raise InputError(
            f"{source}: root {config.root!r} is a relative path; beside an s3:// study write s3://..."
        )
    return open_storage(str(path), config.storage)


def checked_name(name: str) -> str:
    """A run's name that is safe as a folder, or `InputError`."""
    if not _NAME.fullmatch(name):
        raise InputError(f"--name {name!r}: use letters, digits, dots, dashes and underscores (at most 63)")
    return name


def _text(data: bytes, source: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise InputError(f"{source}: not UTF-8 text") from None
