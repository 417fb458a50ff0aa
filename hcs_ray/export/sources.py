"""What an export is made of: the embeddings as a stream, and whole stages beside them."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.stage import StageRecord
from hcs_ray.study import Study
from hcs_ray.tables import FEATURES_FILE, Features, embedding_chunks


@dataclass(frozen=True)
class Sources:
    """A study with complete embeddings, and which of the other stages are taken along."""

    study: Study
    whole: frozenset[str]

    @functools.cached_property
    def embed(self) -> StageRecord:
        """The record of the embeddings."""
        return self.study.require("embed")

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """``features.json`` of the embeddings; `InputError` where an older version made them, without it."""
        path = f"{self.study.place('embed').folder}/{FEATURES_FILE}"
        if path not in self.embed.outputs:
            raise InputError(
                f"{self.study.storage.url}: embed {self.study.name} was made by an older version, without "
                f"{FEATURES_FILE}; make it again with hcs-ray embed --force"
            )
        found: dict[str, Any] = self.embed.read_json(self.study.storage, path)
        return found

    @property
    def features(self) -> list[str]:
        """The features' names."""
        return list(self.about["features"])

    def chunks(self) -> Iterator[tuple[pd.DataFrame, Features]]:
        """Metadata (key, ``Metadata_*``, ``Probability_*``) and embeddings (N, F), in the order of keys."""
        return embedding_chunks(self.study)

    def lineage(self) -> dict[str, str]:
        """What the numbers follow from, as text: the embeddings' record, and the configuration it names."""
        record = self.embed.model_dump(mode="json", exclude={"outputs"})
        return {
            "record": json.dumps(record, sort_keys=True),
            "record_path": self.study.place("embed").record,
            "features": json.dumps(self.about, sort_keys=True),
            "study_config": self.study.storage.read(self.embed.study_config).decode(),
        }


def wide(meta: pd.DataFrame, features: Features, names: list[str]) -> pd.DataFrame:
    """Metadata with a float32 column a feature, as pycytominer wants profiles."""
    columns = pd.DataFrame(np.asarray(features, np.float32), columns=names, index=meta.index)
    return pd.concat([meta, columns], axis=1)


def stacked(table: pd.DataFrame) -> tuple[pd.DataFrame, Features]:
    """A table of profiles with one list column, taken apart."""
    features = np.stack(table[c.EMBEDDING].to_list()).astype(np.float32)
    return table.drop(columns=c.EMBEDDING), features
