"""The chain of stage records behind a report: from its numbers back to raw hashes, configuration and code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from hcs_ray.config import canonical_digest, to_yaml
from hcs_ray.stage import StageRecord, code_identity, record_digest
from hcs_ray.study import STAGES, Study

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


def lineage(study: Study, config_file: str) -> Lineage:
    """All stages that the report follows from, in order; ``config_file`` is this use's configuration."""
    links = tuple(_link(study, stage, study.require(stage)) for stage in behind("report"))
    code = _code(code_identity())
    return Lineage(
        links=links,
        code=code,
        same_code=all(link.code == code for link in links),
        config_file=config_file,
        config=to_yaml(study.config),
        run=study.name,
    )


def behind(stage: str) -> Sequence[str]:
    """The stages that a stage follows from, in the pipeline's order."""
    found: set[str] = set()
    waiting = [stage]
    while waiting:
        before = set(STAGES[waiting.pop()].inputs) - found
        found |= before
        waiting += before
    return [name for name in STAGES if name in found]


def size_text(size: int) -> str:
    """Bytes for people."""
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else f"{size / 1e3:,.1f} kB"


def _link(study: Study, stage: str, record: StageRecord) -> Link:
    place = study.place(stage)
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
