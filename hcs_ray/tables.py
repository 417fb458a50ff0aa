"""Reading the tables that one stage writes and several read."""

from __future__ import annotations

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
    record = study.require("embed")
    files = sorted(path for path in record.outputs if path.endswith(".parquet"))
    table = pd.concat([record.read_table(study.storage, path) for path in files], ignore_index=True)
    table = table.sort_values(c.KEY, ignore_index=True)
    features = np.stack(table[c.EMBEDDING].to_list()).astype(np.float32)
    return table.drop(columns=c.EMBEDDING), features
