"""Gaussian noise that follows from a counter, so that a pixel's is the same on every device and in any batch.

A generator of random numbers would have to run on the CPU, one image after another, to be so.
"""

from __future__ import annotations

import math

import torch

_GOLDEN = 0x9E3779B1 - 2**32  # an odd number near 2**32 / golden ratio, as int32


def gaussian_noise(seeds: torch.Tensor, count: int) -> torch.Tensor:
    """Standard normal numbers by Box & Muller (1958), two from each two hashes of a counter.

    Args:
        seeds: (B, 2) int32, in [0, 2**24); each row has numbers of its own.
        count: how many numbers a row.

    Returns:
        (B, count) float32, on the device of ``seeds``. The largest is about 6.7.
    """
    pairs = -(-count // 2)
    counter = torch.arange(pairs, dtype=torch.int32, device=seeds.device)
    first = hashed(counter ^ (seeds[:, :1] * _GOLDEN))
    second = hashed(first ^ (seeds[:, 1:] * _GOLDEN))
    # (0, 1] and [-pi, pi]
    uniform = first.bitwise_and_(0x7FFFFFFF).float().add_(0.5).mul_(2.0**-31)
    angle = second.float().mul_(math.pi * 2.0**-31)
    radius = uniform.log_().mul_(-2).sqrt_()
    return torch.cat([radius * angle.cos(), radius.mul_(angle.sin_())], 1)[:, :count]


def hashed(numbers: torch.Tensor) -> torch.Tensor:
    """A bijection of int32 whose outputs look independent: "lowbias32" of Wellons' hash prospector (2018)."""
    mixed = numbers ^ _shifted(numbers, 16)
    mixed.mul_(0x7FEB352D)
    mixed ^= _shifted(mixed, 15)
    mixed.mul_(0x846CA68B - 2**32)
    mixed ^= _shifted(mixed, 16)
    return mixed


def _shifted(numbers: torch.Tensor, bits: int) -> torch.Tensor:
    """A shift to the right that fills up with zeros."""
    return (numbers >> bits).bitwise_and_((1 << 32 - bits) - 1)
