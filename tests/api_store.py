"""The objects behind the tests' API server: what is stored, checked, forgotten and collected."""

from __future__ import annotations

import copy
import json
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from importlib.resources import files
from typing import Any

import jsonschema
import kubernetes_validate
from referencing import Registry, Resource

Object = dict[str, Any]

# Plural -> group, version, kind.
RESOURCES = {
    "rayjobs": ("ray.io", "v1", "RayJob"),
    "rayclusters": ("ray.io", "v1", "RayCluster"),
    "workloads": ("kueue.x-k8s.io", "v1beta1", "Workload"),  # not the newest: as an older Kueue serves it
    "localqueues": ("kueue.x-k8s.io", "v1beta1", "LocalQueue"),
    "clusterqueues": ("kueue.x-k8s.io", "v1beta1", "ClusterQueue"),
    "jobs": ("batch", "v1", "Job"),
    "networkpolicies": ("networking.k8s.io", "v1", "NetworkPolicy"),
    "pods": ("", "v1", "Pod"),
    "configmaps": ("", "v1", "ConfigMap"),
    "events": ("", "v1", "Event"),
    "nodes": ("", "v1", "Node"),
    "resourcequotas": ("", "v1", "ResourceQuota"),
}
UNNAMESPACED = ("nodes", "clusterqueues")


class RefusedError(Exception):
    """An answer that is no success: a ``Status``."""

    def __init__(self, code: int, reason: str, message: str, details: Object | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.status: Object = {
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": message, "reason": reason, "details": details or {}, "code": code,
        }  # fmt: skip


@dataclass(frozen=True)
class Change:
    version: int
    type: str
    plural: str
    object: Object


@dataclass
class Store:
    """Every object of a cluster, and what has changed since a version that may be forgotten.

    Attributes:
        schemas: Plural -> a validator of its objects, closed to unknown fields; of a custom resource without
            one nothing is checked.
        controllers: Called with each change, outside the lock, as controllers would be.
    """

    schemas: dict[str, Any] = field(default_factory=dict)
    namespaces: set[str] = field(default_factory=lambda: {"default", "science"})
    controllers: list[Callable[[Change], None]] = field(default_factory=list)
    objects: dict[str, dict[str, Object]] = field(default_factory=lambda: {name: {} for name in RESOURCES})
    changes: list[Change] = field(default_factory=list)
    version: int = 100
    forgotten: int = 0  # changes up to this version are not told any more
    changed: threading.Condition = field(default_factory=lambda: threading.Condition(threading.RLock()))

    # --- what a client asks -----------------------------------------------------------------------------

    def get(self, plural: str, name: str) -> Object:
        with self.changed:
            found = self.objects[plural].get(name)
            if found is None:
                raise RefusedError(
                    404, "NotFound", f'{_full(plural)} "{name}" not found', _details(plural, name)
                )
            return copy.deepcopy(found)

    def select(self, plural: str, labels: str, fields: str) -> list[Object]:
        with self.changed:
            found = sorted(self.objects[plural].values(), key=lambda item: str(item["metadata"]["name"]))
            return [copy.deepcopy(item) for item in found if matches(item, labels, fields)]

    def create(self, plural: str, namespace: str, manifest: Object, strict: bool, dry: bool) -> Object:
        made = copy.deepcopy(manifest)
        name = str(made["metadata"].get("name", ""))
        with self.changed:
            if plural not in UNNAMESPACED and namespace not in self.namespaces:
                about = {"name": namespace, "kind": "namespaces"}
                raise RefusedError(404, "NotFound", f'namespaces "{namespace}" not found', about)
            if name in self.objects[plural]:
                message = f'{_full(plural)} "{name}" already exists'
                raise RefusedError(409, "AlreadyExists", message, _details(plural, name))
            self._check(plural, made, strict)
            made["metadata"] |= {
                "namespace": namespace, "uid": str(uuid.uuid4()), "generation": 1,
                "creationTimestamp": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            }  # fmt: skip
            if plural in ("rayjobs", "jobs"):
                made.pop("status", None)  # a subresource: only its controller writes it
            if dry:
                return made
            self._record("ADDED", plural, made)
        self._tell()
        return copy.deepcopy(made)

    def patch(self, plural: str, name: str, changes: Object, strict: bool) -> Object:
        with self.changed:
            before = self.get(plural, name)
            wanted = changes.get("metadata", {}).get("resourceVersion")
            if wanted not in (None, before["metadata"]["resourceVersion"]):
                _conflict(plural, name, "the object has been modified")
            after: Object = merged(before, changes)
            after["status"] = before.get("status")
            if after["status"] is None:
                del after["status"]
            self._check(plural, after, strict)
            if after.get("spec") != before.get("spec"):
                after["metadata"]["generation"] += 1
            self._record("MODIFIED", plural, after)
        self._tell()
        return after

    def delete(self, plural: str, name: str, uid: str | None) -> Object:
        with self.changed:
            found = self.get(plural, name)
            if uid not in (None, found["metadata"]["uid"]):
                _conflict(plural, name, "Precondition failed: UID in precondition")
            if found["metadata"].get("finalizers"):
                found["metadata"]["deletionTimestamp"] = datetime.now(UTC).isoformat()
                self._record("MODIFIED", plural, found)
            else:
                self._remove(plural, name)
        self._tell()
        return found

    # --- what the cluster does --------------------------------------------------------------------------

    def put(self, plural: str, made: Object) -> Object:
        """Put an object there as a controller would: unchecked, status and all."""
        namespace = "default" if plural in UNNAMESPACED else made["metadata"].get("namespace", "default")
        with self.changed:
            stored = copy.deepcopy(made)
            about = {"namespace": namespace, "uid": str(uuid.uuid4()), "generation": 1}
            about["creationTimestamp"] = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            stored["metadata"] = about | stored["metadata"]
            group, version, kind = RESOURCES[plural]
            stored |= {"apiVersion": f"{group}/{version}" if group else version, "kind": kind}
            self._record(
                "MODIFIED" if stored["metadata"]["name"] in self.objects[plural] else "ADDED", plural, stored
            )
        self._tell()
        return stored

    def set_status(self, plural: str, name: str, **status: Any) -> None:
        """Merge into an object's status, as its controller does."""
        with self.changed:
            found = self.get(plural, name)
            found["status"] = merged(found.get("status") or {}, status)
            self._record("MODIFIED", plural, found)
        self._tell()

    def finalize(self, plural: str, name: str) -> None:
        """Let an object go that its finalizer has held."""
        with self.changed:
            self._remove(plural, name)
        self._tell()

    def forget(self) -> None:
        """Compact: watches from a version before now are answered with 410."""
        with self.changed:
            self.forgotten = self.version
            self.changed.notify_all()

    def collect(self) -> None:
        """Delete what has owners of which none is there any more, as the garbage collector does."""
        with self.changed:
            while True:
                there = {item["metadata"]["uid"] for kind in self.objects.values() for item in kind.values()}
                gone = [
                    (plural, name)
                    for plural, items in self.objects.items()
                    for name, item in items.items()
                    if (owners := item["metadata"].get("ownerReferences"))
                    and not there & {owner["uid"] for owner in owners}
                ]
                for plural, name in gone:
                    self._remove(plural, name)
                if not gone:
                    break
        self._tell()

    def names(self, plural: str) -> list[str]:
        with self.changed:
            return sorted(self.objects[plural])

    # --- inside -----------------------------------------------------------------------------------------

    def _record(self, type_: str, plural: str, item: Object) -> None:
        self.version += 1
        item["metadata"]["resourceVersion"] = str(self.version)
        if type_ == "DELETED":
            del self.objects[plural][item["metadata"]["name"]]
        else:
            self.objects[plural][item["metadata"]["name"]] = item
        self.changes.append(Change(self.version, type_, plural, copy.deepcopy(item)))
        self.changed.notify_all()

    def _remove(self, plural: str, name: str) -> None:
        self._record("DELETED", plural, self.objects[plural][name])

    def _tell(self) -> None:
        """Tell the controllers of what they have not seen."""
        for controller in self.controllers:
            seen = getattr(controller, "seen", 0)
            for change in [change for change in self.changes if change.version > seen]:
                controller.seen = change.version  # type: ignore[attr-defined]
                controller(change)

    def _check(self, plural: str, item: Object, strict: bool) -> None:
        """422 for a wrong value, 400 for an unknown field where fields are checked strictly."""
        name = str(item["metadata"].get("name", ""))
        if not re.fullmatch(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?", name):
            _invalid(
                plural,
                name,
                f"metadata.name: Invalid value: {json.dumps(name)}: a lowercase RFC 1123 subdomain",
            )
        unknown, wrong = [], []
        for place, message in self._errors(plural, item):
            if field_name := re.search(r"\('(.+)' was unexpected\)|unknown field \"(.+)\"", message):
                unknown.append(".".join([*place, field_name[1] or field_name[2]]))
            else:
                wrong.append(f"{'.'.join(place)}: {message}")
        if unknown and strict:
            kind = RESOURCES[plural][2]
            told = ", ".join(f'unknown field "{path}"' for path in unknown)
            message = f'{kind} in version "v1" cannot be handled as a {kind}: strict decoding error: {told}'
            raise RefusedError(400, "BadRequest", message)
        if wrong:
            _invalid(plural, name, "; ".join(wrong))

    def _errors(self, plural: str, item: Object) -> Iterator[tuple[list[str], str]]:
        if plural in self.schemas:
            for error in self.schemas[plural].iter_errors({**item, "metadata": {}}):
                yield [str(part) for part in error.absolute_path], error.message
        elif RESOURCES[plural][0] in ("", "batch", "networking.k8s.io"):
            for error in built_in(RESOURCES[plural]).iter_errors(item):
                yield [str(part) for part in error.absolute_path], error.message


@cache
def built_in(about: tuple[str, str, str]) -> Any:
    """A validator of a built-in kind, closed to unknown fields, of the schemas in kubernetes_validate.

    Its own function reads megabytes of JSON at every call.
    """
    group, version, kind = about
    folder = files(kubernetes_validate) / "kubernetes-json-schema"
    newest = f"v{kubernetes_validate.latest_version()}-local-strict"
    short = f"{group.partition('.')[0]}-{version}" if group else version
    names = (f"{kind.lower()}-{short}.json", "_definitions.json")
    schema, definitions = (json.loads((folder / newest / name).read_text()) for name in names)
    registry: Any = Resource.from_contents(definitions) @ (Resource.from_contents(schema) @ Registry())
    return jsonschema.Draft202012Validator(schema, registry=registry)


def matches(item: Object, labels: str, fields: str) -> bool:
    """Whether selectors take an object: ``a=b,c`` of labels, ``metadata.name=x`` and the like of fields."""
    has = item["metadata"].get("labels") or {}
    for term in filter(None, labels.split(",")):
        key, equal, value = term.partition("=")
        if key not in has or (equal and has[key] != value):
            return False
    for term in filter(None, fields.split(",")):
        key, _, value = term.partition("=")
        found: Any = item
        for part in key.split("."):
            found = (found or {}).get(part)
        if str(found) != value:
            return False
    return True


def merged(before: Any, changes: Any) -> Any:
    """A JSON merge patch (RFC 7386)."""
    if not isinstance(changes, dict):
        return copy.deepcopy(changes)
    result = copy.deepcopy(before) if isinstance(before, dict) else {}
    for key, value in changes.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def _full(plural: str) -> str:
    group = RESOURCES[plural][0]
    return f"{plural}.{group}" if group else plural


def _details(plural: str, name: str) -> Object:
    return {"name": name, "group": RESOURCES[plural][0], "kind": plural}


def _invalid(plural: str, name: str, message: str) -> None:
    full = f"{RESOURCES[plural][2]}.{RESOURCES[plural][0]}"
    raise RefusedError(422, "Invalid", f'{full} "{name}" is invalid: {message}', _details(plural, name))


def _conflict(plural: str, name: str, why: str) -> None:
    message = f'Operation cannot be fulfilled on {_full(plural)} "{name}": {why}'
    raise RefusedError(409, "Conflict", message, _details(plural, name))
