"""Rows of the shards' index without all of it: by their numbers, and the controls of a plate."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterator
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hcs_ray import contracts as c
from hcs_ray.contracts import HcsError
from hcs_ray.storage import Storage
from hcs_ray.study import Study

INDEX: Final = "shards/index.parquet"
_PART_BYTES: Final = 8 * 2**20
_PLACE: Final = (c.SHARD, c.OFFSET, c.SIZE, c.SHA256)


def check_index(study: Study) -> None:
    """`HcsError` where the index is not the one that ``hcs-ray shard`` wrote; read in parts, and not kept."""
    listed = study.require("shard").outputs[INDEX]
    if not listed.matches(_parts(study.storage)):
        raise _damaged(study.storage, "it does not match shard's stage record")


def _parts(storage: Storage) -> Iterator[bytes]:
    with storage.open(INDEX) as file:
        while part := file.read(_PART_BYTES):
            yield part


def _damaged(storage: Storage, why: str) -> HcsError:
    return HcsError(f"{storage.url}/{INDEX} is damaged: {why}; make it again with hcs-ray shard --force")


class IndexReader:
    """Key, ``Metadata_*`` and place of fields, by ranged reads of the groups of rows that hold them.

    The last group read is kept, since chunks of the index are mostly read in order.

    Raises:
        HcsError: what is read is damaged.
    """

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        try:
            self._file = pq.ParquetFile(storage.open(INDEX), page_checksum_verification=True)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(storage, str(error)) from None
        groups = [self._file.metadata.row_group(number) for number in range(self._file.num_row_groups)]
        self._begins = [0, *itertools.accumulate(group.num_rows for group in groups)]
        names = self._file.schema_arrow.names
        self._columns = [c.KEY, *c.metadata_columns(names), *_PLACE]
        self._plate_column = [column.path for column in self._file.schema].index(c.PLATE)
        self._kept: tuple[int, pa.Table] | None = None

    @property
    def fields(self) -> int:
        """How many there are."""
        return int(self._file.metadata.num_rows)

    def rows(self, first: int, last: int) -> pa.Table:
        """The rows ``first`` to ``last``, both in it, in the order of keys."""
        numbers = range(bisect.bisect(self._begins, first) - 1, bisect.bisect(self._begins, last))
        table = pa.concat_tables([self._group(number) for number in numbers])
        return table.slice(first - self._begins[numbers[0]], last - first + 1)

    def controls(self, plate: str) -> pa.Table:
        """The negative controls of a plate, in the order of keys; none where it has none."""
        found = []
        for number in range(self._file.num_row_groups):
            if self._may_hold(number, plate):
                group = self._group(number)
                is_control = pc.equal(group[c.PERT_TYPE], c.NEGATIVE_CONTROL)
                found.append(group.filter(pc.and_kleene(pc.equal(group[c.PLATE], plate), is_control)))
        return pa.concat_tables(found)

    def _may_hold(self, number: int, plate: str) -> bool:
        about = self._file.metadata.row_group(number).column(self._plate_column).statistics
        return about is None or not about.has_min_max or about.min <= plate <= about.max

    def _group(self, number: int) -> pa.Table:
        if self._kept is None or self._kept[0] != number:
            try:
                self._kept = number, self._file.read_row_group(number, self._columns, use_threads=False)
            except (pa.ArrowException, OSError) as error:
                raise _damaged(self._storage, str(error)) from None
        return self._kept[1]
