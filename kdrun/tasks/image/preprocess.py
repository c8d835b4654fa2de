"""A model of images with its preprocessing."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """A student with its preprocessing: images (B, 3, H, W) as uint8, or as floats in [0, 1], to logits (B, classes)."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def forward(self, images_BCHW: Tensor) -> Tensor:
        if images_BCHW.ndim != 4 or images_BCHW.shape[1] != 3:
            raise ValueError(f"images have shape {tuple(images_BCHW.shape)}; they must have shape (B, 3, H, W)")
        if images_BCHW.dtype != torch.uint8 and not 0 <= images_BCHW.min() <= images_BCHW.max() <= 1:
            raise ValueError("float images must lie in [0, 1]; give pixels from 0 to 255 as uint8")
        x_BCHW = images_BCHW.float() / 255 if images_BCHW.dtype == torch.uint8 else images_BCHW
        return self.model((x_BCHW - self.mean) / self.std)
