"""The client of a Kubernetes API server: objects as plain mappings, failures as one line each.

The ``kubernetes`` package reads contexts, credentials and certificates (`kube_config`). The requests are our
own: its classes know no custom resources, and their names differ from those in a manifest.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import quote, urlencode

from hcs_ray.config.cluster import checked_namespace
from hcs_ray.contracts import InputError
from hcs_ray.jobs.kinds import POD, Kind, Object, Objects, creatable
from hcs_ray.jobs.kube_config import configured
from hcs_ray.jobs.kube_errors import Call, KubeError, is_not_there, refusal, unreachable

__all__ = ["Change", "Kube", "KubeError", "connect"]

FIELD_MANAGER: Final = "hcs-ray"
_PAGE: Final = 500  # objects of a list at a time
_CONNECT_S: Final = 10.0
_READ_S: Final = 60.0


@dataclass(frozen=True)
class Change:
    """What a watch tells of an object."""

    type: Literal["ADDED", "MODIFIED", "DELETED"]
    object: Object


class Kube:
    """One namespace of a cluster, through the API server.

    Every method raises `KubeError`, one line, for what the server refuses or when it cannot be reached.
    """

    def __init__(self, configuration: Any, context: str, namespace: str) -> None:
        from kubernetes.client import rest
        from urllib3 import Retry

        self.context = context
        self.namespace = namespace
        self.host = str(configuration.host)
        # A POST that was sent is not sent again; one that was turned away (429) is.
        configuration.retries = Retry(
            total=4, connect=1, read=0, other=0, redirect=0, backoff_factor=0.2,
            status_forcelist=(429,), allowed_methods=None, raise_on_status=False,
        )  # fmt: skip
        self._configuration = configuration
        self._pool = rest.RESTClientObject(configuration).pool_manager
        self._versions: dict[str, str] = {}

    # --- objects ------------------------------------------------------------------------------------

    def get(self, kind: Kind, name: str) -> Object | None:
        """An object, or None where there is none of that name."""
        code, body = self._ask("GET", kind, name)
        if is_not_there(code, body, self._call("get", kind, name)):
            return None
        return self._object("get", kind, name, code, body)

    def list(self, kind: Kind, labels: str = "", fields: str = "") -> Objects:
        """Every object of a kind in the namespace that the selectors take."""
        return self._listed(kind, labels, fields)[0]

    def create(self, manifest: Mapping[str, Any], *, dry_run: bool = False) -> Object:
        """Create an object, its fields checked strictly; a dry run goes through admission, too.

        Where the answer was lost the object is looked for: its name must be one that nobody else uses.
        """
        kind, name = creatable(manifest), manifest["metadata"]["name"]
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"} | _dry(dry_run)
        try:
            code, body = self._ask("POST", kind, None, query, dict(manifest))
        except KubeError:
            with contextlib.suppress(KubeError):
                if not dry_run and (found := self.get(kind, name)):
                    return found
            raise
        return self._object("create", kind, name, code, body)

    def patch(self, kind: Kind, name: str, changes: Mapping[str, Any]) -> Object:
        """Merge changes into an object (JSON merge patch): a None removes, a list is replaced."""
        query = {"fieldManager": FIELD_MANAGER, "fieldValidation": "Strict"}
        code, body = self._ask("PATCH", kind, name, query, dict(changes))
        return self._object("patch", kind, name, code, body)

    def delete(self, kind: Kind, name: str, uid: str | None = None) -> bool:
        """Delete an object, and in the background what it owns; False where it was gone.

        With ``uid`` only that very object: another one of the same name, made since, is a conflict.
        """
        options: Object = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"}
        if uid:
            options["preconditions"] = {"uid": uid}
        code, body = self._ask("DELETE", kind, name, {}, options)
        if is_not_there(code, body, self._call("delete", kind, name)):
            return False
        self._object("delete", kind, name, code, body)
        return True

    def watch(
        self,
        kind: Kind,
        *,
        name: str | None = None,
        labels: str = "",
        since: str = "",
        seconds: float = 300.0,
    ) -> Iterator[Change]:
        """The objects there are, as ADDED, then every change for so many seconds.

        With ``since``, the resourceVersion of an object that was read, only what has changed after it.

        Where the server has forgotten the version that the watch stands at (410) it lists once more, and so
        may tell of an object twice, or of one that is gone not at all: take it as a call to look again.
        """
        fields = f"metadata.name={name}" if name else ""
        until = time.monotonic() + seconds
        version = since
        while time.monotonic() < until:
            if not version:
                objects, version = self._listed(kind, labels, fields)
                yield from (Change("ADDED", found) for found in objects)
            left = max(1, round(until - time.monotonic()))
            query = {"watch": "1", "resourceVersion": version, "timeoutSeconds": str(left)}
            query |= {"allowWatchBookmarks": "true"} | _selectors(labels, fields)
            for line in self._stream("watch", kind, None, query, left + _CONNECT_S):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    version = ""
                    if event["object"].get("code") != 410:
                        raise refusal(
                            int(event["object"].get("code", 500)),
                            json.dumps(event["object"]).encode(),
                            self._call("watch", kind, name),
                        )
                    break
                version = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    yield Change(event["type"], event["object"])

    def log(
        self,
        pod: str,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        previous: bool = False,
        timestamps: bool = False,
    ) -> Iterator[str]:
        """The lines of a container's log, without their ends; with ``follow`` until it ends."""
        query = {"container": container}
        query |= {"follow": "true"} if follow else {}
        query |= {"previous": "true"} if previous else {}
        query |= {"timestamps": "true"} if timestamps else {}
        query |= {"tailLines": str(tail)} if tail is not None else {}
        # A container may be silent for hours.
        silence = 24 * 3600.0 if follow else _READ_S
        for line in self._stream("log", POD, f"{pod}/log", query, silence):
            yield line.decode(errors="replace")

    # --- requests -----------------------------------------------------------------------------------

    def _listed(self, kind: Kind, labels: str, fields: str) -> tuple[Objects, str]:
        """The objects, and the version of the list."""
        objects: Objects = []
        query = _selectors(labels, fields) | {"limit": str(_PAGE)}
        while True:
            code, body = self._ask("GET", kind, None, query)
            if code == 410:  # the pages before were of a state that is forgotten
                objects, query = [], _selectors(labels, fields)
                continue
            page = self._object("list", kind, None, code, body)
            # Within a list the objects tell neither their kind nor its version.
            about = {"apiVersion": page["apiVersion"], "kind": kind.name}
            objects += [about | found for found in page["items"] or ()]
            if not (more := page["metadata"].get("continue")):
                return objects, page["metadata"]["resourceVersion"]
            query = query | {"continue": more}

    def _ask(
        self,
        method: str,
        kind: Kind,
        name: str | None,
        query: Mapping[str, str] | None = None,
        body: Object | None = None,
    ) -> tuple[int, bytes]:
        """Status and body of an answer, from the first version of the kind that is served."""
        verb = method.lower()
        with self._reaching(verb, kind, name):
            for version in self._candidates(kind):
                response = self._send(method, self._url(kind, version, name, query), body, _READ_S)
                code, content = int(response.status), bytes(response.data)
                # A path that is not served is answered in plain text, or without details.
                if code != 404 or b'"details":{"' in content.replace(b" ", b"").replace(b"\n", b""):
                    self._versions[kind.name] = version
                    break
        return code, content

    def _stream(
        self, verb: str, kind: Kind, name: str | None, query: Mapping[str, str], silence_s: float
    ) -> Iterator[bytes]:
        version = next(iter(self._candidates(kind)))
        with self._reaching(verb, kind, name):
            response = self._send("GET", self._url(kind, version, name, query), None, silence_s)
            if response.status == 410:
                yield b'{"type": "ERROR", "object": {"code": 410}}'
                return
            if response.status != 200:
                raise refusal(int(response.status), bytes(response.data), self._call(verb, kind, name))
            yield from _lines(response)

    def _send(self, method: str, url: str, body: Object | None, read_s: float) -> Any:
        from urllib3 import Timeout

        headers = {"Accept": "application/json", "User-Agent": FIELD_MANAGER}
        if token := self._configuration.auth_settings().get("BearerToken", {}).get("value"):
            headers["Authorization"] = token
        if body is not None:
            patch = method == "PATCH"
            headers["Content-Type"] = "application/merge-patch+json" if patch else "application/json"
        return self._pool.request(
            method, url, headers=headers, body=None if body is None else json.dumps(body),
            timeout=Timeout(connect=_CONNECT_S, read=read_s), preload_content=False,
        )  # fmt: skip

    @contextlib.contextmanager
    def _reaching(self, verb: str, kind: Kind, name: str | None) -> Iterator[None]:
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (HTTPError, OSError) as error:
            raise unreachable(error, self._call(verb, kind, name)) from None

    def _candidates(self, kind: Kind) -> tuple[str, ...]:
        known = self._versions.get(kind.name)
        return (known,) if known else kind.versions

    def _url(self, kind: Kind, version: str, name: str | None, query: Mapping[str, str] | None) -> str:
        path = f"/apis/{kind.group}/{version}" if kind.group else f"/api/{version}"
        if kind.namespaced:
            path += f"/namespaces/{quote(self.namespace)}"
        path += f"/{kind.plural}" + (f"/{quote(name)}" if name else "")
        return f"{self.host}{path}" + (f"?{urlencode(query)}" if query else "")

    def _call(self, verb: str, kind: Kind, name: str | None) -> Call:
        return Call(verb, kind.plural, kind.group, name, self.namespace, self.context, self.host)

    def _object(self, verb: str, kind: Kind, name: str | None, code: int, body: bytes) -> Object:
        if not 200 <= code < 300:
            raise refusal(code, body, self._call(verb, kind, name))
        try:
            found: Object = json.loads(body)
        except ValueError:
            raise KubeError(f"{self.host} (context {self.context}) answers as no API server does") from None
        return found


def connect(context: str | None = None, namespace: str | None = None) -> Kube:
    """The cluster that kubectl would take, and its namespace unless another is named.

    Raises:
        InputError: no cluster is configured, or not this context, or no namespace has such a name.
    """
    if namespace is not None:
        try:
            checked_namespace(namespace)
        except ValueError as error:
            raise InputError(f"--namespace {namespace!r}: {error}") from None
    configuration, name, default = configured(context)
    return Kube(configuration, name, namespace or default)


def _selectors(labels: str, fields: str) -> dict[str, str]:
    chosen = {"labelSelector": labels, "fieldSelector": fields}
    return {name: value for name, value in chosen.items() if value}


def _dry(dry_run: bool) -> dict[str, str]:
    return {"dryRun": "All"} if dry_run else {}


def _lines(response: Any) -> Iterator[bytes]:
    rest = b""
    for part in response.stream(1 << 16):
        *whole, rest = (rest + part).split(b"\n")
        yield from (line for line in whole)
    if rest:
        yield rest
