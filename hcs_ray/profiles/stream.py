"""Fields to wells, chunk by chunk: a screen's embeddings need not fit in memory, its wells do."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from hcs_ray.contracts import KEY, PLATE, WELL, HcsError, InputError
from hcs_ray.profiles.aggregate import FIELDS, Float64, How, to_wells
from hcs_ray.study import Study
from hcs_ray.tables import Features, embedding_chunks

Chunk = tuple[pd.DataFrame, Features]
Keep = Callable[[pd.DataFrame], npt.NDArray[np.bool_]]


def stream_wells(
    study: Study, how: How, minimum: int = 1, keep: Keep | None = None
) -> tuple[pd.DataFrame, Float64]:
    """The wells of ``embeddings/NAME/``, equal to ``to_wells`` of ``read_embeddings``.

    Only one chunk and the fields of the well at its end are held at a time, beside the wells themselves.

    Args:
        study: With complete embeddings.
        how: Mean or median of a well's fields.
        minimum: Wells of fewer (kept) fields are left out.
        keep: Takes the metadata of some fields (key, ``Metadata_*``, ``Probability_*``) and says which of
            them count, a bool a row; none: all. It is called once a chunk, so that it can count.

    Returns:
        One row a well, sorted by plate and well, with ``Metadata_Fields``; and features (W, F) float64.

    Raises:
        InputError: no field is kept, or an embedding is not finite.
        HcsError: the chunks are not in the order of keys.
    """
    return wells_of(embedding_chunks(study), how, minimum, keep)


def wells_of(
    chunks: Iterable[Chunk], how: How, minimum: int = 1, keep: Keep | None = None
) -> tuple[pd.DataFrame, Float64]:
    """As ``stream_wells``, of any chunks of fields (metadata, embeddings) that are in the order of keys."""
    blocks = [to_wells(meta, features, how) for meta, features in _whole_wells(chunks, keep)]
    if not blocks:
        raise InputError("no field is left to make wells of")
    # A column is kept where it is constant within every well: what a block has dropped is dropped in all.
    columns = [name for name in blocks[0][0].columns if all(name in meta.columns for meta, _ in blocks)]
    wells = pd.concat([meta[columns] for meta, _ in blocks], ignore_index=True)
    if wells.duplicated([PLATE, WELL]).any():
        raise HcsError("the fields of a well lie apart: the embeddings are not in the order of keys")
    features = np.concatenate([values for _, values in blocks])
    del blocks  # as large as all wells
    order = wells.sort_values([PLATE, WELL]).index.to_numpy()
    order = order[wells[FIELDS].to_numpy()[order] >= minimum]
    if not np.array_equal(order, np.arange(len(wells))):
        wells, features = wells.iloc[order].reset_index(drop=True), features[order]
    return wells, features


def _whole_wells(chunks: Iterable[Chunk], keep: Keep | None) -> Iterator[Chunk]:
    """The kept fields again, cut so that no well lies in two blocks."""
    waiting: list[Chunk] = []
    for meta, features in chunks:
        if meta.empty:  # all its fields were unreadable
            continue
        last = str(meta[KEY].iloc[-1])
        kept = np.ones(len(meta), dtype=bool) if keep is None else keep(meta)
        waiting.append((meta[kept], features[kept]))
        fields, values = _joined(waiting)
        # Fields of one well share the beginning of their keys, and in the order of keys such keys are
        # neighbours: a well goes on only where the last key begins like its own.
        goes_on = np.array([last.startswith(_well_prefix(key)) for key in fields[KEY]], dtype=bool)
        waiting = [(fields[goes_on], values[goes_on])]
        if not goes_on.all():
            yield fields[~goes_on], values[~goes_on]
    if waiting and len(waiting[0][0]):
        yield waiting[0]


def _joined(chunks: list[Chunk]) -> Chunk:
    filled = [chunk for chunk in chunks if len(chunk[0])] or chunks[:1]
    return (
        pd.concat([meta for meta, _ in filled], ignore_index=True),
        np.concatenate([features for _, features in filled]),
    )


def _well_prefix(key: str) -> str:
    """``Week1_22123_B02_s`` of ``Week1_22123_B02_s1``, see ``hcs_ray.contracts.field_key``."""
    return key.rpartition("_s")[0] + "_s"
