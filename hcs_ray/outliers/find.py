"""The stage `hcs-ray outliers`: from embeddings and quality columns to three tables."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import OutliersConfig
from hcs_ray.contracts import InputError, Progress
from hcs_ray.outliers import space
from hcs_ray.outliers.artefacts import (
    CLASS_DISTANCE,
    WELL_NAME,
    class_distance,
    find_artefacts,
    of_groups,
    quality_of,
)
from hcs_ray.outliers.calibrate import Bools, Finding
from hcs_ray.outliers.detectors import detect
from hcs_ray.outliers.expected import deviations
from hcs_ray.outliers.left_out import EXCLUDED, with_left_out
from hcs_ray.outliers.levels import (
    ARTEFACT,
    DISTANCE,
    DRIVERS,
    EVIDENCE,
    FIELD,
    LEVELS,
    MISLABELLED,
    NEIGHBOURS,
    NOVEL,
    RANK,
    REASON,
    SCORE,
    TREATMENT,
    WELL,
    Level,
    Measured,
    inherit,
    level_table,
    limits,
)
from hcs_ray.outliers.nearest import Candidates, Nearest, nearest_rows, reference_rows
from hcs_ray.outliers.older import map_distance
from hcs_ray.outliers.read import Screen, read_screen
from hcs_ray.outliers.replicates import (
    Doubts,
    Means,
    Treatments,
    doubt_labels,
    find_mislabelled,
    find_novel,
    treatment_means,
)
from hcs_ray.profiles.aggregate import Float64, Floats, Ints, to_treatments, to_wells
from hcs_ray.study import Study

__all__ = [
    "ARTEFACT", "DISTANCE", "DRIVERS", "EVIDENCE", "FIELD", "LEVELS", "MISLABELLED", "NEIGHBOURS", "NOVEL",
    "RANK", "REASON", "SCORE", "TREATMENT", "WELL", "Level", "find_outliers", "read_outliers", "score_screen",
]  # fmt: skip
CONTROL_DISTANCE: Final = "control_distance"
MAP_DISTANCE: Final = "map_distance"
LOOKS_LIKE: Final = "looks_like"
TRAINED: Final = "trained"
_STEPS: Final = 4


def find_outliers(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``outliers/NAME/{field,well,treatment}.parquet``; `score_screen` says what they hold.

    What ``labels.exclude`` leaves out is at the end of the tables, without a score (`with_left_out`).
    """
    study = study.with_labels_of("outliers", force)
    claim = study.claim("outliers")
    if force or not study.is_complete("outliers", claim):
        with study.writing("outliers", claim, force) as writer:
            progress(0, _STEPS)
            screen = read_screen(study, study.config.outliers, study.place("map").record in claim.inputs)
            progress(1, _STEPS)
            tables = _scored(study, screen)
            progress(_STEPS - 1, _STEPS)
            for name, table in tables.items():
                writer.write_table(f"{name}.parquet", table)
            progress(_STEPS, _STEPS)
    return headline(read_outliers(study))


def _scored(study: Study, screen: Screen) -> dict[str, pd.DataFrame]:
    if not study.excluded().rules:
        return score_screen(screen, study.config.outliers)
    try:
        return with_left_out(score_screen(screen, study.config.outliers), screen.left_out)
    except InputError as error:
        raise InputError(f"{error} (labels.exclude leaves {len(screen.left_out)} fields out)") from None


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
    if EXCLUDED in tables[FIELD.name]:
        found["fields left out by labels"] = int(tables[FIELD.name][EXCLUDED].notna().sum())
    return {**found, "most outlying": ", ".join(tables[FIELD.name].nsmallest(3, RANK)[c.KEY])}


def score_screen(screen: Screen, config: OutliersConfig) -> dict[str, pd.DataFrame]:
    """The tables ``field``, ``well`` and ``treatment``, most outlying row first; see docs/outliers.md.

    Raises:
        InputError: a plate without negative controls, controls all equal, or a field not in the index.
    """
    screen = screen.by_key()
    fields, quality = screen.fields, quality_of(screen.fields, screen.index)
    seen = _see_fields(fields, screen.embeddings, config)
    artefacts = _artefacts(fields, quality, seen)
    limit = limits(config)
    wells = _wells(screen, quality, ~(artefacts.z >= limit[ARTEFACT]))
    mislabelled, doubts = _mislabelled(wells, limit[MISLABELLED])
    wrong = _over(mislabelled, limit[MISLABELLED])
    if wrong.any():  # as what they look like, their fields, and those of their replicates, are judged again
        artefacts = _artefacts(_relabelled(fields, wells, doubts, wrong), quality, seen)
    novel, means, treatments = _novel(screen, quality, artefacts, wells, ~wrong, limit[ARTEFACT])

    by_treatment = {ARTEFACT: of_groups(artefacts, fields, c.TREATMENT, treatments), NOVEL: novel}
    by_well = {ARTEFACT: of_groups(artefacts, fields, WELL_NAME, wells.meta), MISLABELLED: mislabelled}
    field = level_table(FIELD, fields, _measure_fields(screen, seen, config), {ARTEFACT: artefacts}, config)
    well = level_table(WELL, wells.meta, _measure_wells(wells, doubts, config), by_well, config)
    treatment = level_table(TREATMENT, treatments, _measure_means(means, wells, config), by_treatment, config)
    field = inherit(inherit(field, well, WELL_NAME), treatment, c.TREATMENT)
    well = inherit(well, treatment, c.TREATMENT)
    tables = {FIELD.name: field, WELL.name: well, TREATMENT.name: treatment}
    return {name: table.sort_values(RANK, ignore_index=True) for name, table in tables.items()}


class Seen(NamedTuple):
    """The fields' embeddings as they are compared: (N, K), and the nearest of each; plates by number."""

    features: Floats
    nearest: Nearest
    plate: Ints
    reference: Ints


class Wells(NamedTuple):
    """The wells, of fields that are no artefacts where there are such: (W, K), in the space of replicates."""

    meta: pd.DataFrame
    features: Float64
    treatments: Treatments
    plate: Ints


def _see_fields(fields: pd.DataFrame, embeddings: Floats, config: OutliersConfig) -> Seen:
    moved = space.centred(fields, embeddings, np.ones(len(fields), dtype=bool))
    space.check_controls(fields, moved)
    treatment = pd.factorize(fields[c.TREATMENT], sort=True)[0]
    features = space.whitened(moved, treatment, [moved.shape[1]]).astype(np.float32)
    plate = pd.factorize(fields[c.PLATE], sort=True)[0]
    reference = reference_rows(len(fields), config.reference_rows)
    near = nearest_rows(features, config.neighbors, Candidates(plate, treatment, reference))
    return Seen(features, near, plate, reference)


def _artefacts(fields: pd.DataFrame, quality: pd.DataFrame, seen: Seen) -> Finding:
    controls = (fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy(dtype=bool)
    well, treatment = (pd.factorize(fields[name], sort=True)[0] for name in (WELL_NAME, c.TREATMENT))
    to_class = class_distance(seen.features, well, treatment)
    distances = (to_class, seen.nearest.distance)
    return find_artefacts(deviations(fields, quality), controls, distances, treatment)


def _wells(screen: Screen, quality: pd.DataFrame, clean: Bools) -> Wells:
    """The mean wells of the clean fields; a well without any is made of all its fields."""
    fields = screen.fields
    kept = clean | ~pd.Series(clean).groupby(fields[WELL_NAME].to_numpy()).transform("any").to_numpy()
    scaled = space.scaled_quality(quality)
    both = np.concatenate([screen.embeddings, scaled], axis=1)
    moved = space.centred(fields, both, clean)[kept]
    meta, features = to_wells(fields[kept].reset_index(drop=True), moved, "mean")
    treatments = Treatments.of(meta)
    widths = [screen.embeddings.shape[1], scaled.shape[1]]
    plate = pd.factorize(meta[c.PLATE], sort=True)[0]
    return Wells(meta, space.whitened(features, treatments.code, widths), treatments, plate)


def _mislabelled(wells: Wells, limit: float) -> tuple[Finding, Doubts]:
    """Twice: the second time without the wells found first, which must not speak for their label."""
    trained = wells.meta.get(TRAINED, pd.Series(False, index=wells.meta.index)).to_numpy(dtype=bool)
    words = [", though the network learned its label" if seen else "" for seen in trained]
    trusted = np.ones(len(wells.meta), dtype=bool)
    for _ in range(2):
        doubts = doubt_labels(wells.treatments, wells.plate, wells.features, trusted)
        finding = find_mislabelled(doubts, wells.treatments, words)
        trusted = ~_over(finding, limit)
    return finding, doubts


def _over(finding: Finding, limit: float) -> Bools:
    over = finding.z >= limit
    return over if finding.holds is None else over & finding.holds


def _relabelled(fields: pd.DataFrame, wells: Wells, doubts: Doubts, wrong: Bools) -> pd.DataFrame:
    """The fields with the treatment that a mislabelled well looks like."""
    looks = {
        well: wells.treatments.names[at]
        for well, at in zip(wells.meta[WELL_NAME][wrong], doubts.looks_like[wrong], strict=True)
    }
    return fields.assign(**{c.TREATMENT: fields[WELL_NAME].map(looks).fillna(fields[c.TREATMENT])})


def _novel(
    screen: Screen, quality: pd.DataFrame, artefacts: Finding, wells: Wells, trusted: Bools, limit: float
) -> tuple[Finding, Means, pd.DataFrame]:
    means = treatment_means(wells.treatments, wells.features, trusted)
    treatments, _ = to_treatments(wells.meta, wells.features[:, :1], "mean")
    area = _area(screen.fields, quality, ~(artefacts.z >= limit))
    share = area.reindex(list(wells.treatments.names)).fillna(1.0).to_numpy(dtype=np.float64)
    return find_novel(wells.treatments, means, share), means, treatments


def _area(fields: pd.DataFrame, quality: pd.DataFrame, clean: Bools) -> pd.Series[float]:
    """The area under cells by treatment, relative to the negative controls of the same plates."""
    if "QC_CellArea" not in quality:
        return pd.Series(dtype=float)
    area = quality["QC_CellArea"].where(clean)
    control = area.where((fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy())
    usual = control.groupby(fields[c.PLATE]).transform("median")
    return (area / usual.where(usual > 0)).groupby(fields[c.TREATMENT]).median()


def _measure_fields(screen: Screen, seen: Seen, config: OutliersConfig) -> Measured:
    fields = screen.fields
    found = detect(seen.features, seen.plate, config.detectors, config.neighbors, seen.reference)
    columns = {
        CLASS_DISTANCE: class_distance(
            seen.features, *(pd.factorize(fields[name], sort=True)[0] for name in (WELL_NAME, c.TREATMENT))
        ),
        CONTROL_DISTANCE: np.sqrt((seen.features.astype(np.float64) ** 2).sum(axis=1)),
        MAP_DISTANCE: map_distance(fields, screen.places),
    }
    return Measured(seen.nearest, found, columns)


def _measure_wells(wells: Wells, doubts: Doubts, config: OutliersConfig) -> Measured:
    reference = reference_rows(len(wells.meta), config.reference_rows)
    candidates = Candidates(wells.plate, wells.treatments.code, reference)
    near = nearest_rows(wells.features, config.neighbors, candidates)
    found = detect(wells.features, wells.plate, config.detectors, config.neighbors, reference)
    looks = [wells.treatments.names[at] if at >= 0 else None for at in doubts.looks_like]
    columns = {
        CLASS_DISTANCE: np.sqrt(doubts.own),
        CONTROL_DISTANCE: np.sqrt((wells.features**2).sum(axis=1)),
        "other_distance": np.sqrt(doubts.other),
        LOOKS_LIKE: pd.array(looks, dtype="string"),
    }
    if TRAINED in wells.meta:
        columns[TRAINED] = wells.meta[TRAINED].to_numpy(dtype=bool)
    return Measured(near, found, columns)


def _measure_means(means: Means, wells: Wells, config: OutliersConfig) -> Measured:
    reference = reference_rows(len(means.mean), config.reference_rows)
    one = np.zeros(len(means.mean), dtype=np.int64)
    own = np.arange(len(means.mean))
    near = nearest_rows(means.mean, config.neighbors, Candidates(one, own, reference))
    found = detect(means.mean, one, config.detectors, config.neighbors, reference)
    return Measured(near, found, {CONTROL_DISTANCE: np.sqrt((means.mean**2).sum(axis=1))})
