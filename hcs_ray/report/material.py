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
from hcs_ray.profiles.fold_stage import has_folds, read_folds
from hcs_ray.shards.read import ShardReader
from hcs_ray.study import Study
from hcs_ray.tables import read_embeddings, read_index, read_split


@dataclass(frozen=True)
class Material:
    """The tables of a run; ``fields`` has one row a field by key, as have ``embeddings`` (N, F).

    ``fields`` joins the index with side, place on the map, and outlier score and reason.
    """

    reader: ShardReader
    index: pd.DataFrame
    split: pd.DataFrame
    fields: pd.DataFrame
    map_about: MapAbout
    embeddings: npt.NDArray[np.float32]
    classes: list[str]
    metrics: dict[str, Any]
    history: pd.DataFrame
    evaluation: dict[str, Any]
    folds: dict[str, Any] | None
    outliers: dict[str, pd.DataFrame]


def gather(study: Study) -> Material:
    """Read everything; `InputError` where a stage is not complete."""
    storage, name = study.storage, study.name
    train = study.require("train")
    index, split = read_index(study), read_split(study)
    predicted, embeddings = read_embeddings(study)
    outliers = read_outliers(study)
    history = train.read(storage, f"runs/{name}/metrics.csv")
    return Material(
        reader=ShardReader(storage, study.require("shard")),
        index=index,
        split=split,
        fields=_joined(index, split, read_map(study), outliers["field"]),
        map_about=read_about(study),
        embeddings=embeddings,
        classes=[
            str(column).removeprefix(c.PROBABILITY_PREFIX)
            for column in predicted.columns
            if str(column).startswith(c.PROBABILITY_PREFIX)
        ],
        metrics=train.read_json(storage, f"runs/{name}/metrics.json"),
        history=pd.read_csv(io.BytesIO(history)),
        evaluation=read_evaluation(study),
        folds=read_folds(study) if has_folds(study) else None,
        outliers=outliers,
    )


def _joined(
    index: pd.DataFrame, split: pd.DataFrame, places: pd.DataFrame, outliers: pd.DataFrame
) -> pd.DataFrame:
    fields = index.merge(split[[c.PLATE, c.WELL, c.SIDE]], on=[c.PLATE, c.WELL], validate="many_to_one")
    fields = fields.merge(places[[c.KEY, X, Y]], on=c.KEY, validate="one_to_one")
    fields = fields.merge(outliers[[c.KEY, SCORE, REASON]], on=c.KEY, validate="one_to_one")
    return fields.sort_values(c.KEY, ignore_index=True)
