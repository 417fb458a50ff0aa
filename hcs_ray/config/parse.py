"""From YAML and ``--set`` to a configuration, or one line that says what is wrong with it."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Sequence
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import pydantic
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hcs_ray.config.base import ExecutionSection, Section
from hcs_ray.config.study import StudyConfig
from hcs_ray.config.sweep import LEAVE_OUT, SweepConfig, TrialResources
from hcs_ray.contracts import InputError

M = TypeVar("M", bound=BaseModel)
# Keys of `train` that say where a trial runs, or name a path: a sweep has none of these in its space.
_NOT_SWEPT = {
    **{f"train.{key}": "it belongs into resources" for key in TrialResources.model_fields},
    "train.cache_folder": "a sweep names no path; set it in the study",
    "model.weights": "a sweep names no path; set it in the study",
}


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
    """A sweep's YAML; every swept, fixed or conditional key must be one of the study's that it may set."""
    sweep = _validate(SweepConfig, _load_yaml(text, source), source)
    known = _sweepable(sweep)
    for name in (*sweep.space, *sweep.fixed):
        if name not in known:
            why = _NOT_SWEPT.get(name)
            hint = f"; {why}" if why else _nearest(name, known)
            raise InputError(f"{source}: {name} cannot be swept{hint}")
    everything = _leaves(StudyConfig)
    for name, space in sweep.space.items():
        for other in space.when:
            if other not in everything:
                hint = _nearest(other, everything)
                raise InputError(f"{source}: space.{name}.when: unknown key {other}{hint}")
    return sweep


def _sweepable(sweep: SweepConfig) -> set[str]:
    """The dotted study keys that a sweep of this objective may set."""
    if sweep.objective == "map":
        return {name for name in _leaves(StudyConfig) if name.startswith("map.")}
    known = {name for name in _leaves(StudyConfig) if name.startswith(("train.", "model."))}
    folds = set[str]()
    if sweep.compounds is not None:
        folds = {LEAVE_OUT, "split.leave_out_batches", "split.validation_fraction", "split.seed"}
    return (known | folds) - _NOT_SWEPT.keys()


def _leaves(model: type[BaseModel], prefix: str = "") -> set[str]:
    """Every key below a model that holds a value, dotted."""
    found = set[str]()
    for key, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= _leaves(inner, f"{prefix}{key}.")
        else:
            found.add(f"{prefix}{key}")
    return found


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
        part[name] = section.model_dump(mode="json", exclude=_without_effect(section))
    return part


def _without_effect(section: Section) -> set[str]:
    if not isinstance(section, ExecutionSection):
        return set()
    fields = type(section).model_fields
    return set(section.execution) | {
        key for key in section.since if getattr(section, key) == fields[key].default
    }


def canonical_digest(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class _Loader(yaml.SafeLoader):
    """The safe loader, which refuses a key that stands twice instead of taking the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key} stands here for the second time",
                    problem_mark=node.value[number][0].start_mark,
                )
        return super().construct_mapping(node, deep)


def _load_yaml(text: str, source: str) -> dict[str, Any]:
    try:
        document = yaml.load(text, Loader=_Loader)  # noqa: S506
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
    here, place = _walk(model, first["loc"][:-1])
    keys = set(here.model_fields) if hasattr(here, "model_fields") else set[str]()
    if first["loc"] and (keys or get_origin(here) in (dict, tuple)):  # else the last part is a type's name
        place = [*place, str(first["loc"][-1])]
    name = ".".join(place)
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kinds, _ = _walk(model, first["loc"])
        got = f" (got {first['ctx']['tag']!r})" if first["type"] == "union_tag_invalid" else ""
        return f"{name}.kind: it is one of {', '.join(kinds)}{got}"
    if first["type"] == "extra_forbidden":
        return f"unknown key {name}{_nearest(str(first['loc'][-1]), keys)}"
    if first["type"] == "missing":
        return f"{name} is missing"
    message = str(first["msg"]).removeprefix("Value error, ")
    where = f"{name}: " if name else "" if first["type"] == "value_error" else "the file: "
    got = f" (got {first['input']!r})" if name and not isinstance(first["input"], dict) else ""
    return f"{where}{message[0].lower()}{message[1:]}{got}"


def _walk(model: type[BaseModel], location: Sequence[int | str]) -> tuple[Any, list[str]]:
    """What stands at a place: a model, kind -> model where it is one of several, or something else."""
    here: Any = model
    place: list[str] = []
    for part in map(str, location):
        if isinstance(here, dict):
            here = here.get(part)
            continue
        place.append(part)
        if get_origin(here) in (dict, tuple):  # the values of a mapping, the entries of a list
            inner = [kind for kind in get_args(here) if kind is not Ellipsis]
            here = inner[-1]
        else:
            field = here.model_fields.get(part) if hasattr(here, "model_fields") else None
            here = None if field is None else _by_kind(field)
    return here, place


def _by_kind(field: FieldInfo) -> Any:
    """A field's type, of one that may be missing the model; for a section of several kinds: kind -> model."""
    options = [
        get_args(option)[0] if get_origin(option) is Annotated else option
        for option in get_args(field.annotation)
        if option is not NoneType
    ]
    if len(options) == 1 and hasattr(options[0], "model_fields"):
        return options[0]
    if not all("kind" in getattr(option, "model_fields", {}) for option in options) or not options:
        return field.annotation
    return {option.model_fields["kind"].default: option for option in options}


def _nearest(name: str, keys: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(keys), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; it is one of: {', '.join(sorted(keys))}" if keys else ""
