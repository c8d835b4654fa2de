"""DetectionDataset and Split: images as files, their boxes in memory."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from kdrun.errors import KdrunError
from kdrun.tasks.detection.data import labels
from kdrun.tasks.detection.data.labels import Boxes
from kdrun.tasks.detection.data.layout import Layout, label_file

SMALLEST = 10  # px of a side: smaller images are refused by the library, too


@dataclass
class Split:
    """One of train, holdout (the yaml's val) and test."""

    files: list[Path]
    boxes: list[Boxes]
    shapes: list[tuple[int, int]]  # height and width of each image, as it is shown (EXIF turned)
    labels: Tensor  # float32 (N,): boxes of each image
    index: Tensor  # int64 (N,): 0..N-1

    def __len__(self) -> int:
        return len(self.files)


@dataclass
class DetectionDataset:
    """Images with boxes in three splits."""

    name: str
    classes: list[str]
    checksum: str
    train: Split
    holdout: Split | None
    test: Split
    imgsz: int
    memory: str
    reports: str  # test | val: the split of the yaml that reports
    notes: list[str] = field(default_factory=list)


def load(cfg: Any, listed: Layout, reports: str, checksum: str) -> DetectionDataset:
    """Read the labels of every split and the size of every image. KdrunError for a file that is broken."""
    notes = list(listed.notes)
    splits = {part: _split(part, files, listed, notes) for part, files in listed.images.items()}
    if not splits["train"].labels.any():
        raise KdrunError(
            f"no image of train has a box: {label_file(splits['train'].files[0])} and the others are missing or empty. "
            "Labels lie in labels/ beside images/, a .txt for each image"
        )
    for part in ("val", "test"):
        if part in splits and not splits[part].labels.any():
            raise KdrunError(
                f"no image of {part} has a box, so mAP cannot be measured on it ({label_file(splits[part].files[0])})"
            )
    if reports == "val":
        there = "dataset.test=val" if "test" in splits else f"{listed.file.name} has no test split"
        notes.append(f"{there}: val reports, and no split is left to choose an epoch on")
    return DetectionDataset(
        cfg.name, listed.classes, checksum, splits["train"], splits["val"] if reports == "test" else None,
        splits[reports], cfg.imgsz, cfg.memory, reports, notes,
    )  # fmt: skip


def _split(part: str, files: list[Path], listed: Layout, notes: list[str]) -> Split:
    with ThreadPoolExecutor() as pool:
        shapes = list(pool.map(_shape, files))
        boxes = list(pool.map(partial(_boxes, classes=listed.classes), files))
    counts = torch.tensor([float(len(one.boxes)) for one in boxes])
    empty, doubled = int((counts == 0).sum()), sum(one.doubled for one in boxes)
    if empty:
        notes.append(f"{empty:,} of the {len(files):,} images of {part} have no box: they are background")
    if doubled:
        notes.append(f"{doubled:,} boxes of {part} stand twice in a file and are taken once")
    return Split(files, boxes, shapes, counts, torch.arange(len(files)))


def _boxes(image: Path, classes: list[str]) -> Boxes:
    return labels.read(label_file(image), classes)


def _shape(path: Path) -> tuple[int, int]:
    """Height and width of an image, from the head of its file."""
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(274) in (5, 6, 7, 8)  # 274: orientation
    except (OSError, SyntaxError, ValueError, ImportError) as error:  # ImportError: of a package for another format
        raise KdrunError(f"{path} cannot be read as an image: replace it, or remove it and its label file") from error
    if min(width, height) < SMALLEST:
        raise KdrunError(f"{path} is {width} x {height} px; an image must have {SMALLEST} px a side or more")
    return (width, height) if turned else (height, width)


def counts_per_class(split: Split, classes: int) -> list[int]:
    """Boxes of each class."""
    numbers = np.concatenate([one.classes[:, 0] for one in split.boxes]).astype(int)
    return [int(count) for count in np.bincount(numbers, minlength=classes)]
