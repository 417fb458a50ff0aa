"""Normalisation: wells from a stream, whitening that the controls shrink, alignment of batches."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hcs_ray.contracts import (
    BATCH,
    KEY,
    MOA,
    PLATE,
    SITE,
    WELL,
    HcsError,
    InputError,
    field_key,
)
from hcs_ray.profiles.aggregate import How, to_wells
from hcs_ray.profiles.stream import Chunk, wells_of

# --- Streaming --------------------------------------------------------------------------------------------


def _fields(seed: int) -> Chunk:
    """Fields sorted by key; the plates' names make the keys of one plate fall between those of another."""
    random = np.random.default_rng(seed)
    rows = [
        (plate, well, site)
        for plate in ("P", "P_B02", "P_B02_s1", "P_B02_s1_s", "Q 1")
        for well in ("B02", "B03", "C02")
        for site in random.permutation(12)[: random.integers(1, 12)] + 1
    ]
    meta = pd.DataFrame(rows, columns=[PLATE, WELL, SITE])
    meta[KEY] = [field_key(*row) for row in rows]
    meta[BATCH] = "b" + meta[PLATE].str[0]
    meta[MOA] = pd.Series([None if well == "C02" else well for well in meta[WELL]], dtype=object)
    meta = meta.sort_values(KEY, ignore_index=True)
    return meta, random.normal(size=(len(meta), 3)).astype(np.float32)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 40),
    st.sampled_from(["mean", "median"]),
    st.integers(1, 4),
    st.booleans(),
)
def test_streamed_wells_are_those_of_all_fields_at_once(
    seed: int, size: int, how: How, minimum: int, drop: bool
) -> None:
    meta, features = _fields(seed)
    kept = np.random.default_rng(seed).random(len(meta)) < (0.6 if drop else 2.0)
    if not kept.any():
        return
    by_key = dict(zip(meta[KEY], kept, strict=True))
    chunks = [
        (meta[start : start + size].reset_index(drop=True), features[start : start + size])
        for start in range(0, len(meta), size)
    ]
    asked: list[str] = []

    def keep(part: pd.DataFrame) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
        asked.extend(part[KEY])
        return np.array([by_key[key] for key in part[KEY]], dtype=bool)

    wells, values = wells_of(chunks, how, minimum, keep if drop else None)
    expected, numbers = to_wells(meta[kept].reset_index(drop=True), features[kept], how, minimum)
    pd.testing.assert_frame_equal(wells, expected)
    np.testing.assert_array_equal(values, numbers)
    assert asked == (meta[KEY].tolist() if drop else [])


def test_fields_out_of_order_and_none_at_all_are_refused() -> None:
    meta, features = _fields(seed=3)
    rows = np.r_[len(meta) // 2 : len(meta), 0 : len(meta) // 2]
    chunks = [
        (meta.iloc[[row]].reset_index(drop=True), features[[row]])
        for row in (*rows[::2].tolist(), *rows[1::2].tolist())
    ]
    with pytest.raises(HcsError, match="not in the order of keys"):
        wells_of(chunks, "mean")
    with pytest.raises(InputError, match="no field is left"):
        wells_of([(meta, features)], "mean", 1, lambda part: np.zeros(len(part), dtype=bool))
