"""`hcs-ray map`: all fields of a study laid out in the plane by UMAP, for the eye; nothing is measured on it.

Of a large table landmarks are laid out, and all other fields placed among them, chunk by chunk.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from hcs_ray import contracts as c
from hcs_ray.config import MapConfig
from hcs_ray.contracts import Progress
from hcs_ray.maps.about import METADATA, MapAbout
from hcs_ray.maps.landmarks import Rows, choose_landmarks, landmarks_used
from hcs_ray.maps.layout import NO_LABEL, Labels, Layout, Places, compile_umap, lay_out
from hcs_ray.maps.reading import Embeddings
from hcs_ray.progress import tell
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import Study

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

__all__ = ["MapAbout", "X", "Y", "laid_out", "make_map", "map_bytes", "moa_labels", "read_about", "read_map"]

X: Final = "x"
Y: Final = "y"


def make_map(study: Study, progress: Progress, force: bool = False) -> dict[str, Any]:
    """Write ``maps/NAME.parquet``: one row a field, its key, ``Metadata_*``, ``x`` and ``y`` (float32).

    Its schema's metadata say how it was made (`read_about`).
    """
    claim = study.claim("map")
    if force or not study.is_complete("map", claim):
        embeddings = Embeddings(study)
        landmarks_used(len(embeddings), study.config.map)  # refused before anything is written over
        with study.writing("map", claim, force) as writer:
            table, about = _draw(embeddings, study.config.map, progress)
            writer.write(f"{study.name}.parquet", map_bytes(table, about))
    return _figures(read_about(study), study.config.map)


def read_map(study: Study) -> pd.DataFrame:
    """``maps/NAME.parquet``."""
    return study.require("map").read_table(study.storage, f"maps/{study.name}.parquet")


def read_about(study: Study) -> MapAbout:
    """How ``maps/NAME.parquet`` was made."""
    import pyarrow.parquet as pq

    data = study.require("map").read(study.storage, f"maps/{study.name}.parquet")
    return MapAbout.model_validate_json(pq.read_schema(io.BytesIO(data)).metadata[METADATA])


def map_bytes(table: pa.Table, about: MapAbout) -> bytes:
    """A map as its Parquet file, with how it was made."""
    metadata = {**(table.schema.metadata or {}), METADATA: about.model_dump_json().encode()}
    return parquet_bytes(table.replace_schema_metadata(metadata))


def laid_out(embeddings: Embeddings, config: MapConfig) -> tuple[Rows, Layout]:
    """Choose the landmarks among all fields, and lay them out.

    Raises:
        InputError: what `hcs_ray.maps.landmarks.choose_landmarks` and `hcs_ray.maps.layout.lay_out` refuse.
    """
    fields = embeddings.columns(c.KEY, c.PLATE, c.TREATMENT, c.MOA, c.PERT_TYPE)
    landmarks = choose_landmarks(fields, config)
    labels = moa_labels(fields.iloc[landmarks]) if config.supervised == "moa" else None
    return landmarks, lay_out(embeddings.features(landmarks), config, labels)


def moa_labels(fields: pd.DataFrame) -> Labels:
    """A class for each MoA (N,); controls and fields without a MoA have `hcs_ray.maps.layout.NO_LABEL`."""
    import pandas as pd

    known = fields[c.MOA].notna() & (fields[c.PERT_TYPE] != c.NEGATIVE_CONTROL)
    codes = pd.factorize(fields[c.MOA].astype(object), sort=True)[0]
    return np.where(known, codes, NO_LABEL).astype(np.int64)


def _draw(embeddings: Embeddings, config: MapConfig, progress: Progress) -> tuple[pa.Table, MapAbout]:
    import pyarrow as pa

    count = len(embeddings)
    progress(0, count)
    tell(progress, "compiling UMAP, once a process")
    compile_umap(config.densmap, config.supervised != "none")
    tell(progress, f"laying out {landmarks_used(count, config)} fields")
    landmarks, layout = laid_out(embeddings, config)
    progress(len(landmarks), count)
    places = np.empty((count, 2), np.float32)
    places[landmarks] = layout.places
    _place_others(embeddings, layout, landmarks, places, progress)
    table = embeddings.fields
    for name, column in zip((X, Y), places.T, strict=True):
        table = table.append_column(name, pa.array(np.ascontiguousarray(column)))
    return table, MapAbout.of(config, count, len(landmarks), layout.neighbors)


def _place_others(
    embeddings: Embeddings, layout: Layout, landmarks: Rows, places: Places, progress: Progress
) -> None:
    count, done = len(places), len(landmarks)
    others: npt.NDArray[np.bool_] = np.ones(count, np.bool_)
    others[landmarks] = False
    if done == count:
        return
    tell(progress, f"placing the others among {done} landmarks")
    for rows, features in embeddings.parts(np.flatnonzero(others)):
        places[rows] = layout.place(features)
        done += len(rows)
        progress(done, count)


def _figures(about: MapAbout, config: MapConfig) -> dict[str, Any]:
    """For the terminal: what was drawn, and what was not as it was asked for."""
    clipped = f" (of {config.neighbors} asked for: all others)" if about.neighbors < config.neighbors else ""
    figures: dict[str, Any] = {"fields": about.fields}
    if about.landmarks < about.fields:
        figures["landmarks"] = about.landmarks
    figures["neighbors"] = f"{about.neighbors}{clipped}" if clipped else about.neighbors
    if about.uses_labels:
        figures["USES LABELS"] = "supervised by MoA: that MoAs lie apart on it is no finding"
    return figures
