"""A sweep of 12 trials with ASHA against the same 12 trained to the end: optimizer steps, and the best score.

Both sweeps draw the same 12 settings (one seed). Steps are those behind each trial's newest checkpoint; what
a stopped trial had begun of a further epoch is not counted. The best score is that of the network which a
sweep hands on, by validation compounds.

    python benchmarks/asha.py [--size demo] [--epochs 9] [--trials 12] [--folder /somewhere]

The folder keeps the screen and both sweeps: run it again to go on after a kill, or to see the figures again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd

from hcs_ray.demo import prepare_demo
from hcs_ray.storage import LocalStorage

HCS_RAY = str(Path(sys.executable).with_name("hcs-ray"))
SWEEP = """
space:
  train.lr: {{kind: loguniform, low: 1.0e-5, high: 1.0e-1}}
  train.label_smoothing: {{kind: uniform, low: 0.0, high: 0.2}}
  train.weight_decay: {{kind: loguniform, low: 1.0e-4, high: 1.0e-1}}
samples: {trials}
fixed: {{train.epochs: {epochs}, train.schedule: constant}}
resources: {{workers: 1}}
concurrency: {concurrency}
scheduler: {scheduler}
"""
SCHEDULERS = {"fifo": "{kind: fifo}", "asha": "{kind: asha, grace_epochs: 1, reduction_factor: 3}"}


def main() -> None:
    """Run both sweeps and print what they cost and found."""
    options = _options()
    folder = Path(options.folder or tempfile.mkdtemp(prefix="hcs-asha-"))
    prepare_demo(LocalStorage(folder), options.size, 0, lambda done, total: None)
    boards = {name: _sweep(folder, name, options) for name in SCHEDULERS}
    _tell(boards["fifo"], boards["asha"])


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", default="demo", choices=("demo", "smallest"))
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--concurrency", type=int, default=2)
    parser.add_argument("--folder")
    return parser.parse_args()


def _sweep(folder: Path, name: str, options: argparse.Namespace) -> pd.DataFrame:
    """The leaderboard of one sweep, which is run where it is not complete."""
    file = folder / f"{name}.yaml"
    file.write_text(
        SWEEP.format(
            trials=options.trials, epochs=options.epochs, concurrency=options.concurrency,
            scheduler=SCHEDULERS[name],
        )
    )  # fmt: skip
    for command in (["run", folder, "--to", "split"], ["tune", folder, file]):
        subprocess.run([HCS_RAY, *map(str, command), "--name", name], check=True)
    return pd.read_parquet(folder / f"sweeps/{name}/leaderboard.parquet")


def _tell(fifo: pd.DataFrame, asha: pd.DataFrame) -> None:
    for name, board in (("all to the end", fifo), ("ASHA", asha)):
        best = board.iloc[0]
        print(
            f"{name:<16}{board['optimizer_steps'].sum():>7} optimizer steps in {len(board)} trials, "
            f"best score {best['score']:.3f} ({best['trial']}), {(board['status'] == 'ended').sum()} ended"
        )
    spent = asha["optimizer_steps"].sum() / fifo["optimizer_steps"].sum()
    gap = asha["score"].max() - fifo["score"].max()
    print(f"ASHA spent {spent:.0%} of the steps; its best score differs by {gap:+.3f}")


if __name__ == "__main__":
    main()
