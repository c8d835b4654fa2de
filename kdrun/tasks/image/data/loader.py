"""Batches on the device. Image sets that fit in memory lie on the device as uint8; a DataLoader streams the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdrun.errors import KdrunError
from kdrun.seeds import stream
from kdrun.tasks.image.data.augment import Augment, augment
from kdrun.tasks.image.data.base import Dataset, Split

__all__ = ["Augment", "Loader", "loaders"]


class Loader:
    """The batches of one split: {"input": float32 (B, 3, H, W) normalised, "label": int64 (B,), "index": int64 (B,)}.

    Order and augmentation are functions of (seed, epoch) and (seed, epoch, index), and a streamed image goes through
    the same code as one in memory, so both give the same bits. `augment` None leaves images as they are; `limit`
    stops after so many batches; `workers` reads streamed files; `two_views` adds `input2` to training batches, each image in a
    second augmentation of its own.
    """

    def __init__(
        self,
        split: Split,
        dataset: Dataset,
        *,
        batch_size: int,
        device: torch.device | str,
        seed: int = 0,
        augment: Augment | None = None,
        channels_last: bool = False,
        workers: int = 2,
        limit: int | None = None,
        two_views: bool = False,
    ):
        if batch_size < 1:
            raise KdrunError(f"batch size {batch_size} must be 1 or more: recipe.batch_size=64")
        self.split, self.batch_size, self.seed, self.workers, self.limit = split, batch_size, seed, workers, limit
        self.device, self.two_views = torch.device(device), two_views
        self.augment, self.flip = augment, augment is not None and augment.flip and dataset.flip
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if augment is not None:
            self._check_training(augment, dataset.size)
        self.images = None if split.images is None else split.images.to(self.device)
        self.labels, self.index = split.labels.to(self.device), split.index.to(self.device)
        self.mean, self.std = (torch.tensor(x, device=self.device).view(3, 1, 1) for x in (dataset.mean, dataset.std))
        # Row of the training set -> row of this split. A row of another split points past the end, which gives an IndexError.
        position = torch.full((int(split.index.max()) + 1,), len(split))
        position[split.index] = torch.arange(len(split))
        self.position = position.to(self.device)

    def __len__(self) -> int:
        """Batches of an epoch; the last one may be smaller."""
        return len(self._sizes())

    @property
    def smallest(self) -> int:
        """Images of the smallest batch of an epoch."""
        return min(self._sizes())

    def _sizes(self, training: bool = True) -> list[int]:
        """Number of images of each batch. In training, a last batch of one image joins the one before: it has no batch statistics."""
        whole, rest = divmod(len(self.split), self.batch_size)
        sizes = [self.batch_size] * whole + [rest] * (rest > 0)
        if training and whole and rest == 1:
            sizes[-2:] = [self.batch_size + 1]
        return sizes[: self.limit]

    def epoch(self, epoch: int) -> Iterator[dict[str, Tensor]]:
        """The augmented batches of one epoch, in the random order of this epoch."""
        self._check_batch_size()
        generator = torch.Generator().manual_seed(stream(self.seed, "order", epoch))
        return self._batches(torch.randperm(len(self.split), generator=generator), self._sizes(), epoch)

    def batches(self) -> Iterator[dict[str, Tensor]]:
        """The batches in the split's order, not augmented: for evaluation."""
        return self._batches(torch.arange(len(self.split)), self._sizes(training=False), None)

    def view(self, index: Tensor, epoch: int, second: bool = False) -> Tensor:
        """The inputs (or second inputs) that these rows of the training set have at `epoch`: bit for bit those of epoch()."""
        index = index.to(self.device)
        rows = self.position[index]
        images = next(self._read([rows.cpu()] if self.images is None else [rows], workers=0))
        return self._prepare(images, index, epoch, second)

    def first(self, count: int) -> Tensor:
        """The inputs of the first images, not augmented."""
        rows = torch.arange(count, device="cpu" if self.images is None else self.device)
        return self._prepare(next(self._read([rows], workers=0)), self.index[:count], None)

    def _batches(self, order: Tensor, sizes: list[int], epoch: int | None) -> Iterator[dict[str, Tensor]]:
        order = order[: sum(sizes)]
        chunks, on_cpu = order.to(self.device).split(sizes), order.split(sizes)
        images = self._read(chunks if self.images is not None else on_cpu, self.workers)
        for rows, images_BCHW in zip(chunks, images, strict=True):
            index = self.index[rows]
            batch = {"input": self._prepare(images_BCHW, index, epoch), "label": self.labels[rows], "index": index}
            if self.two_views and epoch is not None:
                batch["input2"] = self._prepare(images_BCHW, index, epoch, second=True)
            yield batch

    def _read(self, rows: Sequence[Tensor], workers: int) -> Iterator[Tensor]:
        """The uint8 images of each batch of rows, on the device."""
        if self.images is not None:
            return (self.images.index_select(0, rows_B) for rows_B in rows)
        streamed = self.split.batches(rows, workers, pin=self.device.type == "cuda")
        return (images.to(self.device, non_blocking=True) for images in streamed)

    def _prepare(self, images_BCHW: Tensor, index_B: Tensor, epoch: int | None, second: bool = False) -> Tensor:
        if self.augment is not None and epoch is not None:
            crop, padding = self.augment.crop, self.augment.padding
            seed = stream(self.seed, "augment2" if second else "augment")
            images_BCHW = augment(
                images_BCHW, index_B, seed=seed, epoch=epoch, crop=crop, padding=padding, flip=self.flip
            )
        # In the order of ToTensor and Normalize of torchvision, which gives the same bits. The layout is changed last:
        # casting and changing layout at once is slower (0.8 against 0.2 ms for 128 images of 32 px on a CPU).
        x_BCHW = images_BCHW.float().div_(255).sub_(self.mean).div_(self.std)
        return x_BCHW.contiguous(memory_format=self.layout)

    def _check_training(self, augment: Augment, size: int) -> None:
        self._check_batch_size()
        if augment.crop == "reflect" and augment.padding >= size:
            raise KdrunError(
                f"padding={augment.padding} is too large for crop=reflect in {size} px images: use at most {size - 1}, or crop=zero"
            )

    def _check_batch_size(self) -> None:
        if self.batch_size > len(self.split):
            raise KdrunError(
                f"batch size {self.batch_size} is above the {len(self.split):,} training images; "
                f"recipe.batch_size={len(self.split)} or less"
            )


def loaders(
    dataset: Dataset,
    recipe: Any,
    seed: int,
    workers: int,
    device: torch.device,
    layout: torch.memory_format,
    two_views: bool = False,
) -> tuple[Loader, dict[str, Loader]]:
    """The training loader with the recipe's augmentation, and one loader for each split to evaluate on."""
    padding = recipe.padding if recipe.padding is not None else dataset.size // 8
    augment = Augment(recipe.crop, padding, recipe.flip and dataset.flip)
    common: dict[str, Any] = {
        "device": device, "channels_last": layout is torch.channels_last, "workers": workers,
    }  # fmt: skip
    train = Loader(
        dataset.train, dataset, batch_size=recipe.batch_size, seed=seed, augment=augment, two_views=two_views, **common
    )
    splits = {"test": dataset.test} | ({"holdout": dataset.holdout} if dataset.holdout is not None else {})
    evals = {name: Loader(split, dataset, batch_size=512, augment=None, **common) for name, split in splits.items()}
    return train, evals
