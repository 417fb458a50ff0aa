"""A study as far as its embeddings, for what follows from them alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hcs_ray import contracts as c
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import Study, open_study
from hcs_ray.tables import chunk_file


def drawn_fields(count: int = 240, seed: int = 0) -> tuple[pd.DataFrame, npt.NDArray[np.float32]]:
    """Six compounds of three MoAs, and controls, on six plates of three weeks; embeddings (N, 8) of noise."""
    rng = np.random.default_rng(seed)
    compound = np.arange(count) % 8  # 6 and 7: DMSO
    plate = np.arange(count) // 8 % 6
    names = ["DMSO" if n > 5 else f"c{n}" for n in compound]
    table = pd.DataFrame(
        {
            c.KEY: [f"P{p}_{n:05d}_s1" for n, p in enumerate(plate)],
            c.PLATE: [f"P{p}" for p in plate],
            c.WELL: [f"w{n}" for n in range(count)],
            c.BATCH: [f"W{p // 2}" for p in plate],
            c.COMPOUND: names,
            c.TREATMENT: [f"{name}@1" for name in names],
            c.MOA: [None if n > 5 else f"m{n % 3}" for n in compound],
            c.PERT_TYPE: [c.NEGATIVE_CONTROL if n > 5 else c.TREATED for n in compound],
        }
    ).sort_values(c.KEY, ignore_index=True)
    return table, rng.normal(size=(count, 8)).astype(np.float32)


def embedded_study(
    folder: Path, table: pd.DataFrame, features: npt.NDArray[np.float32], text: str = "", chunk: int = 50
) -> Study:
    """A study with this configuration whose stages up to embed are complete; only embed has written files."""
    (folder / "study.yaml").write_text(text)
    study = open_study(str(folder))
    for stage in ("shard", "split", "train"):
        with study.writing(stage, study.claim(stage)):
            pass
    with study.writing("embed", study.claim("embed")) as writer:
        for first in range(0, len(table), chunk):
            rows = slice(first, first + chunk)
            part = pa.Table.from_pandas(table[rows], preserve_index=False)
            vectors = pa.FixedSizeListArray.from_arrays(pa.array(features[rows].ravel()), features.shape[1])
            data = parquet_bytes(part.append_column(c.EMBEDDING, vectors))
            writer.write(chunk_file(first, first + len(part) - 1), data)
    return study
