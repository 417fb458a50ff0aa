"""Peak memory of the driver of `hcs-ray embed`, for indices of several lengths.

    python benchmarks/embedding_driver.py [--fields 10000 100000 1000000] [--folder /somewhere/with/2/GB]

The index has the columns of a real one (42 of quality among them) and no images behind it: the actors write
every chunk, of 512 fields and 512 features, without a network. All else is the stage itself: the check of the
index, Ray Data, the chunks that are read again and listed. Each length is embedded by a process of its own,
whose peak resident set is told (VmHWM; Linux): where nothing was there before, and where a third was. Prints
Markdown.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from hcs_ray import contracts as c
from hcs_ray.embed import embed
from hcs_ray.embed.chunks import chunk_table
from hcs_ray.embed.index import IndexReader
from hcs_ray.session import prepare_environment
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import Study, open_study
from hcs_ray.tables import chunk_file

FEATURES, QUALITY = 512, 42
FIELDS_A_PLATE = 384 * 9
GROUP_ROWS = 8192  # as hcs-ray shard writes its index
CLASSES = tuple(f"MoA {n}" for n in range(12))


def make_study(folder: Path, fields: int) -> None:
    """The index of a screen, and stages before that hold no more."""
    (folder / "study.yaml").write_text(json.dumps({"embed": {"workers": 2, "cpus_per_worker": 0.5}}))
    study = open_study(str(folder))
    number, rng = np.arange(fields), np.random.default_rng(0)
    plate = number // FIELDS_A_PLATE
    well, site = number % FIELDS_A_PLATE // 9, number % 9 + 1
    table = pd.DataFrame(
        {
            c.KEY: [f"P{p:04d}_{w:03d}_s{s}" for p, w, s in zip(plate, well, site, strict=True)],
            c.SOURCE: "source_1",
            c.BATCH: [f"Batch{p // 20}" for p in plate],
            c.PLATE: [f"P{p:04d}" for p in plate],
            c.WELL: [f"{w:03d}" for w in well],
            c.SITE: site,
            c.COMPOUND: [f"compound {w}" for w in well],
            c.PERT_TYPE: np.where(well < 32, c.NEGATIVE_CONTROL, c.TREATED),
            c.SHARD: [f"P{p:04d}-000.tar" for p in plate],
            c.OFFSET: number * 3_000_000 % 256_000_000,
            c.SIZE: 3_000_000,
            c.SHA256: [rng.bytes(32).hex() for _ in range(fields)],
            **{f"{c.QC_PREFIX}{name}": rng.random(fields) for name in range(QUALITY)},
        }
    )
    with study.writing("shard", study.claim("shard")) as writer:
        data = pa.Table.from_pandas(table, preserve_index=False)
        writer.write("index.parquet", parquet_bytes(data, GROUP_ROWS))
    with study.writing("split", study.claim("split")) as writer:
        writer.write("main.parquet", b"not read here")
    with study.writing("train", study.claim("train")) as writer:
        writer.write("model.pt", b"not read here")


class Blank:
    """Writes chunks of zeros."""

    def __init__(self, study: Study, digest: str) -> None:
        from hcs_ray.model.network import ModelSpec  # torch, which the driver does not load

        self._spec = ModelSpec({"backbone": "resnet18"}, ("DNA",), CLASSES, 1)
        self._study, self._digest, self._index = study, digest, IndexReader(study.storage)

    def write(self, first: int, last: int) -> None:
        rows = self._index.rows(first, last)
        meta = rows.select([c.KEY, *c.metadata_columns(rows.column_names)])
        features = np.zeros((len(rows), FEATURES), np.float32)
        classes = np.zeros((len(rows), len(CLASSES)), np.float32)
        data = parquet_bytes(chunk_table(meta, features, classes, self._spec, (first, last), self._digest))
        self._study.storage.write(f"embeddings/main/{chunk_file(first, last)}", data)


def peak_mb() -> float:
    """Of this process, so far."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1000


def drive(folder: Path) -> None:
    """Embed; print the peak before and after, and the seconds."""
    prepare_environment()
    study = open_study(str(folder))
    before, started = peak_mb(), time.monotonic()
    embed(study, lambda done, total: None, make=Blank)
    print(json.dumps([before, peak_mb(), time.monotonic() - started]))


def driven(folder: Path) -> list[float]:
    done = subprocess.run(
        [sys.executable, __file__, "--drive", str(folder)], stdout=subprocess.PIPE, text=True, check=True
    )
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fields", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--drive", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.drive:
        drive(options.drive)
        return
    print(
        "| fields | chunks | index, MB | driver's peak, MB | before the stage, MB | going on, MB | seconds |"
    )
    print("|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    for fields in options.fields:
        with tempfile.TemporaryDirectory(dir=options.folder) as name:
            folder = Path(name)
            make_study(folder, fields)
            before, peak, seconds = driven(folder)
            chunks = sorted((folder / "embeddings/main").glob("0*.parquet"))
            (folder / "embeddings/main/_stage.json").unlink()
            for chunk in chunks[len(chunks) // 3 :]:
                chunk.unlink()
            _, again, _ = driven(folder)
            index = (folder / "shards/index.parquet").stat().st_size / 1e6
            cells = [f"{fields:,}", str(len(chunks)), f"{index:.0f}", f"{peak:.0f}", f"{before:.0f}"]
            print(f"| {' | '.join([*cells, f'{again:.0f}', f'{seconds:.0f}'])} |", flush=True)


if __name__ == "__main__":
    main()
