"""Batches of images and boxes on the device, augmented by ultralytics. Order and augmentation are functions of (seed, epoch, index)."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from kdrun.errors import KdrunError
from kdrun.seeds import stream
from kdrun.tasks.detection import library
from kdrun.tasks.detection.data.base import DetectionDataset, Split
from kdrun.tasks.detection.settings import OF_IMAGES, STRIDE

library.ready()

import cv2  # noqa: E402
from ultralytics.cfg import get_cfg  # noqa: E402
from ultralytics.data.augment import Albumentations  # noqa: E402
from ultralytics.data.dataset import YOLODataset  # noqa: E402

EVALUATED = 16  # images of a batch in evaluations, as `yolo val`
GREY = 114  # what the library pads images with

Batch = dict[str, Any]
Key = tuple[int, int]  # epoch (-1: not augmented), row of the split


class Samples(YOLODataset):
    """The library's data set of one split, on labels that kdrun has read. A sample is asked for by (epoch, row).

    Python's and NumPy's random numbers, which the library draws from, are seeded for each sample and put back after it.
    """

    def __init__(self, split: Split, dataset: DetectionDataset, recipe: Any = None, seed: int = 0, keep: bool = False):
        self.split, self.seed, self.keep = split, seed, keep
        self.ims: list[Any]
        training = recipe is not None
        settings = {key: getattr(recipe, key) for key in OF_IMAGES} if training else {}
        # No Albumentations: the library applies them where the package happens to be installed.
        hyp = get_cfg(overrides={**settings, "augmentations": []})
        names = dict(enumerate(dataset.classes))
        super().__init__(
            split, imgsz=dataset.imgsz, batch_size=EVALUATED, augment=training, hyp=hyp, rect=not training, cache=None,
            stride=STRIDE, pad=0.0 if training else 0.5, data={"names": names, "nc": len(names), "channels": 3},
        )  # fmt: skip
        self.cache = "ram"  # partners of a mosaic come from all images, not from those that were read last
        self.opened, self.closes = self._transforms(hyp), None
        self.closed = self.opened
        if training and recipe.close_mosaic:
            self.closes = recipe.epochs - recipe.close_mosaic
            self.closed = self._transforms(get_cfg(vars(hyp), {"mosaic": 0.0, "mixup": 0.0, "cutmix": 0.0}))

    def _transforms(self, hyp: Any) -> Any:
        transforms = self.build_transforms(copy.copy(hyp))
        transforms.transforms = [one for one in transforms.transforms if not isinstance(one, Albumentations)]
        return transforms

    def get_img_files(self, split: Split) -> list[str]:
        return [str(path) for path in split.files]

    def get_labels(self) -> list[dict[str, Any]]:
        split = self.split
        return [
            {
                "im_file": str(path), "shape": shape, "cls": boxes.classes, "bboxes": boxes.boxes, "segments": [],
                "keypoints": None, "normalized": True, "bbox_format": "xywh", "row": row,
            }
            for row, (path, boxes, shape) in enumerate(zip(split.files, split.boxes, split.shapes, strict=True))
        ]  # fmt: skip

    def load_image(self, i: int, rect_mode: bool = True, resize_short: bool = False) -> Any:
        if self.keep and self.ims[i] is None:
            self.ims[i], self.im_hw0[i], self.im_hw[i] = self._read(i, rect_mode, resize_short)
        if self.keep:  # a copy: augmentation may write into it
            return self.ims[i].copy(), self.im_hw0[i], self.im_hw[i]
        return self._read(i, rect_mode, resize_short)

    def _read(self, i: int, rect_mode: bool, resize_short: bool) -> Any:
        try:
            return super().load_image(i, rect_mode, resize_short)
        except (OSError, cv2.error) as error:
            raise KdrunError(
                f"image {self.im_files[i]} cannot be read: was it moved, or is it broken? Put it back, and the same command goes on"
            ) from error

    def __getitem__(self, key: Key) -> dict[str, Any]:
        epoch, i = key
        row = self.labels[i]["row"]
        before = random.getstate(), np.random.get_state()
        try:
            drawn = stream(self.seed, "augment", epoch, row)
            random.seed(drawn)
            np.random.seed(drawn % 2**32)
            closed = self.closes is not None and epoch >= self.closes
            sample = (self.closed if closed else self.opened)(self.get_image_and_label(i))
        finally:
            random.setstate(before[0])
            np.random.set_state(before[1])
        sample["index"] = row
        return sample  # type: ignore[no-any-return]


class Loader:
    """The batches of one split: {"input": float32 (B, 3, H, W) in [0, 1], "index": int64 (B,), "label": float32 (B,) boxes of an image,
    "cls": float32 (N, 1), "bboxes": float32 (N, 4) centre and size as shares of the input, "batch_idx": float32 (N,)}.

    Evaluated batches are rectangles of images of like shape, as the library's, and have "ratio_pad", too: how each image was scaled and
    padded.
    """

    def __init__(
        self, split: Split, dataset: DetectionDataset, *, batch_size: int, device: torch.device, recipe: Any = None,
        seed: int = 0, workers: int = 0, layout: torch.memory_format = torch.contiguous_format,
    ):  # fmt: skip
        self.split, self.batch_size, self.seed = split, batch_size, seed
        self.device, self.layout, self.imgsz = device, layout, dataset.imgsz
        if recipe is not None and batch_size > len(split):
            raise KdrunError(
                f"batch size {batch_size} is above the {len(split):,} training images; recipe.batch_size={len(split)} or less"
            )
        keep = dataset.memory == "always" or (dataset.memory == "auto" and len(split) * 3 * dataset.imgsz**2 < 2**30)
        self.samples = Samples(split, dataset, recipe, seed, keep)
        self.keys: list[list[Key]] = []
        self.reader = DataLoader(
            self.samples, batch_sampler=_Keys(self), num_workers=workers, collate_fn=YOLODataset.collate_fn,
            persistent_workers=workers > 0, pin_memory=device.type == "cuda",
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self._sizes())

    @property
    def smallest(self) -> int:
        """Images of the smallest batch of an epoch."""
        return min(self._sizes())

    def _sizes(self) -> list[int]:
        """Images of each batch. A last batch of one image joins the one before: it may have no batch statistics."""
        whole, rest = divmod(len(self.split), self.batch_size)
        sizes = [self.batch_size] * whole + [rest] * (rest > 0)
        if whole and rest == 1:
            sizes[-2:] = [self.batch_size + 1]
        return sizes

    def epoch(self, epoch: int) -> Iterator[Batch]:
        """The augmented batches of one epoch, in the random order of this epoch."""
        draw = torch.Generator().manual_seed(stream(self.seed, "order", epoch))
        order = torch.randperm(len(self.split), generator=draw)
        return self._batches([[(epoch, i) for i in rows.tolist()] for rows in order.split(self._sizes())])

    def batches(self) -> Iterator[Batch]:
        """Every image once, by the ratio of its sides: for evaluation. `index` says which ones."""
        rows = range(len(self.split))
        return self._batches([[(-1, i) for i in rows[a : a + self.batch_size]] for a in rows[:: self.batch_size]])

    def view(self, index: Tensor, epoch: int) -> Tensor:
        """The inputs of these rows of the training set at `epoch`: bit for bit those of epoch()."""
        return self._on_device(YOLODataset.collate_fn([self.samples[epoch, int(i)] for i in index]))["input"]  # type: ignore[no-any-return]

    def first(self, count: int) -> Tensor:
        """The inputs of the first images, not augmented, padded to a square."""
        inputs = [
            self._on_device(YOLODataset.collate_fn([self.samples[-1, i]]))["input"]
            for i in range(min(count, len(self.split)))
        ]
        return torch.cat([_square(x, self.imgsz) for x in inputs]).contiguous(memory_format=self.layout)

    def _batches(self, keys: list[list[Key]]) -> Iterator[Batch]:
        self.keys = keys
        return (self._on_device(batch) for batch in self.reader)

    def _on_device(self, batch: dict[str, Any]) -> Batch:
        keys, index = ("cls", "bboxes", "batch_idx"), torch.tensor(batch["index"])
        moved = {key: batch[key].to(self.device, non_blocking=True) for key in keys}
        image = batch["img"].to(self.device, non_blocking=True)
        return {
            "input": (image.float() / 255).contiguous(memory_format=self.layout), "index": index.to(self.device),
            "label": self.split.labels[index].to(self.device), **moved,
**({"ratio_pad": batch["ratio_pad"]} if self.samples.rect else {}),
        }  # fmt: skip


class _Keys:
    """The batches that a loader reads next, as lists of keys."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.loader.keys)

    def __len__(self) -> int:
        return len(self.loader.keys)


def _square(x_BCHW: Tensor, side: int) -> Tensor:
    """An input in the middle of a square of grey, or cut to it."""
    height, width = x_BCHW.shape[2:]
    top, left = max(0, side - height) // 2, max(0, side - width) // 2
    padding = (left, max(0, side - width) - left, top, max(0, side - height) - top)
    return torch.nn.functional.pad(x_BCHW[:, :, :side, :side], padding, value=GREY / 255)


def loaders(
    dataset: DetectionDataset, config: Any, device: torch.device, layout: torch.memory_format
) -> tuple[Loader, dict[str, Loader]]:
    """The training loader with the recipe's augmentation, and one loader for each split to evaluate on."""
    workers = config.engine.workers if device.type == "cuda" else 0  # on a CPU the models need all cores
    train = Loader(
        dataset.train, dataset, batch_size=config.recipe.batch_size, device=device, recipe=config.recipe,
        seed=config.seed, workers=workers, layout=layout,
    )  # fmt: skip
    splits = {"test": dataset.test} | ({"holdout": dataset.holdout} if dataset.holdout is not None else {})
    evals = {
        name: Loader(split, dataset, batch_size=EVALUATED, device=device, workers=workers, layout=layout)
        for name, split in splits.items()
    }
    return train, evals


def first_of(batch: Any, count: int) -> Batch:
    """The first images of a training batch, with their boxes."""
    mine = batch["batch_idx"] < count
    of_boxes = ("cls", "bboxes", "batch_idx")
    return {key: value[mine] if key in of_boxes else value[:count] for key, value in batch.items()}
