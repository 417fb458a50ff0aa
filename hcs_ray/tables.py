"""Reading the tables that one stage writes and several read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.study import Study

Features = npt.NDArray[np.float32]


def read_index(study: Study, columns: list[str] | None = None) -> pd.DataFrame:
    """``shards/index.parquet``: one row a field, sorted by key."""
    return study.require("shard").read_table(study.storage, "shards/index.parquet", columns)


def read_split(study: Study) -> pd.DataFrame:
    """``splits/NAME.parquet``: one row a well, with its side."""
    return study.require("split").read_table(study.storage, f"splits/{study.name}.parquet")


def read_embeddings(study: Study) -> tuple[pd.DataFrame, Features]:
    """All fields of ``embeddings/NAME/``, sorted by key.

    Returns:
        The key, ``Metadata_*`` and ``Probability_*`` columns, and embeddings (N, F) float32, row-aligned.
    """
    table = pd.concat(list(_embedding_files(study)), ignore_index=True)
    return _taken_apart(table.sort_values(c.KEY, ignore_index=True))


def embedding_chunks(study: Study) -> Iterator[tuple[pd.DataFrame, Features]]:
    """The same file by file, in the order of keys, for what does not need all fields at once."""
    return map(_taken_apart, _embedding_files(study))


def _embedding_files(study: Study) -> Iterator[pd.DataFrame]:
    record = study.require("embed")
    for path in sorted(path for path in record.outputs if path.endswith(".parquet")):
        yield record.read_table(study.storage, path)


def _taken_apart(table: pd.DataFrame) -> tuple[pd.DataFrame, Features]:
    features = np.stack(table[c.EMBEDDING].to_list()).astype(np.float32)
    return table.drop(columns=c.EMBEDDING), features
