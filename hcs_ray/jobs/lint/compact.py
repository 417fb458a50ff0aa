"""The structure of a CRD in a compact form: ``python -m hcs_ray.jobs.lint.compact CRD.yaml > rayjob.json``.

A custom resource embeds whole pods several times over, so the schema of a RayJob is 1.4 MB. Here every
mapping stands once, under a name, and a type is written as

- ``"string"``, ``"integer"``, ``"number"``, ``"boolean"``, ``"int-or-string"``, ``"quantity"``, ``"any"``;
- ``"#Name"``: the mapping of that name, ``{"fields": {...}, "required": [...]}``;
- ``{"map": type}``, ``{"list": type, "keys": [...]}`` (no two items
  have the same keys; ``[]``: no two are equal);
- ``{"is": type, ...}`` with ``enum``, ``pattern``, ``minimum``, ``maxLength`` and the like.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from hcs_ray.jobs.lint.schema import BOUNDS, QUANTITY, Type

# The API server knows an object's metadata by itself: a CRD says nothing of it.
_METADATA: Final = {
    "fields": {
        "name": "string",
        "generateName": "string",
        "namespace": "string",
        "labels": {"map": "string"},
        "annotations": {"map": "string"},
        "finalizers": {"list": "string"},
        "ownerReferences": {"list": "any"},
    }
    | dict.fromkeys(
        (
            "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp", "generation",
            "managedFields", "resourceVersion", "selfLink", "uid",
        ),
        "any",
    )
}  # fmt: skip


class _Names:
    """Names for mappings: each other mapping has another one, the same mapping always the same."""

    def __init__(self) -> None:
        self.types: dict[str, Any] = {}
        self._known: dict[str, str] = {}

    def name(self, wanted: str, mapping: dict[str, Any]) -> str:
        written = json.dumps(mapping, sort_keys=True)
        if written not in self._known:
            name = wanted
            number = 1
            while name in self.types:
                number += 1
                name = f"{wanted}{number}"
            self.types[name] = mapping
            self._known[written] = name
        return f"#{self._known[written]}"


def compact(crd: Mapping[str, Any], version: str = "v1") -> dict[str, Any]:
    """The compact form of one version of a CRD."""
    (schema,) = (
        item["schema"]["openAPIV3Schema"] for item in crd["spec"]["versions"] if item["name"] == version
    )
    names = _Names()
    fields = {
        "apiVersion": {"is": "string", "enum": [f"{crd['spec']['group']}/{version}"]},
        "kind": {"is": "string", "enum": [crd["spec"]["names"]["kind"]]},
        "metadata": names.name("ObjectMeta", _METADATA),
        "spec": _type("Spec", schema["properties"]["spec"], names),
        "status": "any",
    }
    root = {"fields": fields, "required": ["apiVersion", "kind", "metadata", "spec"]}
    return {"root": names.name(crd["spec"]["names"]["kind"], root), "types": names.types}


def _type(name: str, schema: Mapping[str, Any], names: _Names) -> Type:
    bounds = {key: schema[key] for key in BOUNDS if key in schema}
    if (pattern := schema.get("pattern")) and pattern != QUANTITY:
        bounds["pattern"] = pattern
    found = _unbounded(name, schema, names)
    if not bounds:
        return found
    return {**found, **bounds} if isinstance(found, dict) else {"is": found, **bounds}


def _unbounded(name: str, schema: Mapping[str, Any], names: _Names) -> Type:
    if schema.get("x-kubernetes-int-or-string"):
        return "quantity" if schema.get("pattern") == QUANTITY else "int-or-string"
    if schema.get("x-kubernetes-preserve-unknown-fields") or "type" not in schema:
        return "any"
    if schema["type"] == "array":
        return {"list": _type(_singular(name), schema["items"], names), **_keys(schema)}
    if schema["type"] != "object":
        return str(schema["type"])
    if "additionalProperties" in schema:
        return {"map": _type(_singular(name), schema["additionalProperties"], names)}
    return _mapping(name, schema, names)


def _mapping(name: str, schema: Mapping[str, Any], names: _Names) -> str:
    properties = schema.get("properties", {})
    fields = {key: _type(_capital(key), inner, names) for key, inner in sorted(properties.items())}
    # What has a default is there before the API server looks.
    required = [key for key in schema.get("required", ()) if "default" not in properties.get(key, {})]
    return names.name(name, {"fields": fields} | ({"required": sorted(required)} if required else {}))


def _keys(schema: Mapping[str, Any]) -> dict[str, list[str]]:
    kind = schema.get("x-kubernetes-list-type")
    if kind == "set":
        return {"keys": []}
    return {"keys": list(schema["x-kubernetes-list-map-keys"])} if kind == "map" else {}


def _capital(name: str) -> str:
    return name[:1].upper() + name[1:]


def _singular(name: str) -> str:
    return name.removesuffix("s")


def as_json(form: Mapping[str, Any]) -> str:
    """The compact form as a file: a line a mapping."""
    lines = [f"{json.dumps(name)}: {json.dumps(form['types'][name])}" for name in sorted(form["types"])]
    return f'{{"root": {json.dumps(form["root"])}, "types": {{\n' + ",\n".join(lines) + "\n}}\n"


if __name__ == "__main__":
    sys.stdout.write(as_json(compact(yaml.safe_load(Path(sys.argv[1]).read_text()))))
