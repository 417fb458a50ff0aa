"""The fields that ``labels.exclude`` leaves out: found once for a command, kept beside what it makes."""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from hcs_ray.config import TAG_RULE, canonical_digest
from hcs_ray.labels.log import LabelLog
from hcs_ray.labels.table import FieldLabel
from hcs_ray.stage import LABELS, Place, killed_claim
from hcs_ray.storage import Storage

EXCLUDED_FILE: Final = "labels.json"  # of a stage, with its prefix: what it has left out, and why
_FORMAT: Final = 1


@dataclass(frozen=True)
class ExcludedFields:
    """The keys that some rules of ``labels.exclude`` leave out, each with its reasons, as ``label bad``.

    ``users`` decided last about each of them.
    """

    rules: tuple[str, ...] = ()
    reasons: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    users: Mapping[str, str] = field(default_factory=dict)

    @property
    def sha256(self) -> str:
        """Of the keys alone: a decision that changes only why a field is left out changes nothing made."""
        return canonical_digest(sorted(self.reasons))

    @property
    def claim(self) -> dict[str, Any]:
        """What the claim of a stage holds of it."""
        return {"exclude": list(self.rules), "fields": len(self.reasons), "sha256": self.sha256}

    def among(self, keys: Collection[str]) -> ExcludedFields:
        """Those of some fields: a label may be of a field that the study no longer has."""
        kept = {key: why for key, why in self.reasons.items() if key in keys}
        return ExcludedFields(self.rules, kept, {key: self.users[key] for key in kept})

    def to_bytes(self) -> bytes:
        """The content of `EXCLUDED_FILE`."""
        listed = {key: list(why) for key, why in sorted(self.reasons.items())}
        document = {
            "format": _FORMAT,
            **self.claim,
            "excluded": listed,
            "users": dict(sorted(self.users.items())),
        }
        return (json.dumps(document, indent=1, ensure_ascii=False) + "\n").encode()


def parse_excluded(data: bytes) -> ExcludedFields | None:
    """What a file of `to_bytes` holds; None where it is not whole."""
    try:
        document = json.loads(data)
        reasons = {str(key): tuple(map(str, why)) for key, why in document["excluded"].items()}
        users = {str(key): str(user) for key, user in document["users"].items()}
        found = ExcludedFields(tuple(document["exclude"]), reasons, users)
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return found if document.get("sha256") == found.sha256 else None


def excluded_fields(labels: Mapping[str, FieldLabel], rules: Sequence[str]) -> ExcludedFields:
    """The labelled fields that a rule names: a verdict, or ``tag:NAME``."""
    wanted = sorted(set(rules))
    tags = {rule.removeprefix(TAG_RULE) for rule in wanted if rule.startswith(TAG_RULE)}
    reasons: dict[str, tuple[str, ...]] = {}
    for key, label in sorted(labels.items()):
        why = [f"label {label.verdict}"] if label.verdict in wanted else []
        why += [f"tag {tag}" for tag in sorted(label.tags & tags)]
        if why:
            reasons[key] = tuple(why)
    return ExcludedFields(tuple(wanted), reasons, {key: labels[key].user for key in reasons})


class LabelSnapshot:
    """The labels of a study as they are when they are first asked for; they stay so.

    All copies of an opened study share one, also those that travel to other processes: all stages of a
    command leave out the same fields, whatever is decided meanwhile.
    """

    def __init__(self, known: ExcludedFields | None = None) -> None:
        self._known = {} if known is None else {known.rules: known}
        self._labels: dict[str, FieldLabel] | None = None
        self._lock = threading.Lock()
        self._told: set[str] = set()

    def excluded(self, storage: Storage, rules: Sequence[str]) -> ExcludedFields:
        """What some rules leave out; without rules nothing, and nothing is read."""
        wanted = tuple(sorted(set(rules)))
        if not wanted:
            return ExcludedFields()
        with self._lock:
            if wanted not in self._known:
                if self._labels is None:
                    self._labels = _read(storage)
                self._known[wanted] = excluded_fields(self._labels, wanted)
            return self._known[wanted]

    def first_time(self, what: str) -> bool:
        """Whether something is said for the first time."""
        with self._lock:
            new = what not in self._told
            self._told.add(what)
            return new

    def __getstate__(self) -> dict[str, Any]:
        return {"known": self._known, "labels": self._labels, "told": self._told}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._known, self._labels, self._told = state["known"], state["labels"], state["told"]
        self._lock = threading.Lock()


def _read(storage: Storage) -> dict[str, FieldLabel]:
    log = LabelLog(storage)
    log.refresh()
    log.warn()
    return log.labels()


def excluded_file(place: Place) -> str:
    """Where a stage keeps what labels have left out, below the study's root."""
    return f"{place.folder}/{place.prefix}{'_' if place.prefix else ''}{EXCLUDED_FILE}"


def of_killed(storage: Storage, place: Place, wanted: ExcludedFields) -> ExcludedFields | None:
    """What a stage that was killed had begun to leave out by the same rules, where that is not ``wanted``.

    None where it has come to its end, was never begun, or has kept no such file.
    """
    killed = killed_claim(storage, place) if wanted.rules else None
    if killed is None or killed.config.get(LABELS) in (None, wanted.claim):
        return None
    found = storage.read_versioned(excluded_file(place))
    kept = parse_excluded(found[0]) if found else None
    return kept if kept and kept.claim == killed.config[LABELS] and kept.rules == wanted.rules else None
