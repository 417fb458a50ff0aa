"""Ingest against its ceiling and against pybbbc's method: fields a second and core, and peak memory.

    python benchmarks/ingest.py [--fields 256] [--folder /somewhere/with/3/GB]

Every side runs in processes of its own, each on one core, over the same full-size TIFFs (three channels of
1024 x 1280 uint16, 12 bits stored in 16), which come from the page cache. The ceiling reads and decodes the
TIFFs and encodes the fields with the default codec, nothing else; "written" also hashes the members and
writes tars. pybbbc's method is made of its steps: mean over the fields of a site position, a gaussian of
sigma 500 at full resolution, divide, percentiles, float16 HDF5.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import tifffile
from scipy import ndimage

from hcs_ray import contracts as c
from hcs_ray.config import ShardsConfig
from hcs_ray.screen import file_column
from hcs_ray.screen.images import TiffSource
from hcs_ray.screen.synthetic import SyntheticConfig, generate
from hcs_ray.shards import codec
from hcs_ray.shards.codec import Pixels
from hcs_ray.shards.plate import PlateJob, write_plate
from hcs_ray.shards.tar import Sample, TarWriter
from hcs_ray.storage import LocalStorage

CHANNELS = ("DAPI", "Tubulin", "Actin")
SITES = 4
HEIGHT_PX, WIDTH_PX = 1024, 1280
DRAWN = 12
TAR_FIELDS = 80  # as many as a tar of 256 MB holds


def draw_fields(folder: Path, fields: int) -> None:
    """Full-size fields: a few drawn ones, turned and with fresh photon noise for the others."""
    if (folder / "whole").exists():
        return
    small = {"weeks": 1, "plates_per_week": 1, "replicates": 1, "sites": 2, "artefact_rate": 0.0}
    config = SyntheticConfig.model_validate(
        SyntheticConfig.preset("smallest").model_dump()
        | {**small, "height_px": HEIGHT_PX, "width_px": WIDTH_PX, "cell_diameter_px": 104.0}
    )
    generate(config, folder / "drawn")
    names = sorted((folder / "drawn").glob("Week*/*_w1*.tif"))[:DRAWN]
    rng = np.random.default_rng(0)
    plate = folder / "raw" / "Plate_1"
    plate.mkdir(parents=True)
    for number, name in zip(range(fields), itertools.cycle(names), strict=False):
        site = sorted(name.parent.glob(name.name.split("_w1")[0] + "_w*"))
        for channel, source in zip(CHANNELS, site, strict=True):
            tifffile.imwrite(plate / f"{number:04d}_{channel}.tif", _renewed(tifffile.imread(source), rng),
                             metadata=None)  # fmt: skip
    (folder / "whole").touch()


def _renewed(plane: Pixels, rng: np.random.Generator) -> Pixels:
    photons = (np.roll(plane, rng.integers(0, 999, 2), (0, 1)) >> 4).astype(np.float32)
    noisy = photons + rng.normal(0, 1, plane.shape).astype(np.float32) * np.sqrt(photons) * 0.3
    return np.clip(np.rint(noisy), 0, 4095).astype(np.uint16) * np.uint16(16)


def table_of(fields: int) -> pd.DataFrame:
    rows = []
    for number in range(fields):
        well = f"{'BCDEFG'[number // SITES // 10 % 6]}{number // SITES % 10 + 2:02d}"
        row = dict.fromkeys(c.FIELD_COLUMNS, "x") | {
            c.KEY: f"{number:04d}", c.PLATE: "Plate_1", c.WELL: well, c.SITE: number % SITES + 1,
            c.REPLICATE: 1, c.CONCENTRATION: 0.3,
        }  # fmt: skip
        rows.append(row | {file_column(name): f"Plate_1/{number:04d}_{name}.tif" for name in CHANNELS})
    return pd.DataFrame(rows)


def ingest(folder: Path, fields: int, worker: int) -> None:
    """hcs_ray: everything that `hcs-ray shard` does for a plate."""
    storage = LocalStorage(folder / "raw")
    with tempfile.TemporaryDirectory(dir=folder) as study:
        write_plate(
            PlateJob(
                plate="Plate_1", fields=table_of(fields), channels=CHANNELS,
                source=TiffSource(storage, CHANNELS),
                study=LocalStorage(Path(study)), config=ShardsConfig(), claim=str(worker),
                nuclear_channel="DAPI", camera_maximum=4095 << 4,
            )
        )  # fmt: skip


def ceiling(folder: Path, fields: int, worker: int) -> None:
    """Read, decode, encode."""
    source = TiffSource(LocalStorage(folder / "raw"), CHANNELS)
    for row in c.rows_of(table_of(fields)):
        codec.encode(source.read(row).pixels, ShardsConfig().codec)


def written(folder: Path, fields: int, worker: int) -> None:
    """Read, decode, encode, and what no shard goes without: the members' SHA-256, and a tar on the disk."""
    source = TiffSource(LocalStorage(folder / "raw"), CHANNELS)
    with tempfile.TemporaryDirectory(dir=folder) as study, contextlib.ExitStack() as stack:
        for number, row in enumerate(c.rows_of(table_of(fields))):
            if number % TAR_FIELDS == 0:
                stack.close()
                tar = stack.enter_context(TarWriter(LocalStorage(Path(study)), "shards", f"{number}.tar"))
            image = codec.encode(source.read(row).pixels, ShardsConfig().codec)
            tar.add(Sample(row[c.KEY], b"{}", image, "blosc2"))


def pybbbc(folder: Path, fields: int, worker: int) -> None:
    """pybbbc's steps."""
    rows = c.rows_of(table_of(fields))
    with tempfile.TemporaryDirectory(dir=folder) as out, h5py.File(f"{out}/{worker}.h5", "w") as file:
        shape = (len(rows), len(CHANNELS), HEIGHT_PX, WIDTH_PX)
        images = file.create_dataset("images", shape, "f2")
        for number, row in enumerate(rows):
            for place, channel in enumerate(CHANNELS):
                images[number, place] = tifffile.imread(folder / "raw" / row[file_column(channel)])
        for place, site in itertools.product(range(len(CHANNELS)), range(SITES)):
            stack = images[site::SITES, place].astype(np.float32)
            function = ndimage.gaussian_filter(stack.mean(0), 500)
            with np.errstate(invalid="ignore"):  # 65520 has become infinity
                np.percentile(stack / function, (0.1, 99.9))


SIDES: dict[str, Callable[[Path, int, int], None]] = {
    "ingest": ingest,
    "ceiling": ceiling,
    "written": written,
    "pybbbc": pybbbc,
}


def measure(side: str, folder: Path, fields: int, workers: int) -> tuple[float, float, float]:
    """Fields a second of all workers, CPU seconds a field, and the largest worker's peak memory in MB."""
    command = [sys.executable, __file__, "--side", side, "--folder", str(folder), "--fields", str(fields)]
    running = [
        subprocess.Popen([*command, "--worker", str(n)], stdout=subprocess.PIPE) for n in range(workers)
    ]
    told = [json.loads(process.communicate()[0]) for process in running]
    wall = max(one["end"] for one in told) - min(one["start"] for one in told)
    cpu = statistics.mean(one["cpu"] for one in told) / fields
    return workers * fields / wall, cpu, max(one["peak_mb"] for one in told)


def run_side(side: str, folder: Path, fields: int, worker: int) -> None:
    os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[worker]})
    if side != "pybbbc":
        SIDES[side](folder, min(fields, 8), worker)  # imports, compiles, first touches
    start, cpu = time.monotonic(), time.process_time()
    SIDES[side](folder, fields, worker)
    told = {"start": start, "end": time.monotonic(), "cpu": time.process_time() - cpu}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps(told | {"peak_mb": peak}))


def lines(folder: Path, fields: int, repeats: int) -> Iterator[str]:
    yield f"{'side':<10}{'workers':>8}{'fields':>8}{'fields/s':>10}{'CPU ms/field':>14}{'peak MB':>9}"
    plan = [
        ("pybbbc", 1, fields),
        ("ceiling", 1, fields),
        ("written", 1, fields),
        ("ingest", 1, fields // 4),
        ("ingest", 1, fields),
    ]
    plan += [("ceiling", 2, fields), ("written", 2, fields), ("ingest", 2, fields)]
    rates: dict[tuple[str, int, int], float] = {}
    for side, workers, count in plan:
        runs = [measure(side, folder, count, workers) for _ in range(1 if side == "pybbbc" else repeats)]
        rate, cpu, peak = (statistics.median(figure) for figure in zip(*runs, strict=True))
        rates[side, workers, count] = rate
        yield f"{side:<10}{workers:>8}{count:>8}{rate:>10.1f}{1000 * cpu:>14.1f}{peak:>9.0f}"
    one, two = rates["ingest", 1, fields], rates["ingest", 2, fields]
    yield f"ingest / written: {one / rates['written', 1, fields]:.2f} with 1 worker, " + (
        f"{two / rates['written', 2, fields]:.2f} with 2"
    )
    yield f"ingest / ceiling: {one / rates['ceiling', 1, fields]:.2f} with 1 worker, " + (
        f"{two / rates['ceiling', 2, fields]:.2f} with 2"
    )
    yield f"ingest / pybbbc, 1 worker: {one / rates['pybbbc', 1, fields]:.1f}; 2 workers / 1: {two / one:.2f}"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fields", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--side", choices=list(SIDES))
    parser.add_argument("--worker", type=int, default=0)
    options = parser.parse_args()
    if options.side:
        run_side(options.side, options.folder, options.fields, options.worker)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        draw_fields(folder, options.fields)
        for line in lines(folder, options.fields, options.repeats):
            print(line, flush=True)


if __name__ == "__main__":
    main()
