"""Embeddings as AnnData (``.h5ad``), for scanpy and the rest of scverse.

One row a field: ``X`` holds the embeddings, ``obs`` metadata and probabilities, ``obsm["X_umap"]`` the map,
``uns["hcs_ray"]`` what all of it follows from. It is written chunk by chunk, element by element in AnnData's
on-disk format, so the embeddings need not fit in memory; their metadata do.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import anndata
import anndata.io
import h5py
import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.contracts import Progress
from hcs_ray.export.sources import Sources
from hcs_ray.maps import X, Y, read_map
from hcs_ray.stage import StageWriter

_PART_BYTES: Final = 8 * 2**20
_ROWS: Final = 256  # of a block of X in the file
_ENCODINGS: Final = {"encoding-type": "anndata", "encoding-version": "0.1.0"}


def write(sources: Sources, writer: StageWriter, progress: Progress) -> None:
    """Write ``<name>.h5ad``."""
    name = f"{sources.study.name}.h5ad"
    with tempfile.TemporaryDirectory(prefix="hcs-export-") as folder:
        file = Path(folder, name)
        _make(sources, file, progress)
        writer.write_parts(name, _parts(file))


def _make(sources: Sources, path: Path, progress: Progress) -> None:
    with h5py.File(path, "w") as file:
        file.attrs.update(_ENCODINGS)
        meta = _write_embeddings(sources, file, progress)
        parts: dict[str, Any] = {
            "obs": _plain(meta.set_index(c.KEY)),
            "var": pd.DataFrame(index=pd.Index(sources.features, dtype=object)),
            "obsm": {"X_umap": _places(sources, meta)} if "map" in sources.whole else {},
            "uns": {"hcs_ray": sources.lineage()},
            **{empty: {} for empty in ("varm", "obsp", "varp", "layers")},
        }
        for name, part in parts.items():
            anndata.io.write_elem(file, name, part)
    progress(len(meta), len(meta))


def _write_embeddings(sources: Sources, file: h5py.File, progress: Progress) -> pd.DataFrame:
    """X, row by row of chunks as they come; returns the metadata of all rows."""
    width = len(sources.features)
    matrix = file.create_dataset("X", (0, width), "f4", maxshape=(None, width), chunks=(_ROWS, width))
    matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
    metas = []
    for meta, features in sources.chunks():
        done = len(matrix)
        matrix.resize(done + len(features), axis=0)
        matrix[done:] = features
        metas.append(meta)
        progress(len(matrix), len(matrix) + 1)
    return pd.concat(metas, ignore_index=True)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Text as categories of plain strings, which every version of anndata reads; numbers as they are."""
    plain = {}
    for name, values in table.items():
        if pd.api.types.is_numeric_dtype(values.dtype) or pd.api.types.is_bool_dtype(values.dtype):
            plain[name] = values
        else:
            known = values.astype(object).where(values.notna(), None)
            categories = pd.Index(sorted({str(value) for value in known if value is not None}), dtype=object)
            plain[name] = pd.Series(pd.Categorical(known, categories=categories), index=table.index)
    return pd.DataFrame(plain, index=pd.Index(table.index.astype(object), name=table.index.name))


def _places(sources: Sources, meta: pd.DataFrame) -> np.ndarray[Any, Any]:
    """The map's coordinates (N, 2) float32; NaN for a field that is not on it."""
    places = read_map(sources.study).set_index(c.KEY)[[X, Y]]
    return places.reindex(meta[c.KEY]).to_numpy(np.float32)


def _parts(file: Path) -> Iterator[bytes]:
    with file.open("rb") as data:
        while part := data.read(_PART_BYTES):
            yield part
