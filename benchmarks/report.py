"""How large the report of a whole BBBC021 study is, and how long it takes.

    python -m benchmarks.report                     # 13,200 fields, 55 plates, 113 compounds
    python -m benchmarks.report --keep folder       # and leave the study there, to look at the page

The screen is drawn: index, quality, embeddings and map come from a generator, and the fields of a plate all
have one image of cells, somewhat larger than it is shown (about 2 GB of shards in all). Split, profiles and
outliers are of the real stages.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa

from hcs_ray import contracts as c
from hcs_ray.outliers import find_outliers
from hcs_ray.profiles.build import profile
from hcs_ray.report.build import report
from hcs_ray.screen.splits import split
from hcs_ray.screen.wells import well_name
from hcs_ray.shards import codec
from hcs_ray.shards.quality import FLAG, FLAGS
from hcs_ray.shards.tar import Sample, TarWriter
from hcs_ray.stage import parquet_bytes
from hcs_ray.study import Study, open_study
from tests.report_study import CHANNELS, quiet, write_network

PLATES, WELLS, SITES, COMPOUNDS, LABELLED, MOAS, DOSES = 55, 60, 4, 113, 38, 12, 8
CONTROLS = 6  # wells of a plate
FIELD_PX = (300, 375)
MEASURES = ("FocusScore", "Saturated", "Mean", "SD", "P01", "P50", "P99", "Background", "WellSpread")
MOST_MB = 15


def drawn_index(rng: np.random.Generator) -> pd.DataFrame:
    """A row a field: three replicate plates of a week's treatments, as in BBBC021."""
    rows: list[dict[str, Any]] = []
    for plate in range(PLATES):
        week, group = plate // 6, plate // 3
        name = f"Week{week + 1}_{22000 + 20 * plate}"
        for well in range(WELLS):
            number = group * (WELLS - CONTROLS) + well - CONTROLS
            control = well < CONTROLS
            compound, dose = number // DOSES % COMPOUNDS, 0.003 * 3.0 ** (number % DOSES)
            concentration = 0.0 if control else round(dose, 3)
            title = "DMSO" if control else f"compound {compound:03d}"
            place = well_name(1 + well // 10, 1 + well % 10)
            rows += [
                {
                    c.KEY: c.field_key(name, place, site), c.SOURCE: "drawn", c.BATCH: f"Week{week + 1}",
                    c.PLATE: name, c.WELL: place, c.SITE: site, c.REPLICATE: plate % 3 + 1,
                    c.COMPOUND: title, c.CONCENTRATION: concentration, c.SMILES: None,
                    c.TREATMENT: f"{title}@{concentration:g}",
                    c.MOA: None if control or compound >= LABELLED else f"Mechanism {compound % MOAS:02d}",
                    c.PERT_TYPE: c.NEGATIVE_CONTROL if control else c.TREATED,
                }
                for site in range(1, SITES + 1)
            ]  # fmt: skip
    table = pd.DataFrame(rows)
    quality = {
        f"{c.QC_PREFIX}{measure}_{channel}": (5000 if measure == "P99" else 400 if measure == "P01" else 1500)
        * np.exp(0.15 * rng.standard_normal(len(table)))
        for channel in CHANNELS
        for measure in MEASURES
    }
    flags = {f"{FLAG}{name}": rng.random(len(table)) < 0.01 for name in FLAGS}
    counted = {f"{c.QC_PREFIX}NucleusCount": rng.poisson(60, len(table))}
    return table.assign(**quality, **counted, **flags).sort_values(c.KEY, ignore_index=True)


def drawn_cells(rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    """Forty cells with grain, (C, H, W)."""
    rows, columns = np.mgrid[: FIELD_PX[0], : FIELD_PX[1]].astype(np.float32)
    planes = np.full((len(CHANNELS), *FIELD_PX), 400.0, np.float32)
    for _ in range(40):
        y, x, size = rng.uniform(0, FIELD_PX[0]), rng.uniform(0, FIELD_PX[1]), rng.uniform(8, 20)
        away = np.hypot(rows - y, columns - x) / size
        for channel, reach in enumerate((0.6, 1.3, 1.1)):
            planes[channel] += rng.uniform(1500, 4000) * np.exp(-((away / reach) ** 2))
    planes += 160 * rng.standard_normal(planes.shape, dtype=np.float32)
    return np.asarray(np.clip(planes, 0, 65535).astype(np.uint16) & np.uint16(0xFFC0))


def write_shards(study: Study, index: pd.DataFrame, rng: np.random.Generator) -> pd.DataFrame:
    """A member a field; those of a plate have one image."""
    buffer = io.BytesIO()
    np.save(buffer, np.ones(FIELD_PX, np.float32))
    plates: dict[str, Any] = {}
    parts = []
    with study.writing("shard", study.claim("shard", {"drawn": "0" * 64})) as writer:
        writer.write("illumination/flat.npy", buffer.getvalue())
        for plate, rows in index.groupby(c.PLATE, sort=True):
            data = codec.encode(drawn_cells(rng), "blosc2")
            with TarWriter(study.storage, "shards", f"{plate}-000.tar") as tar:
                members = [Sample(str(key), b"{}", data, codec.member("blosc2")) for key in rows[c.KEY]]
                about = pd.DataFrame([tar.add(member) for member in members], index=rows.index)
            writer.list(f"{plate}-000.tar", tar.output)
            parts.append(pd.concat([rows, about], axis=1))
            scale = {"low": [400.0] * len(CHANNELS), "high": [6000.0] * len(CHANNELS), "sites": None}
            plates[str(plate)] = {"illumination": ["illumination/flat.npy"] * len(CHANNELS), **scale}
        table = pd.concat(parts).sort_values(c.KEY, ignore_index=True)
        writer.write("index.parquet", parquet_bytes(pa.Table.from_pandas(table, preserve_index=False)))
        manifest = {"format": c.MANIFEST_FORMAT, "member": codec.member("blosc2"), "channels": CHANNELS}
        manifest |= {"field_px": FIELD_PX, "plates": plates}
        writer.write("manifest.json", json.dumps(manifest).encode())
    return table


def measure(folder: Path) -> dict[str, Any]:
    """The figures of a report of a study drawn into an empty folder."""
    (folder / "study.yaml").write_text(json.dumps({"report": {"title": "BBBC021, drawn"}}))
    study, rng = open_study(str(folder)), np.random.default_rng(0)
    index = write_shards(study, drawn_index(rng), rng)
    split(study, quiet)
    write_network(study, index, rng, pd.DataFrame())
    profile(study, quiet)
    find_outliers(study, quiet)
    start, used = time.perf_counter(), time.process_time()
    report(study, quiet)
    page = study.storage.read("reports/main/index.html")
    beside = study.storage.sizes("reports/main")
    return {
        "fields": len(index),
        "plates": int(index[c.PLATE].nunique()),
        "compounds": int(index[c.COMPOUND].nunique()) - 1,
        "page_mb": round(len(page) / 1e6, 2),
        "page_sha256": hashlib.sha256(page).hexdigest()[:12],
        "all_files_mb": round(sum(beside.values()) / 1e6, 1),
        "files": len(beside),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": round(time.process_time() - used, 1),
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measure and print one JSON object; exit code 1 where the page is too large."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, help="an empty folder for the study")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = arguments.keep or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        found = measure(folder)
    print(json.dumps(found, indent=1))
    if found["page_mb"] >= MOST_MB:
        raise SystemExit(f"the page has {found['page_mb']} MB; it is to have less than {MOST_MB}")


if __name__ == "__main__":
    main()
