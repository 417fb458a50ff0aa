"""A run of a study, opened to be looked at: its fields, and which of them belong together."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import InputError
from hcs_ray.explore.columns import ColumnInfo, column_infos
from hcs_ray.joined import join
from hcs_ray.pictures.planes import camera_planes
from hcs_ray.screen.wells import well_position
from hcs_ray.shards.codec import Floats
from hcs_ray.shards.read import ShardReader
from hcs_ray.study import Study

Rows = npt.NDArray[np.intp]


_PLANES_BYTES: Final = 2**28  # of the fields whose planes are kept
_PAUSES: Final = (0.1,)  # before a damaged member is read again: a person waits


@dataclass(frozen=True, eq=False)
class Scene:
    """All tables of one run joined; opened once, shared by threads, never changed.

    Attributes:
        fields: One row a field, in the order of keys, numbered from 0: ``key``, ``Metadata_*``, ``QC_*``, the
            place of its member, ``side``, ``x``, ``y``, ``predicted_moa``, ``probability``, ``is_right``
            (nullable), ``unreadable`` (why a field has no embedding), ``outlier_score``, ``outlier_rank``,
            ``outlier_reason``, ``outlier_evidence``. What comes from a stage that was not run is absent.
        embeddings: (N, F) float32, row-aligned; NaN where a field could not be embedded, F = 0 without embed.
        missing: stage -> why it is not taken along: ``not run: hcs-ray map``, or stale and why.
    """

    study: Study
    fields: pd.DataFrame
    embeddings: npt.NDArray[np.float32]
    reader: ShardReader
    missing: dict[str, str]

    @property
    def channels(self) -> tuple[str, ...]:
        """The channels' names."""
        return self.reader.channels

    @property
    def keys(self) -> pd.Index[str]:
        """The fields' keys, in order."""
        return self._keys

    def row_of(self, key: str) -> int:
        """The row of a key; `InputError` where there is none."""
        try:
            return int(self._keys.get_loc(key))  # type: ignore[arg-type]
        except KeyError:
            raise InputError(f"{self.study.storage.url}: has no field {key}") from None

    def about(self, row: int) -> dict[str, Any]:
        """All columns of a field."""
        return {str(name): value for name, value in self.fields.iloc[row].items()}

    def columns(self) -> list[ColumnInfo]:
        """What a map can be coloured by."""
        return list(self._columns)

    def neighbours(self, row: int, k: int = 8) -> list[int]:
        """The ``k`` nearest others by the cosine of embeddings, nearest first; none without an embedding."""
        return [int(other) for other in self.nearest(row, k)[0]]

    def nearest(self, row: int, k: int) -> tuple[Rows, npt.NDArray[np.float32]]:
        """The same with their distances, 1 minus the cosine (k,); of equal ones the first in order."""
        length = self._lengths[row]
        if not length > 0:
            return np.empty(0, np.intp), np.empty(0, np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            cosine = (self.embeddings @ self.embeddings[row]) / (self._lengths * length)
        cosine[~(self._lengths > 0)] = -np.inf
        cosine[row] = -np.inf
        count = min(k, int((cosine > -np.inf).sum()))
        if count == 0:
            return np.empty(0, np.intp), np.empty(0, np.float32)
        limit = np.partition(cosine, len(cosine) - count)[len(cosine) - count]
        candidates = np.flatnonzero(cosine >= limit)
        chosen = candidates[np.argsort(-cosine[candidates], kind="stable")][:count]
        return chosen, np.asarray(1 - cosine[chosen], np.float32)

    def same_well(self, row: int) -> list[int]:
        """The other fields of a field's well, in order."""
        plate, well = self.fields[c.PLATE].iloc[row], self.fields[c.WELL].iloc[row]
        return [int(other) for other in self._wells[(plate, well)] if other != row]

    def same_treatment(self, row: int, limit: int = 24) -> list[int]:
        """Fields of the same treatment in other wells, at most ``limit``: of each well one, then another."""
        rows = self._treatments.get(self.fields[c.TREATMENT].iloc[row], np.empty(0, np.intp))
        own = set(self.same_well(row)) | {row}
        others = self.fields.iloc[[int(other) for other in rows if other not in own]]
        turn = others.groupby([c.PLATE, c.WELL], sort=False).cumcount()
        return [int(other) for other in turn.sort_values(kind="stable").index[:limit]]

    def controls_beside(self, row: int, limit: int = 8) -> list[int]:
        """Negative controls of the same plate, nearest wells first, at most ``limit``, without itself."""
        plate = str(self.fields[c.PLATE].iloc[row])
        rows = self._controls.get(plate, np.empty(0, np.intp))
        rows = rows[rows != row]
        here = self._positions[row]
        away = np.hypot(*(self._positions[rows] - here).T)
        return [int(other) for other in rows[np.argsort(away, kind="stable")][:limit]]

    def rows_of_compounds(self, compounds: Sequence[str]) -> Rows:
        """All fields of some compounds."""
        return np.flatnonzero(self.fields[c.COMPOUND].isin(list(compounds)).to_numpy())

    @functools.cached_property
    def planes(self) -> Callable[[int, bool], Floats]:
        """(row, corrected) -> (C, H, W) float32, camera units, not to be written to; the last are kept."""
        plane_bytes = 4 * int(np.prod(self.reader.shape))
        return functools.lru_cache(max(2, _PLANES_BYTES // plane_bytes))(self._read_planes)

    def _read_planes(self, row: int, corrected: bool) -> Floats:
        planes = camera_planes(self.reader, self.about(row), corrected)
        planes.flags.writeable = False
        return planes

    @functools.cached_property
    def _keys(self) -> pd.Index[str]:
        keys: pd.Index[str] = pd.Index(self.fields[c.KEY])
        return keys

    @functools.cached_property
    def _columns(self) -> list[ColumnInfo]:
        return column_infos(self.fields)

    @functools.cached_property
    def _lengths(self) -> npt.NDArray[np.float32]:
        if not self.embeddings.shape[1]:
            return np.full(len(self.embeddings), np.nan, np.float32)
        squares = np.einsum("nf,nf->n", self.embeddings, self.embeddings, dtype=np.float32)
        return np.asarray(np.sqrt(squares), np.float32)

    @functools.cached_property
    def _wells(self) -> dict[Any, Rows]:
        return _groups(self.fields, [c.PLATE, c.WELL])

    @functools.cached_property
    def _treatments(self) -> dict[Any, Rows]:
        return _groups(self.fields, c.TREATMENT)

    @functools.cached_property
    def _controls(self) -> dict[Any, Rows]:
        rows = np.flatnonzero((self.fields[c.PERT_TYPE] == c.NEGATIVE_CONTROL).to_numpy())
        plates = self.fields[c.PLATE].iloc[rows].astype(str).to_numpy()
        return {plate: rows[plates == plate] for plate in np.unique(plates).tolist()}

    @functools.cached_property
    def _positions(self) -> npt.NDArray[np.float32]:
        """Row and column of each field's well on its plate, (N, 2)."""
        names = self.fields[c.WELL].astype(str)
        codes, wells = pd.factorize(names)
        places = [well_position(str(well), self.study.storage.url) for well in wells]
        return np.array(places, np.float32)[codes]


def _groups(fields: pd.DataFrame, by: str | list[str]) -> dict[Any, Rows]:
    found = fields.groupby(by, sort=False).indices
    return {name: np.asarray(rows, np.intp) for name, rows in found.items()}


def open_scene(study: Study) -> Scene:
    """Read everything that there is of a run.

    Raises:
        InputError: there are no shards yet, or they are not complete.
    """
    joined = join(study)
    reader = ShardReader(study.storage, study.require("shard"), pauses=_PAUSES)
    return Scene(study, joined.fields, joined.embeddings, reader, joined.missing)
