"""A look at a store before any work: can it do what a study asks of it?"""

from __future__ import annotations

import contextlib
import os
import time

from hcs_ray.contracts import HcsError
from hcs_ray.storage.base import TEMPORARY, Storage
from hcs_ray.storage.s3 import S3Storage

_CONTENT = b"hcs-ray looks whether it can write here"
_OTHER_VERSION = '"00000000000000000000000000000000"'


def preflight(storage: Storage) -> None:
    """Prove that a root can be written, read whole and in part, and cleared, and that conditions hold.

    A store that ignores ``If-None-Match`` or ``If-Match`` would let two writers into one stage.

    Raises:
        HcsError: one line that says what the store does not do, and why where it says so.
    """
    if isinstance(storage, S3Storage):
        storage = storage.impatient()
    path = f"{TEMPORARY}preflight-{os.getpid()}-{os.urandom(4).hex()}"
    try:
        problem = _problem(storage, path)
    except HcsError as error:
        raise type(error)(str(error).replace(f"/{path}", "")) from None
    if problem:
        raise HcsError(f"{storage.url}: {problem}")


def _problem(storage: Storage, path: str) -> str | None:
    """What is wrong with a store that answers; one that refuses raises."""
    if not storage.put_if_absent(path, _CONTENT):
        return (
            "the store refuses a new file as if it were there (If-None-Match); leases need conditional puts"
        )
    try:
        problem = _wrong_condition(storage, path) or _wrong_content(storage, path)
    finally:
        with contextlib.suppress(HcsError):
            storage.delete(path)
    if problem:
        return problem
    storage.delete(path)  # and says why it cannot
    return "a deleted file is still there" if storage.read_versioned(path) else None


def _wrong_condition(storage: Storage, path: str) -> str | None:
    if storage.put_if_absent(path, b"another"):
        return "the store ignores conditional puts (If-None-Match); leases need them"
    found = storage.read_versioned(path)
    if found is None:
        return "a file just written is not there"
    if storage.put_if_match(path, b"another", _OTHER_VERSION):
        return "the store ignores conditional puts (If-Match); leases need them"
    if not storage.put_if_match(path, _CONTENT, found[1]):
        return "the store refuses a conditional put whose condition holds (If-Match); leases need them"
    return None


def _wrong_content(storage: Storage, path: str) -> str | None:
    if storage.read(path) != _CONTENT:
        return "a file reads otherwise than it was written"
    if storage.read_range(path, 8, 5) != _CONTENT[8:13]:
        return "the store ignores ranges; shards are read in parts"
    storage.sizes(path)  # whether it may be listed
    return None


def clock_skew(storage: Storage) -> float:
    """Seconds by which the store's clock is ahead of this machine's, to about a second.

    Raises:
        HcsError: the root cannot be written or read.
    """
    if isinstance(storage, S3Storage):
        storage = storage.impatient()
    path = f"{TEMPORARY}clock-{os.getpid()}-{os.urandom(4).hex()}"
    before = time.time()
    storage.write(path, _CONTENT)
    after = time.time()
    try:
        written = storage.modified(path)
    finally:
        with contextlib.suppress(HcsError):
            storage.delete(path)
    if written is None:
        raise HcsError(f"{storage.url}: a file just written is not there")
    told = written.timestamp()
    # Stores tell whole seconds, rounded down.
    return told - after if told > after else min(0.0, told + 1 - before)
