"""How long the bake-off of `hcs-ray profile --compare` takes, by normalisation, on drawn wells.

python benchmarks/normalization.py [--wells 2000] [--features 512] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import resource
import time


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--wells", type=int, default=2000)
    parser.add_argument("--features", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2, help="of the linear algebra")
    chosen = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(chosen.threads)

    import numpy as np
    import pandas as pd

    from hcs_ray import contracts as c
    from hcs_ray.config import ProfileConfig
    from hcs_ray.profiles.bake_off import bake_off
    from hcs_ray.profiles.normalize import METHODS

    rng = np.random.default_rng(0)
    plates, weeks = max(chosen.wells // 60, 20), 10
    rows = np.arange(60 * plates)
    plate, place = rows // 60, rows % 60
    week = plate % weeks
    control = place % 4 == 0  # 15 a plate, and 45 treatments on all plates of the week
    compound = week * 15 + (place - place // 4 - 1) // 3
    names = np.where(control, "DMSO", np.char.add("c", compound.astype(str)))
    meta = pd.DataFrame(
        {
            c.BATCH: [f"Week{n}" for n in week],
            c.PLATE: [f"Week{n}_{m}" for n, m in zip(week, plate, strict=True)],
            c.WELL: [f"{'ABCDE'[n // 12]}{n % 12 + 1:02d}" for n in place],
            c.COMPOUND: names,
            c.TREATMENT: [f"{name}@{n}" for name, n in zip(names, np.where(control, 0, place), strict=True)],
            c.MOA: [
                None if is_control else f"moa{n % 12}"
                for n, is_control in zip(compound, control, strict=True)
            ],
            c.PERT_TYPE: np.where(control, c.NEGATIVE_CONTROL, c.TREATED),
        }
    )
    mixing = rng.normal(size=(chosen.features, chosen.features)) / np.sqrt(chosen.features)
    features = rng.normal(size=(len(rows), chosen.features)) @ mixing
    features += rng.normal(size=(weeks, chosen.features))[week]
    features += np.where(control[:, None], 0.0, rng.normal(size=(12, chosen.features))[compound % 12])

    began = time.perf_counter(), time.process_time()
    marks = [began]

    def tell(done: int, total: int) -> None:
        """A line a normalisation, as it is done; processor time for a machine that others use."""
        marks.append((time.perf_counter(), time.process_time()))
        if done:
            passed, used = np.subtract(marks[-1], marks[-2])
            print(f"{METHODS[done - 1]:<14} {passed:6.1f} s, {used:6.1f} s of processor time", flush=True)

    result = bake_off(meta, features, ProfileConfig(), progress=tell)
    passed, used = np.subtract((time.perf_counter(), time.process_time()), began)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(
        f"{len(meta)} wells, {int(control.sum())} of them controls, {chosen.features} features, "
        f"{chosen.threads} threads: {passed:.1f} s with the scores, {used:.1f} s of processor time, "
        f"{memory:.2f} GB; chosen: {result.chosen}"
    )


if __name__ == "__main__":
    main()
