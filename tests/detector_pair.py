"""A small detector whose output is that of a YOLO head, and batches of boxes, for the tests of methods."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.defaults import of_task, shipped_settings
from kdrun.config.registry import METHODS
from kdrun.methods.base import DataFacts
from kdrun.methods.boxes import distances
from kdrun.methods.distillation import Distillation

CLASSES, BINS, SIZE, ROWS = 3, 6, 64, 24
NARROW, WIDER = (4, 6, 8), (8, 10, 12)


class Detector(nn.Module):
    """Three levels of strides 8, 16 and 32; the taps neck1 to neck3 are the maps that the head takes."""

    def __init__(self, widths: tuple[int, ...] = NARROW, classes: int = CLASSES, bins: int = BINS):
        super().__init__()
        self.taps = {f"neck{i + 1}": f"levels.{i}" for i in range(3)}
        self.stem = nn.Sequential(nn.Conv2d(3, widths[0], 8, stride=8), nn.BatchNorm2d(widths[0]), nn.SiLU())
        sides = [(widths[0], widths[0], 1), (widths[0], widths[1], 2), (widths[1], widths[2], 2)]
        self.levels = nn.ModuleList(
            nn.Sequential(nn.Conv2d(i, o, 3, stride=stride, padding=1), nn.BatchNorm2d(o), nn.SiLU())
            for i, o, stride in sides
        )
        self.boxes = nn.ModuleList(nn.Conv2d(width, 4 * bins, 1) for width in widths)
        self.scores = nn.ModuleList(nn.Conv2d(width, classes, 1) for width in widths)

    def forward(self, x_BCHW: Tensor) -> dict[str, Any]:
        feats, x = [], self.stem(x_BCHW)
        for level in self.levels:
            x = level(x)
            feats.append(x)

        def of_anchors(heads: nn.ModuleList) -> Tensor:
            return torch.cat([head(feat).flatten(2) for head, feat in zip(heads, feats, strict=True)], 2)

        return {"boxes": of_anchors(self.boxes), "scores": of_anchors(self.scores), "feats": feats}


def detector(widths: tuple[int, ...] = NARROW, seed: int = 0, **options: int) -> Detector:
    torch.manual_seed(seed)
    model = Detector(widths, **options)
    for head in (*model.scores, *model.boxes):  # predictions that differ from anchor to anchor
        head.weight.data *= 3
    return model


def supervised(output: dict[str, Any], batch: dict[str, Tensor]) -> Tensor:
    """A stand-in for the loss of a detector: it reaches every weight, and each image has its own target."""
    wanted = torch.zeros(len(batch["input"]), CLASSES)
    wanted[batch["batch_idx"].long(), batch["cls"].flatten().long()] = 1
    of_classes = F.binary_cross_entropy_with_logits(output["scores"].amax(2), wanted)
    return of_classes + (distances(output["boxes"]) - 1).square().mean()


def batch(size: int = 4, seed: int = 0) -> dict[str, Tensor]:
    """Images with one to three boxes each, but for the second, which has none."""
    draw = torch.Generator().manual_seed(seed)
    counts = [0 if i == 1 else 1 + i % 3 for i in range(size)]
    owner = torch.arange(size).repeat_interleave(torch.tensor(counts)).float()
    sides = 0.1 + 0.3 * torch.rand(len(owner), 2, generator=draw)
    centres = sides / 2 + (1 - sides) * torch.rand(len(owner), 2, generator=draw)
    return {
        "input": torch.rand(size, 3, SIZE, SIZE, generator=draw),
        "index": torch.randperm(ROWS, generator=draw)[:size],
        "cls": torch.randint(0, CLASSES, (len(owner), 1), generator=draw).float(),
        "bboxes": torch.cat([centres, sides], 1),
        "batch_idx": owner,
    }


def facts() -> DataFacts:
    return DataFacts(ROWS, torch.empty(ROWS, 0), CLASSES, batch(2)["input"])


def build(
    *names: str, student: nn.Module | None = None, teacher: nn.Module | None = None, **changes: Any
) -> Distillation:
    """A Distillation of two detectors, with the settings that runs of detection have; `changes`: those of the first method."""
    settings = {name: of_task(name, shipped_settings(name), "detection") for name in names}
    settings[names[0]] = {**settings[names[0]], **changes}
    return Distillation(
        student or detector(),
        (teacher or detector(WIDER, seed=1)).eval(),
        {name: (METHODS.get(name), values) for name, values in settings.items()},
        data=facts(),
        task=supervised,
        fresh=lambda i: detector(WIDER, seed=10 + i),
    )


def terms_of(name: str) -> set[str]:
    """The terms that a method has, as its yaml weighs them."""
    return {f"{name}.{term}" for term in of_task(name, shipped_settings(name), "detection")["weights"]}
