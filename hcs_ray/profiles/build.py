"""`hcs-ray profile`: from embeddings of fields to normalised profiles of treatments, and their scores."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import ProfileConfig
from hcs_ray.contracts import InputError, Progress
from hcs_ray.profiles.aggregate import BATCHES, Float64, Floats, own_wells, to_treatments
from hcs_ray.profiles.exclusions import evaluate_kept, kept_figures, lost_treatments
from hcs_ray.profiles.fold_stage import exclusions, hits_text, without_text
from hcs_ray.profiles.normalize import normalize
from hcs_ray.profiles.score import Evaluation, Settings, evaluate_wells
from hcs_ray.profiles.seen_fields import SeenFields
from hcs_ray.profiles.stream import stream_wells
from hcs_ray.profiles.tracks import provenance
from hcs_ray.stage import StageRecord
from hcs_ray.study import Study
from hcs_ray.tables import read_index, read_split

EVALUATION: Final = "evaluation.json"
_FORMAT: Final = 2


def profile(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``profiles/NAME/``: well.parquet, treatment.parquet and evaluation.json."""
    study = study.with_labels_of("profile", force)
    claim = study.claim("profile")
    if not force and study.is_complete("profile", claim):
        return headline(read_evaluation(study))
    config = study.config.profile
    with study.writing("profile", claim, force) as writer:
        progress(0, 4)
        labels = provenance(study).only(_labelled(study))
        fields = SeenFields(exclusions(study), set(labels.used), _test_wells(study))
        wells = _Wells.of(config, *stream_wells(study, config.well_aggregate, keep=fields.all_of))
        progress(1, 4)
        whole = wells.evaluation(config, labels.used)
        kept = _kept(study, fields, whole, labels.used)
        progress(2, 4)
        shown = kept.wells if config.drop_excluded and kept.wells else wells
        writer.write_table("well.parquet", _with_profiles(shown.meta, shown.normalized))
        own = own_wells(shown.meta, shown.normalized)
        treatments, profiles = to_treatments(*own, config.treatment_aggregate)
        table = treatments.assign(**{BATCHES: treatments[BATCHES].map(list)})
        writer.write_table("treatment.parquet", _with_profiles(table, profiles))
        progress(3, 4)
        evaluation = {
            "format": _FORMAT,
            "track": labels.to_dict(),
            **_headlined(config, whole, kept),
            "classification": fields.classified(config, kept=False),
            "excluded": kept.told(config, whole, fields),
            "not_embedded": _not_embedded(study, wells.meta, fields.total),
            "normalization": {
                "method": config.normalization,
                "features_kept": wells.features_kept,
                **wells.stated,
            },
            "well_from_fields": config.well_aggregate,
        }
        writer.write(EVALUATION, (json.dumps(evaluation, indent=1, sort_keys=True) + "\n").encode())
        progress(4, 4)
    return headline(evaluation)


def read_evaluation(study: Study) -> dict[str, Any]:
    """``evaluation.json`` of this run."""
    return evaluation_of(study, study.require("profile"))


def evaluation_of(study: Study, record: StageRecord) -> dict[str, Any]:
    """The same of a run by its record, whatever configuration it was made with."""
    path = f"{study.place('profile').folder}/{EVALUATION}"
    found: dict[str, Any] = record.read_json(study.storage, path)
    if found.get("format") != _FORMAT:
        raise InputError(
            f"{study.storage.url}/{path}: format {found.get('format')}, and this version reads {_FORMAT}; "
            "make it again with hcs-ray profile --force"
        )
    return found


def headline(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The figures that a person wants first.

    Those of compounds that have not leaked say whether they are above chance; the others would be so by what
    the network has learned by heart, and say how many of theirs have leaked.
    """
    figures: dict[str, Any] = {"track": {"text": evaluation["track"]["title"]}}
    for name in ("nsc", "nscb"):
        score = evaluation[name]
        held_out = score["held_out"]
        figures[f"{name.upper()}, held-out compounds"] = {
            "text": hits_text(held_out),
            "above_chance": held_out["above_chance"] if held_out["total"] else None,
        }
        figures[f"{name.upper()}, all compounds"] = {
            "text": f"{hits_text(score)}; {score['leaked']} have leaked: no headline"
            if score["leaked"]
            else hits_text(score)
        }
    if evaluation["not_embedded"]["fields"]:
        lost = evaluation["not_embedded"]["treatments"]
        figures["not embedded"] = {
            "text": f"{evaluation['not_embedded']['fields']} fields; "
            f"labelled treatments without any, in no denominator: {len(lost)}"
        }
    figures |= _excluded_line(evaluation["excluded"])
    if evaluation["classification"]:
        treatment = evaluation["classification"]["treatment"]
        figures["MoA of held-out treatments"] = {
            "text": f"balanced accuracy {treatment['balanced_accuracy']:.2f} of {treatment['count']}",
            "above_chance": treatment["above_chance"],
        }
    return figures


def _excluded_line(excluded: dict[str, Any]) -> dict[str, Any]:
    """What the second evaluation says, beside the first."""
    if not excluded["fields"] and not excluded["wells_too_small"]:
        return {}
    reasons = ", ".join(
        f"{count} {name.removeprefix('QC_Flag_')}" for name, count in excluded["by_reason"].items()
    )
    left_out = f"{excluded['fields']} of {excluded['fields_of']} fields" + (
        f" ({reasons})" if reasons else ""
    )
    if excluded["minimum_fields"] > 1:
        left_out += f", {excluded['wells_too_small']} wells below {excluded['minimum_fields']} fields"
    scores = excluded["scores"]
    found = f"held-out {without_text(scores)}" if scores else f"cannot be scored: {excluded['impossible']}"
    return {"without excluded fields": {"text": f"{found}; left out: {left_out}"}}


@dataclass(frozen=True)
class _Wells:
    """Wells with their normalised profiles (W, K)."""

    meta: pd.DataFrame
    normalized: Float64
    features_kept: int
    stated: dict[str, Any]

    @classmethod
    def of(cls, config: ProfileConfig, meta: pd.DataFrame, profiles: Float64) -> _Wells:
        normalized, kept, stated = normalize(meta, profiles, config.normalization, config.shrinkage)
        return cls(meta, normalized, int(kept.sum()), dict(stated))

    def evaluation(self, config: ProfileConfig, used: Collection[str]) -> Evaluation:
        settings = Settings(metric=config.metric, resamples=config.resamples, seed=config.seed)
        return evaluate_wells(self.meta, self.normalized, config.treatment_aggregate, settings, used)


@dataclass(frozen=True)
class _Kept:
    """What is left without the excluded fields: wells and scores, or why there are none.

    ``too_small`` wells have fields left, but fewer than ``profile.minimum_fields``; ``lost`` ones have none.
    """

    wells: _Wells | None = None
    evaluation: Evaluation | None = None
    impossible: str | None = None
    too_small: int = 0
    lost: int = 0

    def told(self, config: ProfileConfig, whole: Evaluation, fields: SeenFields) -> dict[str, Any]:
        """``excluded`` of evaluation.json: what was left out, and the scores without it."""
        scored = self.evaluation is not None and self.evaluation is not whole
        return {
            "fields": len(fields.excluded().reasons),
            "fields_of": fields.total,
            "by_reason": fields.excluded().counts,
            "minimum_fields": config.minimum_fields,
            "wells_lost": self.lost,
            "wells_too_small": self.too_small,
            "dropped_from_tables": bool(config.drop_excluded and scored),
            "denominator": "that of all fields; a treatment that loses all its fields counts as wrong",
            "impossible": self.impossible,
            "scores": kept_figures(self.evaluation) if self.evaluation and scored else None,
            "treatments_lost": lost_treatments(self.evaluation) if self.evaluation and scored else [],
            "classification": fields.classified(config, kept=True) if scored else None,
        }


def _kept(study: Study, fields: SeenFields, whole: Evaluation, used: Collection[str]) -> _Kept:
    """The second evaluation; that of all fields itself where nothing is left out."""
    config = study.config.profile
    if not fields.there and config.minimum_fields == 1:
        return _Kept(evaluation=whole)
    left = fields.wells_left()
    lost, too_small = int((left == 0).sum()), int(left.between(1, config.minimum_fields - 1).sum())
    try:
        meta, profiles = stream_wells(study, config.well_aggregate, config.minimum_fields, fields.kept)
        evaluation = evaluate_kept(whole, meta, profiles, config, used)
        return _Kept(_Wells.of(config, meta, profiles), evaluation, None, too_small, lost)
    except InputError as error:
        if config.drop_excluded:
            raise InputError(f"profile.drop_excluded: without the excluded fields: {error}") from None
        return _Kept(None, None, str(error), too_small, lost)


def _headlined(config: ProfileConfig, whole: Evaluation, kept: _Kept) -> dict[str, Any]:
    """The scores on top: of all fields, or with ``profile.drop_excluded`` of those that are left.

    The other one stands beside it: all fields' under ``all_fields``, or the others' under ``excluded``.
    """
    if not config.drop_excluded or kept.evaluation is None or kept.evaluation is whole:
        return whole.to_dict()
    return kept.evaluation.to_dict() | {"all_fields": all_figures(whole)}


def all_figures(whole: Evaluation) -> dict[str, Any]:
    """The scores of all fields, without the lists of queries."""
    scores = {"nsc": whole.nsc.to_dict(), "nscb": whole.nscb.to_dict()}
    for found in scores.values():
        del found["queries"]
    return {**scores, **whole.gauge.to_dict()}


def _not_embedded(study: Study, wells: pd.DataFrame, fields: int) -> dict[str, Any]:
    """Fields of the index that have no embedding (`embed.on_error`), and labelled treatments without any.

    Such treatments are in no denominator: no profile of theirs was made.
    """
    index = read_index(study, [c.TREATMENT, c.MOA, c.PERT_TYPE])
    asked = index.loc[index[c.MOA].notna() & (index[c.PERT_TYPE] == c.TREATED), c.TREATMENT]
    lost = set(asked) - set(wells.loc[wells[c.PERT_TYPE] == c.TREATED, c.TREATMENT])
    return {"fields": len(index) - fields, "treatments": sorted(map(str, lost))}


def _labelled(study: Study) -> set[str]:
    index = read_index(study, [c.COMPOUND, c.MOA])
    return {str(name) for name in index.loc[index[c.MOA].notna(), c.COMPOUND].unique()}


def _test_wells(study: Study) -> pd.MultiIndex:
    split = read_split(study)
    return pd.MultiIndex.from_frame(split.loc[split[c.SIDE] == c.TEST, [c.PLATE, c.WELL]])


def _with_profiles(meta: pd.DataFrame, profiles: Floats) -> pd.DataFrame:
    columns = [name for name in meta.columns if not str(name).startswith(c.PROBABILITY_PREFIX)]
    return meta[columns].assign(**{c.EMBEDDING: list(profiles.astype(np.float32))})
