"""How far a figure can be trusted: bootstrap over compounds, and the null of permuted labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from hcs_ray.profiles.aggregate import Float64, Ints

Bools = npt.NDArray[np.bool_]

EQUAL: Final = 1e-12  # figures closer than this are equal: what is left is the order of summation
_AT_ONCE: Final = 4_000_000  # numbers drawn at once
_BOOTSTRAP, _PERMUTATION = 0, 1  # streams of one seed, so that neither depends on the other's length


@dataclass(frozen=True)
class Null:
    """A statistic under permuted labels: its mean, 2.5 and 97.5 percentiles, and the one-sided p-value."""

    mean: float
    interval: tuple[float, float]
    p_value: float
    permutations: int

    @classmethod
    def of(cls, observed: float, samples: Float64) -> Null:
        """From the statistic of each permutation; the observation counts as one, so no p-value is zero."""
        low = float(np.quantile(samples, 0.025, method="lower"))
        high = float(np.quantile(samples, 0.975, method="higher"))
        reached = int((samples >= observed - EQUAL).sum())
        return cls(float(samples.mean()), (low, high), (reached + 1) / (len(samples) + 1), len(samples))

    def exceeded_by(self, observed: float) -> bool:
        """Whether an observation is above chance: greater than the 97.5 percentile."""
        return observed > self.interval[1] + EQUAL

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "mean": self.mean,
            "interval": list(self.interval),
            "p_value": self.p_value,
            "permutations": self.permutations,
        }


def permuted_labels(labels: Ints, movable: Bools, count: int, seed: int) -> Iterator[Ints]:
    """``count`` permutations of labels (G,), those not ``movable`` (G,) staying, in blocks (P, G)."""
    random = np.random.default_rng([seed, _PERMUTATION])
    for size in _blocks(count, len(labels)):
        block = np.tile(labels, (size, 1))
        block[:, movable] = random.permuted(block[:, movable], axis=1)
        yield block


def bootstrap_weights(compounds: int, count: int, seed: int) -> Iterator[npt.NDArray[np.int64]]:
    """How often each compound is drawn in ``count`` draws with replacement, in blocks (P, compounds)."""
    random = np.random.default_rng([seed, _BOOTSTRAP])
    for size in _blocks(count, compounds):
        yield random.multinomial(compounds, np.full(compounds, 1 / compounds), size=size)


def percentile_interval(samples: Float64) -> tuple[float, float]:
    """The 2.5 and 97.5 percentiles of bootstrap draws, those that came out undefined (NaN) left out."""
    low, high = np.nanquantile(samples, [0.025, 0.975])
    return float(low), float(high)


def exact_interval(count: int, all_true: bool) -> tuple[float, float]:
    """The 95 % interval of Clopper & Pearson 1934 (https://doi.org/10.1093/biomet/26.4.404) for a share that
    was 1 in all of ``count`` independent cases, or 0 in all of them.
    """
    bound = 0.025 ** (1 / count)
    return (bound, 1.0) if all_true else (0.0, 1.0 - bound)


def _blocks(count: int, width: int) -> Iterator[int]:
    """Sizes of blocks that sum to ``count``, each of at most _AT_ONCE numbers of ``width``-long rows."""
    step = max(1, _AT_ONCE // max(width, 1))
    for start in range(0, count, step):
        yield min(step, count - start)
