"""Focal and global distillation. Yang, Li, Jiang, Gong, Yuan, Zhao, Yuan: Focal and Global Knowledge Distillation for Detectors, CVPR 2022,
https://arxiv.org/abs/2111.11837."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.boxes import detections
from kdrun.methods.checks import check_temperature, feature_maps
from kdrun.methods.taps import Output


def attention(x_BCHW: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """Of positions (B, H, W) and of channels (B, C): softmax of the mean absolute value / T, times H*W or C."""
    size_BCHW = x_BCHW.abs()
    positions_BHW, channels_BC = size_BCHW.mean(1), size_BCHW.mean((2, 3))
    spread_BP = (positions_BHW.flatten(1) / temperature).softmax(1)
    spatial_BHW = spread_BP.shape[1] * spread_BP.view_as(positions_BHW)
    return spatial_BHW, channels_BC.shape[1] * (channels_BC / temperature).softmax(1)


def masks(corner_N4: Tensor, image_N: Tensor, shape: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Foreground and background (B, H, W): how much each position counts.

    corner_N4: x1, y1, x2, y2 of each box as shares of the image; image_N: the image it belongs to. A box covers every position that it
    touches, and one more (from the floor to the ceiling, both included, as in the authors' code); each counts 1 / the covered area. Where
    boxes overlap, the smallest one counts. A position without a box counts 1 / their number in the image.
    """
    batch, height, width = shape
    x1_N, y1_N, x2_N, y2_N = (corner_N4 * corner_N4.new_tensor([width, height, width, height])).unbind(1)
    first, last = (x1_N.floor(), y1_N.floor()), (x2_N.ceil(), y2_N.ceil())
    area_N = (last[0] + 1 - first[0]) * (last[1] + 1 - first[1])
    (x_NW, y_NH) = (_between(first[i], last[i], size) for i, size in enumerate((width, height)))
    share_NP = ((y_NH[:, :, None] & x_NW[:, None]) / area_N[:, None, None]).flatten(1)
    rows_NP = image_N.long()[:, None].expand_as(share_NP)
    foreground_BP = share_NP.new_zeros(batch, height * width).scatter_reduce(0, rows_NP, share_NP, "amax")
    background_BP = (foreground_BP == 0).to(foreground_BP.dtype)
    background_BP = background_BP / background_BP.sum(1, keepdim=True).clamp(min=1)
    return foreground_BP.view(shape), background_BP.view(shape)


def _between(first_N: Tensor, last_N: Tensor, size: int) -> Tensor:
    """Which of `size` positions lie from the first to the last, (N, size)."""
    position_S = torch.arange(size, device=first_N.device)
    return (position_S >= first_N[:, None]) & (position_S <= last_N[:, None])


def focal_distance(s_BCHW: Tensor, t_BCHW: Tensor, mask_BHW: Tensor, temperature: float) -> Tensor:
    """Squared differences times mask and the teacher's attention of positions and channels, summed over C, H, W, mean over B."""
    spatial_BHW, channels_BC = attention(t_BCHW, temperature)
    square_BHW = ((s_BCHW - t_BCHW).square() * channels_BC[:, :, None, None]).sum(1)
    return (square_BHW * spatial_BHW * mask_BHW).sum() / len(s_BCHW)


def attention_distance(s_BCHW: Tensor, t_BCHW: Tensor, temperature: float) -> Tensor:
    """|A(s) - A(t)| summed over positions and over channels, mean over B."""
    pairs = zip(attention(s_BCHW, temperature), attention(t_BCHW, temperature), strict=True)
    return sum(((s - t).abs().sum() / len(s_BCHW) for s, t in pairs), s_BCHW.new_zeros(()))


class Context(nn.Module):
    """A map plus a vector of its whole content: pooled by a learned attention, then two 1x1 convolutions, the last of which begins at 0."""

    def __init__(self, channels: int):
        super().__init__()
        inner = max(1, channels // 2)
        self.weigh = nn.Conv2d(channels, 1, 1)
        self.transform = nn.Sequential(
            nn.Conv2d(channels, inner, 1), nn.LayerNorm([inner, 1, 1]), nn.ReLU(), nn.Conv2d(inner, channels, 1)
        )
        nn.init.kaiming_normal_(self.weigh.weight, mode="fan_in", nonlinearity="relu")
        for bias_or_weight in (self.weigh.bias, self.transform[3].weight, self.transform[3].bias):
            nn.init.zeros_(bias_or_weight)  # type: ignore[arg-type]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        weight_BP = self.weigh(x_BCHW).flatten(1).softmax(1)
        context_BC = torch.einsum("bcp,bp->bc", x_BCHW.flatten(2), weight_BP)
        return x_BCHW + self.transform(context_BC[:, :, None, None])


def relation_distance(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """Squared difference of two maps with their contexts, summed over C, H, W, mean over B."""
    return (s_BCHW - t_BCHW).square().sum() / len(s_BCHW)


@METHODS.register
class FGD(Method):
    """Focal and global, for detectors: learn objects and background apart, where the teacher looks, and the relations of all positions.

    Loss: foreground and background = sum over C*H*W of M A_s A_c (f(s) - t)^2, mean over B; A_s and A_c are the teacher's attention of
    positions and channels, M the boxes (each 1 / its area) or the rest (1 / its area). attention = sum of |A(s) - A(t)|, both
    kinds, mean over B. relation = sum over C*H*W of (G_s(f(s)) - G_t(t))^2, mean over B; G a trained block of global context for each
    side. Mean over taps (authors: sum). f is a 1x1 convolution where channels differ.
    """

    family = "features"
    paper = "Yang et al., 2022"
    needs = ("bboxes", "batch_idx")

    def build(self, pair: Pair, *, temperature: float) -> None:
        self.temperature = check_temperature("fgd", temperature)
        detections("fgd", pair.student.logits, "the student")
        feature_maps("fgd", pair)
        shapes = [*zip(pair.student.shapes, pair.teacher.shapes, strict=True)]  # type: ignore[union-attr]
        self.connectors = nn.ModuleList(connector(s, t, tail="") for s, t in shapes)
        self.student_context, self.teacher_context = (nn.ModuleList(Context(t[1]) for _, t in shapes) for _ in "st")

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        centre_N2, half_N2 = batch["bboxes"][:, :2], batch["bboxes"][:, 2:] / 2
        corner_N4 = torch.cat([centre_N2 - half_N2, centre_N2 + half_N2], 1)
        levels = [
            self._level(i, connect(student.taps[i]), teacher.taps[i], corner_N4, batch["batch_idx"])
            for i, connect in enumerate(self.connectors)
        ]
        return {term: mean(level[term] for level in levels) for term in levels[0]}

    def _level(self, i: int, s_BCHW: Tensor, t_BCHW: Tensor, corner_N4: Tensor, image_N: Tensor) -> Terms:
        batch, _, height, width = s_BCHW.shape
        foreground_BHW, background_BHW = masks(corner_N4, image_N, (batch, height, width))
        return {
            "foreground": focal_distance(s_BCHW, t_BCHW, foreground_BHW, self.temperature),
            "background": focal_distance(s_BCHW, t_BCHW, background_BHW, self.temperature),
            "attention": attention_distance(s_BCHW, t_BCHW, self.temperature),
            "relation": relation_distance(self.student_context[i](s_BCHW), self.teacher_context[i](t_BCHW)),
        }
