"""`hcs-ray profile`: from embeddings of fields to normalised profiles of treatments, and their scores."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import ProfileConfig
from hcs_ray.contracts import Progress
from hcs_ray.profiles.aggregate import BATCHES, Floats, to_treatments, to_wells
from hcs_ray.profiles.classify import Classification, class_probabilities, classify
from hcs_ray.profiles.normalize import normalize
from hcs_ray.profiles.score import Evaluation, Settings, evaluate_wells
from hcs_ray.study import Study
from hcs_ray.tables import read_embeddings, read_split

EVALUATION = "evaluation.json"


def profile(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``profiles/NAME/``: well.parquet, treatment.parquet and evaluation.json."""
    claim = study.claim("profile")
    if not force and study.is_complete("profile", claim):
        return headline(read_evaluation(study))
    config = study.config.profile
    with study.writing("profile", claim, force) as writer:
        progress(0, 4)
        meta, embeddings = read_embeddings(study)
        meta = meta.merge(read_split(study)[[c.PLATE, c.WELL, c.SIDE]], on=[c.PLATE, c.WELL], how="left")
        wells, well_profiles = to_wells(meta.drop(columns=c.SIDE), embeddings, config.well_aggregate)
        normalized, kept, stated = normalize(wells, well_profiles, config.normalization, config.shrinkage)
        writer.write_table("well.parquet", _with_profiles(wells, normalized))
        progress(1, 4)
        treatments, profiles = to_treatments(wells, normalized, config.treatment_aggregate)
        table = treatments.assign(**{BATCHES: treatments[BATCHES].map(list)})
        writer.write_table("treatment.parquet", _with_profiles(table, profiles))
        progress(2, 4)
        scores = _scores(wells, normalized, meta, config)
        progress(3, 4)
        held_out = _held_out(meta, config)
        evaluation = {
            "format": 1,
            **scores.to_dict(),
            "classification": held_out.to_dict() if held_out else None,
            "normalization": {
                "method": config.normalization,
                "features_kept": int(kept.sum()),
                **stated,
            },
            "well_from_fields": config.well_aggregate,
        }
        writer.write(EVALUATION, (json.dumps(evaluation, indent=1, sort_keys=True) + "\n").encode())
        progress(4, 4)
    return headline(evaluation)


def read_evaluation(study: Study) -> dict[str, Any]:
    """``evaluation.json`` of this run."""
    path = f"{study.place('profile').folder}/{EVALUATION}"
    found: dict[str, Any] = study.require("profile").read_json(study.storage, path)
    return found


def headline(evaluation: dict[str, Any]) -> dict[str, Any]:
    """The figures that a person wants first.

    Those of compounds that were not trained on say whether they are above chance; the others would be so by
    what the network has learned by heart, and say how many of theirs have leaked.
    """
    figures: dict[str, Any] = {}
    for name in ("nsc", "nscb"):
        score = evaluation[name]
        figures[f"{name.upper()}, held-out compounds"] = _hits(score["held_out"]) | {
            "above_chance": score["held_out"]["above_chance"]
        }
        leaked = _hits(score)
        leaked["text"] += f", {score['leaked']} of them leaked: seen in training"
        figures[f"{name.upper()}, all compounds"] = leaked
    if evaluation["classification"]:
        treatment = evaluation["classification"]["treatment"]
        figures["MoA of held-out treatments"] = {
            "text": f"balanced accuracy {treatment['balanced_accuracy']:.2f} of {treatment['count']}",
            "above_chance": treatment["above_chance"],
        }
    return figures


def _hits(tally: dict[str, Any]) -> dict[str, Any]:
    text = f"{tally['correct']}/{tally['total']}"
    return {"text": text + (f" ({100 * tally['accuracy']:.1f} %)" if tally["total"] else "")}


def _scores(wells: pd.DataFrame, profiles: Floats, meta: pd.DataFrame, config: ProfileConfig) -> Evaluation:
    # A compound whose label was used to train, or to choose the epoch, has leaked.
    used = meta[meta[c.SIDE].isin((c.TRAIN, c.VALIDATION)) & (meta[c.PERT_TYPE] != c.NEGATIVE_CONTROL)]
    settings = Settings(metric=config.metric, resamples=config.resamples, seed=config.seed)
    return evaluate_wells(wells, profiles, config.treatment_aggregate, settings, set(used[c.COMPOUND]))


def _held_out(meta: pd.DataFrame, config: ProfileConfig) -> Classification | None:
    """Classification of the fields of the test side; None where it has none."""
    rows = meta[(meta[c.SIDE] == c.TEST) & (meta[c.PERT_TYPE] == c.TREATED)].reset_index(drop=True)
    if rows.empty:
        return None
    classes, probabilities = class_probabilities(rows)
    return classify(rows, probabilities, classes, config.resamples, config.seed)


def _with_profiles(meta: pd.DataFrame, profiles: Floats) -> pd.DataFrame:
    columns = [name for name in meta.columns if not str(name).startswith(c.PROBABILITY_PREFIX)]
    return meta[columns].assign(**{c.EMBEDDING: list(profiles.astype(np.float32))})
