"""Layers that bring a student's tensor to the shape of its teacher's."""

from __future__ import annotations

from torch import nn

from kdrun.errors import KdrunError


def connector(student: tuple[int, ...], teacher: tuple[int, ...]) -> nn.Module:
    """Identity where the shapes agree, else the regressor of RepDistiller's FitNet: convolution, batch norm, ReLU.

    Shapes are (B, C, H, W) of the two taps. Equal sides take a 1x1 convolution, a student of twice the side a strided
    3x3, one of half the side a transposed 4x4, a larger one otherwise a kernel of 1 + the difference. Vectors (B, D) take
    a linear layer.
    """
    if student[1:] == teacher[1:]:
        return nn.Identity()
    if len(student) == len(teacher) == 2:
        return nn.Linear(student[1], teacher[1])
    if len(student) != 4 or len(teacher) != 4:
        raise KdrunError(
            f"no adapter from the student's tap of shape {student[1:]} to the teacher's {teacher[1:]}: tap layers alike"
        )
    inputs, outputs = student[1], teacher[1]
    (s_H, s_W), (t_H, t_W) = student[2:], teacher[2:]
    layer: nn.Module
    if (s_H, s_W) == (t_H, t_W):
        layer = nn.Conv2d(inputs, outputs, 1)
    elif ((s_H + 1) // 2, (s_W + 1) // 2) == (t_H, t_W):
        layer = nn.Conv2d(inputs, outputs, 3, stride=2, padding=1)
    elif (2 * s_H, 2 * s_W) == (t_H, t_W):
        layer = nn.ConvTranspose2d(inputs, outputs, 4, stride=2, padding=1)
    elif s_H >= t_H and s_W >= t_W:
        layer = nn.Conv2d(inputs, outputs, (1 + s_H - t_H, 1 + s_W - t_W))
    else:
        raise KdrunError(
            f"no adapter from the student's map of {s_H}x{s_W} to the teacher's {t_H}x{t_W}; tap another layer"
        )
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU())
