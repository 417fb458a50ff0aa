"""How weights move: what each schedule does, and that a resumed training goes on to the last bit."""

from __future__ import annotations

import io
import math
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from hcs_ray.config import TrainConfig
from hcs_ray.contracts import InputError
from hcs_ray.model.optimizing import (
    PLATEAU_EPOCHS,
    PLATEAU_FACTOR,
    EarlyStopping,
    Ema,
    Schedule,
    optimizer_of,
)

Course = Literal["one_cycle", "cosine", "plateau", "constant"]
COURSES: tuple[Course, ...] = ("one_cycle", "cosine", "plateau", "constant")
STEPS_AN_EPOCH = 4
scores = st.floats(-1, 1) | st.just(math.nan)


class Small(nn.Module):
    """Weights, biases, norms with running statistics, a token, and something frozen."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(2, 3, 3)
        self.norm = nn.BatchNorm2d(3)
        self.response = nn.Parameter(torch.ones(1, 1, 1, 3))
        self.token = nn.Parameter(torch.ones(1, 1, 3))
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.head = nn.Linear(3, 1)
        self.frozen = nn.Parameter(torch.ones(4, 4), requires_grad=False)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        grown = self.norm(self.stem(images)) * self.scale
        found: torch.Tensor = self.head(grown.mean((2, 3)) * self.response[0, 0] + self.token[0])
        return found


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=True)


def exactly(state: Any) -> Any:
    """Tensors as bytes, numbers to the last digit; NaN equals itself."""
    if isinstance(state, dict):
        return {name: exactly(part) for name, part in state.items()}
    if isinstance(state, list):
        return [exactly(part) for part in state]
    return state.numpy().tobytes() if isinstance(state, torch.Tensor) else repr(state)


def course(config: TrainConfig, steps: int, taken: int | None = None) -> list[float]:
    """The learning rate of each step; every epoch is better than the one before."""
    optimizer, schedule = optimizer_of(nn.Linear(1, 1).parameters(), config, steps)
    lrs = []
    for step in range(steps if taken is None else taken):
        lrs.append(schedule.lr)
        optimizer.step()
        schedule.step()
        if (step + 1) % STEPS_AN_EPOCH == 0:
            schedule.epoch_end(float(step))
    return lrs


# --- The optimizer -------------------------------------------------------------------------------------


def test_weight_decay_acts_on_matrices_and_convolutions_only() -> None:
    network = Small()
    optimizer, _ = optimizer_of(
        network.parameters(), TrainConfig(lr=0.1, weight_decay=0.5, schedule="constant"), 10
    )
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    shrunk = {name for name, value in network.named_parameters() if not torch.equal(value, before[name])}
    assert shrunk == {"stem.weight", "head.weight"}
    torch.testing.assert_close(network.stem.weight.detach(), before["stem.weight"] * (1 - 0.1 * 0.5))
    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(p) for p in network.parameters() if p.requires_grad)


# --- The schedules -------------------------------------------------------------------------------------


def test_one_cycle_is_that_of_torch() -> None:
    optimizer = torch.optim.AdamW(nn.Linear(1, 1).parameters(), lr=0.01)
    torchs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=50)
    expected = []
    for _ in range(50):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    config = TrainConfig(lr=0.01, schedule="one_cycle", warmup=0.5)
    assert course(config, 50) == expected
    assert max(expected) == expected[14] == 0.01


@settings(deadline=None)
@given(st.integers(1, 80), st.floats(0, 1))
def test_a_warm_up_is_linear_and_a_cosine_ends_near_zero(steps: int, warmup: float) -> None:
    ways = {
        name: np.array(course(TrainConfig(lr=0.5, schedule=name, warmup=warmup), steps))
        for name in ("cosine", "constant", "plateau")
    }
    warm = round(warmup * steps)
    for lrs in ways.values():
        np.testing.assert_allclose(lrs[:warm], 0.5 * np.arange(1, warm + 1) / max(warm, 1))
    np.testing.assert_array_equal(ways["constant"][warm:], 0.5)
    np.testing.assert_array_equal(ways["plateau"][warm:], 0.5)
    rest = np.arange(steps - warm)
    np.testing.assert_allclose(ways["cosine"][warm:], 0.25 * (1 + np.cos(np.pi * rest / max(len(rest), 1))))


@pytest.mark.parametrize("warmup", [0.0, 0.3])
def test_a_plateau_lowers_the_rate_and_a_warm_up_does_not_undo_it(warmup: float) -> None:
    """One epoch is better, all after it are worse; before it is warm, none counts."""
    config = TrainConfig(lr=1.0, schedule="plateau", warmup=warmup)
    epochs = 20
    optimizer, schedule = optimizer_of(nn.Linear(1, 1).parameters(), config, epochs * STEPS_AN_EPOCH)
    lrs = []
    for epoch in range(epochs):
        for _ in range(STEPS_AN_EPOCH):
            optimizer.step()
            schedule.step()
        schedule.epoch_end(1.0 - 0.01 * epoch)
        lrs.append(schedule.lr)
    first = int(warmup * epochs) - 1 if warmup else 0  # the first epoch that ends warm is the best there is
    expected = [PLATEAU_FACTOR ** ((epoch - first) // (PLATEAU_EPOCHS + 1)) for epoch in range(epochs)]
    np.testing.assert_allclose(lrs[max(first, 0) :], expected[max(first, 0) :])


class Training:
    """A run of optimizer steps with everything that a checkpoint holds."""

    def __init__(self, config: TrainConfig, steps: int) -> None:
        self.network = Small()
        self.optimizer, self.schedule = optimizer_of(self.network.parameters(), config, steps)
        self.ema = Ema(self.network, 0.9)
        self.stopping = EarlyStopping(3)
        self.steps = 0

    def go_on(self, until: int, scores: list[float]) -> list[float]:
        lrs = []
        while self.steps < until:
            lrs.append(self.schedule.lr)
            images = torch.randn(4, 2, 5, 5, generator=torch.Generator().manual_seed(self.steps))
            self.optimizer.zero_grad()
            torch.autograd.backward(self.network(images).square().mean())
            self.optimizer.step()
            self.schedule.step()
            self.ema.update(self.network)
            self.steps += 1
            if self.steps % STEPS_AN_EPOCH == 0:
                score = scores[self.steps // STEPS_AN_EPOCH - 1]
                self.schedule.epoch_end(score)
                self.stopping.epoch_end(score)
        return lrs

    def parts(self) -> dict[str, Any]:
        return {name: part for name, part in vars(self).items() if name != "steps"}

    def state(self) -> dict[str, Any]:
        return {name: part.state_dict() for name, part in self.parts().items()}

    def load(self, state: dict[str, Any], steps: int) -> None:
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.steps = steps


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from(COURSES), st.floats(0, 1), st.lists(scores, min_size=6, max_size=6),
    st.lists(st.integers(0, 6 * STEPS_AN_EPOCH), max_size=3),
)  # fmt: skip
def test_a_training_resumed_anywhere_goes_on_to_the_last_bit(
    name: Course, warmup: float, scores: list[float], kills: list[int]
) -> None:
    steps = len(scores) * STEPS_AN_EPOCH
    config = TrainConfig(schedule=name, warmup=warmup, lr=0.01)
    undisturbed = Training(config, steps)
    lrs = undisturbed.go_on(steps, scores)
    life, found = Training(config, steps), []
    for kill in sorted(kills):
        found += life.go_on(kill, scores)
        saved = through_a_file(life.state())
        life.go_on(min(kill + 2, steps), scores)  # lost with the life
        life = Training(config, steps)
        life.load(saved, kill)
    found += life.go_on(steps, scores)
    assert found == lrs
    assert exactly(life.state()) == exactly(undisturbed.state())


def test_the_state_of_a_schedule_is_of_plain_types() -> None:
    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(plain(part) for part in value.values())
        if isinstance(value, list):
            return all(plain(part) for part in value)
        return type(value) in (int, float, str, bool, type(None))

    for name in COURSES:
        _, schedule = optimizer_of(nn.Linear(1, 1).parameters(), TrainConfig(schedule=name), 10)
        schedule.epoch_end(float(np.float64(0.5)))
        assert isinstance(schedule, Schedule)
        assert plain(schedule.state_dict())


# --- The mean of the weights ---------------------------------------------------------------------------


def test_the_mean_is_that_of_its_formula_over_weights_and_statistics() -> None:
    training = Training(TrainConfig(lr=0.05, schedule="constant"), 12)
    expected = {name: value.double() for name, value in training.network.state_dict().items()}
    training.ema = Ema(training.network, 0.4)
    for update in range(12):
        training.go_on(update + 1, [0.0] * 3)
        decay = min(0.4, (1 + update) / (10 + update))
        for name, value in training.network.state_dict().items():
            expected[name] = decay * expected[name] + (1 - decay) * value.double()
    state = training.ema.state_dict()
    assert state["updates"] == 12
    assert int(state["values"].pop("norm.num_batches_tracked")) == 12, "what is counted is copied"
    expected.pop("norm.num_batches_tracked")
    for name, value in state["values"].items():
        torch.testing.assert_close(value.double(), expected[name], rtol=1e-5, atol=1e-7)
    now = training.network.state_dict()["norm.running_var"]
    assert not torch.equal(state["values"]["norm.running_var"], now)


def test_the_mean_stands_in_and_the_weights_come_back_exactly() -> None:
    training = Training(TrainConfig(lr=0.05), 8)
    training.go_on(8, [0.0] * 2)
    network, ema = training.network, training.ema
    before = {name: value.clone() for name, value in network.state_dict().items()}
    places = {name: value.data_ptr() for name, value in network.state_dict().items()}
    mean = {name: value.clone() for name, value in ema.state_dict()["values"].items()}
    with pytest.raises(KeyboardInterrupt), ema.in_place_of(network):
        for name, value in network.state_dict().items():
            assert torch.equal(value, mean[name])
        network(torch.randn(4, 2, 5, 5))  # moves the running statistics
        raise KeyboardInterrupt
    for name, value in network.state_dict().items():
        assert torch.equal(value, before[name])
        assert value.data_ptr() == places[name], "the optimizer holds these tensors"
        assert torch.equal(ema.state_dict()["values"][name], mean[name])


def test_a_mean_of_another_network_is_refused() -> None:
    ema = Ema(nn.Linear(2, 3), 0.9)
    for other in (nn.Linear(2, 4), nn.Linear(2, 3, bias=False)):
        with pytest.raises(InputError, match=r"another network: (weight|bias) does not fit"):
            ema.load_state_dict(Ema(other, 0.9).state_dict())


# --- When to stop --------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.lists(scores, max_size=30), st.integers(1, 5), st.integers(0, 30))
def test_a_training_stops_after_so_many_epochs_without_a_better_score(
    scores: list[float], patience: int, kill: int
) -> None:
    stopping, never = EarlyStopping(patience), EarlyStopping(None)
    for epoch, score in enumerate(scores):
        if epoch == kill:
            resumed = EarlyStopping(patience)
            resumed.load_state_dict(through_a_file(stopping.state_dict()))
            stopping = resumed
        known = [-math.inf, *scores[: epoch + 1]]
        real = [-math.inf if math.isnan(value) else value for value in known]
        best = real.index(max(real))  # the first time; 0: not yet
        assert stopping.epoch_end(score) == (epoch + 1 - best >= patience)
        assert stopping.stop == (epoch + 1 - best >= patience)
        assert not never.epoch_end(score)
