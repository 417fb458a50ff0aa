"""One writer a stage: a lease held by a conditional put and renewed by a heartbeat."""

from __future__ import annotations

import contextlib
import getpass
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from typing import Any

import psutil

from hcs_ray.contracts import HcsError
from hcs_ray.storage import Storage
from hcs_ray.storage.machine import boot

LEASE_SECONDS = 60.0
HEARTBEAT_SECONDS = 10.0


class Lease:
    """One writer at a time: a file made by a conditional put and renewed by a heartbeat.

    ``path`` is that file in the storage; ``work`` says what it guards, in messages.

    It is taken over when it has run out, or at once where its holder was a process of this machine that has
    died; for one of another machine a new writer waits until it is renewed or runs out. Between machines the
    clocks must agree to well within a minute.
    """

    def __init__(self, storage: Storage, path: str, work: str) -> None:
        self._storage = storage
        self._path = path
        self._work = work
        self._token = uuid.uuid4().hex
        self._version = ""
        self._lost: str | None = None
        self._stop = threading.Event()

    @contextlib.contextmanager
    def held(self) -> Iterator[Lease]:
        """Hold the lease, or fail with one line that names who does."""
        self._acquire()
        heart = threading.Thread(target=self._beat, name="lease", daemon=True)
        heart.start()
        try:
            yield self
        finally:
            self._stop.set()
            heart.join()
            self._release()

    def check(self) -> None:
        """`HcsError` where another writer has taken the lease over."""
        if self._lost:
            raise HcsError(f"{self._work}: {self._lost}")

    def _acquire(self) -> None:
        if not self._storage.put_if_absent(self._path, self._content()):
            found = self._storage.read_versioned(self._path)
            if found is None:
                self._storage.put_if_absent(self._path, self._content())
            elif json.loads(found[0])["token"] != self._token:  # a retried put may have succeeded before
                self._outlive(found)
        self._confirm()

    def _outlive(self, found: tuple[bytes, str]) -> None:
        """Take over a lease whose holder is gone; of a process elsewhere, only its silence tells that."""
        holder = json.loads(found[0])
        while not _is_over(holder):
            if _is_here(holder):
                raise HcsError(self._held_message(holder))
            time.sleep(1)
            now = self._storage.read_versioned(self._path)
            if now is None or now[1] != found[1]:
                raise HcsError(self._held_message(holder))
        self._storage.put_if_match(self._path, self._content(), found[1])

    def _confirm(self) -> None:
        found = self._storage.read_versioned(self._path)
        holder = json.loads(found[0]) if found else {}
        if found is None or holder.get("token") != self._token:
            raise HcsError(self._held_message(holder))
        self._version = found[1]

    def _held_message(self, holder: Mapping[str, Any]) -> str:
        folder = f"{self._storage.url}/{self._path.rpartition('/')[0]}"
        return f"{folder}: {self._work} is being written by {_who(holder)}; wait for it or stop it"

    def _content(self) -> bytes:
        me = psutil.Process()
        holder = {
            "token": self._token,
            "user": _user(),
            "host": socket.gethostname(),
            "boot": boot(),
            "pid": me.pid,
            "process_started": me.create_time(),
            "expires": time.time() + LEASE_SECONDS,
        }
        return json.dumps(holder, indent=1).encode()

    def _beat(self) -> None:
        last = time.monotonic()
        while not self._stop.wait(HEARTBEAT_SECONDS):
            try:
                self._storage.put_if_match(self._path, self._content(), self._version)
                found = self._storage.read_versioned(self._path)
                if found is None or json.loads(found[0]).get("token") != self._token:
                    self._lost = "another writer has taken over its lease"
                    return
                self._version = found[1]
                last = time.monotonic()
            except HcsError as error:
                if time.monotonic() - last > LEASE_SECONDS:
                    self._lost = f"its lease could not be renewed ({error})"
                    return

    def _release(self) -> None:
        found = self._storage.read_versioned(self._path)
        if found is not None and json.loads(found[0]).get("token") == self._token:
            self._storage.delete(self._path)


def holder_of(storage: Storage, path: str) -> str | None:
    """Who holds a lease, ``user@host, process 12``; None where nobody does. It is only read."""
    found = storage.read_versioned(path)
    holder = json.loads(found[0]) if found else None
    return None if holder is None or _is_over(holder) else _who(holder)


def _who(holder: Mapping[str, Any]) -> str:
    return f"{holder.get('user')}@{holder.get('host')}, process {holder.get('pid')}"


def _is_over(holder: Mapping[str, Any]) -> bool:
    if time.time() > float(holder["expires"]):
        return True
    if not _is_here(holder):
        return False
    try:
        return bool(psutil.Process(int(holder["pid"])).create_time() != holder["process_started"])
    except psutil.NoSuchProcess:
        return True


def _is_here(holder: Mapping[str, Any]) -> bool:
    return (holder["host"], holder["boot"]) == (socket.gethostname(), boot())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return str(os.getuid())
