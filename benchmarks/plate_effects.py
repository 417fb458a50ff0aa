"""What resists plate effects on drawn screens with strong nuisance: in the network, after it, or neither.

    python -m benchmarks.plate_effects FOLDER --seeds 5

Each seed draws a screen of its own (the demo's, with twice its plate and week effects) and trains three
networks on it, of which one is plain, one has an adversary that tries to tell the week, and one is normalised
on its plate's controls. Corrections after the fact (`hcs-ray profile --compare` has the same) are made of the
plain network's embeddings. A row is a way, over all seeds:

- week excess: how far above chance a linear probe tells the week of negative controls on plates that it has
  not seen, half of a plate's controls being normalised by the other half; and how much of the plain
  network's is left;
- NSCB: hits of treatments, all and those of held-out compounds; the change against plain as treatments a
  screen, with the 95 % bootstrap interval over the pairs (screen, compound), each drawn with all its hits.

A second call takes what is there. About five minutes a seed on two idle cores.
"""

from __future__ import annotations

import argparse
import subprocess
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd

from hcs_ray import contracts as c
from hcs_ray.demo import study_yaml
from hcs_ray.profiles.aggregate import exclude_controls, to_treatments
from hcs_ray.profiles.bake_off import METHOD, WEEK_EXCESS, gauge
from hcs_ray.profiles.chance import bootstrap_weights, percentile_interval
from hcs_ray.profiles.neighbours import CORRECT, DROPPED
from hcs_ray.profiles.score import LEAKED, Settings, evaluate
from hcs_ray.profiles.stream import stream_wells
from hcs_ray.profiles.tracks import provenance
from hcs_ray.study import Study, open_study

STRENGTH: Final = 2.0  # of plate and week effects; the demo's is 1
PLAIN: Final = "plain"
NETWORKS: Final[dict[str, dict[str, str]]] = {
    PLAIN: {},
    "adversary on weeks": {"train.adversary.target": "batch"},
    "control-anchored": {"model.normalization": "control_anchored", "train.plates_per_batch": "3"},
}


def main() -> None:
    """Make what is missing, and print the table as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=5)
    arguments = parser.parse_args()
    parts = [
        measured(trained(arguments.folder / f"seed{seed}", seed, network), seed, network)
        for seed in range(arguments.seeds)
        for network in NETWORKS
    ]
    queries = pd.concat([part[0] for part in parts], ignore_index=True)
    gauges = pd.concat([part[1] for part in parts], ignore_index=True)
    print(markdown(table(queries, gauges)))


def trained(folder: Path, seed: int, network: str) -> Study:
    """The screen of a seed, embedded by a network of a kind."""
    if not (folder / "study.yaml").exists():
        folder.mkdir(parents=True, exist_ok=True)
        strength = f"nuisance_strength={STRENGTH}"
        run("generate", str(folder / "raw"), "--seed", str(seed), "--set", strength)
        (folder / "study.yaml").write_text(study_yaml("demo"))
    settings = [f"{key}={value}" for key, value in NETWORKS[network].items()]
    name = network.replace(" ", "-")
    changed = [word for setting in settings for word in ("--set", setting)]
    run("run", str(folder), "--name", name, "--to", "embed", *changed)
    return open_study(str(folder), name, settings)


def run(*words: str) -> None:
    """A command of hcs-ray, whose words are shown where it fails."""
    done = subprocess.run(["hcs-ray", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)


def measured(study: Study, seed: int, network: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Each treatment's NSCB under each way, and each way's week excess.

    A network's own way is its embeddings as they are; of the plain one all normalisations are ways, too.
    """
    wells, features = stream_wells(study, "mean")
    config = study.config.profile
    gauges, profiles, _, _ = gauge(wells.drop(columns=[c.MOA]), features, config, lambda done, total: None)
    methods = [name for name in profiles if network == PLAIN or name == "none"]
    treated, nothing = exclude_controls(wells, np.zeros((len(wells), 1)))
    treatments, _ = to_treatments(treated, nothing, config.treatment_aggregate)
    used = set(provenance(study).used)
    asked = []
    for method in methods:
        found = evaluate(treatments, profiles[method], Settings(config.metric, resamples=10), used)
        rows = found.nscb.queries[found.nscb.queries[DROPPED].isna()]
        asked.append(rows[[c.TREATMENT, c.COMPOUND, CORRECT, LEAKED]].assign(way=way(network, method)))
    excess = gauges[gauges[METHOD].isin(methods)]
    told = pd.DataFrame({"way": [way(network, m) for m in excess[METHOD]], "excess": excess[WEEK_EXCESS]})
    return pd.concat(asked).assign(seed=seed), told.assign(seed=seed)


def way(network: str, method: str) -> str:
    """The name of a row."""
    return network if method == "none" else f"{network}, then {method}"


def table(queries: pd.DataFrame, gauges: pd.DataFrame) -> pd.DataFrame:
    """One row a way."""
    plain = gauges[gauges["way"] == PLAIN]["excess"].mean()
    rows: list[dict[str, Any]] = []
    for name in queries["way"].unique():
        excess = gauges[gauges["way"] == name]["excess"].mean()
        row: dict[str, Any] = {
            "way": name,
            "week excess": f"{excess:.3f}",
            "of plain's": f"{100 * excess / plain:.0f} %",
        }
        for label, side in (("all", queries), ("held-out", queries[~queries[LEAKED].astype(bool)])):
            row |= compared(side, name, label)
        rows.append(row)
    return pd.DataFrame(rows)


def markdown(rows: pd.DataFrame) -> str:
    """A table as Markdown."""
    lines = [list(rows.columns), ["---"] * rows.shape[1], *rows.astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def compared(queries: pd.DataFrame, name: str, label: str) -> dict[str, str]:
    """Hits of a way, and the change against plain."""
    keys = ["seed", c.COMPOUND, c.TREATMENT]
    own, plain = (
        queries[queries["way"] == one].set_index(keys)[CORRECT].astype(int) for one in (name, PLAIN)
    )
    change = (own - plain).groupby(level=["seed", c.COMPOUND]).sum().to_numpy(dtype=np.float64)
    screens = queries["seed"].nunique()
    draws = np.concatenate([weights @ change for weights in bootstrap_weights(len(change), 2000, 0)])
    low, high = percentile_interval(draws / screens)
    return {
        f"NSCB, {label}": f"{own.sum()}/{len(own)}",
        f"change a screen, {label}": f"{change.sum() / screens:+.1f} ({low:+.1f} to {high:+.1f})",
    }


if __name__ == "__main__":
    main()
