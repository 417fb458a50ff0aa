"""Sums over the steps of an epoch and since the last point that was noted, and which fields were seen.

They are kept on the device, each rank its own; a checkpoint holds their sum over the ranks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch

from hcs_ray.model import ranks

NAMES: Final = ("loss", "moa", "treatment", "domain")
_EPOCH, _WINDOW = 0, 1


class Meter:
    """What a rank has counted.

    Args:
        fields: in the table that is learned from.
        device: where the sums are kept.
    """

    def __init__(self, fields: int, device: torch.device) -> None:
        self._sums = torch.zeros(2, len(NAMES) + 1, dtype=torch.float64, device=device)
        self._seen = torch.zeros(fields, dtype=torch.int32, device=device)

    def add(self, parts: Mapping[str, torch.Tensor]) -> None:
        """This rank's share of the losses of a step."""
        values = [parts[name].detach().double() if name in parts else None for name in NAMES]
        zero = self._sums.new_zeros(())
        self._sums += torch.stack([zero if value is None else value for value in values] + [zero])

    def step_done(self, first_rank: bool) -> None:
        if first_rank:
            self._sums[:, -1] += 1

    def saw(self, rows: torch.Tensor, real: torch.Tensor) -> None:
        """Rows of the table that were learned from; where ``real`` is false they were only read."""
        self._seen.index_add_(0, rows, real.to(torch.int32))

    def epoch_means(self, names: tuple[str, ...]) -> dict[str, float]:
        """Mean losses of the steps of the epoch so far, over all ranks; begins a new one."""
        return self._means(_EPOCH, names)

    def window_means(self, names: tuple[str, ...]) -> dict[str, float]:
        """The same since the last call."""
        return self._means(_WINDOW, names)

    def state(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Sums and counts over all ranks, on the CPU; every rank must call it."""
        return ranks.summed(self._sums).cpu(), ranks.summed(self._seen).cpu()

    def load(self, sums: torch.Tensor, seen: torch.Tensor, first_rank: bool) -> None:
        """Go on from a state: the first rank takes it, the others begin with nothing."""
        if first_rank:
            self._sums.copy_(sums)
            self._seen.copy_(seen)

    def _means(self, which: int, names: tuple[str, ...]) -> dict[str, float]:
        *sums, steps = ranks.summed(self._sums[which]).tolist()
        self._sums[which] = 0
        return {name: sums[NAMES.index(name)] / max(steps, 1) for name in names}
