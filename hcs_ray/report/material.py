"""What a report is made of, read from the outputs that the stage records list."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.maps import MapAbout, X, Y, read_about, read_map
from hcs_ray.outliers.find import REASON, SCORE, read_outliers
from hcs_ray.profiles.build import read_evaluation
from hcs_ray.profiles.compare import PICTURE, read_comparison
from hcs_ray.profiles.fold_stage import read_folds
from hcs_ray.report.before import Run, read_run
from hcs_ray.report.labelled import LeftOut, left_out
from hcs_ray.report.standing import Standing
from hcs_ray.report.sweeps import Board, board
from hcs_ray.shards.read import ShardReader
from hcs_ray.study import Study
from hcs_ray.tables import read_embeddings, read_index, read_split


@dataclass(frozen=True)
class Profiled:
    """What ``hcs-ray profile`` has left."""

    evaluation: dict[str, Any]
    wells: pd.DataFrame


@dataclass(frozen=True)
class Trained:
    """What ``hcs-ray train`` has left: ``metrics.json`` and ``metrics.csv``."""

    metrics: dict[str, Any]
    history: pd.DataFrame


@dataclass(frozen=True)
class Compared:
    """What ``hcs-ray profile --compare`` has left."""

    table: pd.DataFrame
    document: dict[str, Any]
    picture: bytes


@dataclass(frozen=True)
class Material:
    """The tables of a run; None, or empty, is what the report's claim does not list.

    ``fields`` has one row a field by key (of embedded fields, where there are embeddings (N, F), whose rows
    are theirs): the index, with side, place on the map, and outlier score and reason where they are there.
    """

    reader: ShardReader
    index: pd.DataFrame
    fields: pd.DataFrame
    split: pd.DataFrame | None
    trained: Trained | None
    embeddings: npt.NDArray[np.float32] | None
    classes: tuple[str, ...]
    network: str | None  # ``sweep:NAME/TRIAL`` where the network that was embedded is that of a trial
    profiled: Profiled | None
    map_about: MapAbout | None
    outliers: dict[str, pd.DataFrame] | None
    folds: dict[str, Any] | None
    compared: Compared | None
    sweeps: tuple[Board, ...]
    left_out: tuple[LeftOut, ...]
    before: Run | None


def gather(study: Study, standing: Standing) -> Material:
    """Read what there is."""
    there = set(standing.stages)
    index = read_index(study)
    split = read_split(study) if "split" in there else None
    fields, embeddings, network = index, None, None
    classes: tuple[str, ...] = ()
    if "embed" in there:
        predicted, embeddings = read_embeddings(study)
        fields = index.merge(predicted[[c.KEY]], on=c.KEY, validate="one_to_one")
        classes, network = _classes(predicted), study.require("embed").config.get("run")
    about = read_about(study) if "map" in there else None
    places = read_map(study) if "map" in there else None
    outliers = read_outliers(study) if "outliers" in there else None
    return Material(
        reader=ShardReader(study.storage, study.require("shard")),
        index=index,
        fields=_joined(fields, split, places, outliers["field"] if outliers else None),
        split=split,
        trained=_trained(study) if "train" in there else None,
        embeddings=embeddings,
        classes=classes,
        network=network,
        profiled=_profiled(study) if "profile" in there else None,
        map_about=about,
        outliers=outliers,
        folds=read_folds(study) if "folds" in there else None,
        compared=_compared(study) if "compare" in there else None,
        sweeps=tuple(board(study, name) for name in standing.sweeps),
        left_out=left_out(study, standing, set(index[c.KEY])),
        before=_before(standing, outliers is not None),
    )


def _before(standing: Standing, outliers: bool) -> Run | None:
    """The other run; its outliers where both runs' are shown."""
    if standing.before is None:
        return None
    return read_run(standing.before, outliers and "outliers" in standing.stages_before)


def _classes(predicted: pd.DataFrame) -> tuple[str, ...]:
    """What the network tells apart."""
    prefix = c.PROBABILITY_PREFIX
    return tuple(str(name).removeprefix(prefix) for name in predicted if str(name).startswith(prefix))


def _trained(study: Study) -> Trained:
    record, folder = study.require("train"), study.place("train").folder
    history = pd.read_csv(io.BytesIO(record.read(study.storage, f"{folder}/metrics.csv")))
    return Trained(record.read_json(study.storage, f"{folder}/metrics.json"), history)


def _profiled(study: Study) -> Profiled:
    record, folder = study.require("profile"), study.place("profile").folder
    return Profiled(read_evaluation(study), record.read_table(study.storage, f"{folder}/well.parquet"))


def _compared(study: Study) -> Compared:
    record, folder = study.require("compare"), study.place("compare").folder
    return Compared(*read_comparison(study), record.read(study.storage, f"{folder}/{PICTURE}"))


def _joined(
    fields: pd.DataFrame,
    split: pd.DataFrame | None,
    places: pd.DataFrame | None,
    outliers: pd.DataFrame | None,
) -> pd.DataFrame:
    if split is not None:
        sides = split[[c.PLATE, c.WELL, c.SIDE]]
        fields = fields.merge(sides, on=[c.PLATE, c.WELL], validate="many_to_one")
    if places is not None:
        fields = fields.merge(places[[c.KEY, X, Y]], on=c.KEY, validate="one_to_one")
    if outliers is not None:  # a field that was left out has no score
        scored = outliers[[c.KEY, SCORE, REASON]]
        fields = fields.merge(scored, on=c.KEY, how="left", validate="one_to_one")
    return fields.sort_values(c.KEY, ignore_index=True)
