"""One rank's training loop: a Lightning trainer that saves and reports at every epoch's end."""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from hcs_ray import contracts as c
from hcs_ray.config import TrainConfig
from hcs_ray.model.loader import LABEL, BatchLoader, FieldSource, epoch_list, plain_batches, training_batches
from hcs_ray.model.module import MoaModule
from hcs_ray.model.network import CHECKPOINT_FILE, CHECKPOINT_KEY, SCORE, ModelSpec
from hcs_ray.shards.read import ShardReader

Report = Callable[[Mapping[str, float], Path], None]


@dataclass(frozen=True)
class Run:
    """What is learned, from what, and how."""

    spec: ModelSpec
    config: TrainConfig
    reader: ShardReader
    fields: pd.DataFrame  # training and validation fields

    def side(self, side: str) -> FieldSource:
        fields = self.fields[self.fields[c.SIDE] == side].reset_index(drop=True)
        return FieldSource(self.reader, fields, self.config.downsample)


@dataclass(frozen=True)
class Rank:
    """A worker's place among the others, and how it tells of an epoch (metrics, folder with a checkpoint)."""

    rank: int
    world: int
    strategy: Any
    environment: Any
    report: Report


class _Batches(pl.LightningDataModule):
    """Loaders that are made anew each epoch, from (seed, epoch)."""

    def __init__(self, run: Run, rank: Rank) -> None:
        super().__init__()
        self._run, self._rank = run, rank
        self._training, self._validation = run.side(c.TRAIN), run.side(c.VALIDATION)

    def train_dataloader(self) -> BatchLoader:
        assert self.trainer is not None
        epoch = self.trainer.current_epoch
        return training_batches(self._training, self._run.config, epoch, self._rank.rank, self._rank.world)

    def val_dataloader(self) -> BatchLoader:
        return plain_batches(self._validation, self._run.config, self._rank.rank, self._rank.world)


class _EpochEnd(pl.Callback):
    """Keeps the history and the best weights, in every checkpoint, and reports each epoch."""

    def __init__(self, report: Report, seed: int) -> None:
        self._report = report
        self._seed = seed
        self._history: list[dict[str, float]] = []
        self._best: dict[str, torch.Tensor] = {}

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        # Dropout follows from (seed, epoch, rank), so that a resumed run draws what an undisturbed one would.
        seed = np.random.SeedSequence([self._seed, trainer.current_epoch, trainer.global_rank])
        torch.manual_seed(int(seed.generate_state(1)[0]))

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        assert isinstance(pl_module, MoaModule)
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        metrics |= {"epoch": float(trainer.current_epoch), "optimizer_steps": float(trainer.global_step)}
        if all(metrics[SCORE] > before[SCORE] for before in self._history):
            state = pl_module.network.state_dict()
            self._best = {name: value.detach().cpu().clone() for name, value in state.items()}
        self._history.append(metrics)
        with tempfile.TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder, CHECKPOINT_FILE))
            self._report(metrics, Path(folder))

    def on_save_checkpoint(self, _: pl.Trainer, __: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = {"history": json.dumps(self._history), "best": self._best}

    def on_load_checkpoint(self, _: pl.Trainer, __: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._history = json.loads(checkpoint[CHECKPOINT_KEY]["history"])
        self._best = checkpoint[CHECKPOINT_KEY]["best"]


def fit(run: Run, rank: Rank, prepare: Callable[[pl.Trainer], pl.Trainer], resume: Path | None) -> None:
    """Train this rank's share, from the beginning or from a checkpoint; every rank calls it."""
    config = run.config
    pl.seed_everything(config.seed, verbose=False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    training = run.side(c.TRAIN)
    steps = len(training_batches(training, config, 0, rank.rank, rank.world)) * config.epochs
    module = MoaModule(
        run.spec, config, class_weights(training.fields, config, len(run.spec.classes)),
        run.side(c.VALIDATION).fields, steps,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and logging does not apply
        trainer = prepare(
            pl.Trainer(
                max_epochs=config.epochs,
                accelerator="gpu" if config.use_gpu else "cpu",
                devices="auto",
                strategy=rank.strategy,
                plugins=[rank.environment],
                precision="bf16-mixed" if config.precision == "bf16" else "32-true",
                callbacks=[_EpochEnd(rank.report, config.seed)],
                reload_dataloaders_every_n_epochs=1,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
            )
        )
        trainer.fit(
            module,
            datamodule=_Batches(run, rank),
            ckpt_path=str(resume) if resume else None,
            weights_only=True,
        )


def class_weights(fields: pd.DataFrame, config: TrainConfig, classes: int) -> torch.Tensor:
    """(K,) float32: inverse of the fields of a class in an epoch, with mean 1 over the fields."""
    if not config.class_weights:
        return torch.ones(classes)
    labels = torch.from_numpy(fields[LABEL].to_numpy("int64")[epoch_list(fields, config, 0)].copy())
    counts = torch.bincount(labels, minlength=classes).float()
    return counts.sum() / (classes * counts.clamp(min=1))
