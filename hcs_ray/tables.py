"""Reading the tables that one stage writes and several read."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.stage import StageRecord
from hcs_ray.study import Study

if TYPE_CHECKING:
    import pyarrow as pa

Features = npt.NDArray[np.float32]

FEATURES_FILE: Final = "features.json"  # of embeddings: the features' names, and what computed them
UNREADABLE_FILE: Final = "unreadable.parquet"  # of embeddings: fields that were left out, and why
_INDEX: Final = "shards/index.parquet"
_CHUNK = re.compile(r"(\d{8,})-(\d{8,})\.parquet")


def read_index(study: Study, columns: list[str] | None = None) -> pd.DataFrame:
    """``shards/index.parquet``: one row a field, sorted by key."""
    return study.require("shard").read_table(study.storage, _INDEX, columns)


def read_quality(study: Study) -> pd.DataFrame:
    """The key and the ``QC_*`` columns of the same."""
    import pyarrow.parquet as pq

    file = pq.ParquetFile(io.BytesIO(study.require("shard").read(study.storage, _INDEX)))
    quality = [name for name in file.schema_arrow.names if name.startswith(c.QC_PREFIX)]
    table: pd.DataFrame = file.read([c.KEY, *quality]).to_pandas()
    return table


def read_split(study: Study) -> pd.DataFrame:
    """``splits/NAME.parquet``: one row a well, with its side."""
    return study.require("split").read_table(study.storage, f"splits/{study.name}.parquet")


def chunk_file(first: int, last: int) -> str:
    """The file of the embeddings of the fields ``first`` to ``last`` (both in it) of the index."""
    return f"{first:08d}-{last:08d}.parquet"


def is_chunk_file(name: str) -> bool:
    """Whether a file's name is one of `chunk_file`."""
    return _CHUNK.fullmatch(name) is not None


def feature_names(count: int) -> list[str]:
    """Names for the features of an embedding, as its wide form has them: ``Embedding_0000`` and so on."""
    digits = max(4, len(str(count - 1)))
    return [f"{c.FEATURE_PREFIX}{number:0{digits}d}" for number in range(count)]


def read_embeddings(study: Study) -> tuple[pd.DataFrame, Features]:
    """All fields of ``embeddings/NAME/``, sorted by key, but for those that `read_unreadable` lists.

    Returns:
        The key, ``Metadata_*`` and ``Probability_*`` columns, and embeddings (N, F) float32, row-aligned.
    """
    import pyarrow as pa

    record = study.require("embed")
    paths = embedding_files(record)
    tables: list[pa.Table] = []
    rows = 0
    features: Features = np.empty((0, 0), np.float32)
    for path in paths:
        table, values = _parted(_read_arrow(study, record, path))
        if not tables:  # the last file's name tells how many fields there are at most
            features = np.empty((_range_of(paths[-1])[1] + 1, values.shape[1]), np.float32)
        features[rows : rows + len(values)] = values
        tables.append(table)
        rows += len(values)
    meta: pd.DataFrame = pa.concat_tables(tables, promote_options="permissive").to_pandas()
    features = features[:rows]
    if meta[c.KEY].is_monotonic_increasing:
        return meta, features
    order = meta[c.KEY].argsort(kind="stable").to_numpy()
    return meta.iloc[order].reset_index(drop=True), features[order]


def embedding_chunks(study: Study) -> Iterator[tuple[pd.DataFrame, Features]]:
    """The same file by file, in the order of keys, for what does not need all fields at once."""
    record = study.require("embed")
    for path in embedding_files(record):
        table, values = _parted(_read_arrow(study, record, path))
        yield table.to_pandas(), values


def embedding_files(record: StageRecord) -> list[str]:
    """The paths of the files with embeddings among a stage's outputs, in the order of the index."""
    return sorted(filter(lambda path: is_chunk_file(path.rpartition("/")[2]), record.outputs), key=_range_of)


def read_unreadable(study: Study) -> pd.DataFrame | None:
    """The fields that ``hcs-ray embed`` left out (key, shard, offset, reason); None where it was not to."""
    record, path = study.require("embed"), f"{study.place('embed').folder}/{UNREADABLE_FILE}"
    return record.read_table(study.storage, path) if path in record.outputs else None


def _range_of(path: str) -> tuple[int, int]:
    first, last = path.rpartition("/")[2].removesuffix(".parquet").split("-")
    return int(first), int(last)


def _read_arrow(study: Study, record: StageRecord, path: str) -> pa.Table:
    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(record.read(study.storage, path)))


def _parted(table: pa.Table) -> tuple[pa.Table, Features]:
    """A table without its embeddings, and these as (N, F) float32."""
    column = table[c.EMBEDDING].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    features = values.reshape(table.num_rows, column.type.list_size)
    return table.drop_columns([c.EMBEDDING]), features.astype(np.float32, copy=False)
