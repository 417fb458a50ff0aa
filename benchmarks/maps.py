"""Time and memory of `hcs-ray map` on drawn embeddings.

    python benchmarks/maps.py 1000000 --set map.threads=2

Embeddings of 512 features: 200 clusters within 30 directions, and noise. They are written as `hcs-ray embed`
writes them, and then mapped. Memory is the largest resident set of the process
that maps, above what it held before.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from hcs_ray import contracts as c
from hcs_ray.maps import make_map
from hcs_ray.session import prepare_environment
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import open_study
from hcs_ray.tables import chunk_file

FEATURES, CHUNK, WELLS = 512, 512, 384


def main() -> None:
    """Draw, map and tell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("fields", type=int)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    given = parser.parse_args()
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder), given.fields)
        study = open_study(folder, overrides=given.overrides)
        began, before = time.monotonic(), resident_mb()
        used = time.process_time()
        told: list[tuple[float, int]] = []
        make_map(study, lambda done, total: told.append((time.process_time() - used, done)))
        seconds, used = time.monotonic() - began, time.process_time() - used
        size = (Path(folder) / "maps/main.parquet").stat().st_size
    laid_out = told[1]
    print(
        f"{given.fields} fields: {seconds:.0f} s, {used:.0f} s of CPU: {told[0][0]:.0f} to read all, "
        f"{laid_out[0] - told[0][0]:.0f} to compile and lay out {laid_out[1]}, "
        f"{told[-1][0] - laid_out[0]:.0f} to place the others; "
        f"{resident_mb() - before:.0f} MB more than before, {size / 1e6:.0f} MB written"
    )


def resident_mb() -> float:
    """The largest resident set so far, in 1e6 bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def write(folder: Path, fields: int) -> None:
    """A study whose stages up to embed are complete."""
    (folder / "study.yaml").write_text("{}")
    study = open_study(str(folder))
    for stage in ("shard", "split", "train"):
        with study.writing(stage, study.claim(stage)):
            pass
    with study.writing("embed", study.claim("embed")) as writer:
        for first, table in drawn(fields):
            writer.write(chunk_file(first, first + len(table) - 1), parquet_bytes(table))


def drawn(fields: int) -> Iterator[tuple[int, pa.Table]]:
    """The first row of each chunk, and the chunk."""
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(30, FEATURES)).astype(np.float32)
    centres = rng.normal(size=(200, 30)).astype(np.float32)
    for first in range(0, fields, CHUNK):
        number = np.arange(first, min(first + CHUNK, fields))
        plate, cluster = number // WELLS, number % 200
        spread = 0.4 * rng.normal(size=(len(number), 30)).astype(np.float32)
        rows = (centres[cluster] + spread) @ directions
        rows += rng.normal(size=rows.shape).astype(np.float32)
        table = pd.DataFrame(
            {
                c.KEY: [f"P{p:05d}_{w:03d}_s1" for p, w in zip(plate, number % WELLS, strict=True)],
                c.PLATE: [f"P{p:05d}" for p in plate],
                c.WELL: [f"{w:03d}" for w in number % WELLS],
                c.BATCH: [f"W{p % 10}" for p in plate],
                c.COMPOUND: [f"compound{n}" for n in cluster],
                c.TREATMENT: [f"compound{n}@1" for n in cluster],
                c.MOA: [f"moa{n % 20}" for n in cluster],
                c.PERT_TYPE: c.TREATED,
            }
        )
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), FEATURES)
        found = pa.Table.from_pandas(table, preserve_index=False)
        yield first, found.append_column(c.EMBEDDING, vectors)


if __name__ == "__main__":
    main()
