"""The API server's strict check of a RayJob: its CRD in the compact form of `hcs_ray.jobs.lint.compact`."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from hcs_ray.jobs.findings import Finding
from hcs_ray.jobs.lint.node import Node

Type = str | dict[str, Any]

BOUNDS: Final = ("enum", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems", "nullable")
# Kubernetes' own pattern of a quantity, as controller-gen writes it into every CRD.
_NUMBER: Final = r"(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))"
QUANTITY: Final = rf"^(\+|-)?{_NUMBER}(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?{_NUMBER}))?$"
_FORM: Final = Path(__file__).with_name("rayjob.json")
_KEYS: Final = "x-keys"


def schema_findings(job: Node) -> Iterator[Finding]:
    """Unknown fields, missing ones, values of another type: all that a strict API server refuses."""
    for error in sorted(_validator().iter_errors(job.value), key=lambda error: list(map(str, error.path))):
        node = job
        for part in error.absolute_path:
            node = node[part]
        yield from _found(node, error)


def _found(node: Node, error: Any) -> Iterator[Finding]:
    if error.validator == "additionalProperties":
        known = sorted(error.schema.get("properties", ()))
        for name in sorted(set(error.instance) - set(known)):
            yield node[name].error("the API server knows no such field", _nearest(str(name), known))
    elif error.validator == "required":
        missing = next(name for name in error.validator_value if error.message.startswith(repr(name)))
        yield node[missing].error("it must be there", "write it")
    else:
        yield node.error(f"the API server refuses it: {_short(error.message)}", _wanted(error))


def _wanted(error: Any) -> str:
    wanted = error.validator_value
    if error.validator == "type":
        return f"write {' or '.join([wanted] if isinstance(wanted, str) else wanted)}"
    if error.validator == "enum":
        return f"write {' or '.join(map(str, wanted))}"
    if error.validator == "pattern" and wanted == QUANTITY:
        return "write a quantity, as 500m, 8 or 32Gi"
    if error.validator == _KEYS:
        return "leave one of them out"
    return f"its {error.validator} is {wanted}"


def _short(message: str) -> str:
    return message if len(message) <= 160 else f"{message[:100]} ... {message[-55:]}"


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0]}?"
    return f"it is one of {', '.join(known)}" if len(known) <= 12 else "leave it out"


@cache
def _validator() -> Any:
    import jsonschema

    form = json.loads(_FORM.read_text())
    schema = {
        "$ref": f"#/$defs/{form['root'][1:]}",
        "$defs": {name: _mapping(mapping) for name, mapping in form["types"].items()},
    }
    extend: Any = jsonschema.validators.extend
    return extend(jsonschema.Draft202012Validator, {_KEYS: _unique})(schema)


def _mapping(mapping: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: _expand(inner) for name, inner in mapping["fields"].items()},
        "required": mapping.get("required", []),
        "additionalProperties": False,
    }


_PLAIN: Final[dict[str, dict[str, Any]]] = {
    "any": {},
    "int-or-string": {"type": ["integer", "string"]},
    "quantity": {"type": ["integer", "string"], "pattern": QUANTITY},
}


def _expand(written: Type) -> dict[str, Any]:
    """A type of the compact form as JSON Schema."""
    if isinstance(written, str):
        if written.startswith("#"):
            return {"$ref": f"#/$defs/{written[1:]}"}
        return _PLAIN.get(written, {"type": written})
    found: dict[str, Any] = {key: written[key] for key in (*BOUNDS, "pattern") if key in written}
    if "is" in written:
        found |= _expand(written["is"])
    elif "map" in written:
        found |= {"type": "object", "additionalProperties": _expand(written["map"])}
    else:
        found |= {"type": "array", "items": _expand(written["list"])}
        if "keys" in written:
            found[_KEYS] = written["keys"]
    if found.pop("nullable", False):
        return {"anyOf": [{"type": "null"}, found]}
    return found


def _unique(_: Any, keys: list[str], items: Any, __: Any) -> Iterator[Exception]:
    """No two items with the same keys; without keys, no two that are equal."""
    from jsonschema import ValidationError

    if not isinstance(items, list):
        return
    seen = [
        json.dumps([item.get(key) for key in keys] if keys and isinstance(item, dict) else item)
        for item in items
    ]
    twice = sorted({one for one in seen if seen.count(one) > 1})
    if twice:
        yield ValidationError(f"{twice[0]} stands there twice")
