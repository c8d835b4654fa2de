"""Datasets of images with boxes by name. Checksums and sizes do not need torch; only `load` imports it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.errors import KdrunError
from kdrun.tasks import cache
from kdrun.tasks.detection.data import layout
from kdrun.tasks.detection.data.layout import Layout, label_file
from kdrun.tasks.detection.settings import STRIDE

if TYPE_CHECKING:
    from kdrun.tasks.detection.data.base import DetectionDataset

NAMES = ("yolo", "shapes")
__all__ = ["NAMES", "checksum", "has_holdout", "load", "reports", "sizes"]


def checked(cfg: Any, outputs: str) -> Layout:
    """The files of the dataset. KdrunError for files or settings that are wrong."""
    if cfg.root is not None:
        raise KdrunError(
            f"dataset.root={cfg.root} has no effect: the data yaml says where the images lie (its key path)"
        )
    if cfg.holdout:
        raise KdrunError(f"dataset.holdout={cfg.holdout} has no effect: the data yaml's val chooses, and test reports")
    if cfg.imgsz % STRIDE:
        below = max(STRIDE, cfg.imgsz // STRIDE * STRIDE)
        raise KdrunError(
            f"dataset.imgsz={cfg.imgsz} is no multiple of {STRIDE}; say dataset.imgsz={below}, or {below + STRIDE}"
        )
    if cfg.name == "shapes":
        if cfg.data is not None:
            raise KdrunError(f"dataset.data={cfg.data} has no effect: the shapes are generated; say dataset=yolo")
        from kdrun.tasks.detection.data import shapes  # needs numpy and Pillow

        return layout.read(str(shapes.generated(outputs)))
    listed = layout.read(cfg.data)
    if cfg.test == "test" and "test" not in listed.images:
        raise KdrunError(
            f"dataset.test=test, and {listed.file} has no test split; val reports then (dataset.test=auto)"
        )
    return listed


def reports(cfg: Any, listed: Layout) -> str:
    """The split that reports: test where there is one, else val."""
    if cfg.test != "auto":
        return str(cfg.test)
    return "test" if "test" in listed.images else "val"


def has_holdout(cfg: Any, outputs: str) -> bool:
    """Whether there is a split to choose an epoch on beside the one that reports."""
    return reports(cfg, checked(cfg, outputs)) == "test"


def sizes(cfg: Any, outputs: str) -> tuple[int, int]:
    """Images of train, and of the split that reports."""
    listed = checked(cfg, outputs)
    return len(listed.images["train"]), len(listed.images[reports(cfg, listed)])


def checksum(cfg: Any, outputs: str) -> str:
    """sha256 over classes, splits, and the bytes of every image and label file. Kept until a name, a size or a time changes."""
    listed = checked(cfg, outputs)
    files = [(part, image, label_file(image)) for part, images in listed.images.items() for image in images]
    key = hashlib.sha256()
    for part, *pair in files:
        for path in pair:
            status = path.stat() if path.is_file() else None
            key.update(os.fsencode(f"{part}\0{path}\0{status and (status.st_size, status.st_mtime_ns)}\0"))
    key.update("\0".join(listed.classes).encode())
    place = hashlib.sha256(os.fsencode(listed.file)).hexdigest()[:16]

    def content() -> str:
        digest = hashlib.sha256("\0".join(listed.classes).encode())
        for part, image, label in files:
            boxes = cache.file_sha256(label) if label.is_file() else ""
            digest.update(os.fsencode(f"{part}\0{listed.name(image)}\0{cache.file_sha256(image)}\0{boxes}\0"))
        return digest.hexdigest()

    value: str = cache.remembered(str(Path(outputs, "cache", f"boxes-{place}.json")), key.hexdigest(), content)
    return value


def load(cfg: Any, outputs: str) -> DetectionDataset:
    """The dataset that `cfg` describes: every label is read and checked, images are read when they are needed."""
    from kdrun.tasks.detection.data import base

    listed = checked(cfg, outputs)
    return base.load(cfg, listed, reports(cfg, listed), checksum(cfg, outputs))
