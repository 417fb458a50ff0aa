"""A real HTTP server on loopback that keeps a screen's files and fails in the ways that servers fail."""

from __future__ import annotations

import contextlib
import email.utils
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Literal


@dataclass(frozen=True)
class Fault:
    """How an answer fails.

    Attributes:
        status: Answered in place of the file, with ``headers``.
        headers: Sent with the answer, replacing its own.
        drop_after: The connection is closed after so many bytes of the body.
        stall_after: So many bytes of the body come, and no more until the site is released.
        becomes: The file has this content from then on.
    """

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    drop_after: int | None = None
    stall_after: int | None = None
    becomes: bytes | None = None


@dataclass
class Seen:
    """A request (names of headers in lower case), and what went out for it (bytes of the body)."""

    method: str
    name: str
    range: str | None
    headers: Mapping[str, str]
    status: int = 0
    sent: int = 0


class Site:
    """Files by name, the faults that are due, and every request that came.

    Attributes:
        ranges: Whether ranges are honoured, ignored (200), or honoured without a look at ``If-Range``.
        validators: What tells versions apart.
    """

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = dict(files)
        self.ranges: Literal["honoured", "ignored", "blind"] = "honoured"
        self.validators: Literal["etag", "date", "none"] = "etag"
        self.requests: list[Seen] = []
        self.released = threading.Event()
        self.url = ""
        self._faults: dict[tuple[str, str], list[Fault]] = {}
        self._dates: dict[str, float] = {}

    def fail(self, name: str, fault: Fault, times: int = 1, method: str = "GET") -> None:
        """Let the next answers for a file fail."""
        self._faults.setdefault((method, name), []).extend([fault] * times)

    def due(self, method: str, name: str) -> Fault:
        """The fault of this answer; one that lets it pass where none is left."""
        waiting = self._faults.get((method, name))
        return waiting.pop(0) if waiting else Fault()

    def change(self, name: str, content: bytes) -> None:
        self.files[name] = content
        self._dates[name] = self._dates.get(name, 1e9) + 60

    def validator(self, name: str) -> dict[str, str]:
        if self.validators == "etag":
            return {"ETag": f'"{hashlib.sha256(self.files[name]).hexdigest()}"'}
        date = email.utils.formatdate(self._dates.get(name, 1e9), usegmt=True)
        return {"Last-Modified": date} if self.validators == "date" else {}

    def sent(self, name: str) -> int:
        """Bytes of a file's body that went out in all."""
        return sum(seen.sent for seen in self.requests if seen.name == name)

    def asked(self, name: str, method: str = "GET") -> list[Seen]:
        return [seen for seen in self.requests if (seen.name, seen.method) == (name, method)]


@contextlib.contextmanager
def serving(files: dict[str, bytes], tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    """Serve files below ``site.url`` until the end of the block."""
    site = Site(files)

    class Handler(_Handler):
        pass

    Handler.site = site
    server = _Quiet(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    site.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}/bbbc"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield site
    finally:
        site.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away, or refused our certificate, is what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    site: Site

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def log_message(self, format: str, *values: object) -> None:
        """Nothing: standard error is the tests'."""

    def _answer(self) -> None:
        name = self.path.rpartition("/")[2]
        asked = {key.lower(): value for key, value in self.headers.items()}
        seen = Seen(self.command, name, asked.get("range"), asked)
        self.site.requests.append(seen)
        fault = self.site.due(self.command, name)
        if fault.status is not None or name not in self.site.files:
            seen.status = fault.status or 404
            self._head(seen.status, {"Content-Length": "0", **fault.headers})
            return
        content = self.site.files[name]
        headers = self.site.validator(name)
        start = self._start(name, len(content))
        seen.status = 200
        if start is not None:
            seen.status = 206 if start < len(content) else 416
            end = f"{start}-{len(content) - 1}" if seen.status == 206 else "*"
            headers["Content-Range"] = f"bytes {end}/{len(content)}"
        body = content[start or 0 :]
        if fault.becomes is not None:  # before the client can know
            self.site.change(name, fault.becomes)
        self._head(seen.status, {"Content-Length": str(len(body)), **headers, **fault.headers})
        if self.command == "GET":
            self._send(body, seen, fault)

    def _start(self, name: str, size: int) -> int | None:
        """The first byte that is asked for, where a range is to be sent."""
        wanted = self.headers.get("Range")
        if wanted is None or self.site.ranges == "ignored":
            return None
        condition = self.headers.get("If-Range")
        if self.site.ranges == "honoured" and condition not in self.site.validator(name).values():
            return None
        return int(wanted.removeprefix("bytes=").removesuffix("-"))

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def _send(self, body: bytes, seen: Seen, fault: Fault) -> None:
        ends = [end for end in (fault.drop_after, fault.stall_after) if end is not None]
        part = body[: ends[0]] if ends else body
        for begin in range(0, len(part), 1 << 14):
            piece = part[begin : begin + (1 << 14)]
            self.wfile.write(piece)
            seen.sent += len(piece)
        if fault.stall_after is not None:
            self.site.released.wait()
        if ends or "Content-Length" in fault.headers:
            self.close_connection = True
            with contextlib.suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(true: object, seconds: float = 10.0) -> None:
    """Wait for a condition (a callable), and fail without it."""
    assert callable(true)
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.01)
