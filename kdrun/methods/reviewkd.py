"""Knowledge review. Chen, Liu, Zhao, Jia: Distilling Knowledge via Knowledge Review, CVPR 2021, https://arxiv.org/abs/2104.09044."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.taps import Output

LEVELS = (4, 2, 1)  # sides of the pyramid


def hierarchical_context(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """Squared distance of two maps as they are and averaged to sides of 4, 2 and 1, weights 1, 1/2, 1/4, 1/8.

    Mean over elements at each level; levels that are not smaller than the map are left out, and weights are divided by their sum. Agrees
    with the authors, mdistiller and torchdistill.
    """
    loss, total, weight = F.mse_loss(s_BCHW, t_BCHW), 1.0, 1.0
    for level in LEVELS:
        if level >= s_BCHW.shape[2]:
            continue
        weight /= 2
        loss = loss + weight * F.mse_loss(F.adaptive_avg_pool2d(s_BCHW, level), F.adaptive_avg_pool2d(t_BCHW, level))
        total += weight
    return loss / total


class Fusion(nn.Module):
    """Attention-based fusion of a student's map with the result of the deeper levels.

    The map is brought to `width` channels. A 1x1 convolution over both maps gives an attention map for each; the weighted sum goes to
    the next level, and after a 3x3 convolution it is compared with the teacher. The deepest level has no map to fuse with.
    """

    def __init__(self, inputs: int, width: int, outputs: int, deepest: bool):
        super().__init__()
        self.reduce = nn.Sequential(nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width))
        self.attend = None if deepest else nn.Sequential(nn.Conv2d(2 * width, 2, 1), nn.Sigmoid())
        self.expand = nn.Sequential(nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs))
        nn.init.kaiming_uniform_(self.reduce[0].weight, a=1)  # type: ignore[arg-type]
        nn.init.kaiming_uniform_(self.expand[0].weight, a=1)  # type: ignore[arg-type]

    def forward(self, s_BCHW: Tensor, carried_BCHW: Tensor | None, side: torch.Size) -> tuple[Tensor, Tensor]:
        """The map to compare with the teacher, of `side` (H, W), and the map for the next level."""
        x_BCHW = self.reduce(s_BCHW)
        if self.attend is not None and carried_BCHW is not None:
            carried_BCHW = F.interpolate(carried_BCHW, x_BCHW.shape[2:], mode="nearest")
            attention_B2HW = self.attend(torch.cat([x_BCHW, carried_BCHW], dim=1))
            x_BCHW = x_BCHW * attention_B2HW[:, :1] + carried_BCHW * attention_B2HW[:, 1:]
        compared_BCHW = x_BCHW if x_BCHW.shape[2:] == side else F.interpolate(x_BCHW, side, mode="nearest")
        return self.expand(compared_BCHW), x_BCHW


class Review(nn.Module):
    """The fusions of all levels. They run from deep to shallow; arguments and results go from shallow to deep."""

    def __init__(self, inputs: list[int], outputs: list[int]):
        super().__init__()
        width, deepest = min(512, inputs[-1]), len(inputs) - 1
        self.levels = nn.ModuleList(
            Fusion(i, width, o, deepest=level == deepest)
            for level, (i, o) in enumerate(zip(inputs, outputs, strict=True))
        )

    def forward(self, s_maps: list[Tensor], sides: list[torch.Size]) -> list[Tensor]:
        fused: list[Tensor] = []
        carried = None
        for fusion, s_BCHW, side in reversed(list(zip(self.levels, s_maps, sides, strict=True))):
            compared, carried = fusion(s_BCHW, carried, side)
            fused.insert(0, compared)
        return fused


def as_map(x: Tensor) -> Tensor:
    """An embedding (B, D) as a map of one pixel; a map as it is."""
    return x[:, :, None, None] if x.ndim == 2 else x


@METHODS.register
class ReviewKD(Method):
    """Knowledge review: deep layers of the student help shallow ones to match the teacher.

    Loss: sum over taps of the pyramid distance (means at sides H, 4, 2, 1; weights 1, 1/2, 1/4, 1/8 by their sum) between the
    teacher's map and the student's after attention-based fusion. Taps go from shallow to deep, and may end in an embedding.
    """

    family = "features"
    paper = "Chen et al., 2021"

    def build(self, pair: Pair) -> None:
        """No hyper-parameters beyond the weight."""
        students, teachers = (side.shapes for side in (pair.student, pair.teacher) if side)
        if len(students) < 2:
            raise KdrunError(
                f"reviewkd takes two taps or more, shallow to deep; method.reviewkd.taps names {len(students)}"
            )
        sizes = [torch.Size(shape[2:] or (1, 1)).numel() for shape in students]
        if any(deep > shallow for shallow, deep in pairwise(sizes)):
            raise KdrunError(
                f"reviewkd takes taps from shallow to deep; method.reviewkd.taps names {', '.join(pair.taps[0])}"
            )
        self.review = Review([shape[1] for shape in students], [shape[1] for shape in teachers])

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        t_maps = [as_map(tap) for tap in teacher.taps]
        fused = self.review([as_map(tap) for tap in student.taps], [t_BCHW.shape[2:] for t_BCHW in t_maps])
        losses = [hierarchical_context(s, t) for s, t in zip(fused, t_maps, strict=True)]
        return {"review": sum(losses[1:], losses[0])}
