"""Dataset and Split, which every source of images returns, and the steps that all sources share."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdrun.errors import KdrunError
from kdrun.tasks.draws import split_holdout, stratified

STATS_ROWS = 50_000  # at most so many images are used for mean and std; of a larger training set a sample is used
FEW_LEVELS = 32  # grey levels; there is a warning if the training images use fewer


@dataclass
class Split:
    """One of train, holdout and test. Images lie in memory, or are read from `files` when they are needed (streamed)."""

    labels: Tensor  # int64 (N,), on the CPU
    index: Tensor  # int64 (N,): row in the training set before any split (0..N-1 for test)
    images: Tensor | None = None  # uint8 (N, 3, H, W); None when streamed
    files: list[str] | None = None  # streamed: a path per row
    read: Callable[[str], Tensor] | None = None  # streamed: path -> uint8 (3, H, W)

    def __len__(self) -> int:
        return len(self.labels)

    def rows(self, rows_N: Tensor) -> Split:
        """The split with only these rows."""
        images = None if self.images is None else self.images[rows_N]
        files = None if self.files is None else [self.files[row] for row in rows_N.tolist()]
        return Split(self.labels[rows_N], self.index[rows_N], images, files, self.read)

    def batches(self, rows: Sequence[Tensor], workers: int = 0, pin: bool = False) -> Iterator[Tensor]:
        """Images uint8 (B, 3, H, W) on the CPU, one batch for each tensor of row numbers.

        Streamed images are read by `workers` processes, ahead of use; `pin` puts them into page-locked memory.
        Raises the reader's KdrunError, which names the file.
        """
        if self.images is not None:
            yield from (self.images[rows_B] for rows_B in rows)
            return
        assert self.files is not None
        assert self.read is not None
        loader = DataLoader(
            _Files(self.files, self.read),
            batch_sampler=[rows_B.tolist() for rows_B in rows],
            num_workers=workers,
            multiprocessing_context=_start() if workers else None,
            collate_fn=_unchanged,
            pin_memory=pin,
            generator=torch.Generator(),  # its own generator: without one, a DataLoader draws a seed from the global generator
        )
        for images in loader:
            if isinstance(images, KdrunError):
                raise images
            yield images


@dataclass
class Dataset:
    """Images of `size` x `size` px in three splits, with mean and std to normalise them: (x / 255 - mean) / std."""

    name: str
    classes: list[str]
    size: int
    mean: list[float]
    std: list[float]
    checksum: str
    flip: bool  # False: its images must never be mirrored
    train: Split
    holdout: Split | None
    test: Split
    notes: list[str] = field(default_factory=list)  # what the user should know before training, a line each


def _start() -> str:
    """How reader processes are started: Python's default, also if a launcher (joblib) has set another one."""
    return multiprocessing.get_all_start_methods()[0]


class _Files(torch.utils.data.Dataset):
    """Reads whole batches. An error is returned as a value: an error that a worker raises would have a traceback."""

    def __init__(self, files: list[str], read: Callable[[str], Tensor]):
        self.files, self.read = files, read

    def __len__(self) -> int:
        return len(self.files)

    def __getitems__(self, rows: list[int]) -> Tensor | KdrunError:
        try:
            return torch.stack([self.read(self.files[row]) for row in rows])
        except KdrunError as error:
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def channel_stats(split: Split, workers: int = 0) -> list[list[float]]:
    """Mean and standard deviation per channel over all pixels, in [0, 1], and the lowest and highest level of 0..255.

    The sums are exact, because they are sums of integers.
    Above STATS_ROWS images a stratified sample is used, streamed or not: the place of the images must not change a result.
    """
    n = len(split)
    rows_N = torch.arange(n) if n <= STATS_ROWS else stratified(split.labels, STATS_ROWS)
    total_3 = square_3 = torch.zeros(3, dtype=torch.int64)
    pixels, low, high = 0, 255, 0
    for images in split.batches(rows_N.split(256), workers):
        x_B3P = images.flatten(2).int()
        total_3 = total_3 + x_B3P.sum((0, 2))
        square_3 = square_3 + x_B3P.square().sum((0, 2))
        pixels += x_B3P.shape[0] * x_B3P.shape[2]
        low, high = min(low, int(x_B3P.min())), max(high, int(x_B3P.max()))
    mean_3 = total_3.double() / pixels
    std_3 = (square_3.double() / pixels - mean_3.square()).clamp_min(0).sqrt()
    std_3 = std_3.clamp_min(1)  # a channel of one value divides by a grey level, not by zero
    return [(mean_3 / 255).tolist(), (std_3 / 255).tolist(), [low, high]]


def contrast(mean: Sequence[float], std: Sequence[float], low: float, high: float) -> list[str]:
    """A line of warning if the statistics say that the training images are nearly constant."""
    flat = [c for c in range(3) if std[c] <= 1 / 255]
    if flat:
        levels = ", ".join(f"{('red', 'green', 'blue')[c]} {255 * mean[c]:.0f}" for c in flat)
        return [
            f"all training images have one level nearly everywhere (of 255: {levels}), so dataset.std is set to its floor of "
            f"1/255 there: are these the right images? docs/data.md says how files are read"
        ]
    if high - low < FEW_LEVELS:
        return [
            f"the training images only use levels {low:.0f} to {high:.0f} of 0 to 255: are they masks, or 12 bits saved as 16? "
            f"If the files hold more levels, scale all of them by the same factor"
        ]
    return []


def assemble(
    cfg: Any,
    *,
    classes: list[str],
    size: int,
    checksum: str,
    train: Split,
    test: Split,
    stats: Callable[[Split], list[list[float]]] = channel_stats,
    notes: Sequence[str] = (),
) -> Dataset:
    """The Dataset of the two splits of a source. Takes dataset.holdout out of the training rows, and computes mean and std.

    `stats`: channel_stats, or a function that returns earlier results of it. A mean or std that is null in the config is taken from it.
    """
    train, holdout = split_holdout(train, cfg.holdout, classes, "images")
    mean, std = cfg.mean, cfg.std
    notes = list(notes)
    if mean is None or std is None:
        computed_mean, computed_std, (low, high) = stats(train)
        notes += contrast(computed_mean, computed_std, low, high)
        mean, std = computed_mean if mean is None else mean, computed_std if std is None else std
    return Dataset(cfg.name, classes, size, list(mean), list(std), checksum, cfg.flip, train, holdout, test, notes)
