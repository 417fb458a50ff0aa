"""How weights move: the optimizer, the learning rate's course, the mean of the weights, and when to stop.

The state of each is of plain types and tensors, so a checkpoint is read without pickle, and a training that
is resumed anywhere goes on bitwise as an undisturbed one.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR, ReduceLROnPlateau

from hcs_ray.config.training import TrainConfig
from hcs_ray.contracts import InputError

PLATEAU_FACTOR = 0.3  # by which lr shrinks ...
PLATEAU_EPOCHS = 3  # ... when so many epochs in a row, and one more, were not better than the best


def optimizer_of(
    parameters: Iterable[nn.Parameter], config: TrainConfig, steps: int
) -> tuple[AdamW, Schedule]:
    """AdamW (Loshchilov & Hutter, 2019) and the course of its learning rate over ``steps`` optimizer steps.

    Weight decay acts on matrices and convolutions only, not on what is one number a channel: biases,
    the scales of normalisations, a class token. Parameters that need no gradient are left out.
    """
    learned = [parameter for parameter in parameters if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if not _by_channel(p)], "weight_decay": config.weight_decay},
        {"params": [p for p in learned if _by_channel(p)], "weight_decay": 0.0},
    ]
    optimizer = AdamW([group for group in groups if group["params"]], lr=config.lr)
    return optimizer, Schedule(optimizer, config, steps)


def _by_channel(parameter: nn.Parameter) -> bool:
    """Whether it is a vector, also as (1, 1, C) or (1, 1, 1, C); the (1, C) of a linear layer is a matrix."""
    return parameter.ndim != 2 and parameter.numel() == max([1, *parameter.shape[-1:]])


class Schedule:
    """The course of the learning rate; `step` follows every optimizer step, `epoch_end` every epoch.

    - ``one_cycle``: up over the first 30 % of the steps and down to almost 0 (Smith & Topin, 2018), with the
      momentum against it; `torch.optim.lr_scheduler.OneCycleLR`.
    - ``cosine``: linear warm-up, then half a cosine, 0 after the last step (Loshchilov & Hutter, 2017).
    - ``constant``: linear warm-up, then as it is.
    - ``plateau``: linear warm-up, then times `PLATEAU_FACTOR` each time that `PLATEAU_EPOCHS` + 1 epochs in a
      row had no better score. Epochs that end while it warms up do not count.

    A warm-up of n steps takes 1/n, 2/n, ... of the learning rate.
    """

    def __init__(self, optimizer: AdamW, config: TrainConfig, steps: int) -> None:
        self._optimizer = optimizer
        self._warmup = 0 if config.schedule == "one_cycle" else round(config.warmup * steps)
        self._by_step: OneCycleLR | LambdaLR
        if config.schedule == "one_cycle":
            self._by_step = OneCycleLR(optimizer, config.lr, total_steps=steps)
        else:
            end = steps if config.schedule == "cosine" else None
            warmup = self._warmup
            self._by_step = LambdaLR(optimizer, lambda step: _share_of_lr(step, warmup, end))
        self._plateau: ReduceLROnPlateau | None = None
        if config.schedule == "plateau":
            self._plateau = ReduceLROnPlateau(
                optimizer, mode="max", factor=PLATEAU_FACTOR, patience=PLATEAU_EPOCHS, threshold=0.0
            )

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return float(self._optimizer.param_groups[0]["lr"])

    def step(self) -> None:
        """After an optimizer step."""
        # A warm learning rate is the plateau's: another step by the warm-up would undo its reductions.
        if self._plateau is None or self._by_step.last_epoch < self._warmup:
            self._by_step.step()

    def epoch_end(self, score: float) -> None:
        """After an epoch, with its validation score; more is better."""
        if self._plateau is not None and self._by_step.last_epoch >= self._warmup:
            self._plateau.step(float(score))

    def state_dict(self) -> dict[str, Any]:
        """Of plain types; the learning rate itself is in the optimizer's state, to be kept beside it."""
        plateau = {} if self._plateau is None else self._plateau.state_dict()
        return {"by_step": self._by_step.state_dict(), "plateau": plateau}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._by_step.load_state_dict(state["by_step"])
        if self._plateau is not None:
            self._plateau.load_state_dict(state["plateau"])


def _share_of_lr(step: int, warmup: int, end: int | None) -> float:
    """The factor of the learning rate after ``step`` optimizer steps."""
    if step < warmup:
        return (step + 1) / warmup
    if end is None or step >= end:
        return 1.0 if end is None else 0.0
    return (1 + math.cos(math.pi * (step - warmup) / (end - warmup))) / 2


class Ema:
    """An exponential mean of a network's weights (Polyak averaging), its buffers included.

    What is floating point is averaged, batch normalisation's statistics as well as weights; what is counted
    is copied. The decay of update n = 0, 1, ... is min(decay, (1 + n) / (10 + n)), as in TensorFlow's
    ExponentialMovingAverage, so that the mean of a short training is not mostly of what it began with.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._updates = 0
        self._values = {name: value.detach().clone() for name, value in network.state_dict().items()}

    @torch.no_grad()
    def update(self, network: nn.Module) -> None:
        """After an optimizer step."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        current = network.state_dict()
        floats = [name for name, value in self._values.items() if value.is_floating_point()]
        torch._foreach_lerp_(
            [self._values[name] for name in floats], [current[name] for name in floats], 1 - decay
        )
        for name in self._values.keys() - set(floats):
            self._values[name].copy_(current[name])
        self._updates += 1

    @contextlib.contextmanager
    def in_place_of(self, network: nn.Module) -> Iterator[None]:
        """The network with the mean for its weights; afterwards it is exactly as before."""
        before = {name: value.detach().clone() for name, value in network.state_dict().items()}
        _overwrite(network.state_dict(), self._values)
        try:
            yield
        finally:
            _overwrite(network.state_dict(), before)

    def state_dict(self) -> dict[str, Any]:
        """The tensors are not copied: save or clone them before the next update."""
        return {"updates": self._updates, "values": dict(self._values)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes over a state, on the device of the network that this was made with.

        Raises:
            InputError: the state is of another network; names a tensor.
        """
        own, other = ({(k, tuple(v.shape)) for k, v in s.items()} for s in (self._values, state["values"]))
        if own != other:
            name = min(own ^ other)[0]
            raise InputError(f"the mean of the weights is of another network: {name} does not fit")
        _overwrite(self._values, state["values"])
        self._updates = int(state["updates"])


@torch.no_grad()
def _overwrite(tensors: Mapping[str, torch.Tensor], values: Mapping[str, torch.Tensor]) -> None:
    for name, tensor in tensors.items():
        tensor.copy_(values[name])


class EarlyStopping:
    """Says when ``patience`` epochs in a row had no better score than the best before; None: never."""

    def __init__(self, patience: int | None) -> None:
        self._patience = patience
        self._best = -math.inf
        self._waited = 0

    def epoch_end(self, score: float) -> bool:
        """After an epoch, with its validation score, of which more is better; whether to stop now."""
        better = float(score) > self._best  # NaN is not
        self._best = float(score) if better else self._best
        self._waited = 0 if better else self._waited + 1
        return self.stop

    @property
    def stop(self) -> bool:
        return self._patience is not None and self._waited >= self._patience

    def state_dict(self) -> dict[str, float | int]:
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: Mapping[str, float | int]) -> None:
        self._best, self._waited = float(state["best"]), int(state["waited"])
