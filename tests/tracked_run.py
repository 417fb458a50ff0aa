"""A training as far as tracking sees one, here or in a process of its own that can be killed."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from hcs_ray.config import StudyConfig
from hcs_ray.model.tracking import Final, Tracking
from hcs_ray.storage import LocalStorage

FOLDER = "runs/one"
EPOCH_STEPS, CHECKPOINT_STEPS = 100, 50
REPOSITORY = Path(__file__).resolve().parents[1]

Point = dict[str, float]


def point(step: int) -> Point:
    return {"optimizer_steps": step, "train_loss": math.exp(-step / 150), "lr": 1e-3 / step}


def epoch_point(step: int) -> Point:
    score = 1 - 1 / (1 + step)
    return {"optimizer_steps": step, "epoch": step / EPOCH_STEPS - 1, "validation_score": score}


def configuration(mode: str = "offline", *, tensorboard: bool = False) -> StudyConfig:
    sections = {"wandb": {"mode": mode, "project": "screens"}, "train": {"tensorboard": tensorboard}}
    return StudyConfig.model_validate(sections)


def final() -> Final:
    from hcs_ray.model.judging import Misclassified  # and torchmetrics, which takes its time

    wrong = [
        Misclassified(f"P1_A0{i}_s1", np.full((6, 8, 3), 40 * i, np.uint8), "DMSO $x_", "Actin", 0.9 - i / 10)
        for i in range(3)
    ]
    counts = np.array([[5, 1], [3, 7]])
    return Final({"test_accuracy": 0.75}, ("Actin", "DMSO $x_"), counts, wrong, b"weights of a model")


def learn(tracking: Tracking, points: list[Point], until: int, checkpoint: Path | None = None) -> None:
    """From the last of some points to a step, adding to them; a checkpoint holds those until its step."""
    start = int(points[-1]["optimizer_steps"]) if points else 0
    for step in range(start + 1, until + 1):
        new = [point(step)] + ([epoch_point(step)] if step % EPOCH_STEPS == 0 else [])
        for figures in new:
            tracking.log(figures)
        points += new
        if checkpoint and step % CHECKPOINT_STEPS == 0:
            checkpoint.write_text(json.dumps(points))


def run(root: Path, until: int, *, ends: bool) -> None:
    """Train in a study from its checkpoint to a step; finish there, or wait."""
    checkpoint = root / "checkpoint.json"
    told = json.loads(checkpoint.read_text()) if checkpoint.exists() else []
    tracking = Tracking(
        LocalStorage(root), FOLDER, configuration(tensorboard=True), group="sweep", told=list(told)
    )
    learn(tracking, told, until, checkpoint)
    if ends:
        tracking.finish(final())
    else:
        print("there", flush=True)
        time.sleep(60)


def start(root: Path, until: int, *, ends: bool, **environment: str) -> subprocess.Popen[str]:
    """`run` as a process."""
    root.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.tracked_run", str(root), str(until), str(int(ends))]
    pipe: Any = subprocess.PIPE
    return subprocess.Popen(
        command, cwd=REPOSITORY, env=os.environ | environment, stdout=pipe, stderr=pipe, text=True
    )


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(sys.argv[2]), ends=sys.argv[3] == "1")
