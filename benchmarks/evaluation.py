"""How long the evaluation of many treatments takes, and how much memory: NSC, NSCB, gauge, intervals, nulls.

    python benchmarks/evaluation.py                     # 10,000 treatments of 400 compounds, 512 features
    python benchmarks/evaluation.py --treatments 20000

It draws wells (two a treatment, in one of 20 batches), makes treatments of them and scores them, as
`hcs-ray profile` and `hcs-ray score` do. The peak is that of this process, what was drawn included.
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.profiles.aggregate import Float64
from hcs_ray.profiles.score import Settings, evaluate_wells

WELLS = 2  # a treatment


def drawn(
    treatments: int, compounds: int, features: int, batches: int, seed: int
) -> tuple[pd.DataFrame, Float64]:
    """Wells of treatments near the centres of their mechanisms, ten compounds each."""
    rng = np.random.default_rng(seed)
    compound = np.sort(rng.integers(0, compounds, treatments))
    moa = compound // 10
    batch = rng.integers(0, batches, treatments)
    centres = rng.normal(size=(compounds // 10 + 1, features))
    values = centres[moa] + 8 * rng.normal(size=(treatments, features))
    wells = np.repeat(np.arange(treatments), WELLS)
    meta = pd.DataFrame(
        {
            c.PLATE: [f"B{batch[row]:02d}P{number % WELLS}" for number, row in enumerate(wells)],
            c.WELL: [f"w{row}" for row in wells],
            c.BATCH: [f"B{batch[row]:02d}" for row in wells],
            c.COMPOUND: [f"c{compound[row]:04d}" for row in wells],
            c.TREATMENT: [f"c{compound[row]:04d}@{row}" for row in wells],
            c.MOA: [f"m{moa[row]:03d}" for row in wells],
            c.PERT_TYPE: c.TREATED,
        }
    )
    return meta, values[wells] + rng.normal(size=(len(wells), features))


def main() -> None:
    """Measure and print one JSON object."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--treatments", type=int, default=10_000)
    parser.add_argument("--compounds", type=int, default=400)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--resamples", type=int, default=1000)
    options = parser.parse_args()
    meta, features = drawn(options.treatments, options.compounds, options.features, options.batches, 0)
    before, cpu = time.perf_counter(), time.process_time()
    found = evaluate_wells(meta, features, "mean", Settings(resamples=options.resamples))
    figures = found.to_dict()
    seconds, cpu_seconds = time.perf_counter() - before, time.process_time() - cpu
    print(
        json.dumps(
            {
                **vars(options),
                "wells": len(meta),
                "seconds": round(seconds, 1),
                "cpu_seconds": round(cpu_seconds, 1),
                "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 2),
                "nsc": [figures["nsc"]["correct"], figures["nsc"]["total"]],
                "nscb": [figures["nscb"]["correct"], figures["nscb"]["total"]],
            }
        )
    )


if __name__ == "__main__":
    main()
