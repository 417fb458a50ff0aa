"""The stage `hcs-ray outliers`: its three tables, their ranks, reasons and evidence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import OutliersConfig
from hcs_ray.contracts import InputError, Progress
from hcs_ray.outliers.artefacts import WELL_NAME, find_artefacts, of_groups, quality_of
from hcs_ray.outliers.evidence import Finding, robust_z
from hcs_ray.outliers.replicates import Links, find_mislabelled, find_novel
from hcs_ray.profiles.aggregate import WELLS, Float64, Floats, Ints, to_treatments, to_wells
from hcs_ray.profiles.normalize import normalize
from hcs_ray.study import Study
from hcs_ray.tables import read_embeddings, read_index

ARTEFACT: Final = "artefact"
MISLABELLED: Final = "mislabelled"
NOVEL: Final = "novel"
DISTANCE: Final = "distance"
SCORE: Final = "score"
RANK: Final = "rank"
REASON: Final = "reason"
EVIDENCE: Final = "evidence"
NEIGHBOURS: Final = "neighbours"


class Level(NamedTuple):
    """One of the three tables: the column that names a row, and those that describe it."""

    name: str
    identity: str
    columns: tuple[str, ...]
    reason: str  # the reason that is looked for here first


_PLACE: Final = (c.BATCH, c.PLATE, c.WELL, c.PERT_TYPE)
_DRUG: Final = (c.TREATMENT, c.COMPOUND, c.CONCENTRATION, c.MOA)
FIELD: Final = Level("field", c.KEY, (WELL_NAME, *_PLACE, c.SITE, *_DRUG), ARTEFACT)
WELL: Final = Level("well", WELL_NAME, (*_PLACE, *_DRUG), MISLABELLED)
TREATMENT: Final = Level("treatment", c.TREATMENT, (*_DRUG, WELLS), NOVEL)
LEVELS: Final = (FIELD, WELL, TREATMENT)


def find_outliers(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``outliers/NAME/{field,well,treatment}.parquet``; `score_screen` says what they hold."""
    claim = study.claim("outliers")
    if force or not study.is_complete("outliers", claim):
        with study.writing("outliers", claim, force) as writer:
            progress(0, 2)
            fields, embeddings = read_embeddings(study)
            index = read_index(study)
            progress(1, 2)
            for name, table in score_screen(fields, embeddings, index, study.config.outliers).items():
                writer.write_table(f"{name}.parquet", table)
            progress(2, 2)
    return headline(read_outliers(study))


def read_outliers(study: Study) -> dict[str, pd.DataFrame]:
    """The tables of ``outliers/NAME/`` by level."""
    record, folder = study.require("outliers"), study.place("outliers").folder
    return {
        level.name: record.read_table(study.storage, f"{folder}/{level.name}.parquet") for level in LEVELS
    }


def headline(tables: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
    """How many rows have the reason that is looked for at their level, and the three most outlying fields."""
    found = {
        f"{level.reason} {level.name}s": int((tables[level.name][REASON] == level.reason).sum())
        for level in LEVELS
    }
    return {**found, "most outlying": ", ".join(tables[FIELD.name].nsmallest(3, RANK)[c.KEY])}


def score_screen(
    fields: pd.DataFrame, embeddings: Floats, index: pd.DataFrame, config: OutliersConfig
) -> dict[str, pd.DataFrame]:
    """The tables ``field``, ``well`` and ``treatment``, most outlying row first.

    Args:
        fields: One row a field: key and ``Metadata_*``.
        embeddings: (N, F), row-aligned with ``fields``.
        index: Key and ``QC_*`` columns, a row for each of these fields.

    Returns:
        Each row's name and metadata; ``distance`` (mean to the nearest, in the normalised embedding);
        ``artefact`` and ``mislabelled`` or ``novel`` (robust z-scores, null where not judged); ``score``,
        the largest; ``rank`` (1 is the most outlying, ties by name); ``neighbours`` (names of the nearest
        rows); and in the top fraction ``reason`` (artefact, mislabelled, novel; null where nothing reaches
        the threshold) and ``evidence``. Fields without a reason take their well's, and all take their
        treatment's. The order of the given rows does not matter.

    Raises:
        InputError: a plate without negative controls, controls all equal, a feature that is not finite, or a
            field that is not in the index.
    """
    fields, features = _by_key(fields, embeddings)
    quality = quality_of(fields, index)
    features = _normalized(fields, features)
    wells, well_features = to_wells(fields, features, "mean")
    treatments, treatment_features = to_treatments(wells, well_features, "mean")

    artefacts, links = find_artefacts(fields, quality), Links.between(wells, well_features)
    controls = wells[c.TREATMENT][wells[c.PERT_TYPE] == c.NEGATIVE_CONTROL]
    by_treatment = {
        ARTEFACT: of_groups(artefacts, fields, c.TREATMENT, treatments),
        NOVEL: find_novel(treatments, links, controls),
    }
    by_well = {
        ARTEFACT: of_groups(artefacts, fields, WELL_NAME, wells),
        MISLABELLED: find_mislabelled(treatments, links),
    }
    field = rank_level(FIELD, fields, features, {ARTEFACT: artefacts}, config)
    well = rank_level(WELL, wells, well_features, by_well, config)
    treatment = rank_level(TREATMENT, treatments, treatment_features, by_treatment, config)
    field = inherit(inherit(field, well, WELL_NAME, config), treatment, c.TREATMENT, config)
    well = inherit(well, treatment, c.TREATMENT, config)
    tables = {FIELD.name: field, WELL.name: well, TREATMENT.name: treatment}
    return {name: table.sort_values(RANK, ignore_index=True) for name, table in tables.items()}


def _by_key(fields: pd.DataFrame, embeddings: Floats) -> tuple[pd.DataFrame, Floats]:
    """Fields with the name of their well, and embeddings, sorted by key."""
    order = np.argsort(fields[c.KEY].to_numpy(dtype=str), kind="stable")
    ordered = fields.iloc[order].reset_index(drop=True)
    ordered[WELL_NAME] = ordered[c.PLATE].astype(str) + "_" + ordered[c.WELL].astype(str)
    return ordered, embeddings[order]


def _normalized(fields: pd.DataFrame, features: Floats) -> Float64:
    """Each plate centred on its negative controls; one scale for all, the deviation of all controls.

    A plate's own scale, from a handful of controls, would pull the replicates of a strong phenotype apart.
    """
    centred = normalize(fields, features, "center").features
    controls = (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy(dtype=bool)
    spread = centred[controls].std(axis=0)
    # No more than the rounding of float32, in which embeddings are computed, is no spread.
    kept = spread > np.finfo(np.float32).eps * np.abs(features[controls]).max(axis=0)
    if not kept.any():
        raise InputError("the negative controls' embeddings are all equal; train and embed again")
    return np.asarray(centred[:, kept] / spread[kept])


def nearest_rows(features: Floats, neighbors: int) -> tuple[Float64, Ints]:
    """Mean distance (N,) to the nearest other rows, and which they are (N, k), nearest first; k < N."""
    from sklearn.neighbors import NearestNeighbors

    k = min(neighbors, len(features) - 1)
    if k < 1:
        return np.zeros(len(features)), np.empty((len(features), 0), dtype=np.intp)
    distances, indices = NearestNeighbors(n_neighbors=k, algorithm="brute").fit(features).kneighbors()
    return distances.mean(axis=1), indices


def rank_level(
    level: Level,
    meta: pd.DataFrame,
    features: Floats,
    findings: Mapping[str, Finding],
    config: OutliersConfig,
) -> pd.DataFrame:
    """The table of one level, in the order of ``meta``, with the reasons that are found at this level."""
    names = meta[level.identity].to_numpy(dtype=str)
    distance, nearest = nearest_rows(features, config.neighbors)
    far = robust_z(np.log(np.maximum(distance, 1e-6 * distance.max(initial=0.0) + np.finfo(float).tiny)))
    score = np.fmax.reduce([far, *(finding.z for finding in findings.values())])
    table = meta[list(dict.fromkeys((level.identity, *level.columns)))].copy()
    table[DISTANCE] = distance
    for reason, finding in findings.items():
        table[reason] = finding.z
    table[SCORE] = score
    table[RANK] = _ranks(score, names)
    words = [f"mean distance to its {nearest.shape[1]} nearest {z:.1f} MADs above the median" for z in far]
    _explain(table, {**findings, DISTANCE: Finding(far, words)}, config)
    table[NEIGHBOURS] = pd.Series([names[row].tolist() for row in nearest], index=table.index, dtype=object)
    return table


def _ranks(score: Float64, names: np.ndarray[Any, Any]) -> Ints:
    """1 for the largest score; ties in the order of names."""
    ranks = np.empty(len(score), dtype=np.int64)
    ranks[np.lexsort((names, -score))] = np.arange(1, len(score) + 1)
    return ranks


def _in_top(table: pd.DataFrame, config: OutliersConfig) -> pd.Series[bool]:
    return table[RANK] <= math.ceil(config.top_fraction * len(table))


def _explain(table: pd.DataFrame, findings: Mapping[str, Finding], config: OutliersConfig) -> None:
    """Add reason and evidence of the top rows: what speaks loudest, and loud enough.

    Distance is evidence, but no reason, and is given only where there is none.
    """
    table[REASON] = pd.Series(pd.NA, index=table.index, dtype="string")
    table[EVIDENCE] = pd.Series(pd.NA, index=table.index, dtype="string")
    for row in np.flatnonzero(_in_top(table, config)).tolist():
        loud = {
            name: finding.z[row] for name, finding in findings.items() if finding.z[row] >= config.threshold
        }
        if not loud:
            continue
        name = max(loud, key=lambda name: (name != DISTANCE, loud[name]))
        table.loc[row, EVIDENCE] = findings[name].words[row]
        table.loc[row, REASON] = pd.NA if name == DISTANCE else name


def inherit(table: pd.DataFrame, upper: pd.DataFrame, on: str, config: OutliersConfig) -> pd.DataFrame:
    """Give top rows without a reason that of their well or treatment, unless it is an artefact."""
    explained = upper[upper[REASON].notna() & (upper[REASON] != ARTEFACT)]
    given = {row[on]: (row[REASON], row[EVIDENCE]) for row in explained.to_dict(orient="records")}
    result, names = table.copy(), table[on].tolist()
    for row in np.flatnonzero(_in_top(table, config) & table[REASON].isna()).tolist():
        if names[row] in given:
            reason, evidence = given[names[row]]
            result.loc[row, [REASON, EVIDENCE]] = [reason, f"{names[row]}: {evidence}"]
    return result
