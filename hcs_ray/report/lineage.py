"""The chain of stage records behind a report: from its numbers back to raw hashes, configuration and code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

import pandas as pd

from hcs_ray.config import canonical_digest, to_yaml
from hcs_ray.report.standing import Standing
from hcs_ray.stage import COMMANDS, Place, StageRecord, code_identity, read_record, record_digest
from hcs_ray.study import Study

_SHOWN = 12  # digits of a hash that are shown; all stand in its title


@dataclass(frozen=True)
class Digest:
    """A SHA-256 and the file it is of."""

    name: str
    sha256: str

    @property
    def short(self) -> str:
        """What is shown of it."""
        return self.sha256[:_SHOWN]


@dataclass(frozen=True)
class Link:
    """One stage: its record, what it followed from, with which configuration and code, and what it wrote."""

    stage: str
    record: Digest
    inputs: tuple[Digest, ...]
    config: Digest
    code: str
    files: int
    size: str


@dataclass(frozen=True)
class Lineage:
    """The whole chain, and what it takes to walk it again."""

    links: tuple[Link, ...]
    code: str
    same_code: bool
    config_file: str
    config: str
    run: str
    last: str  # the last stage of the pipeline that is shown

    def table(self) -> pd.DataFrame:
        """A row a stage, hashes in full."""
        return pd.DataFrame(
            {
                "stage": [link.stage for link in self.links],
                "record": [link.record.name for link in self.links],
                "record_sha256": [link.record.sha256 for link in self.links],
                "inputs": ["; ".join(f"{i.name} {i.sha256}" for i in link.inputs) for link in self.links],
                "config_sha256": [link.config.sha256 for link in self.links],
                "code": [link.code for link in self.links],
                "files": [link.files for link in self.links],
            }
        )  # fmt: skip


def lineage(study: Study, standing: Standing, config_file: str) -> Lineage:
    """All stages that the report shows, in order; ``config_file`` is this use's configuration."""
    links = tuple(
        _link(study, name, place, record)
        for name, place in _places(study, standing)
        if (record := read_record(study.storage, place))
    )
    code = _code(code_identity())
    pipeline = [stage for stage in standing.stages if stage not in COMMANDS]
    return Lineage(
        links=links,
        code=code,
        same_code=all(link.code == code for link in links),
        config_file=config_file,
        config=to_yaml(study.config),
        run=study.name,
        last=pipeline[-1],
    )


def size_text(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _places(study: Study, standing: Standing) -> Iterator[tuple[str, Place]]:
    for stage in standing.stages:
        yield COMMANDS.get(stage, stage), study.place(stage)
    for name in standing.sweeps:
        yield f"tune {name}", replace(study, name=name).place("tune")
    if standing.before is not None:
        for stage in standing.stages_before:
            yield f"{stage} of {standing.before.name}", standing.before.place(stage)


def _link(study: Study, stage: str, place: Place, record: StageRecord) -> Link:
    return Link(
        stage=stage,
        record=Digest(place.record, record_digest(study.storage, place) or ""),
        inputs=tuple(Digest(_input_name(path), digest) for path, digest in sorted(record.inputs.items())),
        config=Digest(", ".join(record.config) or "none", canonical_digest(record.config)),
        code=_code(record.code),
        files=len(record.outputs),
        size=size_text(sum(file.size for file in record.outputs.values())),
    )


def _input_name(path: str) -> str:
    """A record by its stage, as in ``shards``; a raw table by its file."""
    parts = PurePosixPath(path).parts
    return parts[0] if path.endswith("_stage.json") else parts[-1]


def _code(identity: Mapping[str, str | None]) -> str:
    revision, dash, dirty = (identity.get("revision") or "no revision").partition("-")
    return f"{identity.get('version')} ({revision[:_SHOWN]}{dash}{dirty})"
