"""What the ways to resist plate effects do on the drawn demo screen: plain, adversary, control-anchored.

    python benchmarks/plate_effects.py STUDY --seeds 3

STUDY is a finished demo (``hcs-ray demo``). Each way is trained with several seeds, embedded and profiled as
runs of that study; a second run of this takes what is there. About 70 s a run on two cores.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import pandas as pd

WAYS: dict[str, dict[str, str]] = {
    "plain": {},
    "adversary-plate": {"train.adversary.target": "plate"},
    "adversary-week": {"train.adversary.target": "batch"},
    "control-anchored": {"model.normalization": "control_anchored", "train.plates_per_batch": "3"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    rows = [
        {"way": way, "seed": seed, **figures(arguments.study, way, seed)}
        for seed in range(arguments.seeds)
        for way in WAYS
    ]
    table = pd.DataFrame(rows)
    print(table.to_string(index=False))
    print(table.drop(columns="seed").groupby("way", sort=False).median().to_string())


def figures(study: Path, way: str, seed: int) -> dict[str, float]:
    """Train one way with one seed and read its scores; the held-out ones are of compounds never seen."""
    name = f"{way}-{seed}"
    settings = {**WAYS[way], "train.seed": str(seed)}
    changed = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    subprocess.run(
        ["hcs-ray", "run", str(study), "--name", name, "--from", "split", "--to", "profile", *changed],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    found = json.loads((study / f"profiles/{name}/evaluation.json").read_text())
    tested = json.loads((study / f"runs/{name}/metrics.json").read_text())["test"]
    return {
        "nsc": held_out(found["nsc"]),
        "nscb": held_out(found["nscb"]),
        "test_balanced_accuracy": tested["test_balanced_accuracy"],
        "same_batch_times_chance": found["same_batch_share"] / found["same_batch_expected"],
    }


def held_out(score: dict[str, object]) -> float:
    part = score["held_out"]
    assert isinstance(part, dict)
    return float(part["correct"]) / float(part["total"])


if __name__ == "__main__":
    main()
