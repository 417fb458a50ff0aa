"""An HTTP server on loopback that behaves like the API server of a Kubernetes cluster.

It creates, gets, lists (in pages), watches, patches, deletes and gives logs; it counts resource versions, and
forgets old ones (410). It refuses as the real one does, with the real one's ``Status``: 401, 403, 404, 409,
422, 429, and 400 for unknown fields where they are checked strictly.

What it does not imitate: discovery, server-side and strategic-merge apply, a schema's defaults and CEL rules,
admission webhooks, Pod Security, quotas, ``managedFields``, several namespaces at a time (names are those of
the cluster), controllers of any kind (a test sets statuses itself, or gives `Store.controllers`), and garbage
collection that comes by itself (`Store.collect`).
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from tests.api_store import RESOURCES, Object, RefusedError, Store, matches

TOKEN = "a-token-of-the-tests"
_VERBS = {"GET": "get", "POST": "create", "PATCH": "patch", "DELETE": "delete"}


@dataclass
class ApiServer:
    """A cluster with one user, ``scientist``, who has `TOKEN`.

    Attributes:
        served: Plurals that it knows; take one out, and its CRD is not installed.
        denied: (verb, plural) that the user may not; "list" and "watch" are verbs of their own.
        faults: Statuses that the next requests are answered with; 0 drops the connection after the work, -1
            lets a request pass.
        logs: (pod, container) -> lines.
        following: Whether logs that are followed have more to come.
        dies_after: So many requests are answered, and then none: the connection is closed before any work.
        asked: (verb, path and query) of every request.
    """

    store: Store = field(default_factory=Store)
    url: str = ""
    served: set[str] = field(default_factory=lambda: set(RESOURCES))
    denied: set[tuple[str, str]] = field(default_factory=set)
    faults: list[int] = field(default_factory=list)
    logs: dict[tuple[str, str], list[str]] = field(default_factory=dict)
    following: threading.Event = field(default_factory=threading.Event)
    asked: list[tuple[str, str]] = field(default_factory=list)
    bodies: list[Object] = field(default_factory=list)
    dies_after: int | None = None
    expire_by_status: bool = False  # 410 as the answer's status, or else as an event of a watch
    closing: bool = False

    def kubeconfig(
        self, folder: Path, *, token: str = TOKEN, namespace: str | None = "science", ca: bytes | None = None
    ) -> Path:
        """A kubeconfig of this cluster, its context called ``lab``."""
        cluster: Object = {"server": self.url}
        if ca is not None:
            cluster["certificate-authority-data"] = base64.b64encode(ca).decode()
        context = {"cluster": "c", "user": "u"} | ({"namespace": namespace} if namespace else {})
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "lab",
            "clusters": [{"name": "c", "cluster": cluster}],
            "users": [{"name": "u", "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": context}],
        }  # fmt: skip
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(config))
        return path

    def verbs(self, plural: str) -> list[str]:
        """What was asked of a kind, in order."""
        return [verb for verb, path in self.asked if f"/{plural}" in path]


@contextlib.contextmanager
def serving(store: Store | None = None, tls: ssl.SSLContext | None = None) -> Iterator[ApiServer]:
    """A server until the end of the block."""
    api = ApiServer(store or Store())

    class Handler(_Handler):
        pass

    Handler.api = api
    server = _Quiet(("127.0.0.1", 0), Handler)
    if tls:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    api.url = f"http{'s' if tls else ''}://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield api
    finally:
        api.closing = True
        api.following.set()
        with api.store.changed:
            api.store.changed.notify_all()
        server.shutdown()
        server.server_close()
        thread.join()


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is nothing to tell of."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    api: ApiServer

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_PATCH = do_DELETE = do_GET  # noqa: N815

    def log_message(self, format: str, *values: object) -> None:
        """Nothing: standard error is the tests'."""

    def _serve(self) -> None:
        split = urlsplit(self.path)
        query = dict(parse_qsl(split.query))
        size = int(self.headers.get("Content-Length") or 0)
        body: Object = json.loads(self.rfile.read(size)) if size else {}
        verb = _VERBS[self.command]
        *_, plural, name, sub = self._parts(split.path)
        if verb == "get" and not name:
            verb = "watch" if "watch" in query else "list"
        self.api.asked.append((verb, self.path))
        self.api.bodies.append(body)
        if self.api.dies_after is not None and len(self.api.asked) > self.api.dies_after:
            self.close_connection = True
            self.connection.close()
            return
        fault = self.api.faults.pop(0) if self.api.faults else None
        try:
            if fault is not None and fault > 0:
                raise RefusedError(
                    fault, "TooManyRequests" if fault == 429 else "InternalError", f"fault {fault}"
                )
            self._authorize(verb, plural, sub, split.path)
            answer = self._answer(verb, plural, name, sub, query, body, split.path)
        except RefusedError as refused:
            self._send(refused.code, refused.status)
            return
        except LookupError:
            self._send_text(404, "404 page not found\n")
            return
        if fault == 0:
            self.close_connection = True
            self.connection.close()
        elif answer is not None:
            self._send(201 if verb == "create" else 200, answer)

    def _parts(self, path: str) -> tuple[str, str, str, str, str]:
        """Group, namespace, plural, name and subresource of a path."""
        parts = path.strip("/").split("/")
        group, rest = ("", parts[2:]) if parts[0] == "api" else (parts[1], parts[3:])
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        plural, name, sub, *_ = [*rest, "", ""]
        return group, namespace, plural, name, sub

    def _authorize(self, verb: str, plural: str, sub: str, path: str) -> None:
        scheme, _, token = str(self.headers.get("Authorization")).partition(" ")
        if (scheme.lower(), token) != ("bearer", TOKEN):
            raise RefusedError(401, "Unauthorized", "Unauthorized")
        group, namespace, *_ = self._parts(path)
        what = f"{plural}/{sub}" if sub else plural
        if (verb, what) in self.api.denied:
            full = f"{plural}.{group}" if group else plural
            message = (
                f'{full} is forbidden: User "scientist" cannot {verb} resource "{what}" '
                f'in API group "{group}" in the namespace "{namespace}"'
            )
            raise RefusedError(403, "Forbidden", message, {"group": group, "kind": plural})

    def _answer(
        self, verb: str, plural: str, name: str, sub: str, query: dict[str, str], body: Object, path: str
    ) -> Object | None:
        group, version, kind = RESOURCES[plural]
        served = f"/apis/{group}/{version}/" if group else f"/api/{version}/"
        if plural not in self.api.served or not path.startswith(served):
            raise LookupError(path)
        store, strict = self.api.store, query.get("fieldValidation") == "Strict"
        if sub == "log":
            self._log(name, query)
            return None
        if verb == "get":
            return store.get(plural, name)
        if verb == "create":
            return store.create(plural, self._parts(path)[1], body, strict, query.get("dryRun") == "All")
        if verb == "patch":
            assert self.headers["Content-Type"] == "application/merge-patch+json"
            return store.patch(plural, name, body, strict)
        if verb == "delete":
            return store.delete(plural, name, (body.get("preconditions") or {}).get("uid"))
        if verb == "watch":
            self._watch(plural, query)
            return None
        return self._list(plural, kind, served, query)

    def _list(self, plural: str, kind: str, served: str, query: dict[str, str]) -> Object:
        store = self.api.store
        with store.changed:
            found = store.select(plural, query.get("labelSelector", ""), query.get("fieldSelector", ""))
            version = store.version
        begin, limit = 0, int(query.get("limit", len(found) or 1))
        about: Object = {"resourceVersion": str(version)}
        if "continue" in query:
            listed, _, offset = query["continue"].partition(":")
            if int(listed) < store.forgotten:
                raise RefusedError(410, "Expired", "The provided continue parameter is too old")
            begin, about["resourceVersion"] = int(offset), listed
        if begin + limit < len(found):
            about["continue"] = f"{about['resourceVersion']}:{begin + limit}"
        # The real server leaves kind and apiVersion out of a list's objects.
        items = [
            {key: value for key, value in item.items() if key not in ("kind", "apiVersion")}
            for item in found[begin : begin + limit]
        ]
        group_version = served.strip("/").partition("/")[2]
        return {"kind": f"{kind}List", "apiVersion": group_version, "metadata": about, "items": items}

    def _watch(self, plural: str, query: dict[str, str]) -> None:
        store, seen = self.api.store, int(query["resourceVersion"])
        until = time.monotonic() + float(query.get("timeoutSeconds", 60))
        expired = RefusedError(410, "Expired", f"too old resource version: {seen}").status
        if seen < store.forgotten and self.api.expire_by_status:
            self._send(410, expired)
            return
        self._begin_stream()
        while time.monotonic() < until and not self.api.closing:
            with store.changed:
                if seen < store.forgotten:
                    self._chunk({"type": "ERROR", "object": expired})
                    break
                new = [change for change in store.changes if change.version > seen]
                if not new:
                    store.changed.wait(min(0.2, until - time.monotonic()))
                    continue
            for change in new:
                seen = change.version
                labels, fields = query.get("labelSelector", ""), query.get("fieldSelector", "")
                if change.plural == plural and matches(change.object, labels, fields):
                    self._chunk({"type": change.type, "object": change.object})
            about = {"kind": RESOURCES[plural][2], "metadata": {"resourceVersion": str(seen)}}
            self._chunk({"type": "BOOKMARK", "object": about})
        self._end_stream()

    def _log(self, pod: str, query: dict[str, str]) -> None:
        self.api.store.get("pods", pod)
        lines = self.api.logs.get((pod, query["container"]))
        if lines is None:
            message = (
                f'container "{query["container"]}" in pod "{pod}" is waiting to start: ContainerCreating'
            )
            raise RefusedError(400, "BadRequest", message)
        told = max(0, len(lines) - int(query.get("tailLines", len(lines))))
        self._begin_stream("text/plain")
        while True:
            for line in lines[told:]:
                self._write(f"{line}\n".encode())
                told += 1
            if query.get("follow") != "true" or self.api.following.wait(0.05):
                break
        self._end_stream()

    # --- bytes ------------------------------------------------------------------------------------------

    def _send(self, code: int, answer: Object) -> None:
        self._body(code, json.dumps(answer).encode(), "application/json")

    def _send_text(self, code: int, text: str) -> None:
        self._body(code, text.encode(), "text/plain")

    def _body(self, code: int, data: bytes, kind: str) -> None:
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        if code == 429:
            self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def _begin_stream(self, kind: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _chunk(self, event: Any) -> None:
        self._write(json.dumps(event).encode() + b"\n")

    def _write(self, data: bytes) -> None:
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        self.wfile.flush()

    def _end_stream(self) -> None:
        self.wfile.write(b"0\r\n\r\n")
