"""One decision of a person about some fields: what it may hold, and how its file is written and read."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Final

from pydantic import ConfigDict, TypeAdapter

from hcs_ray.config import VERDICTS, Verdict
from hcs_ray.contracts import InputError

EVENTS: Final = "labels/events"
EVENT_FORMAT: Final = 1
FOREIGN: Final = "not a label's file; move it elsewhere"
_LONGEST_USER: Final = 60
_LONGEST_TAG: Final = 40
_TIME: Final = "%Y%m%dT%H%M%S%fZ"
_STAMP: Final = re.compile(r"\d{8}T\d{12}Z")
_ID: Final = re.compile(_STAMP.pattern + r"-[A-Za-z0-9_-]+-[0-9a-f]{32}")
_KEY: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]*_s[0-9]+")


@dataclass(frozen=True)
class Decision:
    """One file ``labels/events/<utc>-<user>-<uuid>.json``, which is never changed.

    ``id`` is the file's stem and says what comes after what; ``time`` is what the writer's clock said
    (ISO 8601, UTC). ``verdict`` None leaves the verdict as it is, ``clear`` takes it away. A decision that
    ``undoes`` another, by its id, holds nothing else.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    id: str
    time: str
    user: str
    keys: tuple[str, ...] = ()
    verdict: Verdict | None = None
    clear: bool = False
    add_tags: tuple[str, ...] = ()
    remove_tags: tuple[str, ...] = ()
    undoes: str | None = None

    @property
    def path(self) -> str:
        """The file of this decision, below the study's root."""
        return event_path(self.id)

    def to_bytes(self) -> bytes:
        """The file's content."""
        return (json.dumps({"format": EVENT_FORMAT, **asdict(self)}, ensure_ascii=False) + "\n").encode()


def event_path(decision_id: str) -> str:
    """The file of a decision, below the study's root."""
    return f"{EVENTS}/{decision_id}.json"


def parse_decision(path: str, data: bytes) -> Decision:
    """The decision of a file, checked as one that is made now; `InputError` says what is wrong with it."""
    name = path.rpartition("/")[2].removesuffix(".json")
    if not is_event(path):
        raise InputError(FOREIGN)
    try:
        document = json.loads(data)
        found = document.pop("format", None)
        if found != EVENT_FORMAT:
            raise InputError(f"label format {found}; this version reads format {EVENT_FORMAT}")
        decision = _adapter().validate_json(json.dumps(document))
    except (ValueError, TypeError, AttributeError, RecursionError):  # pydantic's are ValueErrors
        raise InputError("damaged: not the JSON of a decision; restore or delete it") from None
    if decision.id != name:
        raise InputError(f"holds the decision {decision.id!r}, not that of its name")
    check_decision(decision)
    return decision


def _adapter() -> TypeAdapter[Decision]:
    return TypeAdapter(Decision)


def check_decision(decision: Decision) -> None:
    """`InputError` where a decision names nobody, no field, or asks for what cannot be."""
    checked_user(decision.user)
    for key in decision.keys:
        checked_key(key)
    for tag in (*decision.add_tags, *decision.remove_tags):
        checked_tag(tag)
    says = bool(decision.verdict or decision.clear or decision.add_tags or decision.remove_tags)
    if decision.undoes is not None:
        if says or decision.keys:
            raise InputError("a decision that takes another back says nothing else")
        return
    if not decision.keys:
        raise InputError("a decision needs the key of at least one field")
    if not says:
        raise InputError("a decision needs a verdict, a tag, or one of these to take away")
    if decision.verdict and decision.clear:
        raise InputError(f"a decision cannot give the verdict {decision.verdict} and take it away")
    if both := sorted(set(decision.add_tags) & set(decision.remove_tags)):
        raise InputError(f"a decision cannot add the tag {both[0]!r} and take it away")


def checked_user(user: str) -> str:
    """A user's name as it may stand in a label, or `InputError`."""
    name = unicodedata.normalize("NFC", user)
    if not (0 < len(name) <= _LONGEST_USER and name.isprintable() and name[0].isalnum() and name[-1] != " "):
        raise InputError(
            f"user {user!r}: use printable characters (at most {_LONGEST_USER}), a letter or digit first"
        )
    return name


def checked_tag(tag: str) -> str:
    """A tag as it may stand in a label, or `InputError`."""
    name = unicodedata.normalize("NFC", tag)
    plain = name.isprintable() and not set(name) & set(',;"')
    if not (0 < len(name) <= _LONGEST_TAG and plain and name[0].isalnum() and name[-1] != " "):
        raise InputError(
            f'tag {tag!r}: use printable characters but , ; and " (at most {_LONGEST_TAG}), '
            "a letter or digit first"
        )
    return name


def checked_key(key: str) -> str:
    """A field's key by its form (whether a study has the field, its index tells), or `InputError`."""
    if not _KEY.fullmatch(key):
        raise InputError(f"key {key!r}: a field is named as in the index, like Week1_22123_B02_s1")
    return key


def checked_verdict(verdict: str) -> Verdict:
    """One of `VERDICTS`, or `InputError`."""
    for known in VERDICTS:
        if verdict == known:
            return known
    raise InputError(f"verdict {verdict!r}: it is one of {', '.join(VERDICTS)}")


def tidy_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Checked tags, each once, sorted."""
    return tuple(sorted({checked_tag(tag) for tag in tags}))


def next_stamp(now: datetime, newest: str | None) -> str:
    """The time in the id of a new decision: now, or just after the ``newest`` id that is known.

    InputError: that one's clock had run to the end of time.
    """
    stamp = now.astimezone(UTC).strftime(_TIME)
    if newest is None or stamp > stamp_of(newest):
        return stamp
    try:
        later = datetime.strptime(stamp_of(newest), _TIME) + timedelta(microseconds=1)
    except (ValueError, OverflowError):
        raise InputError(f"{event_path(newest)}: its time cannot be followed; delete that file") from None
    return later.strftime(_TIME)


def stamp_of(decision_id: str) -> str:
    """The time in an id, of fixed width, so that it sorts."""
    return decision_id.partition("-")[0]


def is_event(path: str) -> bool:
    """Whether a file below `EVENTS` has the name of a decision."""
    folder, _, name = path.rpartition("/")
    return folder == EVENTS and name.endswith(".json") and bool(_ID.fullmatch(name.removesuffix(".json")))
