"""What the stage reads: fields, embeddings in few components, quality columns, split and map."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.config import OutliersConfig
from hcs_ray.contracts import InputError
from hcs_ray.outliers.artefacts import WELL_NAME
from hcs_ray.outliers.left_out import EXCLUDED
from hcs_ray.outliers.space import Reduction
from hcs_ray.profiles.aggregate import Floats
from hcs_ray.study import Study
from hcs_ray.tables import embedding_chunks, read_quality, read_split


@dataclass(frozen=True)
class Screen:
    """A screen's fields (N rows: key and ``Metadata_*``) with their embeddings (N, K), row-aligned.

    ``index`` has the ``QC_*`` columns by key, ``places`` the map (key, x, y) where there is one. A column
    ``trained`` of ``fields`` says of which the network learned the label. ``left_out`` has the fields that
    labels leave out, with the reason in `EXCLUDED`: they are not in the others.
    """

    fields: pd.DataFrame
    embeddings: Floats
    index: pd.DataFrame
    places: pd.DataFrame | None = None
    left_out: pd.DataFrame = field(default_factory=pd.DataFrame)

    def by_key(self) -> Screen:
        """Sorted by key, with the names of wells."""
        order = np.argsort(self.fields[c.KEY].to_numpy(dtype=str), kind="stable")
        fields = self.fields.iloc[order].reset_index(drop=True)
        fields[WELL_NAME] = fields[c.PLATE].astype(str) + "_" + fields[c.WELL].astype(str)
        return replace(self, fields=fields, embeddings=self.embeddings[order])


def read_screen(study: Study, config: OutliersConfig, with_map: bool) -> Screen:
    """The screen of a run; embeddings of more than ``config.components`` features are reduced to so many.

    InputError: labels leave out every field.
    """
    reduction = Reduction(config.components)
    reduction.fit(_plates(study))
    tables, parts, left_out = [], [], []
    for table, values in embedding_chunks(study):
        about = table[[name for name in table if name == c.KEY or str(name).startswith(c.METADATA_PREFIX)]]
        kept = _kept(study, table)
        tables.append(about[kept])
        left_out.append(about[~kept])
        parts.append(reduction.apply(values[kept]))
    fields = pd.concat(tables, ignore_index=True)
    if fields.empty:
        raise InputError("labels.exclude leaves no field to compare; leave out less")
    split = read_split(study)
    trained = split[split[c.SIDE] == c.TRAIN][[c.PLATE, c.WELL]].assign(trained=True)
    fields = fields.merge(trained, on=[c.PLATE, c.WELL], how="left")
    fields["trained"] = fields["trained"].notna() & fields[c.MOA].notna()
    places = (
        study.require("map").read_table(study.storage, f"maps/{study.name}.parquet") if with_map else None
    )
    reasons = study.excluded().reasons
    out = pd.concat(left_out, ignore_index=True)
    out[EXCLUDED] = [", ".join(reasons[key]) for key in out[c.KEY]]
    return Screen(fields, np.concatenate(parts), read_quality(study), places, out)


def _kept(study: Study, table: pd.DataFrame) -> npt.NDArray[np.bool_]:
    return ~table[c.KEY].isin(study.excluded().reasons.keys()).to_numpy(dtype=bool)


def _plates(study: Study) -> Iterator[Floats]:
    """The embeddings of each chunk, a plate's at a time: so a plate's shift is no component."""
    for table, values in embedding_chunks(study):
        _check_finite(table, values)
        kept = _kept(study, table)
        for rows in table[kept].groupby(c.PLATE, sort=True).indices.values():
            yield values[kept][rows]


def _check_finite(table: pd.DataFrame, values: Floats) -> None:
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        key = table[c.KEY].iloc[int(np.flatnonzero(~finite)[0])]
        raise InputError(f"{key}: its embedding is not finite; train and embed again")
