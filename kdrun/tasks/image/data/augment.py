"""Random crop and flip of a batch on its device. They depend only on (seed, epoch, index), so every view can be computed again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.errors import KdrunError, choices
from kdrun.tasks.draws import bits

CROPS = ("zero", "reflect", "none")


@dataclass(frozen=True)
class Augment:
    """How training images are augmented: pad by `padding` px with zeros or by reflection, crop at random, mirror half of them."""

    crop: str
    padding: int
    flip: bool

    def __post_init__(self):
        if self.crop not in CROPS:
            raise KdrunError(f"crop={self.crop} is unknown. {choices(self.crop, CROPS)}")
        if self.padding < 0:
            raise KdrunError(f"padding={self.padding} must be 0 or more (pixels on each side; crop=none pads nothing)")


def augment(
    images_BCHW: Tensor, index_B: Tensor, *, seed: int, epoch: int, crop: str, padding: int, flip: bool
) -> Tensor:
    """The view of each image at this epoch, uint8 (B, C, H, W): pad, crop back to H x W at random, mirror at random.

    crop: "zero" | "reflect" (what is padded; needs padding < H, W) | "none". index_B: row in the training set.
    Gathers rows, then columns, of the whole batch: no loop over images, no wait for the device.
    """
    height, width = images_BCHW.shape[2:]
    columns_BW = torch.arange(width, device=images_BCHW.device)[None]
    # One random word for all decisions: 24 bits for each offset, 1 bit for the flip.
    word_B1 = bits(seed, epoch, index_B, 0)[:, None]
    if flip:
        columns_BW = torch.where(((word_B1 >> 48) & 1).bool(), width - 1 - columns_BW, columns_BW)
    if crop != "none":
        rows_BH = torch.arange(height, device=images_BCHW.device) + (word_B1 & 0xFFFFFF) % (2 * padding + 1)
        columns_BW = columns_BW + ((word_B1 >> 24) & 0xFFFFFF) % (2 * padding + 1)
        if crop == "zero":
            images_BCHW = F.pad(images_BCHW, (padding,) * 4)
        else:  # without a padded copy: the reflected pixels are gathered from their places in the image
            rows_BH, columns_BW = _reflected(rows_BH - padding, height), _reflected(columns_BW - padding, width)
        images_BCHW = _gather(images_BCHW, 2, rows_BH[:, None, :, None])
    return _gather(images_BCHW, 3, columns_BW[:, None, None, :])


def _gather(x_BCHW: Tensor, dim: int, at: Tensor) -> Tensor:
    """The positions `at` along `dim`; `at` is broadcast over the other dimensions."""
    shape = list(x_BCHW.shape)
    shape[dim] = at.shape[dim]
    return x_BCHW.gather(dim, at.expand(shape))


def _reflected(position: Tensor, n: int) -> Tensor:
    """Positions of -n+1..2n-2 brought back into 0..n-1 by reflection that does not repeat the border."""
    return (n - 1) - ((n - 1) - position.abs()).abs()
