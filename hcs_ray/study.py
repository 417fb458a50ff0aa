"""A study: its storage, its configuration, its run's name, and the chain of its stages."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

from hcs_ray.config import LEAVE_OUT, StudyConfig, canonical_digest, parse_study, stage_config, to_yaml
from hcs_ray.contracts import InputError
from hcs_ray.labels import ExcludedFields, LabelSnapshot, excluded_file, of_killed
from hcs_ray.pipeline import STAGES, spec_of
from hcs_ray.stage import (
    COMMANDS,
    LABELS,
    Claim,
    Place,
    StageRecord,
    StageWriter,
    StaleStageError,
    chain_of,
    read_record,
    record_digest,
    stale_message,
    stale_reasons,
    writing_stage,
)
from hcs_ray.storage import Storage, open_storage

STUDY_FILE = "study.yaml"
SWEEP_FILE: Final = "sweep.json"  # of a finished sweep: the best trial, and where each one's network lies
COMPARED: Final = ("profile", "outliers")  # of two runs, by a report
_MODEL_FILE: Final = "model.pt"
_SWEEP_RUN = re.compile(r"sweep:([^/]+)/([^/]+)")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


@dataclass(frozen=True)
class Study:
    """One run of a study; made by `open_study`.

    ``run`` names the training whose network is embedded, ``sweep:NAME/TRIAL``; none: that of this name.
    ``folds`` names the sweep whose folds are scored. ``labels`` are read when they are first needed.
    """

    storage: Storage
    config: StudyConfig
    name: str
    run: str | None = None
    folds: str | None = None
    labels: LabelSnapshot = field(default_factory=LabelSnapshot, repr=False, compare=False)

    def place(self, stage: str) -> Place:
        """Where a stage of this run writes."""
        spec = spec_of(stage)
        name = "main" if stage == "shard" else self.name
        folder = spec.folder.format(name=self.name)
        return Place(stage, name, folder, spec.flat, spec.grows, spec.prefix, spec.foreign)

    def export_place(self, form: str) -> Place:
        """Where ``hcs-ray export`` writes this run in a format, which is no stage."""
        return Place("export", self.name, f"exports/{self.name}/{form}")

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
        spec, known = spec_of(stage), {} if known is None else known
        inputs, config = dict(raw_inputs or {}), stage_config(self.config, spec.sections)
        for key in spec.unread:
            section, _, name = key.partition(".")
            del config[section][name]
        if spec.labelled and self.config.labels.exclude:
            config[LABELS] = self.excluded().claim
        if stage == "embed" and self.run is not None:
            config["run"] = self.run
        if stage == "folds":
            config["folds"] = self.folds
            sweep = replace(self, name=checked_name(self.folds or "")).place("tune")
            inputs[sweep.record] = record_digest(self.storage, sweep) or ""
        if stage == "report":
            inputs |= dict(self._shown_runs())
        for before in (*spec.inputs, *self._extras(stage, known)):
            if before == "train" and "run" in config:
                record = self._sweep_place().record
                self._require_sweep()
                inputs[record] = record_digest(self.storage, self._sweep_place()) or ""
                continue
            self.require(before, known)
            inputs[self.place(before).record] = record_digest(self.storage, self.place(before)) or ""
        return Claim(inputs=inputs, config=config)

    def excluded(self) -> ExcludedFields:
        """The fields that ``labels.exclude`` leaves out: as long as this study is open, the same ones."""
        return self.labels.excluded(self.storage, self.config.labels.exclude)

    def with_labels_of(self, stage: str, force: bool = False) -> Study:
        """This study; where a stage was killed, with the labels that it had begun with.

        So a training that goes on leaves out just the fields that it has left out so far, whatever was
        decided meanwhile; ``force`` begins anew, with the labels of now.
        """
        wanted = self.excluded()
        kept = None if force else of_killed(self.storage, self.place(stage), wanted)
        if kept is None:
            return self
        logging.getLogger("hcs_ray").warning(
            "%s %s goes on with the labels that it began with: %d fields are left out (now it would be %d)",
            stage, self.name, len(kept.reasons), len(wanted.reasons),
        )  # fmt: skip
        return replace(self, labels=LabelSnapshot(kept))

    def require(
        self, stage: str, known: dict[str, StageRecord] | None = None, labels: bool = False
    ) -> StageRecord:
        """The record of a stage that is complete and up to date, or one line that says what to run.

        One that was made with other labels than those of now may still be read, and it is said so: people
        label all the time, and look at what they have. With ``labels`` it is as stale as any.
        """
        known = {} if known is None else known
        if stage in known:
            return known[stage]
        place = self.place(stage)
        record = read_record(self.storage, place)
        if record is None:
            raise InputError(
                f"{self.storage.url}: {stage} {place.name} is not complete; "
                f"run hcs-ray {COMMANDS.get(stage, stage)} first"
            )
        if missing := record.missing(self.storage, place):
            raise InputError(
                f"{self.storage.url}/{missing[0]} is missing or has another size; "
                f"run hcs-ray {COMMANDS.get(stage, stage)} again"
            )
        raw = {path: digest for path, digest in record.inputs.items() if not path.endswith("_stage.json")}
        source = replace(self, run=record.config.get("run")) if stage == "embed" else self
        source = replace(self, folds=record.config["folds"]) if stage == "folds" else source
        claim = source.claim(stage, raw, known)
        changes = claim.changes_since(record.claim)
        if not labels and changes and changes == claim.label_changes(record.claim):
            self._tell_of_labels(place, changes[0])
            changes = []
        if changes:
            raise InputError(
                f"{stage} {place.name} is {stale_message(place, changes)} "
                f"(hcs-ray {COMMANDS.get(stage, stage)} --force)"
            )
        known[stage] = record
        return record

    def _tell_of_labels(self, place: Place, change: str) -> None:
        if self.labels.first_time(place.record):
            logging.getLogger("hcs_ray").warning(
                "%s %s was made with other labels: %s; hcs-ray %s --force makes it with those of now",
                place.stage, place.name, change, COMMANDS.get(place.stage, place.stage),
            )  # fmt: skip

    def sound(self, stage: str, known: dict[str, StageRecord] | None = None) -> StageRecord | None:
        """The record of a stage that is complete and up to date; None where it is not."""
        try:
            return self.require(stage, known)
        except InputError:
            return None

    def _extras(self, stage: str, known: dict[str, StageRecord]) -> list[str]:
        """What a stage reads beside the stages that it needs, where it is there."""
        spec = spec_of(stage)
        there = [extra for extra in spec.optional if read_record(self.storage, self.place(extra))]
        return [*there, *(extra for extra in spec.shows if self.sound(extra, known))]

    def sweeps(self) -> dict[str, Place]:
        """The finished sweeps of the study that are whole and follow from what is there now, by name."""
        names = sorted({path.split("/")[1] for path in self.storage.sizes("sweeps")})
        places = [replace(self, name=name).place("tune") for name in names if _NAME.fullmatch(name)]
        return {place.name: place for place in places if chain_of(self.storage, place) == []}

    def other(self, name: str) -> Study:
        """Another run of this study, for what only reads it."""
        return replace(self, name=checked_name(name), run=None, folds=None)

    def _shown_runs(self) -> Iterator[tuple[str, str]]:
        """The records that a report reads beside those of its own run, with their digests."""
        places = list(self.sweeps().values())
        if (before := self.config.report.before) not in (None, self.name):
            other = self.other(before)
            shown = [other.place(stage) for stage in COMPARED]
            places += [place for place in shown if chain_of(self.storage, place) == []]
        for place in places:
            yield place.record, record_digest(self.storage, place) or ""

    def model(self) -> tuple[StageRecord, str]:
        """The network that is embedded: the record that lists it, and its path below the study."""
        if self.run is None:
            return self.require("train"), f"{self.place('train').folder}/{_MODEL_FILE}"
        record = self._require_sweep()
        trial = self.run.rpartition("/")[2]
        return record, f"{self._sweep_place().folder}/trials/{trial}/{_MODEL_FILE}"

    def with_run(self, run: str) -> Study:
        """This study with the network of ``sweep:NAME/TRIAL``, or of ``sweep:NAME/best``.

        Raises:
            InputError: there is no such sweep or trial, or it learned from another split than this run's.
        """
        if not _SWEEP_RUN.fullmatch(run):
            raise InputError(f"--run {run}: write sweep:NAME/best or sweep:NAME/TRIAL; {self._sweeps()}")
        chosen = replace(self, run=run)
        sweep, trial = chosen._sweep_place(), run.rpartition("/")[2]
        record = read_record(self.storage, sweep)
        if record is None:
            raise InputError(f"--run {run}: there is no finished sweep {sweep.name}; {self._sweeps()}")
        if LEAVE_OUT in record.config["sweep"]["space"]:
            raise InputError(f"--run {run}: each trial of {sweep.name} learned from a split of its own")
        summary = record.read_json(self.storage, f"{sweep.folder}/{SWEEP_FILE}")
        named = summary["best"] if trial == "best" else trial
        models = [name for name, about in summary["trials"].items() if about["model"]]
        if named not in models:
            there = (
                f"there are: best, {', '.join(models)}" if models else "it has none: its trials train nothing"
            )
            raise InputError(f"--run {run}: {sweep.name} has no network of a trial {named}; {there}")
        chosen = replace(self, run=f"sweep:{sweep.name}/{named}")
        chosen._check_split(record)
        return chosen

    def _require_sweep(self) -> StageRecord:
        """The record of the sweep of ``run``: whole, and of the present shards and split."""
        place = self._sweep_place()
        record = read_record(self.storage, place)
        if record is None:
            raise InputError(f"{self.storage.url}: no sweep {place.name}; run hcs-ray tune first")
        if missing := record.missing(self.storage, place):
            raise InputError(
                f"{self.storage.url}/{missing[0]} is missing or has another size; run hcs-ray tune again"
            )
        for stage in ("shard", "split"):
            before = replace(self, name=place.name).place(stage)
            if record.inputs.get(before.record) != record_digest(self.storage, before):
                raise InputError(
                    f"tune {place.name} is stale: {before.record} changed (hcs-ray tune --force)"
                )
        self._check_split(record)
        return record

    def _sweep_place(self) -> Place:
        found = _SWEEP_RUN.fullmatch(self.run or "")
        assert found is not None
        return replace(self, name=checked_name(found[1])).place("tune")

    def _sweeps(self) -> str:
        names = sorted(
            path.split("/")[1] for path in self.storage.sizes("sweeps") if path.endswith(f"/{SWEEP_FILE}")
        )
        return f"there are: {', '.join(names)}" if names else "there is no finished sweep; run hcs-ray tune"

    def _check_split(self, sweep: StageRecord) -> None:
        """A network must not be judged by compounds that its sweep has learned from."""
        if sweep.name == self.name:
            return
        ours, theirs = self.place("split"), replace(self, name=sweep.name).place("split")
        table = self.require("split").read(self.storage, f"{ours.folder}/{ours.name}.parquet")
        # With this run's configuration the other split may well be stale.
        if table != self.storage.read(f"{theirs.folder}/{theirs.name}.parquet"):
            raise InputError(
                f"sweep {sweep.name} learned from another split than that of {self.name}; "
                f"use --name {sweep.name}"
            )

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
            if LABELS in claim.config:  # what was left out, of which the claim has the digest
                assert claim.config[LABELS] == self.excluded().claim
                name = excluded_file(writer.place).removeprefix(f"{writer.place.folder}/")
                writer.write(name, self.excluded().to_bytes())
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
            if follows & {*spec.inputs, *spec.optional, *spec.shows}:
                follows.add(other)
        return [other for other in STAGES if other in follows - {stage, "tune"}]


def sweep_of(run: str) -> str | None:
    """The sweep's name in ``sweep:NAME/TRIAL``."""
    found = _SWEEP_RUN.fullmatch(run)
    return found[1] if found else None


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
