"""Handwritten digits of 8 x 8 px that scikit-learn contains: there is no download, and a run takes seconds."""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdrun.errors import KdrunError

if TYPE_CHECKING:
    from kdrun.tasks.image.data.base import Dataset

TEST_ROWS = 597  # of 1,797: leaves 1,200 to train on


def checksum(cfg: Any, outputs: str) -> str:
    """sha256 of the table of pixels and labels."""
    return hashlib.sha256(_table()).hexdigest()


def sizes(cfg: Any, outputs: str) -> tuple[int, int, int]:
    return 1797 - TEST_ROWS, TEST_ROWS, 8


def load(cfg: Any, outputs: str) -> Dataset:
    """1,200 training and 597 test images of 8 px, a fixed stratified split; grey, repeated to three channels."""
    import numpy as np
    import torch

    from kdrun.tasks import draws
    from kdrun.tasks.image.data import base

    table = _table()
    values_N65 = torch.from_numpy(np.loadtxt(table.decode().splitlines(), delimiter=",", dtype=np.int64))
    labels_N, pixels_N64 = values_N65[:, -1].contiguous(), values_N65[:, :-1]
    grey_N1HW = ((pixels_N64 * 255 + 8) // 16).to(torch.uint8).view(-1, 1, 8, 8)  # 0..16 -> 0..255, rounded
    images_N3HW = grey_N1HW.repeat(1, 3, 1, 1)

    test_rows = draws.stratified(labels_N, TEST_ROWS)
    train_rows = draws.without(test_rows, len(labels_N))
    train, test = (base.Split(labels_N[r], torch.arange(len(r)), images_N3HW[r]) for r in (train_rows, test_rows))
    digest, classes = hashlib.sha256(table).hexdigest(), [str(digit) for digit in range(10)]
    return base.assemble(cfg, classes=classes, size=8, checksum=digest, train=train, test=test)


def _table() -> bytes:
    """scikit-learn's digits.csv. It is located without importing scikit-learn, which takes a second."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise KdrunError("dataset=digits comes with scikit-learn, which is not installed: pip install scikit-learn")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    try:
        return gzip.decompress(path.read_bytes())
    except OSError as error:
        raise KdrunError(f"{path} cannot be read ({error}): pip install --force-reinstall scikit-learn") from error
