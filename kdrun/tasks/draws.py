"""Random numbers and random rows that depend on their arguments alone: every draw can be made again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from kdrun.errors import KdrunError
from kdrun.seeds import stream


def bits(seed: int, epoch: int, index_B: Tensor, draw: int) -> Tensor:
    """64 random bits for each index, int64 (B,): the `draw`-th word of (seed, epoch, index).

    SplitMix64 (https://doi.org/10.1145/2660193.2660195) as a hash of counters. Integer arithmetic that wraps around,
    so the CPU and a GPU agree, whatever the order or the batch.
    """
    key = seed
    for part in (epoch, draw):
        key = _signed(_mix(key + (part + 1) * _GOLDEN))
    return _mix(index_B * _GOLDEN + key)


def _signed(word: int) -> int:
    """The int64 that has the lowest 64 bits of this Python integer."""
    return (word + (1 << 63)) % (1 << 64) - (1 << 63)


_GOLDEN, _MIX1, _MIX2 = (_signed(word) for word in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


def _mix(z):
    """The last step of SplitMix64, for an int64 tensor or a Python integer, of which only the lowest 64 bits matter."""
    z = (z ^ _right(z, 30)) * _MIX1
    z = (z ^ _right(z, 27)) * _MIX2
    return z ^ _right(z, 31)


def _right(z, n: int):
    """`z` shifted right by n bits and filled with zeros. (`>>` alone repeats the sign.)"""
    return (z >> n) & ((1 << (64 - n)) - 1)


def stratified(labels: Tensor, n: int, seed: int = 0) -> Tensor:
    """`n` row numbers (int64, ascending) in which every class has its share of `labels`, by largest remainder.

    The result depends only on the arguments, not on the state of a generator or on a version of a library.
    """
    counts_C = torch.bincount(labels)
    quota_C, remainder_C = n * counts_C // len(labels), n * counts_C % len(labels)
    largest = remainder_C.argsort(descending=True, stable=True)[: n - int(quota_C.sum())]
    quota_C[largest] += 1
    shuffled_N = bits(stream(seed, "stratified"), 0, torch.arange(len(labels)), 0).argsort()
    chosen = [shuffled_N[labels[shuffled_N] == c][:quota] for c, quota in enumerate(quota_C.tolist())]
    return torch.cat(chosen).sort().values


def without(rows: Tensor, n: int) -> Tensor:
    """The numbers of 0..n-1 that are not in `rows`, ascending."""
    keep_N = torch.ones(n, dtype=torch.bool)
    keep_N[rows] = False
    return keep_N.nonzero().flatten()


def split_holdout(train: Any, n: int, classes: list[str], unit: str) -> tuple[Any, Any]:
    """A training split without `n` of its rows, and these rows, in which every class has its share (None where n is 0).

    `train` has `labels` and `rows(Tensor)`. Without classes the rows are drawn from all alike. `unit`: samples in the plural.
    """
    if n == 0:
        return train, None
    if not 0 < n < len(train):
        raise KdrunError(
            f"dataset.holdout={n} must lie between 0 and {len(train) - 1:,}: it is taken out of the {len(train):,} "
            f"training {unit} (0 holds nothing out)"
        )
    labels_N = train.labels if classes else torch.zeros(len(train), dtype=torch.int64)
    held = stratified(labels_N, n)
    counts_C = torch.bincount(labels_N, minlength=len(classes))
    empty_C = (counts_C > 0) & (counts_C == torch.bincount(labels_N[held], minlength=len(counts_C)))
    if classes and empty_C.any():
        raise KdrunError(
            f"dataset.holdout={n} leaves no training {unit} of class {classes[int(empty_C.int().argmax())]}; "
            f"the smallest class has {int(counts_C[counts_C > 0].min())}: hold out fewer"
        )
    return train.rows(without(held, len(train))), train.rows(held)
