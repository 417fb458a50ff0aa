"""A server on loopback that speaks as much of W&B's protocol as a run or ``wandb sync`` needs.

It is no W&B: it takes what is sent and tells of the history lines it has taken, as the real one does when a
run is taken up again.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_HISTORY = "wandb-history.jsonl"
_ENTITY = {"id": "e", "name": "team"}


@dataclass
class WandbServer:
    """What came in: history, config and group by run, files by name, names of artifacts, requests."""

    url: str = ""
    history: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    config: dict[str, dict[str, Any]] = field(default_factory=dict)
    groups: dict[str, str | None] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    artifacts: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    def steps(self, run: str) -> list[int]:
        """The optimizer steps of a run's history, as they came."""
        return [int(row["optimizer_steps"]) for row in self.history.get(run, []) if "optimizer_steps" in row]

    def answer(self, operation: str, values: dict[str, Any]) -> dict[str, Any]:
        """The data of a GraphQL answer."""
        answers: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "RunResumeStatus": self._resume_status,
            "UpsertBucket": self._upsert_bucket,
            "CreateRunFiles": self._create_run_files,
            "CreateArtifact": self._create_artifact,
        }
        viewer = {"id": "v", "entity": "team", "flags": "{}", "teams": {"edges": []}}
        fixed: dict[str, dict[str, Any]] = {
            "ServerFeaturesQuery": {"serverInfo": {"features": []}},
            "Viewer": {"viewer": viewer},
        }
        return answers[operation](values) if operation in answers else fixed.get(operation, {})

    def _resume_status(self, values: dict[str, Any]) -> dict[str, Any]:
        rows = self.history.get(values["name"])
        bucket = None
        if rows is not None:
            bucket = {
                "id": "b", "name": values["name"], "displayName": "d", "summaryMetrics": "{}",
                "logLineCount": 0, "historyLineCount": len(rows), "eventsLineCount": 0,
                "historyTail": json.dumps([json.dumps(row) for row in rows[-1:]]), "eventsTail": "[]",
                "config": "{}", "tags": [], "notes": None, "wandbConfig": "{\"t\": 1}",
            }  # fmt: skip
        return {"model": {"id": "m", "name": "p", "entity": _ENTITY, "bucket": bucket}}

    def _upsert_bucket(self, values: dict[str, Any]) -> dict[str, Any]:
        run = values["name"]
        inserted = run not in self.history
        self.history.setdefault(run, [])
        self.config[run] = json.loads(values["config"] or "{}")
        self.groups[run] = self.groups.get(run) or values["groupName"]
        bucket = {
            "id": "b", "name": run, "displayName": "d", "description": None, "config": values["config"],
            "sweepName": None, "project": {"id": "p", "name": values["project"], "entity": _ENTITY},
            "historyLineCount": len(self.history[run]),
        }  # fmt: skip
        return {"upsertBucket": {"bucket": bucket, "inserted": inserted}}

    def _create_run_files(self, values: dict[str, Any]) -> dict[str, Any]:
        files = [{"name": name, "uploadUrl": f"{self.url}/put/{name}"} for name in values["files"]]
        return {"createRunFiles": {"runID": "b", "uploadHeaders": [], "files": files}}

    def _create_artifact(self, values: dict[str, Any]) -> dict[str, Any]:
        """As if it had the same files already: none is asked for."""
        sequence = {"id": "s", "latestArtifact": {"id": "a", "versionIndex": 0}}
        self.artifacts.append(values["input"]["artifactCollectionName"])
        return {
            "createArtifact": {"artifact": {"id": "a", "state": "COMMITTED", "artifactSequence": sequence}}
        }

    def take(self, method: str, path: str, body: bytes) -> dict[str, Any]:
        """One request; returns the JSON of the answer."""
        self.asked.append(f"{method} {path}")
        if path == "/graphql":
            asked = json.loads(body)
            self.asked[-1] += f" {asked['operationName']}"
            return {"data": self.answer(asked["operationName"], asked.get("variables") or {})}
        if path.endswith("/file_stream"):
            self._take_stream(path.split("/")[4], json.loads(body))
        elif method == "PUT":
            self.files[path.removeprefix("/put/")] = body
        return {}

    def _take_stream(self, run: str, sent: dict[str, Any]) -> None:
        part = (sent.get("files") or {}).get(_HISTORY)
        if part:
            rows = self.history.setdefault(run, [])
            rows[part["offset"] :] = [json.loads(line) for line in part["content"]]


class _Quiet(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no matter."""


@contextlib.contextmanager
def serving() -> Iterator[WandbServer]:
    """A server during the block; its ``url`` is for ``WANDB_BASE_URL``."""
    taken = WandbServer()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if self.headers.get("Content-Encoding") == "gzip":
                body = gzip.decompress(body)
            with lock:
                answer = json.dumps(taken.take(self.command, self.path, body)).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = do_CONNECT = _answer  # noqa: N815

        def log_message(self, format: str, *values: object) -> None:
            """Nothing: standard error is the tests'."""

    server = _Quiet(("127.0.0.1", 0), Handler)
    taken.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield taken
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
