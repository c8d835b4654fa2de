"""A folder with train/<class>/* and test/<class>/* (or val/). Images are decoded once into a cache, or streamed."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.errors import KdrunError
from kdrun.process import cores
from kdrun.tasks.cache import remembered
from kdrun.tasks.image.data import tree
from kdrun.tasks.image.data.pixels import rgb, several, shown

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

    from kdrun.tasks.image.data.base import Dataset, Split


def checksum(cfg: Any, outputs: str) -> str:
    """sha256 over path and bytes of every image."""
    return tree.checksum(tree.scan(cfg.root), outputs)


def own_size(cfg: Any, outputs: str) -> int | None:
    """dataset.size; null if every image has this side already, so that both settings are the same run."""
    if cfg.size is None or cfg.size < 1:
        return cfg.size
    listing = tree.scan(cfg.root)
    paths = (os.path.join(listing.root, row[0]) for row in listing.train + listing.test)

    def alike() -> bool:
        from PIL import Image

        try:
            for path in paths:
                with Image.open(path) as image:
                    if image.size != (cfg.size, cfg.size):
                        return False
        except Exception:  # a broken image gives its error when it is decoded
            return False
        return True

    path = os.path.join(outputs, "cache", f"{tree.checksum(listing, outputs)}-alike.json")
    return None if remembered(path, cfg.size, alike) else cfg.size


def load(cfg: Any, outputs: str) -> Dataset:
    """Images of dataset.size px (null: that of the first image): short side resized, centre cropped, RGB.

    Images in memory are memory-mapped from <outputs>/cache, where the first process that needs them decodes them. With
    dataset.memory=never, or with auto and too little memory, files are read when they are needed. Raises KdrunError.
    """
    import torch

    from kdrun.tasks.image.data import base

    listing = tree.scan(cfg.root)
    digest = tree.checksum(listing, outputs)
    size = cfg.size or _side_of(os.path.join(listing.root, listing.train[0][0]))
    reader = partial(read, size=size, resize=cfg.size is not None)

    def listed(rows: list) -> Split:
        labels, files = torch.tensor([row[1] for row in rows]), [os.path.join(listing.root, row[0]) for row in rows]
        return base.Split(labels, torch.arange(len(rows)), None, files, reader)

    train, test = listed(listing.train), listed(listing.test)
    # Native size has its own cache: images of mixed sizes are then an error, also if a run with dataset.size has a cache of the same side.
    cache = os.path.join(outputs, "cache", f"{digest}-{cfg.size or 'native'}")
    needed = (len(train) + len(test)) * 3 * size * size
    if cfg.memory == "always" or (cfg.memory == "auto" and needed <= _available_memory() / 4):
        images = _decoded(f"{cache}.npy", train, test, size)
        train, test = (
            base.Split(part.labels, part.index, rows)
            for part, rows in ((train, images[: len(train)]), (test, images[len(train) :]))
        )

    def stats(kept: Split) -> list[list[float]]:
        return remembered(f"{cache}.json", [cfg.holdout, "span"], lambda: base.channel_stats(kept, cores()))

    notes = listing.notes + several(os.path.join(listing.root, row[0]) for row in listing.train)
    return base.assemble(
        cfg, classes=listing.classes, size=size, checksum=digest, train=train, test=test, stats=stats, notes=notes
    )


def sizes(cfg: Any, outputs: str) -> tuple[int, int, int]:
    """Number of training images, number of test images, side in px."""
    listing = tree.scan(cfg.root)
    side = cfg.size or _side_of(os.path.join(listing.root, listing.train[0][0]))
    return len(listing.train), len(listing.test), side


def read(path: str, size: int, resize: bool) -> Tensor:
    """One image as uint8 (3, size, size), RGB. `resize` False: an image of another size is an error that says how to resize."""
    import numpy as np
    import torch

    image = rgb(path)
    if image.size != (size, size):
        if not resize:
            width, height = image.size
            raise KdrunError(
                f"{shown(path)} is {width} x {height} px, the first image is {size} x {size}: dataset.size={size} resizes all images"
            )
        image = resized(image, size)
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resized(image: Image.Image, size: int) -> Image.Image:
    """Resize and CenterCrop of torchvision.transforms.v2, pixel for pixel, without a second spent on its import."""
    short = min(image.size)
    width, height = (int(size * side / short) for side in image.size)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.resize((width, height), 2).crop((left, top, left + size, top + size))  # 2: bilinear


def _side_of(path: str) -> int:
    """The side of the first image, in px."""
    width, height = rgb(path).size
    if width != height:
        raise KdrunError(
            f"{shown(path)} is {width} x {height} px, not square: dataset.size=32 resizes and crops all images to 32 px"
        )
    return width


def _decoded(path: str, train: Split, test: Split, size: int) -> Tensor:
    """All images, training ones first, uint8 (N, 3, size, size), mapped from the file `path`; one process writes it."""
    import numpy as np
    import torch
    from filelock import FileLock

    os.makedirs(os.path.dirname(path), exist_ok=True)
    if not os.path.exists(path):
        with FileLock(f"{path}.lock"):
            if not os.path.exists(path):
                try:
                    _decode(f"{path}.tmp", train, test, size)
                    os.replace(f"{path}.tmp", path)
                finally:  # after a broken image no half-written file stays
                    Path(f"{path}.tmp").unlink(missing_ok=True)
    # "c": copy on write. Processes share the pages, and torch needs writable memory.
    return torch.from_numpy(np.load(path, mmap_mode="c"))


def _decode(path: str, train: Split, test: Split, size: int) -> None:
    import numpy as np
    import torch

    shape = (len(train) + len(test), 3, size, size)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    chunk = max(1, min(512, (4 << 20) // (3 * size * size)))  # 4 MiB: containers often have little shared memory
    row = 0
    for part in (train, test):
        # Processes are faster than threads, which wait for the interpreter's lock (60k small JPEGs: 2.7 s against 5.2 s).
        for images in part.batches(torch.arange(len(part)).split(chunk), cores() if len(part) > chunk else 0):
            out[row : row + len(images)] = images.numpy()
            row += len(images)
    out.flush()


def _available_memory() -> int:
    """Bytes of memory that can be used without swapping; all of the memory if the system does not give this number."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
