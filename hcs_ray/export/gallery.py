"""Embeddings and profiles in the folder layout of the Cell Painting Gallery.

Its description (https://broadinstitute.github.io/cellpainting-gallery/data_structure.html, ``workspace_dl``):

    <project>/<source>/workspace_dl/
      embeddings/<network>_<hash>/<batch>/<plate>/<well>-<site>/embedding.parquet
      profiles/<network>_<hash>/<batch>/<plate>/<plate>.parquet       wells, as they are
                                               <plate>_augmented.parquet      with all metadata
                                               <plate>_normalized_negcon.parquet
      collated/<network>_<hash>/collated.parquet                      normalised wells of all plates
      consensus/<network>_<hash>/consensus.parquet                    treatments

The suffixes are those of the profiling recipe. Every file has a column a feature, named as in
``features.json``, beside ``Metadata_*``. Names of plates, batches and sources become safe names of folders.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa

from hcs_ray import contracts as c
from hcs_ray.config import StudyConfig
from hcs_ray.contracts import Progress
from hcs_ray.export.sources import Sources, stacked, wide
from hcs_ray.profiles.aggregate import to_wells
from hcs_ray.profiles.normalize import normalize
from hcs_ray.profiles.stream import stream_wells
from hcs_ray.stage import StageWriter, parquet_bytes
from hcs_ray.tables import Features, read_index, read_unreadable

_WRITERS: Final = 8
# Of each plate, feature by feature.
_BY_CONTROLS: Final = frozenset({"center", "center_scale", "standardize", "mad_robustize"})


class _Table(NamedTuple):
    meta: pd.DataFrame
    features: Features


class _Layout(NamedTuple):
    """Where the files of a plate lie, below the export's folder."""

    project: str
    network: str

    def folder(self, kind: str, source: str) -> str:
        return f"{self.project}/{source}/workspace_dl/{kind}/{self.network}"

    def plate(self, kind: str, meta: pd.DataFrame) -> str:
        """The folder of the plate whose rows these are."""
        source, batch, plate = (_name_of(meta, name) for name in (c.SOURCE, c.BATCH, c.PLATE))
        return f"{self.folder(kind, source)}/{batch}/{plate}"


def config_of(config: StudyConfig) -> dict[str, Any]:
    """What the files depend on, beside the stages they are made from."""
    return {
        "export": config.export.model_dump(mode="json", include={"project", "field_files"}),
        "profile": {"well_aggregate": config.profile.well_aggregate},
    }


def write(sources: Sources, writer: StageWriter, progress: Progress) -> None:
    """Write the layout, a plate at a time."""
    config = sources.study.config.export
    about = sources.about
    layout = _Layout(config.project, f"{about['network']}_{about['model_sha256'][:7]}")
    sizes = _plate_sizes(sources)
    done, total = 0, sum(sizes.values())
    how = sources.study.config.profile.well_aggregate
    for plate in _plates(sources, sizes):
        if config.field_files:
            _write_fields(writer, layout, plate, sources.features)
        wells, profiles = to_wells(plate.meta, plate.features, how)
        _write_wells(writer, layout, _Table(wells, profiles.astype(np.float32)), sources.features)
        done += len(plate.meta)
        progress(done, total)
    if "profile" in sources.whole:
        _write_profiles(sources, writer, layout)


def _plate_sizes(sources: Sources) -> dict[str, int]:
    """How many embedded fields each plate has."""
    index = read_index(sources.study, [c.KEY, c.PLATE])
    unreadable = read_unreadable(sources.study)
    if unreadable is not None:
        index = index[~index[c.KEY].isin(unreadable[c.KEY])]
    return {str(plate): int(size) for plate, size in index[c.PLATE].value_counts().items()}


def _plates(sources: Sources, sizes: dict[str, int]) -> Iterator[_Table]:
    """Each plate as soon as its last field is there; in the order of keys two plates may interleave."""
    waiting: dict[str, list[_Table]] = {}
    for meta, features in sources.chunks():
        for plate, rows in meta.groupby(c.PLATE, sort=True).indices.items():
            parts = waiting.setdefault(str(plate), [])
            parts.append(_Table(meta.iloc[rows], features[rows]))
            if sum(len(part.meta) for part in parts) == sizes[str(plate)]:
                del waiting[str(plate)]
                yield _Table(
                    pd.concat([part.meta for part in parts], ignore_index=True),
                    np.concatenate([part.features for part in parts]),
                )


def _write_fields(writer: StageWriter, layout: _Layout, plate: _Table, names: list[str]) -> None:
    folder = layout.plate("embeddings", plate.meta)
    table = wide(plate.meta[c.metadata_columns(plate.meta)], plate.features, names)
    fields = pa.Table.from_pandas(table, preserve_index=False)
    places = [f"{well}-{site}" for well, site in zip(plate.meta[c.WELL], plate.meta[c.SITE], strict=True)]

    def put(row: int) -> None:
        writer.write(
            f"{folder}/{c.safe_name(places[row])}/embedding.parquet", parquet_bytes(fields.slice(row, 1))
        )

    with ThreadPoolExecutor(_WRITERS, thread_name_prefix="export") as pool:
        list(pool.map(put, range(len(places))))


def _write_wells(writer: StageWriter, layout: _Layout, wells: _Table, names: list[str]) -> None:
    """The aggregated wells, bare and with all metadata."""
    file = f"{layout.plate('profiles', wells.meta)}/{_name_of(wells.meta, c.PLATE)}"
    meta = wells.meta[c.metadata_columns(wells.meta)]
    writer.write_table(f"{file}.parquet", wide(meta[[c.PLATE, c.WELL]], wells.features, names))
    writer.write_table(f"{file}_augmented.parquet", wide(meta, wells.features, names))


def _write_profiles(sources: Sources, writer: StageWriter, layout: _Layout) -> None:
    """The normalised wells of ``hcs-ray profile``, by plate and all together, and its treatments."""
    study = sources.study
    record, folder = study.require("profile"), study.place("profile").folder
    method = str(record.config["profile"]["normalization"])
    wells = _Table(*stacked(record.read_table(study.storage, f"{folder}/well.parquet")))
    names = _names(sources, method, wells)
    suffix = "normalized_negcon" if method in _BY_CONTROLS else f"normalized_{c.safe_name(method)}"
    for _, rows in wells.meta.groupby(c.PLATE, sort=True).indices.items() if method != "none" else ():
        meta = wells.meta.iloc[rows].reset_index(drop=True)
        file = f"{layout.plate('profiles', meta)}/{_name_of(meta, c.PLATE)}_{suffix}.parquet"
        writer.write_table(file, wide(_metadata(meta), wells.features[rows], names))
    treatments = _Table(*stacked(record.read_table(study.storage, f"{folder}/treatment.parquet")))
    source = _only_source(wells.meta)
    for kind, file, table in (("collated", "collated", wells), ("consensus", "consensus", treatments)):
        path = f"{layout.folder(kind, source)}/{file}.parquet"
        writer.write_table(path, wide(_metadata(table.meta), table.features, names))


def _metadata(meta: pd.DataFrame) -> pd.DataFrame:
    return meta[c.metadata_columns(meta)]


def _names(sources: Sources, method: str, wells: _Table) -> list[str]:
    """Names of the profiles' features: the embedding's where they are the same, each by itself rescaled.

    Where features without spread were dropped, their names are found by normalising the wells once more.
    """
    known, count = sources.features, wells.features.shape[1]
    if method in (*_BY_CONTROLS, "none") and count == len(known):
        return known
    if method in _BY_CONTROLS:
        study = sources.study
        again = normalize(*stream_wells(study, study.config.profile.well_aggregate), method)  # type: ignore[arg-type]
        names = [name for name, kept in zip(known, again.kept, strict=True) if kept]
        if again.features.shape == wells.features.shape and np.allclose(again.features, wells.features, 1e-4):
            return names
    return [f"Normalized_{number:04d}" for number in range(count)]


def _only_source(meta: pd.DataFrame) -> str:
    """The source of a table, or ``all`` where it has several."""
    several = c.SOURCE in meta and meta[c.SOURCE].nunique() > 1
    return "all" if several else _name_of(meta, c.SOURCE)


def _name_of(meta: pd.DataFrame, column: str) -> str:
    """What a column says of all rows, as a name of a folder; ``unknown`` where it says nothing."""
    values = meta[column].dropna() if column in meta else pd.Series(dtype=object)
    return c.safe_name(str(values.iloc[0]) if len(values) else "") or "unknown"
