"""`hcs-ray profile --folds SWEEP`: the folds of a leave-one-compound-out sweep scored, track A.

It can be done again with another normalisation or distance: the networks stay as they are.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

import pandas as pd
import yaml

from hcs_ray import contracts as c
from hcs_ray.config import LEAVE_OUT, StudyConfig, SweepConfig, parse_study, with_values
from hcs_ray.contracts import HcsError, InputError, Progress
from hcs_ray.profiles.exclusions import Exclusions, flag_columns, flagged
from hcs_ray.profiles.folds import Fold, evaluate, fold_keys
from hcs_ray.profiles.tracks import Provenance, provenance_of_folds
from hcs_ray.stage import StageRecord, read_record, record_digest
from hcs_ray.study import Study

FOLDS_FILE: Final = "folds.json"
TREATMENTS_FILE: Final = "folds.parquet"
_FORMAT: Final = 1
_LEADERBOARD: Final = "leaderboard.parquet"


@dataclass(frozen=True)
class Setting:
    """The trials of a sweep that differ in nothing but the compound that they left out."""

    values: dict[str, Any]
    folds: tuple[Fold, ...]


def profile_folds(study: Study, sweep: str, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``profiles/NAME/folds.json`` and ``folds.parquet``; returns the figures for the terminal.

    Each compound's treatments are queries in the space of the network that did not see it. The split and the
    training are as the sweep had them; ``profile`` is the present configuration.

    Raises:
        InputError: there is no such sweep, it is of other shards, or it leaves no compounds out.
        HcsError: no setting of it can be evaluated.
    """
    chosen = replace(study, folds=sweep).with_labels_of("folds", force)
    record = _require_folds(chosen)
    claim = chosen.claim("folds")
    if force or not chosen.is_complete("folds", claim):
        with chosen.writing("folds", claim, force) as writer:
            found, table = _evaluated(chosen, record, progress)
            writer.write_table(TREATMENTS_FILE, table)
            writer.write(FOLDS_FILE, (json.dumps(found, indent=1, sort_keys=True) + "\n").encode())
    return folds_headline(read_folds(chosen))


def has_folds(study: Study) -> bool:
    """Whether this run has scored folds."""
    return read_record(study.storage, study.place("folds")) is not None


def read_folds(study: Study) -> dict[str, Any]:
    """``folds.json`` of this run; `InputError` where it is not complete, or no longer up to date."""
    place = study.place("folds")
    found: dict[str, Any] = study.require("folds").read_json(study.storage, f"{place.folder}/{FOLDS_FILE}")
    if found.get("format") != _FORMAT:
        raise InputError(
            f"{place.folder}/{FOLDS_FILE}: format {found.get('format')}; this version reads {_FORMAT}"
        )
    return found


def headline_setting(found: Mapping[str, Any]) -> dict[str, Any] | None:
    """The setting that may be quoted: the only one. Where several were tried, none: to take the best of them
    by these scores would use the labels of the compounds that were left out."""
    settings = [setting for setting in found["settings"] if "failed" not in setting]
    return settings[0] if len(found["settings"]) == 1 and settings else None


def folds_headline(found: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that a person wants first, as `hcs_ray.figure_lines` shows them."""
    figures: dict[str, Any] = {"track A": {"text": found["track"]["title"].removeprefix("track A: ")}}
    several = len(found["settings"]) > 1
    for setting in found["settings"]:
        name = _values(setting["values"]) if several else ""
        if "failed" in setting:
            figures[f"{name}failed"] = {"text": setting["failed"]}
            continue
        figures |= _setting_figures(setting, name)
    if several:
        figures["no headline"] = {
            "text": "several settings were tried; choosing one by these scores would leak: fix it beforehand"
        }
    return figures


def _setting_figures(setting: Mapping[str, Any], name: str) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for guard in ("nsc", "nscb"):
        score = setting[guard]
        held_out = score["held_out"]
        leaked = f"; {score['leaked']} more have leaked" if score["leaked"] else ""
        figures[f"{name}{guard.upper()}, left-out compounds"] = {
            "text": hits_text(held_out) + leaked,
            "above_chance": held_out["above_chance"] if held_out["total"] else None,
        }
    if setting["without_excluded"]:
        figures[f"{name}without excluded fields"] = {"text": without_text(setting["without_excluded"])}
    head = setting["moa_head"]
    figures[f"{name}MoA by the networks"] = {"text": hits_text(head["held_out"])}
    missing = setting["folds"]["missing"]
    if missing:
        first, why = next(iter(missing.items()))
        figures[f"{name}folds missing"] = {
            "text": f"{len(missing)} of {setting['folds']['expected']}, counted as wrong; {first}: {why}"
        }
    return figures


def hits_text(tally: Mapping[str, Any]) -> str:
    """``85/103 (82.5 %)``, with the interval where there is one."""
    text = f"{tally['correct']}/{tally['total']}"
    if not tally["total"]:
        return f"{text}, none to score"
    text += f" ({100 * tally['accuracy']:.1f} %"
    interval = tally.get("interval")
    return text + (
        f", 95 % interval {100 * interval[0]:.0f} to {100 * interval[1]:.0f})" if interval else ")"
    )


def without_text(scores: Mapping[str, Any]) -> str:
    """NSC and NSCB of held-out compounds without the excluded fields, with the same denominators."""
    parts = [
        f"{guard.upper()} {scores[guard]['held_out']['correct']}/{scores[guard]['held_out']['total']}"
        for guard in ("nsc", "nscb")
    ]
    lost = scores["nsc"]["lost_counted_as_wrong"]
    plural = "s" if lost != 1 else ""
    return ", ".join(parts) + (
        f"; {lost} treatment{plural} lost all fields, counted as wrong" if lost else ""
    )


def _values(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in values.items()) + ": "


def _require_folds(study: Study) -> StageRecord:
    """The record of the sweep: whole, of the present shards, and one that leaves compounds out."""
    place = replace(study, name=study.folds or "").place("tune")
    record = read_record(study.storage, place)
    if record is None:
        raise InputError(
            f"--folds {study.folds}: there is no finished sweep {study.folds}; run hcs-ray tune first"
        )
    if missing := record.missing(study.storage, place):
        raise InputError(
            f"{study.storage.url}/{missing[0]} is missing or has another size; run hcs-ray tune again"
        )
    shards = study.place("shard")
    if record.inputs.get(shards.record) != record_digest(study.storage, shards):
        raise InputError(f"tune {study.folds} is stale: {shards.record} changed (hcs-ray tune --force)")
    if LEAVE_OUT not in record.config["sweep"]["space"]:
        raise InputError(
            f"--folds {study.folds}: this sweep leaves no compounds out; use "
            "tune_configs/leave_one_compound_out.yaml"
        )
    return record


def _evaluated(study: Study, record: StageRecord, progress: Progress) -> tuple[dict[str, Any], pd.DataFrame]:
    settings = _settings(study, record)
    labels = provenance_of_folds(study, record)
    excluded = exclusions(study).restrict(fold_keys(study))
    summaries, tables = list[dict[str, Any]](), list[pd.DataFrame]()
    progress(0, len(settings))
    for number, setting in enumerate(settings):
        config = _config(study, record, setting.values)
        try:
            found = evaluate(
                replace(study, config=config), setting.folds, record, labels.used, set(excluded.reasons)
            )
            summaries.append({"values": setting.values, **found.summary})
            tables.append(found.treatments.assign(setting=number))
        except HcsError as error:  # the other settings' answers stand
            summaries.append({"values": setting.values, "failed": str(error)})
        progress(number + 1, len(settings))
    if not tables:
        raise HcsError(f"no setting of sweep {study.folds} could be evaluated: {summaries[0]['failed']}")
    return _told(study, labels, excluded, summaries), pd.concat(tables, ignore_index=True)


def _told(
    study: Study, labels: Provenance, excluded: Exclusions, summaries: list[dict[str, Any]]
) -> dict[str, Any]:
    config = study.config.profile
    return {
        "format": _FORMAT,
        "sweep": study.folds,
        "track": labels.to_dict(),
        "settings": summaries,
        "excluded": {
            "fields": len(excluded.reasons),
            "by_reason": excluded.counts,
            "minimum_fields": config.minimum_fields,
        },
    }


def exclusions(study: Study) -> Exclusions:
    """The fields that ``profile.exclude`` names, from the flags of the index, and ``labels.exclude``."""
    import pyarrow.parquet as pq

    path = "shards/index.parquet"
    data = study.require("shard").read(study.storage, path)
    columns = flag_columns(pq.read_schema(io.BytesIO(data)).names, study.config.profile.exclude)
    flags = flagged(pd.read_parquet(io.BytesIO(data), columns=[c.KEY, *columns]), columns)
    return Exclusions.join([flags, Exclusions(study.excluded().reasons)])


def _settings(study: Study, record: StageRecord) -> list[Setting]:
    """From the leaderboard, each in the order of its first trial."""
    place = replace(study, name=study.folds or "").place("tune")
    table = record.read_table(study.storage, f"{place.folder}/{_LEADERBOARD}").sort_values("trial")
    swept = [name for name in SweepConfig.model_validate(record.config["sweep"]).space if name != LEAVE_OUT]
    found: dict[str, tuple[dict[str, Any], list[Fold]]] = {}
    for row in c.rows_of(table):
        values = {
            name: _value(row[name]) for name in swept if row[name] is not None and row[name] == row[name]
        }
        fold = Fold(str(row[LEAVE_OUT]), str(row["trial"]), f"{place.folder}/trials/{row['trial']}")
        found.setdefault(json.dumps(values, sort_keys=True, default=str), (values, []))[1].append(fold)
    return [Setting(values, tuple(folds)) for values, folds in found.values()]


def _value(cell: Any) -> Any:
    """A swept value as the configuration takes it; the leaderboard has lists and names as text."""
    return yaml.safe_load(cell) if isinstance(cell, str) else getattr(cell, "item", lambda: cell)()


def _config(study: Study, record: StageRecord, values: Mapping[str, Any]) -> StudyConfig:
    """The configuration of a setting: the sweep's, but for ``profile``, which is the present one."""
    source = record.study_config
    base = parse_study(study.storage.read(source).decode(), source)
    fixed = SweepConfig.model_validate(record.config["sweep"]).fixed
    made = with_values(base, {**fixed, **values}, f"sweep {study.folds}")
    return made.model_copy(update={"profile": study.config.profile})
