"""The 6n+2 layer residual networks for 32 px images.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, section 4.2, https://arxiv.org/abs/1512.03385.
The x4 variants are those of the CRD tables (Tian et al., ICLR 2020): a 32-wide stem, stages of 64, 128 and 256 channels.
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.errors import KdrunError
from kdrun.models import register
from kdrun.tasks.image.models.parts import he_fan_out


class PadShortcut(nn.Module):
    """Shortcut A: every second pixel, new channels filled with zeros (half on each side); no parameters."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride, self.extra = stride, outputs - inputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = x_BCHW[:, :, :: self.stride, :: self.stride]
        return F.pad(x_BCHW, (0, 0, 0, 0, self.extra // 2, self.extra - self.extra // 2))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; activations are modules of their own so that either side can be tapped."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            if shortcut == "A":
                self.shortcut = PadShortcut(inputs, outputs, stride)
            else:
                self.shortcut = nn.Sequential(
                    nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
                )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.act1(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.bn2(self.conv2(y_BCHW))
        return self.act2(y_BCHW + self.shortcut(x_BCHW))


class ResNet(nn.Module):
    """Stem, three stages, average pooling, linear head."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, depth: int, widths: tuple[int, int, int, int], classes: int, shortcut: str):
        super().__init__()
        if shortcut not in ("A", "B"):
            raise KdrunError(f"no shortcut '{shortcut}' for a ResNet. Choices: A (padding), B (1x1 convolution)")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.act1 = nn.ReLU()
        self.taps = {"stem": "act1", "pooled": "head:in", "logits": "head"}
        for stage, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            layers = [BasicBlock(inputs, outputs, 1 if stage == 1 else 2, shortcut)]
            layers += [BasicBlock(outputs, outputs, 1, shortcut) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            self.taps[f"stage{stage}"] = f"layer{stage}"
            self.taps[f"stage{stage}_pre"] = f"layer{stage}.{blocks - 1}.act2:in"  # before the last activation
        self.taps |= {"last": self.taps["stage3"], "last_pre": self.taps["stage3_pre"]}  # what is pooled
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[3], classes)
        he_fan_out(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.act1(self.bn1(self.conv1(x_BCHW)))
        x_BCHW = self.layer3(self.layer2(self.layer1(x_BCHW)))
        return self.head(torch.flatten(self.pool(x_BCHW), 1))


THIN = (16, 16, 32, 64)
WIDE = (32, 64, 128, 256)


@register
def resnet8(classes: int, *, shortcut: str = "B") -> nn.Module:
    """8 layers, 16-32-64 channels: 0.08 M parameters."""
    return ResNet(8, THIN, classes, shortcut)


@register
def resnet14(classes: int, *, shortcut: str = "B") -> nn.Module:
    """14 layers, 16-32-64 channels: 0.18 M parameters."""
    return ResNet(14, THIN, classes, shortcut)


@register
def resnet20(classes: int, *, shortcut: str = "B") -> nn.Module:
    """20 layers, 16-32-64 channels: 0.28 M parameters."""
    return ResNet(20, THIN, classes, shortcut)


@register
def resnet32(classes: int, *, shortcut: str = "B") -> nn.Module:
    """32 layers, 16-32-64 channels: 0.47 M parameters."""
    return ResNet(32, THIN, classes, shortcut)


@register
def resnet44(classes: int, *, shortcut: str = "B") -> nn.Module:
    """44 layers, 16-32-64 channels: 0.67 M parameters."""
    return ResNet(44, THIN, classes, shortcut)


@register
def resnet56(classes: int, *, shortcut: str = "B") -> nn.Module:
    """56 layers, 16-32-64 channels: 0.86 M parameters."""
    return ResNet(56, THIN, classes, shortcut)


@register
def resnet110(classes: int, *, shortcut: str = "B") -> nn.Module:
    """110 layers, 16-32-64 channels: 1.74 M parameters."""
    return ResNet(110, THIN, classes, shortcut)


@register
def resnet8x4(classes: int, *, shortcut: str = "B") -> nn.Module:
    """8 layers, stem 32, 64-128-256 channels: 1.23 M parameters."""
    return ResNet(8, WIDE, classes, shortcut)


@register
def resnet32x4(classes: int, *, shortcut: str = "B") -> nn.Module:
    """32 layers, stem 32, 64-128-256 channels: 7.43 M parameters."""
    return ResNet(32, WIDE, classes, shortcut)
