"""What Ray, Lightning and our module add to an optimizer step of a plain PyTorch loop.

    python -m benchmarks.training_step [--ranks 2] [--steps 60] [--rounds 7]

Both sides train the same network from the same batches in memory, in the same processes and by turns: after
each epoch of ours comes as long a block of the plain loop. With several ranks both are wrapped in DDP; with
one, neither (Ray's strategy for one rank is DDP, too: its cost is ours). Times are those between the ends of
two steps, with all that falls between them: figures of points, questions to Ray, our record of what was seen.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pandas as pd
import torch

from hcs_ray import contracts as c
from hcs_ray.model import fitting, ranks
from hcs_ray.model.checkpoint import RunState
from hcs_ray.model.loader import Batch
from hcs_ray.model.network import MoaNetwork, ModelSpec
from hcs_ray.model.targets import ANCHOR, DOMAIN_LABEL, LABEL, LISTED, NONE, PLATE_NUMBER, TREATMENT_LABEL

CLASSES = 12
CHANNELS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    """A network and what it is given."""

    backbone: str
    side_px: int
    batch: int  # over all ranks

    def __str__(self) -> str:
        return f"{self.backbone}, {self.batch} x {self.side_px} px"


CASES = (Case("tiny", 32, 2), Case("tiny", 64, 8), Case("tiny", 128, 16), Case("resnet18", 96, 8))


def main() -> None:
    """Print a line a case."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    print(f"{options.ranks} ranks, medians of {options.rounds} rounds of {options.steps} steps; ms a step")
    print(f"{'':<26}{'plain':>9}{'ours':>9}{'added':>9}{'ratio':>8}{'quartiles of the ratio':>26}")
    for case in CASES:
        found = measured(case, options.ranks, options.steps, options.rounds)
        plain, ours = (1e3 * np.array(found[side]) for side in ("plain", "ours"))
        ratio = ours / plain
        low, high = np.percentile(ratio, (25, 75))
        medians = f"{np.median(plain):9.2f}{np.median(ours):9.2f}{np.median(ours - plain):9.2f}"
        print(f"{case!s:<26}{medians}{np.median(ratio):8.3f}{low:19.3f} - {high:.3f}")


def measured(case: Case, world: int, steps: int, rounds: int) -> dict[str, list[float]]:
    """Seconds a step of both sides in every round, by rank 0 of a run of Ray Train."""
    import ray.train.torch
    from ray.train import RunConfig, ScalingConfig

    from hcs_ray.session import ensure_session, hush

    ensure_session()
    hush("ray.train")
    with tempfile.TemporaryDirectory() as folder:
        trainer = ray.train.torch.TorchTrainer(
            both_sides,
            train_loop_config={"case": case, "steps": steps, "rounds": rounds, "folder": folder},
            scaling_config=ScalingConfig(num_workers=world),
            run_config=RunConfig(storage_path=folder, name="ray"),
        )
        trainer.fit()
        found: dict[str, list[float]] = json.loads(Path(folder, "times.json").read_text())
    return found


def both_sides(config: Mapping[str, Any]) -> None:
    """One rank: our training, and after each of its epochs a block of the plain loop."""
    import ray.train

    torch.set_num_threads(1)
    case, steps, rounds = config["case"], config["steps"], config["rounds"]
    number, world = ray.train.get_context().get_world_rank(), ranks.world_size()
    study = study_of(case, Path(config["folder"], f"study{number}"), rounds + 1)
    table = fields_of(case, steps)
    spec = ModelSpec(
        study.config.model.model_dump(mode="json"), tuple("abc"), tuple(map(str, range(CLASSES))), 1
    )
    batches = batches_of(case, steps, number, world)
    plain = Plain(spec, study.config.train, batches, table, steps * (rounds + 1))
    ends: list[float] = []
    times: dict[str, list[float]] = {"ours": [], "plain": []}

    def report(*_: Any) -> None:
        times["ours"].append((ends[-1] - ends[0]) / (len(ends) - 1))
        ends.clear()
        times["plain"].append(plain.block())

    with teller(study, spec, table) as told:
        rank = told.rank()
        done = rank.step_done

        def step_done(step: int, of: int) -> None:
            done(step, of)
            ends.append(time.perf_counter())

        rank = dataclasses.replace(rank, report=report, step_done=step_done)
        run = fitting.Run(spec, study.config.train, Reader(case), table, study.config.storage)  # type: ignore[arg-type]
        with in_memory(batches):
            fitting.fit(run, rank, RunState(), None)
    if number == 0:
        found = {side: values[1:] for side, values in times.items()}  # the first round is for warming up
        Path(config["folder"], "times.json").write_text(json.dumps(found))


class Plain:
    """The loop of a PyTorch tutorial."""

    def __init__(
        self, spec: ModelSpec, config: Any, batches: list[Batch], table: pd.DataFrame, steps: int
    ) -> None:
        network: torch.nn.Module = MoaNetwork(spec)
        if ranks.world_size() > 1:
            network = torch.nn.parallel.DistributedDataParallel(network)
        self._network = network
        self._batches = batches
        self._labels = torch.from_numpy(table[LABEL].to_numpy("int64"))
        self._optimizer = torch.optim.AdamW(network.parameters(), config.lr)
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(self._optimizer, config.lr, total_steps=steps)

    def block(self) -> float:
        """Seconds a step, between the ends of the first and the last."""
        ends = []
        for batch in self._batches:
            logits = self._network(batch["images"]).moa
            loss = torch.nn.functional.cross_entropy(logits, self._labels[batch["rows"]])
            loss.backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
            self._schedule.step()
            ends.append(time.perf_counter())
        return (ends[-1] - ends[0]) / (len(ends) - 1)


class InMemory:
    """The batches where our loader would read them."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._batches)

    def close(self) -> None:
        """Nothing is open."""


@dataclasses.dataclass(frozen=True)
class Reader:
    """What a run asks of its shards beside pixels."""

    case: Case

    @property
    def shape(self) -> tuple[int, int, int]:
        return CHANNELS, self.case.side_px, self.case.side_px


@contextlib.contextmanager
def in_memory(batches: list[Batch]) -> Iterator[None]:
    """Both the loader of a training and that of its validation hand out these batches."""
    learned, judged = InMemory(batches), InMemory(batches[:1])
    with (
        mock.patch.object(fitting, "training_batches", return_value=learned),
        mock.patch("hcs_ray.model.inference.plain_batches", return_value=judged),
    ):
        yield


def batches_of(case: Case, steps: int, rank: int, world: int) -> list[Batch]:
    """A rank's share of an epoch's batches; of pixels there are eight batches, again and again."""
    generator = torch.Generator().manual_seed(rank)
    rows = [torch.arange(step * case.batch + rank, (step + 1) * case.batch, world) for step in range(steps)]
    mine = len(rows[0])
    pixels = [torch.rand(mine, CHANNELS, case.side_px, case.side_px, generator=generator) for _ in range(8)]
    return [
        Batch(
            images=images,
            rows=places,
            weights=torch.full((mine,), 1 / case.batch),
            anchors=torch.zeros(mine, dtype=torch.bool),
            changes=torch.empty(mine, 0),
        )
        for places, images in zip(rows, itertools.cycle(pixels), strict=False)
    ]


def fields_of(case: Case, steps: int) -> pd.DataFrame:
    """A table to learn from, and one batch to judge by."""
    learned, judged = steps * case.batch, case.batch
    count = learned + judged
    text = dict.fromkeys((c.PLATE, c.WELL, c.COMPOUND, c.TREATMENT, c.MOA, c.PERT_TYPE), "a")
    numbers = {TREATMENT_LABEL: NONE, DOMAIN_LABEL: NONE, PLATE_NUMBER: 0}
    return pd.DataFrame(
        {
            c.KEY: [f"{number:08d}" for number in range(count)],
            **text,
            **numbers,
            c.SIDE: [c.TRAIN] * learned + [c.VALIDATION] * judged,
            LABEL: np.arange(count) % CLASSES,
            LISTED: True,
            ANCHOR: False,
        }
    )


def study_of(case: Case, folder: Path, epochs: int) -> Any:
    """A study whose training is that of the case: fixed labels' weights, no changes of the images."""
    import yaml

    from hcs_ray.study import open_study

    augment = {"flips": False, "quarter_turns": False, "intensity": 0}
    train = {"epochs": epochs, "global_batch": case.batch, "crop_px": case.side_px, "class_weights": False}
    config = {
        "model": {"backbone": case.backbone},
        "train": {**train, "augment": augment},
        "wandb": {"mode": "disabled"},
    }
    folder.mkdir(parents=True)
    (folder / "study.yaml").write_text(yaml.safe_dump(config))
    return open_study(str(folder))


@contextlib.contextmanager
def teller(study: Any, spec: ModelSpec, table: pd.DataFrame) -> Iterator[Any]:
    """What a rank tells Ray Train, the study and the tracker in a real run."""
    from hcs_ray.train.job import TrainJob
    from hcs_ray.train.worker import _Teller

    job = TrainJob(study, spec, table, "runs/main", final="none")
    with contextlib.closing(_Teller(job, RunState(), time.time() + 3600)) as told:
        yield told


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
