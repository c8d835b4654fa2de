"""What the benchmarks share: a journal that keeps nothing, and the first batches of each epoch of a loader."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any


class Silent:
    """A journal that keeps nothing."""

    def __getattr__(self, name: str) -> Any:
        return lambda *args: None


class Part:
    """The first batches of each epoch of a loader."""

    def __init__(self, loader: Any, batches: int):
        self.loader, self.batches = loader, batches

    def __len__(self) -> int:
        return self.batches

    def epoch(self, epoch: int) -> Iterator[Any]:
        return islice(self.loader.epoch(epoch), self.batches)
