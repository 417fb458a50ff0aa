"""One file from the server to ``<name>.part``, never spliced from two versions.

``<name>.part.json`` beside it says of which version its bytes are. The rest is asked for with ``Range`` and
``If-Range`` [RFC 9110, sections 13.1.5 and 14].
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Final

from urllib3.response import BaseHTTPResponse

from hcs_ray.screen.download.server import Remote, Server, TransientError

_CONTENT_RANGE: Final = re.compile(r"bytes (\d+)-(\d+)/(\d+)")

Arrived = Callable[[int, int], None]  # bytes that came (a fresh start takes them back), bytes more in all


class PartFile:
    """The bytes of a file that have come so far.

    Attributes:
        path: Where they are.
        remote: The version that they are of; None where nothing can be built upon them.
    """

    def __init__(self, final: Path) -> None:
        self.path = final.with_name(f"{final.name}.part")
        self._note = final.with_name(f"{final.name}.part.json")
        self.remote: Remote | None = None
        with contextlib.suppress(OSError, ValueError, TypeError):
            self.remote = Remote(**json.loads(self._note.read_text()))

    def have(self) -> int:
        """Bytes that can be built upon."""
        return self.path.stat().st_size if self.remote and self.path.is_file() else 0

    def resumable(self, remote: Remote) -> int:
        """Bytes that are of this version."""
        same = self.remote is not None and self.remote.is_same(remote)
        return self.have() if same and self.have() <= remote.size else 0

    def begin(self, remote: Remote) -> None:
        """Start from nothing with this version. The note comes last: without it no byte is trusted."""
        self.forget()
        self.path.unlink(missing_ok=True)  # not truncated: a killed run may have left it another name
        self.path.touch(exist_ok=False)
        fresh = self._note.with_name(f"{self._note.name}.new")
        fresh.write_text(json.dumps(asdict(remote)))
        fresh.replace(self._note)
        self.remote = remote

    def fill(self, chunks: Iterator[bytes], arrived: Arrived) -> None:
        """Append; each chunk is with the operating system before the next is awaited."""
        with self.path.open("ab", buffering=0) as file:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    written = file.write(view)
                    arrived(written, 0)
                    view = view[written:]
            os.fsync(file.fileno())

    def drop_twin(self, final: Path) -> None:
        """Remove the second name of a file that was killed while it got its final one."""
        if self.path.exists() and self.path.samefile(final):
            self.path.unlink()
            self.forget()

    def forget(self) -> None:
        """The bytes have gone elsewhere, or shall go."""
        self.remote = None
        self._note.unlink(missing_ok=True)


def fetch(server: Server, name: str, part: PartFile, remote: Remote, arrived: Arrived) -> None:
    """Bring ``part`` to the whole of a file: the version ``remote``, or what the server has put in its place.

    Raises:
        HcsError: one line with the URL, at once (404, 403) or after all tries.
        OSError: the bytes could not be written.
        StoppedError: another thread has ended the download.
    """
    if part.have() and not part.resumable(remote):
        server.say(f"{name}: {_why(part, remote)}; it begins again")
    if part.remote is None or not part.remote.is_same(remote) or part.have() > remote.size:
        part.begin(remote)
    server.persist(name, lambda: _attempt(server, name, part, arrived), part.have)


def _attempt(server: Server, name: str, part: PartFile, arrived: Arrived) -> None:
    assert part.remote is not None
    have, validator = part.have(), part.remote.validator
    if have == part.remote.size:
        return
    headers = {"Range": f"bytes={have}-", "If-Range": validator} if have and validator else {}
    with server.open("GET", name, headers) as response:
        if response.status == 200:
            _begin(server, name, part, server.described(name, response), arrived)
        elif not headers or response.status not in (206, 416):
            raise server.refusal(name, response)
        elif wrong := _wrong_range(response, have, part.remote):
            arrived(-have, 0)
            part.begin(part.remote)
            raise TransientError(f"{wrong}; it begins again")
        part.fill(server.chunks(response, part.remote.size - part.have()), arrived)
    if part.have() != part.remote.size:
        raise TransientError(f"the connection ended after {part.have()} of {part.remote.size} bytes")


def _begin(server: Server, name: str, part: PartFile, found: Remote, arrived: Arrived) -> None:
    """Start with what a whole answer brings."""
    assert part.remote is not None
    have, before = part.have(), part.remote.size
    if have:
        server.say(f"{name}: {_why(part, found)}; it begins again")
    part.begin(found)
    arrived(-have, found.size - before)


def _why(part: PartFile, remote: Remote) -> str:
    """Why the bytes that are here cannot be built upon."""
    if part.remote and not part.remote.validator and not remote.validator:
        return "the server tells no versions of it apart"
    if part.remote and part.remote.is_same(remote):
        return "the server sends no ranges"
    return "it has changed on the server"


def _wrong_range(response: BaseHTTPResponse, have: int, remote: Remote) -> str | None:
    """What keeps an answer to a range from being the rest of this version; None where it is."""
    if response.status == 416:
        return "the server refuses the rest"
    match = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
    if not match or int(match[1]) != have or int(match[2]) != int(match[3]) - 1:
        return "the server sent another range than was asked for"
    found = Remote(int(match[3]), response.headers.get("ETag"), response.headers.get("Last-Modified"))
    if found.size != remote.size or (found.validator and not found.is_same(remote)):
        return "the server sent a range of another version"
    return None
