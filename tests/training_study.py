"""A small screen to train on, and a run's training in this process: one rank, without Ray."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from lightning_fabric.plugins.environments.lightning import LightningEnvironment
from pytorch_lightning.strategies import SingleDeviceStrategy

from hcs_ray.model import fitting
from hcs_ray.model.checkpoint import CHECKPOINT_FILE, RunState, read_state
from hcs_ray.screen.synthetic import SyntheticConfig, generate
from hcs_ray.shards.read import ShardReader
from hcs_ray.study import Study, open_study
from hcs_ray.train.job import prepare
from tests.command import hcs_ray

# 44 fields to learn from: eleven steps an epoch, with a checkpoint after every third.
TRAIN: dict[str, Any] = {
    "epochs": 2, "global_batch": 4, "crop_px": 112, "lr": 3e-3, "threads": 1,
    "checkpoint_steps": 3, "log_steps": 2, "max_failures": 3,
}  # fmt: skip


def draw_study(folder: Path, ray_address: str, **train: object) -> Path:
    """The smallest screen, with two sites a well, sharded and split; 44 fields train."""
    generate(SyntheticConfig.preset("smallest").model_copy(update={"sites": 2}), folder / "raw", workers=1)
    configured = {"model": {"backbone": "tiny"}, "train": {**TRAIN, **train}}
    (folder / "study.yaml").write_text(yaml.safe_dump(configured))
    done = hcs_ray("run", folder, "--to", "split", RAY_ADDRESS=ray_address)
    assert done.returncode == 0, done.stderr
    return folder


@dataclass
class Alone:
    """What the only rank of a run told, and the checkpoints that it saved."""

    folder: Path
    reported: list[dict[str, float]] = field(default_factory=list)
    noted: list[dict[str, float]] = field(default_factory=list)
    checkpoints: list[Path] = field(default_factory=list)
    leaves_at: int | None = None  # the step at which a notice comes that the node will go
    time_over_at: int | None = None
    steps: tuple[int, int] = (0, 0)

    def rank(self) -> fitting.Rank:
        return fitting.Rank(
            number=0,
            strategy=SingleDeviceStrategy("cpu"),
            environment=LightningEnvironment(),
            prepare=lambda trainer: trainer,
            report=self._report,
            note=lambda figures: self.noted.append(dict(figures)),
            step_done=self._step_done,
            leaving=lambda: self.leaves_at is not None and self.steps[0] >= self.leaves_at,
            time_over=lambda: self.time_over_at is not None and self.steps[0] >= self.time_over_at,
        )

    def fit(self, run: fitting.Run, checkpoint: Path | None = None) -> RunState:
        """Train to the end, from a checkpoint's folder where that is given."""
        state = read_state(checkpoint) if checkpoint else RunState()
        return fitting.fit(run, self.rank(), state, checkpoint / CHECKPOINT_FILE if checkpoint else None)

    def _report(self, metrics: Mapping[str, float], folder: Path) -> None:
        kept = self.folder / f"step_{int(metrics['optimizer_steps']):04d}"
        shutil.copytree(folder, kept)
        self.reported.append(dict(metrics))
        self.checkpoints.append(kept)

    def _step_done(self, step: int, steps: int) -> None:
        self.steps = step, steps


def run_of(study: Study) -> fitting.Run:
    """What a run of a study learns."""
    job = prepare(study, "runs/alone")
    reader = ShardReader(study.storage, study.require("shard"))
    return fitting.Run(job.spec, study.config.train, reader, job.fields, study.config.storage)


def run_with(folder: Path, *overrides: str) -> fitting.Run:
    """The same, with keys of the configuration overridden."""
    return run_of(open_study(str(folder), overrides=overrides))
