"""From YAML and ``--set`` to a configuration, or one line that says what is wrong with it."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic import BaseModel

from hcs_ray.config.base import ExecutionSection
from hcs_ray.config.screens import SCREEN_KINDS, Bbbc021Screen, LoadDataScreen, PybbbcScreen
from hcs_ray.config.study import StudyConfig
from hcs_ray.config.sweep import SweepConfig
from hcs_ray.contracts import InputError

M = TypeVar("M", bound=BaseModel)
_SCREENS = dict(zip(SCREEN_KINDS, (Bbbc021Screen, LoadDataScreen, PybbbcScreen), strict=True))


def parse_study(text: str, source: str, overrides: Sequence[str] = ()) -> StudyConfig:
    """A study's YAML, with ``section.key=value`` overrides (parsed as YAML) applied before validation."""
    return _validate(StudyConfig, _overridden(_load_yaml(text, source), overrides), source)


def with_overrides(config: M, overrides: Sequence[str], source: str) -> M:
    """A copy of any configuration with ``key=value`` overrides, validated."""
    return _validate(type(config), _overridden(config.model_dump(mode="json"), overrides), source)


def _overridden(document: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    for override in overrides:
        name, equals, value = override.partition("=")
        if not equals or not name:
            raise InputError(f"--set {override}: write section.key=value, as in --set train.lr=3e-4")
        _assign(document, name.strip(), _parse_value(value, override), override)
    return document


def parse_sweep(text: str, source: str) -> SweepConfig:
    """A sweep's YAML; every swept or fixed key must be a key of the study's train or model section."""
    sweep = _validate(SweepConfig, _load_yaml(text, source), source)
    for name in (*sweep.search, *sweep.fixed):
        known = {
            f"{part}.{key}"
            for part in ("train", "model")
            for key in StudyConfig.model_fields[part].default.__class__.model_fields
        }
        if name not in known:
            raise InputError(f"{source}: {name} cannot be swept{_nearest(name, known)}")
    return sweep


def with_values(config: StudyConfig, values: dict[str, Any], source: str) -> StudyConfig:
    """A copy with dotted keys set, validated."""
    document = config.model_dump(mode="json")
    for name, value in values.items():
        _assign(document, name, value, f"{source}: {name}")
    return _validate(StudyConfig, document, source)


def to_yaml(config: BaseModel) -> str:
    """The whole configuration, defaults included, as canonical YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def stage_config(config: StudyConfig, sections: Sequence[str]) -> dict[str, Any]:
    """The part of a study's configuration on which the result of a stage depends."""
    part: dict[str, Any] = {}
    for name in sections:
        section = getattr(config, name)
        skip = section.execution if isinstance(section, ExecutionSection) else frozenset()
        part[name] = section.model_dump(mode="json", exclude=set(skip))
    return part


def canonical_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _load_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise InputError(f"{source}{where}: not valid YAML: {getattr(error, 'problem', error)}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InputError(f"{source}: must hold keys and values, not a {type(document).__name__}")
    return document


def _parse_value(text: str, override: str) -> Any:
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise InputError(f"--set {override}: the value is not valid YAML") from None
    if isinstance(value, str):  # YAML 1.1 reads 3e-4 as text
        try:
            return float(value) if "e" in value.lower() else value
        except ValueError:
            return value
    return value


def _assign(document: dict[str, Any], name: str, value: Any, what: str) -> None:
    *sections, key = name.split(".")
    place = document
    for section in sections:
        inner = place.setdefault(section, {})
        if not isinstance(inner, dict):
            raise InputError(f"{what}: {section} holds a value, not keys")
        place = inner
    place[key] = value


def _validate(model: type[M], document: dict[str, Any], source: str) -> M:
    try:
        return model.model_validate(document)
    except pydantic.ValidationError as error:
        raise InputError(f"{source}: {_explain(model, error)}") from None


def _explain(model: type[BaseModel], error: pydantic.ValidationError) -> str:
    first = error.errors()[0]
    keys, place = _keys_at(model, first["loc"][:-1])
    name = ".".join([*place, str(first["loc"][-1])]) if first["loc"] else ""
    if first["type"] == "union_tag_invalid":
        kinds = ", ".join(SCREEN_KINDS)
        return f"{name}.kind: it is one of {kinds} (got {first['ctx']['tag']!r})"
    if first["type"] == "extra_forbidden":
        return f"unknown key {name}{_nearest(str(first['loc'][-1]), keys)}"
    if first["type"] == "missing":
        return f"{name} is missing"
    message = str(first["msg"]).removeprefix("Value error, ")
    return f"{name or 'the file'}: {message[0].lower()}{message[1:]}" + (
        f" (got {first['input']!r})" if name else ""
    )


def _keys_at(model: type[BaseModel], location: Sequence[int | str]) -> tuple[set[str], list[str]]:
    """The keys that may stand at a place, and the place as the user writes it, without the union's tags."""
    here: Any = model
    place: list[str] = []
    for part in map(str, location):
        if isinstance(here, dict):
            here = here[part]
            continue
        place.append(part)
        field = here.model_fields.get(part) if hasattr(here, "model_fields") else None
        here = None if field is None else _SCREENS if part == "screen" else field.annotation
    return (set(here.model_fields) if hasattr(here, "model_fields") else set()), place


def _nearest(name: str, keys: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(keys), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; it is one of: {', '.join(sorted(keys))}" if keys else ""
