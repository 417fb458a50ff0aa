"""The embeddings of a run, read chunk by chunk: all metadata fit in memory, all vectors need not."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.maps.landmarks import Rows
from hcs_ray.study import Study
from hcs_ray.tables import Features, embedding_chunks


class Embeddings:
    """All fields of a run, by key; a field's row is its position among them."""

    def __init__(self, study: Study) -> None:
        self._study = study
        parts = [_metadata(table) for table, _ in embedding_chunks(study)]
        self._ends = np.cumsum([len(part) for part in parts])
        self.fields: pa.Table = pa.concat_tables(parts, promote_options="permissive")
        """The key and ``Metadata_*`` of each field."""

    def __len__(self) -> int:
        return len(self.fields)

    def columns(self, *names: str) -> pd.DataFrame:
        """Some columns of all fields, those that are there, text as categories."""
        found = self.fields.select([name for name in names if name in self.fields.column_names])
        text = [name for name in found.column_names if pa.types.is_string(found.schema.field(name).type)]
        table: pd.DataFrame = found.to_pandas(categories=text)
        return table

    def rows(self, rows: Rows) -> pd.DataFrame:
        """All metadata of some fields."""
        table: pd.DataFrame = self.fields.take(pa.array(rows)).to_pandas()
        return table

    def features(self, rows: Rows) -> Features:
        """The embeddings (M, F) of some fields, in the order of ``rows``, which is ascending."""
        return np.concatenate([features for _, features in self.parts(rows)])

    def parts(self, rows: Rows) -> Iterator[tuple[Rows, Features]]:
        """The same, chunk by chunk: the rows of each that has any, and their embeddings.

        Raises:
            InputError: an embedding is not finite.
        """
        starts = [0, *map(int, self._ends)]
        cuts = np.searchsorted(rows, self._ends)
        chunks = zip(starts, np.split(rows, cuts[:-1]), embedding_chunks(self._study), strict=False)
        for start, wanted, (table, features) in chunks:
            if len(wanted):
                found = features[wanted - start]
                _check_finite(found, table[c.KEY].to_numpy()[wanted - start])
                yield wanted, found


def _metadata(table: pd.DataFrame) -> pa.Table:
    columns = [c.KEY, *(name for name in c.FIELD_COLUMNS if name in table.columns)]
    return pa.Table.from_pandas(table[columns], preserve_index=False).replace_schema_metadata(None)


def _check_finite(features: Features, keys: npt.NDArray[np.object_]) -> None:
    finite = np.isfinite(features).all(axis=1)
    if not finite.all():
        raise InputError(f"the embedding of {keys[~finite][0]} is not finite; train and embed again")
