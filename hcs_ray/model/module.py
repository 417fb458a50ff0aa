"""The LightningModule: one call of it is one optimizer step, whatever the ranks and however it is cut up."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pytorch_lightning as pl
import torch

from hcs_ray.config import StorageConfig, TrainConfig
from hcs_ray.model import augment
from hcs_ray.model.heads import reversal_at
from hcs_ray.model.loader import Batch
from hcs_ray.model.losses import Wanted, class_weights, losses, total
from hcs_ray.model.meter import Meter
from hcs_ray.model.network import MoaNetwork, ModelSpec
from hcs_ray.model.optimizing import Ema, optimizer_of
from hcs_ray.model.parts import each_tensor, parts_of


@dataclass(frozen=True)
class Course:
    """What a module learns from, and for how long."""

    fields: pd.DataFrame  # the table that is learned from, with `targets` columns
    steps: int  # optimizer steps of the whole training
    pretrained: bool  # begin with the weights that the configuration names
    storage: StorageConfig  # where those are


class MoaModule(pl.LightningModule):
    """Trains a `MoaNetwork`; every rank must see the same number of batches.

    Gradients are summed over the parts of a batch and over the ranks, each field with its weight, so they are
    those of the whole global batch. It steps its optimizer, schedule and moving average itself.
    """

    def __init__(self, spec: ModelSpec, config: TrainConfig, course: Course) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.spec = spec
        self.network = MoaNetwork(spec, pretrained=course.pretrained, storage=course.storage)
        self.config = config
        self.course = course
        self._norm = torch.full((), float("nan"))
        self._class_weights = class_weights(course.fields, config, len(spec.classes))
        self._wanted = Wanted.of(course.fields)
        if config.channels_last:
            self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if config.compile:
            self.network.compile()
        self.optimizer, self.schedule = optimizer_of(self.network.parameters(), config, course.steps)
        self.ema: Ema | None = None
        self.meter = Meter(len(course.fields), torch.device("cpu"))
        self._beside: Any = None  # a CUDA stream, made when it is first needed

    def configure_optimizers(self) -> torch.optim.Optimizer:
        optimizer: torch.optim.Optimizer = self.optimizer
        return optimizer

    def to_device(self) -> None:
        """Move what is no part of the network's state to where the network is; call it before training."""
        self._wanted = self._wanted.to(self.device)
        self._class_weights = self._class_weights.to(self.device)
        self.meter = Meter(len(self.course.fields), self.device)
        if self.config.ema_decay is not None:
            self.ema = Ema(self.network, self.config.ema_decay)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Copy a batch beside what the device computes, and wait: the loader uses its memory again."""
        if device.type != "cuda":
            return each_tensor(batch, lambda tensor: tensor.to(device))
        beside: Any = self._beside or torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._beside = beside
        with torch.cuda.stream(beside):
            moved = each_tensor(batch, lambda tensor: tensor.to(device, non_blocking=True))
        beside.synchronize()
        for tensor in moved.values():
            tensor.record_stream(torch.cuda.current_stream(device))  # type: ignore[attr-defined]
        return moved

    def training_step(self, batch: Batch, _: int) -> None:
        self._seed()
        parts = parts_of(batch, self._wanted.plates, self.config.device_batch)
        for number, part in enumerate(parts):
            with self._together_on(number == len(parts) - 1):
                self._backward(part)
        self._step()
        self.meter.saw(batch["rows"], batch["weights"] > 0)
        self.meter.step_done(self.global_rank == 0)

    def _seed(self) -> None:
        """Dropout follows from (seed, step, rank), so a run that goes on draws what it would have drawn."""
        place = [self.config.seed, self.global_step, self.global_rank]
        seed = int(np.random.SeedSequence(place).generate_state(1, np.uint64)[0] >> np.uint64(1))
        # torch.manual_seed would seed devices that are not used, too: without a GPU it notes down each call,
        # with its stack, for a GPU to come, which takes a millisecond and never ends.
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def _together_on(self, last: bool) -> contextlib.AbstractContextManager[Any]:
        """Gradients are summed over the ranks once a step, with those of its last part."""
        wrapped = self.trainer.model
        if last or not isinstance(wrapped, torch.nn.parallel.DistributedDataParallel):
            return contextlib.nullcontext()
        return wrapped.no_sync()

    def _backward(self, batch: Batch) -> None:
        wanted = self._wanted.at(batch["rows"])
        with torch.no_grad():
            images = augment.apply(batch["images"], batch["changes"], self.config)
            if self.config.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
        adversary = self.config.adversary
        outputs = self.network(
            images,
            wanted.plates,
            batch["anchors"],
            reversal=reversal_at(self.global_step, self.course.steps, adversary),
            probe=self.config.moa_weight == 0,
        )
        parts = losses(outputs, wanted, batch["weights"], self._class_weights, self.config)
        loss = total(parts, self.config)
        self.meter.add({"loss": loss, **parts})
        # DDP takes the mean of the ranks' gradients; that of a global batch is the sum of their shares.
        self.manual_backward(loss * self.trainer.world_size)

    def _step(self) -> None:
        optimizer: Any = self.optimizers()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        self.schedule.step()
        if self.ema is not None:
            self.ema.update(self.network)

    def on_before_optimizer_step(self, _: torch.optim.Optimizer) -> None:
        # Lightning has unscaled the gradients of fp16 by now.
        if self.config.clip_norm is None:
            return
        head = [] if self.network.domain is None else list(self.network.domain.parameters())
        others = {id(parameter) for parameter in head}
        learned = [parameter for parameter in self.network.parameters() if id(parameter) not in others]
        self._norm = torch.nn.utils.clip_grad_norm_(learned, self.config.clip_norm).detach()
        # The adversary's head learns faster than all else; its gradients would drown theirs.
        torch.nn.utils.clip_grad_norm_(head, self.config.clip_norm)

    def figures(self) -> dict[str, float]:
        """Learning rate, reversal, and the norm of the last gradient where it is clipped."""
        found = {"lr": float(self.optimizer.param_groups[0]["lr"])}
        if self.config.adversary.target != "none":
            found["reversal"] = reversal_at(self.global_step, self.course.steps, self.config.adversary)
        if self.config.clip_norm is not None:
            found["gradient_norm"] = float(self._norm)
        return found

    @property
    def loss_names(self) -> tuple[str, ...]:
        """The losses that this module has."""
        treatment = ("treatment",) if self.spec.treatments else ()
        return ("loss", "moa", *treatment, *(("domain",) if self.spec.domains else ()))

    @contextlib.contextmanager
    def judged(self) -> Iterator[MoaNetwork]:
        """The network whose weights are judged and kept: the moving average's, where there is one."""
        if self.ema is None:
            yield self.network
            return
        with self.ema.in_place_of(self.network):
            yield self.network
