"""`hcs-ray embed` against its network alone, and against decoding and its network: fields a second.

    python benchmarks/embedding.py [--repeats 5] [--threads 2] [--folder /somewhere/with/1/GB] [--stage]

Full-size fields (3 x 1024 x 1280 uint16, drawn and exposed as in benchmarks/loader.py) of two plates, whole,
on the CPU; ``--threads`` threads compute, and as many decode. Files come from the page cache. Sides:

- the network alone: the same batches, which lie in memory as floats, again and again;
- reading alone: the loader's batches, taken and thrown away;
- embedding: what an actor does with a chunk, from the index to the bytes of its file.

All sides take their turn in every repeat, after one that is not counted. "Of the network" is the rate of
embedding over that of the network alone; "of the bound" is over what is left where decoding and computing
share the cores, one over the sum of the two times a field. Both are medians of ratios within a repeat. On a
machine that others use, compare CPU times: "CPU of the bound" is that of the network plus that of reading,
over that of embedding. ``--stage`` runs the whole stage with one actor too: its start-up, and its rate from
the first chunk's beginning to the last one's end. Prints Markdown.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import torch
from field_codecs import drawn, exposed
from loader import CHANNELS, write_corrections

from hcs_ray import contracts as c
from hcs_ray.config import ModelConfig, canonical_digest
from hcs_ray.embed.actor import Embedder
from hcs_ray.embed.distribute import distribute, make_embedder
from hcs_ray.model.network import MoaNetwork, ModelSpec
from hcs_ray.session import prepare_environment
from hcs_ray.shards import codec
from hcs_ray.shards.tar import Sample, TarWriter
from hcs_ray.stage import parquet_bytes
from hcs_ray.storage import LocalStorage
from hcs_ray.study import Study, open_study
from hcs_ray.train import model_bytes

PLATES = 2
BATCH = 8


class Case(NamedTuple):
    """The network that takes the time, or one so small that reading does."""

    backbone: str
    downsample: int
    fields: int  # of a repeat


CASES = {"resnet18": Case("resnet18", 1, 16), "tiny": Case("tiny", 4, 96)}
NETWORK, READING, EMBEDDING = "the network alone", "reading alone", "embedding"
Sides = dict[str, Callable[[], object]]


def make_study(folder: Path, case: Case, threads: int) -> Study:
    """Shards of full-size fields, and a network with the weights that it begins with."""
    storage, rng = LocalStorage(folder), np.random.default_rng(0)
    configured = {
        "model": {"backbone": case.backbone},
        "embed": {
            "batch": BATCH, "chunk_fields": case.fields, "workers": 1, "cpus_per_worker": threads,
            "threads": threads,
        },
    }  # fmt: skip
    (folder / "study.yaml").write_text(json.dumps(configured))
    study = open_study(str(folder))
    seen = [exposed(pixels, rng) for pixels in drawn(4)]
    rows = []
    for number in range(PLATES):
        with TarWriter(storage, "shards", f"P{number}-000.tar") as tar:
            for place in range(case.fields // PLATES):
                pixels = np.roll(seen[place % len(seen)], tuple(rng.integers(0, 999, 2)), (1, 2))
                well = f"B{place:02d}"
                sample = Sample(
                    c.field_key(f"P{number}", well, 1), b"{}", codec.encode(pixels, "blosc2"), "blosc2"
                )
                about = {
                    c.KEY: sample.key,
                    c.PLATE: f"P{number}",
                    c.WELL: well,
                    c.SITE: 1,
                    c.PERT_TYPE: c.TREATED,
                }
                rows.append(about | tar.add(sample))
    listed = write_corrections(storage, rng).outputs
    with study.writing("shard", study.claim("shard")) as writer:
        for path, output in listed.items():
            writer.list(path.removeprefix("shards/"), output)
        writer.write("index.parquet", parquet_bytes(pa.Table.from_pandas(pd.DataFrame(rows))))
    with study.writing("split", study.claim("split")) as writer:
        writer.write("main.parquet", b"not read here")
    model = ModelConfig.model_validate({"backbone": case.backbone}).model_dump(mode="json")
    spec = ModelSpec(model, CHANNELS, ("a", "b"), case.downsample)
    with study.writing("train", study.claim("train")) as writer:
        writer.write("model.pt", model_bytes(spec, MoaNetwork(spec).state_dict()))
    return study


def sides_of(study: Study, fields: int) -> Sides:
    """Each works off all fields once."""
    embedder = Embedder(study, "digest")
    source = embedder._source(embedder._index.rows(0, fields - 1))
    shares = list(embedder._shares(source, np.arange(fields)))
    loader = embedder._loader(source, shares)
    kept = next(iter(embedder._loader(source, shares[:1])))["images"].clone()

    def network() -> None:
        with torch.inference_mode():
            for _ in shares:
                embedder._see(kept, None)

    def reading() -> None:
        for _ in loader:
            pass

    return {
        NETWORK: network,
        READING: reading,
        EMBEDDING: lambda: parquet_bytes(embedder.table(0, fields - 1)),
    }


@dataclass
class Figures:
    rates: list[float] = field(default_factory=list)  # fields a second
    cpu_ms: list[float] = field(default_factory=list)  # a field


def measure(sides: Sides, fields: int, repeats: int) -> dict[str, Figures]:
    found = {name: Figures() for name in sides}
    for repeat in range(repeats + 1):
        for name, run in sides.items():
            started, cpu = time.perf_counter(), time.process_time()
            run()
            if repeat:
                found[name].rates.append(fields / (time.perf_counter() - started))
                found[name].cpu_ms.append(1000 * (time.process_time() - cpu) / fields)
    return found


def lines(found: dict[str, Figures]) -> Iterator[str]:
    alone, reading, ours = (found[name] for name in (NETWORK, READING, EMBEDDING))
    yield "| side | fields/s | CPU ms a field |\n|---|---:|---:|"
    for name, figures in found.items():
        yield f"| {name} | {statistics.median(figures.rates):.2f} | {statistics.median(figures.cpu_ms):.1f} |"
    triples = list(zip(alone.rates, reading.rates, ours.rates, strict=True))
    of_network = [rate / network for network, _, rate in triples]
    of_bound = [rate * (1 / network + 1 / read) for network, read, rate in triples]
    costs = zip(alone.cpu_ms, reading.cpu_ms, ours.cpu_ms, strict=True)
    of_cpu = [(network + read) / whole for network, read, whole in costs]
    yield ""
    for name, ratios in (
        ("of the network", of_network),
        ("of the bound", of_bound),
        ("CPU of the bound", of_cpu),
    ):
        spread = f"{min(ratios):.3f} to {max(ratios):.3f}"
        yield f"- {name}: {statistics.median(ratios):.3f} ({spread} in {len(ratios)} repeats)"


def timed_embedder(notes: str, study: Study, digest: str) -> Any:
    """The stage's embedder, which notes when each chunk was begun and ended."""
    made = make_embedder(study, digest)
    write = made.write

    def noted(first: int, last: int) -> None:
        begun = time.time()
        write(first, last)
        with Path(notes).open("a") as file:
            file.write(f"{begun} {time.time()}\n")

    made.write = noted  # type: ignore[method-assign]
    return made


def stage_line(study: Study, fields: int, folder: Path) -> str:
    """All fields in four chunks by Ray and one actor."""
    notes, size = folder / "notes", fields // 4
    chunks = [(first, first + size - 1) for first in range(0, fields, size)]
    claim = study.claim("embed")
    started = time.time()
    with study.writing("embed", claim, force=True):
        digest = canonical_digest(claim.model_dump(mode="json"))
        list(distribute(study, chunks, digest, functools.partial(timed_embedder, str(notes))))
    times = np.loadtxt(notes)
    notes.unlink()
    rate = fields / (times[:, 1].max() - times[:, 0].min())
    return f"- the stage: start-up {times[0, 0] - started:.1f} s, then {rate:.2f} fields/s"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fields", type=int, help="of a repeat; a multiple of 8")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--stage", action="store_true")
    parser.add_argument("--only", choices=tuple(CASES))
    options = parser.parse_args()
    prepare_environment()
    torch.set_num_threads(options.threads)
    for name, case in CASES.items():
        if options.only in (None, name):
            case = case._replace(fields=options.fields or case.fields)
            with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                study = make_study(Path(folder), case, options.threads)
                found = measure(sides_of(study, case.fields), case.fields, options.repeats)
                print(f"**{name}**, downsampled by {case.downsample}; {case.fields} fields\n")
                print("\n".join(lines(found)), flush=True)
                if options.stage:
                    print(stage_line(study, case.fields, Path(folder)))
                print(flush=True)


if __name__ == "__main__":
    main()
