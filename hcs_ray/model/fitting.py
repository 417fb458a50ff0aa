"""One rank's training: a Lightning trainer with checkpoints on optimizer steps, anywhere in an epoch."""

from __future__ import annotations

import contextlib
import math
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pytorch_lightning as pl
import torch
from pytorch_lightning.loops.training_epoch_loop import _TrainingEpochLoop

from hcs_ray import contracts as c
from hcs_ray.config import StorageConfig, TrainConfig
from hcs_ray.model import ranks
from hcs_ray.model.checkpoint import CHECKPOINT_FILE, CHECKPOINT_KEY, RunState
from hcs_ray.model.epochs import epoch_list
from hcs_ray.model.inference import infer
from hcs_ray.model.judging import validation_metrics
from hcs_ray.model.loader import BatchLoader, FieldSource, training_batches
from hcs_ray.model.module import Course, MoaModule
from hcs_ray.model.network import SCORE, ModelSpec
from hcs_ray.model.optimizing import EarlyStopping
from hcs_ray.model.targets import side_table
from hcs_ray.shards.read import ShardReader

Figures = Mapping[str, float]
_POLL_SECONDS = 2.0  # between questions whether the node will go, or the time is over


@dataclass(frozen=True)
class Run:
    """What is learned, from what, and how."""

    spec: ModelSpec
    config: TrainConfig
    reader: ShardReader
    fields: pd.DataFrame  # with `targets` columns
    storage: StorageConfig  # of weights to begin with

    def source(self, side: str) -> FieldSource:
        table = side_table(self.fields, side, anchored=self.anchor_fields > 0)
        return FieldSource(self.reader, table, self.config.downsample)

    @property
    def anchor_fields(self) -> int:
        """Control fields a plate beside each batch."""
        model = self.spec.model
        return int(model["anchor_fields"]) if model["normalization"] == "control_anchored" else 0


@dataclass(frozen=True)
class Rank:
    """A worker's place among the others, and how it tells of what it does; all ranks call these alike."""

    number: int
    strategy: Any
    environment: Any
    prepare: Callable[[pl.Trainer], pl.Trainer]
    report: Callable[[Figures, Path], None]  # with a folder that holds a checkpoint
    note: Callable[[Figures], None]  # figures of a step
    step_done: Callable[[int, int], None]  # steps done, of so many
    leaving: Callable[[], bool]  # a node will soon go: save now
    time_over: Callable[[], bool]  # save and end


class StoppedError(Exception):
    """The run ended at a checkpoint because its time was over."""


def steps_of_epoch(fields: pd.DataFrame, config: TrainConfig) -> int:
    """Optimizer steps of an epoch over a table of fields to learn from."""
    return math.ceil(len(epoch_list(fields, config, 0)) / config.global_batch)


def settle(seed: int) -> None:
    """Make this process draw and compute the same whenever it is asked to."""
    pl.seed_everything(seed, verbose=False)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads memory that was not written; to fill it all first takes 4 % of a step of a resnet18.
    deterministic: Any = torch.utils.deterministic
    deterministic.fill_uninitialized_memory = False


def fit(run: Run, rank: Rank, state: RunState, resume: Path | None) -> RunState:
    """Train this rank's share from a state, with its checkpoint's file, to the end; every rank calls it.

    Raises:
        StoppedError: the time was over; a checkpoint holds what was done.
    """
    config = run.config
    settle(config.seed)
    learning, judging = run.source(c.TRAIN), run.source(c.VALIDATION)
    steps = steps_of_epoch(learning.fields, config)
    course = Course(learning.fields, steps * config.epochs, pretrained=resume is None, storage=run.storage)
    module = MoaModule(run.spec, config, course)
    if not len(state.seen):
        state.seen = torch.zeros(len(learning.fields), dtype=torch.int32)
    keeper = _Keeper(run, rank, state, judging, steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice on loaders and logging does not apply
        trainer = rank.prepare(_trainer(config, rank, keeper))
        trainer.fit(
            module,
            datamodule=_Batches(run, rank, learning, state),
            ckpt_path=str(resume) if resume else None,
            weights_only=True,
        )
    if keeper.time_is_over:
        raise StoppedError
    return state


def _trainer(config: TrainConfig, rank: Rank, keeper: pl.Callback) -> pl.Trainer:
    precision: dict[str, Any] = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
    trainer = pl.Trainer(
        max_epochs=config.epochs,
        accelerator="gpu" if config.use_gpu else "cpu",
        devices="auto",
        strategy=rank.strategy,
        plugins=[rank.environment],
        precision=precision[config.precision],
        callbacks=[keeper],
        reload_dataloaders_every_n_epochs=1,
        use_distributed_sampler=False,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit_loop.epoch_loop = _EpochLoop(trainer)
    return trainer


class _EpochLoop(_TrainingEpochLoop):
    """Lightning's, without its question to rank 0 in every step whether it got SIGTERM.

    A rank trains in a thread, which gets no signals; and a GPU's answer would have to be waited for.
    """

    def _broadcast_sigterm_tensor(self) -> None:
        """Nobody asks."""


class _Stream:
    """An epoch's batches from the cursor on; it says how many the whole epoch has.

    Lightning counts the batches that it saw before a checkpoint; it takes a loader that keeps its own place
    for one that has ``state_dict``.
    """

    def __init__(self, batches: BatchLoader, skipped: int) -> None:
        self._batches, self._skipped = batches, skipped

    def __len__(self) -> int:
        return len(self._batches) + self._skipped

    def __iter__(self) -> Iterator[Any]:
        with contextlib.closing(self._batches):
            yield from self._batches

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, _: Mapping[str, Any]) -> None:
        """The cursor is in our `RunState`."""


class _Batches(pl.LightningDataModule):
    """A loader for each epoch, which begins where the state's cursor is."""

    def __init__(self, run: Run, rank: Rank, source: FieldSource, state: RunState) -> None:
        super().__init__()
        self._run, self._rank, self._source, self._state = run, rank, source, state

    def train_dataloader(self) -> _Stream:
        state, config = self._state, self._run.config
        batches = training_batches(
            self._source, config, state.epoch, self._rank.number, ranks.world_size(),
            start=state.samples, anchor_fields=self._run.anchor_fields,
        )  # fmt: skip
        return _Stream(batches, math.ceil(state.samples / config.global_batch))


class _Keeper(pl.Callback):
    """Keeps the run's state, judges each epoch, saves checkpoints, and tells of it all."""

    def __init__(self, run: Run, rank: Rank, state: RunState, judging: FieldSource, steps: int) -> None:
        self._run, self._rank, self._state, self._judging, self._steps = run, rank, state, judging, steps
        self._listed = len(epoch_list(run.source(c.TRAIN).fields, run.config, 0))
        self._stopping = EarlyStopping(run.config.stop_after)
        self._pulse = _Pulse()
        self._clock = _Clock()
        self._saved_for_leaving = False
        self.time_is_over = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, state = _ours(pl_module), self._state
        module.to_device()
        if state.step == 0:
            return
        module.meter.load(state.meter, state.seen, self._rank.number == 0)
        module.schedule.load_state_dict(dict(state.schedule))
        if module.ema is not None:
            module.ema.load_state_dict(dict(state.ema))
        self._stopping.load_state_dict(state.stopping)

    def on_train_batch_start(self, *_: Any) -> None:
        self._clock.begins()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        state, config = self._state, self._run.config
        state.step = trainer.global_step
        done = state.step - state.epoch * self._steps
        state.samples = min(done * config.global_batch, self._listed)
        self._clock.ends()
        self._rank.step_done(state.step, self._steps * config.epochs)
        if done == self._steps:
            return  # the end of the epoch follows
        if state.step % config.log_steps == 0:
            self._note(self._point(_ours(pl_module)))
        asked = config.checkpoint_steps is not None and state.step % config.checkpoint_steps == 0
        if self._pulse.due(state.step):
            asked = self._ask(trainer) or asked
        if asked:
            self._save(trainer, _ours(pl_module), {"epoch": state.epoch, "epoch_end": 0.0})

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        module, state = _ours(pl_module), self._state
        if state.samples < self._listed:
            return  # its time is over: the checkpoint of its last step says where to go on
        row = {"epoch": float(state.epoch), "optimizer_steps": float(state.step)}
        point = self._point(module)
        names = module.loss_names
        row |= _prefixed("train_", module.meter.epoch_means(names))
        with module.judged() as network:
            ranks.share_buffers(network)
            row |= self._judge(network)
            self._choose(network, row)
        state.history.append(row)
        module.schedule.epoch_end(row[SCORE])
        self._note({**point, **row})
        state.epoch, state.samples = state.epoch + 1, 0
        enough = self._stopping.epoch_end(row[SCORE])
        state.done = enough or state.epoch == self._run.config.epochs
        self._ask(trainer)
        self._save(trainer, module, {**row, "epoch_end": 1.0})
        trainer.should_stop = trainer.should_stop or state.done

    def on_save_checkpoint(self, _: pl.Trainer, __: pl.LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint[CHECKPOINT_KEY] = self._state.to_plain()

    def _ask(self, trainer: pl.Trainer) -> bool:
        """Whether to save now: the node is leaving, or the time is over; asked by all ranks at once."""
        leaving = self._rank.leaving()
        if leaving and not self._saved_for_leaving:
            self._saved_for_leaving = True
            return True
        self.time_is_over = self._rank.time_over()
        trainer.should_stop = trainer.should_stop or self.time_is_over
        return self.time_is_over

    def _judge(self, network: Any) -> dict[str, float]:
        found = infer(network, self._judging, self._run.config, self._rank.number, self._run.anchor_fields)
        classes = len(self._run.spec.classes)
        return validation_metrics(self._judging.fields, found.rows, found.logits, classes)

    def _choose(self, network: Any, row: Figures) -> None:
        """Keep the weights of the best epoch, the first of equals, or of the last."""
        better = all(row[SCORE] > before[SCORE] for before in self._state.history)
        if better or self._run.config.choose == "last":
            self._state.best = {
                name: value.detach().cpu().clone() for name, value in network.state_dict().items()
            }

    def _point(self, module: MoaModule) -> dict[str, float]:
        losses = _prefixed("step_", module.meter.window_means(module.loss_names))
        figures = {"optimizer_steps": float(self._state.step), "epoch": float(self._state.epoch)}
        return figures | losses | module.figures() | self._clock.figures(self._run.config.global_batch)

    def _note(self, point: dict[str, float]) -> None:
        self._state.points.append(point)
        self._rank.note(point)

    def _save(self, trainer: pl.Trainer, module: MoaModule, metrics: Figures) -> None:
        state = self._state
        state.meter, state.seen = module.meter.state()
        state.schedule = module.schedule.state_dict()
        state.ema = {} if module.ema is None else module.ema.state_dict()
        state.stopping = self._stopping.state_dict()
        world = ranks.world_size()
        state.generators = {"seed": self._run.config.seed, "step": state.step, "ranks": world}
        with tempfile.TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder, CHECKPOINT_FILE), weights_only=False)
            self._rank.report({**metrics, "optimizer_steps": float(state.step)}, Path(folder))


class _Pulse:
    """When all ranks ask what only some may know: about every `_POLL_SECONDS`, after the same step."""

    def __init__(self) -> None:
        self._next: int | None = None
        self._since = time.monotonic()
        self._at = self._ahead = 0

    def due(self, step: int) -> bool:
        if self._next is None:  # the first step of a process is slow, and says nothing of the others
            self._plan(step, 1)
            return False
        if step < self._next:
            return False
        each = (time.monotonic() - self._since) / max(step - self._at, 1)
        # Steps may get slower, as when what the loader has read ahead is used up: at most twice as many.
        ahead = min(max(1, round(_POLL_SECONDS / max(each, 1e-6))), 2 * self._ahead)
        self._plan(step, ranks.first_says(ahead))  # rank 0's clock decides for all
        return True

    def _plan(self, step: int, ahead: int) -> None:
        self._next, self._since = step + ahead, time.monotonic()
        self._at, self._ahead = step, ahead


class _Clock:
    """How long steps take, and how much of that is waiting for the loader."""

    def __init__(self) -> None:
        self._ended = time.perf_counter()
        self._waited = self._worked = 0.0
        self._steps = 0

    def begins(self) -> None:
        now = time.perf_counter()
        self._waited += now - self._ended
        self._ended = now

    def ends(self) -> None:
        now = time.perf_counter()
        self._worked += now - self._ended
        self._ended = now
        self._steps += 1

    def figures(self, global_batch: int) -> dict[str, float]:
        """Of the steps since the last call."""
        took = max(self._waited + self._worked, 1e-9)
        found = {"fields_per_second": self._steps * global_batch / took, "wait_share": self._waited / took}
        self._waited = self._worked = 0.0
        self._steps = 0
        self._ended = time.perf_counter()
        return found


def _ours(module: pl.LightningModule) -> MoaModule:
    assert isinstance(module, MoaModule)
    return module


def _prefixed(prefix: str, figures: Figures) -> dict[str, float]:
    return {f"{prefix}{name}": value for name, value in figures.items()}
