"""Random numbers that are functions of counters alone: the same for a row of the data, whatever its batch, order or padding."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


def signed(word: int) -> int:
    """The int64 that has the lowest 64 bits of this Python integer."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


GOLDEN, _MIX1, _MIX2 = (signed(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def mix(z: Any) -> Any:
    """The last step of SplitMix64, for an int64 tensor or a Python integer, of which only the lowest 64 bits matter.

    https://doi.org/10.1145/2660193.2660195. Integer arithmetic that wraps around, so the CPU and a GPU agree.
    """
    z = (z ^ _right(z, 30)) * _MIX1
    z = (z ^ _right(z, 27)) * _MIX2
    return z ^ _right(z, 31)


def _right(z: Any, n: int) -> Any:
    """`z` shifted right by n bits and filled with zeros. (`>>` alone repeats the sign.)"""
    return (z >> n) & ((1 << (64 - n)) - 1)


def uniform(key: Tensor | int, *counters: Tensor | int) -> Tensor:
    """Numbers of [0, 1), float64, as functions of the key and the counters: int64 tensors that broadcast, or Python integers."""
    word: Any = key
    for counter in counters:
        step: Any = counter * GOLDEN + GOLDEN
        word = mix(word + (step if isinstance(step, Tensor) else signed(step)))
        word = word if isinstance(word, Tensor) else signed(word)
    return torch.as_tensor(_right(word, 11)).double() * 2.0**-53


def normal(key: Tensor | int, *counters: Tensor | int) -> Tensor:
    """Numbers of the standard normal distribution, float64, by the transform of Box and Muller of two uniform ones."""
    radius, angle = uniform(key, *counters, 0), uniform(key, *counters, 1)
    return (-2 * torch.log1p(-radius)).sqrt() * (2 * math.pi * angle).cos()
