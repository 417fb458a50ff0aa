"""What a checkpoint holds beside Lightning's part (weights, optimizer, scaler): plain values and tensors.

A run that goes on from it, on as many ranks or on others, continues the list of its epoch where it stood:
`RunState.samples` counts entries of that list, and each rank's random generator is seeded anew in every step
from (seed, step, rank), so no generator has a state of its own that could be lost.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from hcs_ray.contracts import HcsError

CHECKPOINT_FILE: Final = "checkpoint.ckpt"  # Lightning's, in every checkpoint folder
CHECKPOINT_KEY: Final = "hcs_ray"  # our part of it
_FORMAT: Final = 2

State = Mapping[str, Any]


@dataclass
class RunState:
    """How far a run has come."""

    epoch: int = 0  # that is being worked through, or the next
    samples: int = 0  # entries of its list that were learned from
    step: int = 0  # optimizer steps of the whole run
    done: bool = False  # all epochs, or stopped early
    history: list[dict[str, float]] = field(default_factory=list)  # one an epoch
    points: list[dict[str, float]] = field(default_factory=list)  # figures of steps
    best: dict[str, torch.Tensor] = field(default_factory=dict)  # weights of the chosen epoch so far
    seen: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))
    meter: torch.Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    schedule: State = field(default_factory=dict)
    stopping: State = field(default_factory=dict)
    ema: State = field(default_factory=dict)
    generators: dict[str, int] = field(default_factory=dict)  # seed, step and ranks they follow from

    def to_plain(self) -> dict[str, Any]:
        """Only what ``torch.load(weights_only=True)`` reads."""
        plain = dict(vars(self))
        plain |= {"history": json.dumps(self.history), "points": json.dumps(self.points)}
        return {"format": _FORMAT, **plain}

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> RunState:
        """The reverse of `to_plain`.

        Raises:
            HcsError: it was written by another version.
        """
        if plain.get("format") != _FORMAT:
            raise HcsError(
                f"a checkpoint has format {plain.get('format')}; this version reads {_FORMAT}: "
                "train under another --name, or with --force"
            )
        values = {name: value for name, value in plain.items() if name != "format"}
        values |= {name: json.loads(values[name]) for name in ("history", "points")}
        return cls(**values)


def read_state(folder: Path) -> RunState:
    """Our part of a checkpoint in a local folder."""
    file = folder / CHECKPOINT_FILE
    found = torch.load(file, map_location="cpu", weights_only=True)
    return RunState.from_plain(found[CHECKPOINT_KEY])
