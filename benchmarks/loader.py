"""The loader against a float16 HDF5 file behind a DataLoader, and against decoding alone: fields a second.

    python benchmarks/loader.py [--fields 96] [--repeats 7] [--threads 2] [--folder /somewhere/with/2/GB]

Full-size fields (3 x 1024 x 1280 uint16, drawn and exposed as in benchmarks/field_codecs.py, rolled about
for variety) of four plates become batches of 10 float32 fields on the CPU, whole and as random crops of 512
px. All files come from the page cache. The peer holds the same fields corrected already, as pybbbc's file
does, read by a DataLoader in process and with 1 and 2 workers; it is taken at the best of these. Of a crop it
reads no more than the slice; "pybbbc's way" reads the field first, which is what its dataset hands out.
Decoding alone hands members that lie in memory to threads that decode each into one place (`codec.decode`).
All sides take their turn in every repeat; each is warm. Rates are medians over the repeats; so are ratios,
each of two rates of the same repeat. On a machine that others use, compare CPU times: of all processes of a
side, they say what it takes from idle cores. Prints Markdown.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import numpy.typing as npt
import pandas as pd
import psutil
import torch
from field_codecs import drawn, exposed
from torch.utils.data import DataLoader, Dataset

from hcs_ray import contracts as c
from hcs_ray.model import augment
from hcs_ray.model.augment import Crop
from hcs_ray.model.epochs import Share
from hcs_ray.model.loader import BatchLoader, FieldSource
from hcs_ray.shards import codec
from hcs_ray.shards.read import MANIFEST, ShardReader, corrected
from hcs_ray.shards.tar import Sample, TarWriter
from hcs_ray.stage import OutputFile, StageRecord
from hcs_ray.storage import LocalStorage

CHANNELS = ("DAPI", "Tubulin", "Actin")
HEIGHT_PX, WIDTH_PX = 1024, 1280
BATCH = 10
PLATES = 4
CROP_PX = 512
DRAWN = 8
HDF5 = "corrected.h5"
DECODE = "decoding alone"
WAYS = ("peer", "pybbbc's way")
SCALE = {"low": [1500.0, 2000.0, 1200.0], "high": [30000.0, 45000.0, 28000.0]}


class Peer(Dataset[torch.Tensor]):
    """The file by one open handle a process; of a crop the slice, or the field and then the crop."""

    def __init__(self, file: Path, crops: list[Crop], slices: bool) -> None:
        self._file, self._crops, self._slices = file, crops, slices
        self._images: Any = None

    def __len__(self) -> int:
        return len(self._crops)

    def __getitem__(self, item: int) -> torch.Tensor:
        if self._images is None:
            self._images = h5py.File(self._file)["images"]
        part = (slice(None), self._crops[item].rows, self._crops[item].columns)
        read = self._images[(item, *part)] if self._slices else self._images[item][part]
        return torch.from_numpy(read).float()


@dataclass(frozen=True)
class Side:
    """One way; ``run`` reads all fields once."""

    name: str
    run: Callable[[], object]


def write_fields(folder: Path, fields: int) -> tuple[FieldSource, list[bytes]]:
    """The shards, the peer's file beside them, and the members, a row of the table each."""
    storage, rng = LocalStorage(folder), np.random.default_rng(0)
    seen = [exposed(pixels, rng) for pixels in drawn(DRAWN)]
    rows, members = [], []
    for number in range(PLATES):
        with TarWriter(storage, "shards", f"P{number}-000.tar") as tar:
            for place in range(number, fields, PLATES):
                pixels = np.roll(seen[place % DRAWN], tuple(rng.integers(0, 999, 2)), (1, 2))
                members.append(codec.encode(pixels, "blosc2"))
                sample = Sample(f"{place:04d}", b"{}", members[-1], "blosc2")
                rows.append({c.KEY: sample.key, c.PLATE: f"P{number}", c.SITE: 1} | tar.add(sample))
    reader = ShardReader(storage, write_corrections(storage, rng))
    source = FieldSource(reader, pd.DataFrame(rows), 1)
    with h5py.File(folder / HDF5, "w") as file:
        images = file.create_dataset("images", (fields, *reader.shape), "f2")
        for place, member in enumerate(members):
            pixels = codec.decode(member, np.empty(reader.shape, np.uint16))
            plate = reader.plate(source.fields[c.PLATE].iloc[place])
            images[place] = corrected(pixels, plate, slice(None), slice(None))
    return source, members


def write_corrections(storage: LocalStorage, rng: np.random.Generator) -> StageRecord:
    """Smooth illumination functions and the manifest, in the record of the stage."""
    y, x = np.mgrid[-1 : 1 : HEIGHT_PX * 1j, -1 : 1 : WIDTH_PX * 1j]
    plates: dict[str, dict[str, Any]] = {}
    files: dict[str, bytes] = {}
    for number in range(PLATES):
        paths = [f"illumination/P{number}_Illum{channel}.npy" for channel in CHANNELS]
        plates[f"P{number}"] = {**SCALE, "sites": None, "illumination": paths}
        for path in paths:
            light = 1 - rng.uniform(0.1, 0.3) * (x**2 + y**2) + rng.uniform(-0.1, 0.1) * x
            file = io.BytesIO()
            np.save(file, (light / light.mean()).astype(np.float32))
            files[f"shards/{path}"] = file.getvalue()
    manifest = {"format": c.MANIFEST_FORMAT, "channels": CHANNELS, "field_px": [HEIGHT_PX, WIDTH_PX]}
    files[MANIFEST] = json.dumps(manifest | {"member": "blosc2", "plates": plates}).encode()
    for name, data in files.items():
        storage.write(name, data)
    listed = {n: OutputFile(size=len(d), sha256=hashlib.sha256(d).hexdigest()) for n, d in files.items()}
    rest: dict[str, Any] = {"inputs": {}, "config": {}, "study_config": "", "code": {}, "outputs": listed}
    return StageRecord(format=c.STAGE_FORMAT, stage="shard", name="shards", **rest)


def loader_of(
    source: FieldSource, crops: list[Crop], order: npt.NDArray[np.int64], threads: int
) -> BatchLoader:
    by_key = dict(zip(source.fields[c.KEY], crops, strict=True))
    shares = [Share(order[i : i + BATCH], BATCH) for i in range(0, len(order), BATCH)]
    return BatchLoader(source, shares, by_key.__getitem__, threads=threads)


def peers(folder: Path, crops: list[Crop], order: npt.NDArray[np.int64]) -> Iterator[Side]:
    for way, workers in itertools.product(WAYS, (0, 1, 2)):
        loader = DataLoader(
            Peer(folder / HDF5, crops, way == WAYS[0]),
            batch_size=BATCH,
            sampler=order.tolist(),
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        yield Side(f"{way}, {workers} workers", functools.partial(drain, loader))


def drain(batches: Iterable[object]) -> None:
    """Take all, each held while the next one is made, as a training step does."""
    for _batch in batches:
        pass


def decode_only(members: list[bytes], shape: tuple[int, int, int], threads: int) -> Callable[[], None]:
    """Each thread decodes its part of the members into one place of its own."""
    places = [np.ones(shape, np.uint16) for _ in range(threads)]

    def work(number: int) -> None:
        for member in members[number::threads]:
            codec.decode(member, places[number])

    def run() -> None:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))

    return run


def compare(loader: BatchLoader, folder: Path, crops: list[Crop]) -> None:
    """`SystemExit` where our corrected batches are not what the peer's file holds, up to its rounding."""
    with h5py.File(folder / HDF5) as file:
        for batch in loader:
            for image, row in zip(batch["images"].numpy(), batch["rows"].tolist(), strict=True):
                peer = file["images"][row, :, crops[row].rows, crops[row].columns].astype(np.float32)
                if not np.allclose(image, peer, rtol=2e-3, atol=1e-4):
                    raise SystemExit(f"field {row} is not the peer's")


@dataclass
class Figures:
    rates: list[float] = field(default_factory=list)  # fields a second
    cpu_ms: list[float] = field(default_factory=list)  # a field, of all processes

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)


def measure(sides: list[Side], fields: int, repeats: int) -> dict[str, Figures]:
    """Each side in each repeat, after one that is not counted."""
    found = {side.name: Figures() for side in sides}
    for repeat in range(repeats + 1):
        for side in sides:
            started, cpu = time.perf_counter(), cpu_seconds()
            side.run()
            if repeat:
                found[side.name].rates.append(fields / (time.perf_counter() - started))
                found[side.name].cpu_ms.append(1000 * (cpu_seconds() - cpu) / fields)
    return found


def cpu_seconds() -> float:
    """Of this process and its workers."""
    spent = (child.cpu_times() for child in psutil.Process().children())
    return time.process_time() + sum(times.user + times.system for times in spent)


def table(sides: dict[str, Figures]) -> Iterator[str]:
    """A row a side: rate, CPU time, and how many times as fast as the peers' best and as decoding alone."""
    by_way = [{name: sides[name].rate for name in sides if name.startswith(way)} for way in WAYS]
    best = [max(rates, key=rates.__getitem__) for rates in by_way]
    yield f"| side | fields/s | CPU ms | of the best {WAYS[0]} | of the best {WAYS[1]} | of {DECODE} |"
    yield "|---|" + "---:|" * 5
    for name, figures in sides.items():
        ratios = [
            statistics.median(a / b for a, b in zip(figures.rates, sides[base].rates, strict=True))
            for base in (*best, DECODE)
        ]
        cells = [f"{figures.rate:.0f}", f"{statistics.median(figures.cpu_ms):.1f}"]
        yield f"| {' | '.join([name, *cells, *(f'{ratio:.2f}' for ratio in ratios)])} |"


def lines(folder: Path, options: argparse.Namespace) -> Iterator[str]:
    source, members = write_fields(folder, options.fields)
    counts = dataclasses.replace(source, corrected=False)
    shape, order = source.reader.shape, np.random.default_rng(1).permutation(len(members))
    looks = {
        "full fields": [augment.whole(shape)] * len(members),
        f"crops of {CROP_PX} px": [
            augment.draw_crop(shape, CROP_PX, (0, 0, str(number))) for number in range(len(members))
        ],
    }
    for name, crops in looks.items():
        ours = {
            f"ours, correction {'on' if one is source else 'off'}": loader_of(
                one, crops, order, options.threads
            )
            for one in (counts, source)
        }
        compare(ours["ours, correction on"], folder, crops)
        sides = [Side(DECODE, decode_only(members, shape, options.threads))]
        sides += [Side(way, functools.partial(drain, loader)) for way, loader in ours.items()]
        sides += peers(folder, crops, order)
        yield f"**{name}**, {len(members)} of them, {options.threads} threads\n"
        yield "\n".join(table(measure(sides, len(members), options.repeats))) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--fields", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for line in lines(Path(folder), options):
            print(line, flush=True)


if __name__ == "__main__":
    main()
