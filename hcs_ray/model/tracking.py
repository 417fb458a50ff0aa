"""Metrics of a run to Weights & Biases: offline inside the study unless a project is named.

An offline run never needs an account; ``wandb sync runs/NAME/wandb/offline-run-*`` sends it later.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hcs_ray.config import StudyConfig
from hcs_ray.storage import LocalStorage, Storage

_PROJECT = "hcs_ray"  # of runs that are offline


class Tracking:
    """One W&B run, on rank 0.

    Args:
        folder: of the run, below the study; W&B makes its own ``wandb`` in it.
        config: what the run was configured with; holds no secret.
    """

    def __init__(self, study: Storage, folder: str, config: StudyConfig) -> None:
        import wandb

        self._study, self._folder = study, folder
        self._scratch: tempfile.TemporaryDirectory[str] | None = None
        if isinstance(study, LocalStorage):
            self._local = study.path(folder)
            self._local.mkdir(parents=True, exist_ok=True)
        else:
            self._scratch = tempfile.TemporaryDirectory()
            self._local = Path(self._scratch.name)
        project = config.train.wandb_project
        quiet = wandb.Settings(
            silent=True, console="off", disable_git=True, save_code=False,
            x_disable_stats=True, x_disable_meta=True,
        )  # fmt: skip
        self._run: Any = wandb.init(
            project=project or _PROJECT,
            mode=None if project else "offline",
            dir=self._local,
            config=config.model_dump(mode="json"),
            settings=quiet,
        )

    def log(self, metrics: Mapping[str, float]) -> None:
        """Log an epoch at its optimizer step."""
        self._run.log(dict(metrics), step=int(metrics["optimizer_steps"]))

    def finish(self) -> None:
        """Close the run, and copy its files to a study that is not local."""
        self._run.finish()
        if self._scratch is None:
            return
        for file in sorted(self._local.rglob("*")):
            if file.is_file() and not file.is_symlink():
                self._study.write(f"{self._folder}/{file.relative_to(self._local)}", file.read_bytes())
        self._scratch.cleanup()
