"""CIFAR-10 and CIFAR-100 (https://www.cs.toronto.edu/~kriz/cifar.html), downloaded on first use."""

from __future__ import annotations

import os
import socket
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError

from kdrun.errors import KdrunError, remove_empty

if TYPE_CHECKING:
    import numpy as np

    from kdrun.tasks.image.data.base import Dataset, Split

LOCK = ".kdrun-download.lock"  # an unusual name, because the file is removed after a failed download
TIMEOUT = 5.0  # seconds without a byte after which a download is stopped
# name -> title, archive and its published md5
ARCHIVES = {
    "cifar10": ("CIFAR-10", "cifar-10-python.tar.gz", "c58f30108f718f92721af3b95e74349a"),
    "cifar100": ("CIFAR-100", "cifar-100-python.tar.gz", "eb9058c3a382ffc7106e4002c42a8d85"),
}


def checksum(cfg: Any, outputs: str) -> str:
    """The published checksum of the archive. The data need not be downloaded yet."""
    return f"md5:{ARCHIVES[cfg.name][2]}"


def sizes(cfg: Any, outputs: str) -> tuple[int, int, int]:
    return 50_000, 10_000, 32


def load(cfg: Any, outputs: str) -> Dataset:
    """50,000 training and 10,000 test images of 32 px, checked by torchvision.

    They lie in dataset.root, or in <outputs>/data/<name>. Raises KdrunError if they are missing and cannot be downloaded.
    """
    from kdrun.tasks.image.data import base

    root = cfg.root or os.path.join(outputs, "data", cfg.name)
    train, test = _present(cfg.name, root) or _downloaded(cfg.name, root)
    return base.assemble(
        cfg,
        classes=list(train.classes),
        size=32,
        checksum=checksum(cfg, outputs),
        train=as_split(train.data, train.targets),
        test=as_split(test.data, test.targets),
    )


def as_split(data_NHWC: np.ndarray, targets: list[int]) -> Split:
    """torchvision's arrays as a Split: uint8 (N, H, W, 3) and a list of labels."""
    import torch

    from kdrun.tasks.image.data.base import Split

    images_NCHW = torch.from_numpy(data_NHWC).permute(0, 3, 1, 2).contiguous()
    return Split(torch.tensor(targets), torch.arange(len(targets)), images_NCHW)


def _present(name: str, root: str, download: bool = False):
    """torchvision's training and test set, or None when they are missing or damaged."""
    from torchvision import datasets

    source = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        return source(root, train=True, download=download), source(root, train=False)
    except RuntimeError:
        if download:
            raise
        return None


def _downloaded(name: str, root: str):
    """The same after a download. One process downloads, the others wait."""
    from filelock import FileLock

    title, archive, _ = ARCHIVES[name]
    made = sum(
        not path.exists() for path in (Path(root), *Path(root).parents)
    )  # number of folders that the download makes
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        with FileLock(os.path.join(root, LOCK)), _timeout(TIMEOUT):
            return _present(name, root, download=True)
    except (OSError, RuntimeError) as error:  # RuntimeError: the file does not have the published checksum
        Path(root, LOCK).unlink(missing_ok=True)
        remove_empty(Path(root), levels=made)
        offline = isinstance(error, (URLError, TimeoutError, ConnectionError)) and not isinstance(error, HTTPError)
        reason = "no network" if offline else " ".join(str(error).split())
        raise KdrunError(
            f"{title} is not in {root} and could not be downloaded ({reason}). Put {archive} there, "
            f"or try kdrun experiment=quickstart, which needs no download."
        ) from error


@contextmanager
def _timeout(seconds: float):
    """Set a time limit for sockets without data: downloads of torchvision have none."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
