"""Means of losses over an epoch, without waiting for the device at every step."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from kdrun.errors import DivergedError


class Meter:
    """Sums over samples, kept on the device until someone reads them; by the names of the terms, which a schedule may change."""

    def __init__(self) -> None:
        self.sums: dict[tuple[str, ...], Tensor] = {}  # since the last read
        self.epoch_sums: dict[tuple[str, ...], Tensor] = {}
        self.counts: dict[tuple[str, ...], int] = {}
        self.epoch_counts: dict[tuple[str, ...], int] = {}
        self.bad: dict[tuple[str, ...], Tensor] = {}  # first step at which a term was not finite, or -1
        self.score_sum = torch.zeros(())  # of the task's train_sum
        self.samples = 0
        self.wait_s = 0.0

    def add(self, terms: Mapping[str, Tensor], score_sum: Tensor, size: int, step: int) -> None:
        names, values = tuple(terms), torch.stack([value.detach() for value in terms.values()])
        if not self.samples:
            self.score_sum = torch.zeros_like(score_sum)
        if names not in self.sums:
            self.sums[names] = self.epoch_sums[names] = torch.zeros_like(values, dtype=torch.float64)
            self.counts[names] = self.epoch_counts[names] = 0
            self.bad[names] = torch.full_like(values, -1, dtype=torch.long)
        self.bad[names] = torch.where((self.bad[names] < 0) & ~values.isfinite(), step, self.bad[names])
        self.sums[names] = self.sums[names] + values * size
        self.score_sum = self.score_sum + score_sum
        self.counts[names] += size
        self.samples += size

    def read(self, stage: str) -> dict[str, float]:
        """Means since the last read; raises DivergedError for the first term that was not finite."""
        steps = [
            (step, name) for names, bad in self.bad.items() for name, step in zip(names, bad.tolist(), strict=True)
        ]
        first = min((step for step, _ in steps if step >= 0), default=None)
        if first is not None:
            # `total` is bad wherever a term is. Where the task loss is bad beside a method's term, the model's weights are broken,
            # and the method is the likelier cause.
            bad_terms = [name for step, name in steps if step == first and name != "total"] or ["total"]
            raise DivergedError(stage, first, next((name for name in bad_terms if name != "task"), "task"), bad_terms)
        means = _means(self.sums, self.counts)
        for names, sums in self.sums.items():
            self.epoch_sums[names] = self.epoch_sums[names] + sums
            self.epoch_counts[names] += self.counts[names]
            self.sums[names], self.counts[names] = torch.zeros_like(sums), 0
        return means

    def means(self) -> dict[str, float]:
        return _means(self.epoch_sums, self.epoch_counts)

    def mean_score(self) -> float:
        """The mean over the samples of what the task sums while it trains."""
        return self.score_sum.item() / self.samples


def _means(sums: Mapping[tuple[str, ...], Tensor], counts: Mapping[tuple[str, ...], int]) -> dict[str, float]:
    """Each term's mean over the samples that it was computed for."""
    totals: dict[str, float] = {}
    samples: dict[str, int] = {}
    for names, values in sums.items():
        for name, value in zip(names, values.tolist(), strict=True):
            totals[name] = totals.get(name, 0.0) + value
            samples[name] = samples.get(name, 0) + counts[names]
    return {name: total / samples[name] for name, total in totals.items() if samples[name]}
