"""Layers and pooling that give the tensors of two different models the same shape. The layers are trained with the student."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.errors import KdrunError

Shape = tuple[int, ...]  # of a tap: (B, C, H, W), (B, T, D) or (B, D)


def connector(
    student: Shape, teacher: Shape, *, tail: str = "bn+relu", bias: bool = True, always: bool = False
) -> nn.Module:
    """Identity if the shapes are equal (unless `always`), else a convolution to the teacher's channels and side, and its tail.

    tail: "bn+relu" is the regressor of RepDistiller's FitNet, "bn" is without the ReLU, "" is the convolution alone. For equal
    sides it is a 1x1 convolution, for a student of twice the side a 3x3 of stride 2, for one of half the side a transposed 4x4.
    Maps of other sides are resized first (averaged down, nearest up), then a 1x1 follows. Vectors (B, D), and sequences (B, T, D) of
    one length, get a linear layer over D.
    """
    if student[1:] == teacher[1:] and not always:
        return nn.Identity()
    if len(student) == len(teacher) == 2:
        return nn.Linear(student[1], teacher[1])
    if len(student) == len(teacher) == 3 and student[1] == teacher[1]:
        return nn.Linear(student[2], teacher[2])
    if len(student) != 4 or len(teacher) != 4:
        raise KdrunError(
            f"no adapter from the student's tap of shape {student[1:]} to the teacher's {teacher[1:]}: tap layers of the same kind"
        )
    inputs, outputs = student[1], teacher[1]
    (s_H, s_W), (t_H, t_W) = student[2:], teacher[2:]
    layers: list[nn.Module]
    if ((s_H + 1) // 2, (s_W + 1) // 2) == (t_H, t_W) != (s_H, s_W):
        layers = [nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=bias)]
    elif (2 * s_H, 2 * s_W) == (t_H, t_W):
        layers = [nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1, bias=bias)]
    else:
        layers = [nn.Conv2d(inputs, outputs, 1, bias=bias)]
        if (s_H, s_W) != (t_H, t_W):
            layers.insert(0, Resize((t_H, t_W)))
    if "bn" in tail:
        layers.append(nn.BatchNorm2d(outputs))
    if "relu" in tail:
        layers.append(nn.ReLU())
    return layers[0] if len(layers) == 1 else nn.Sequential(*layers)


class Resize(nn.Module):
    """Resizes maps to another side: by averages to a smaller one, by nearest neighbours to a larger one."""

    def __init__(self, side: tuple[int, int]):
        super().__init__()
        self.side = side

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return resize(x_BCHW, self.side)

    def extra_repr(self) -> str:
        return f"{self.side[0]}x{self.side[1]}"


def resize(x_BCHW: Tensor, side: tuple[int, int]) -> Tensor:
    """Maps resized to `side` (H, W): averaged down, or up by nearest neighbours. A map of that side is returned as it is."""
    if tuple(x_BCHW.shape[2:]) == tuple(side):
        return x_BCHW
    if x_BCHW.shape[2] >= side[0] and x_BCHW.shape[3] >= side[1]:
        return F.adaptive_avg_pool2d(x_BCHW, side)
    return F.interpolate(x_BCHW, side, mode="nearest")


def same_side(s_BCHW: Tensor, t_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps, averaged down to the smaller height and width of the two. Channels stay."""
    side = min(s_BCHW.shape[2], t_BCHW.shape[2]), min(s_BCHW.shape[3], t_BCHW.shape[3])
    return resize(s_BCHW, side), resize(t_BCHW, side)
