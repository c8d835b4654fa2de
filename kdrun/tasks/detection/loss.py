"""The detection loss of ultralytics: box (CIoU), cls (binary cross-entropy) and dfl (distribution focal loss), each with its gain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from kdrun.methods.distillation import whole
from kdrun.tasks.detection import library
from kdrun.tasks.detection.detector import STRIDES

library.ready()

from ultralytics.utils.loss import v8DetectionLoss  # noqa: E402

BINS = 16  # of a distance


class _Facts(nn.Module):
    """What the library's loss asks a model: its head's classes, bins and strides, the gains, and where it lies."""

    def __init__(self, classes: int, gains: dict[str, float], device: torch.device):
        super().__init__()
        self.place = nn.Parameter(torch.empty(0, device=device))
        self.args = SimpleNamespace(**gains)
        self.model = [SimpleNamespace(nc=classes, reg_max=BINS, stride=torch.tensor(STRIDES, device=device))]


class Criterion:
    """The loss of a detector's output on a batch."""

    def __init__(self, classes: int, recipe: Any, device: torch.device):
        gains = {key: float(getattr(recipe, key)) for key in ("box", "cls", "dfl")}
        self.loss = v8DetectionLoss(_Facts(classes, gains, device))

    def parts(self, output: dict[str, Any], batch: Any) -> dict[str, Tensor]:
        """box, cls and dfl, scalars, each times its gain. The library multiplies them by the number of images; here the optimisation does
        that (optimization.py)."""
        _, parts, _ = self.loss.get_assigned_targets_and_loss(output, batch)
        return dict(zip(("box", "cls", "dfl"), parts, strict=True))

    def __call__(self, output: dict[str, Any], batch: Any) -> Tensor:
        """Their sum."""
        return whole(self.parts(output, batch))
