"""Wide residual networks with pre-activation blocks, for 32 px images.

Zagoruyko and Komodakis, Wide Residual Networks, BMVC 2016, https://arxiv.org/abs/1605.07146.
wrn_D_K has D layers and stages of 16K, 32K and 64K channels.

Taps: stageN is the sum that leaves the stage, before any norm; stageN_pre is that sum after the batch norm that follows, before its
activation; last is the map after the final activation. stem is the first convolution's output.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from kdrun.errors import KdrunError
from kdrun.models import register
from kdrun.tasks.image.models.parts import he_fan_out


class PreActivationBlock(nn.Module):
    """Batch norm and activation before each of two 3x3 convolutions; nothing after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU()
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.projects = inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if self.projects else nn.Identity()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.act1(self.bn1(x_BCHW))
        if self.projects:  # the projection sees the activated map, the identity the raw one
            x_BCHW = y_BCHW
        y_BCHW = self.act2(self.bn2(self.conv1(y_BCHW)))
        return self.conv2(self.dropout(y_BCHW)) + self.shortcut(x_BCHW)


class WideResNet(nn.Module):
    """Stem convolution, three stages, batch norm and activation, average pooling, linear head."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, depth: int, widen: int, classes: int, dropout: float):
        super().__init__()
        if not 0 <= dropout < 1:
            raise KdrunError(f"dropout={dropout} of a wide ResNet is not a share from 0 to below 1")
        blocks = (depth - 4) // 6
        widths = (16, 16 * widen, 32 * widen, 64 * widen)
        self.conv1 = nn.Conv2d(3, widths[0], 3, 1, 1, bias=False)
        for stage, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            layers = [PreActivationBlock(inputs, outputs, 1 if stage == 1 else 2, dropout)]
            layers += [PreActivationBlock(outputs, outputs, 1, dropout) for _ in range(blocks - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(widths[3])
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(widths[3], classes)
        self.taps = {"stem": "conv1", "pooled": "head:in", "logits": "head", "last": "act", "last_pre": "act:in"}
        for stage, follows in enumerate(("layer2.0.act1:in", "layer3.0.act1:in", "act:in"), start=1):
            self.taps[f"stage{stage}"] = f"layer{stage}"
            self.taps[f"stage{stage}_pre"] = follows
        he_fan_out(self)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.layer3(self.layer2(self.layer1(self.conv1(x_BCHW))))
        return self.head(torch.flatten(self.pool(self.act(self.bn(x_BCHW))), 1))


@register
def wrn_16_1(classes: int, *, dropout: float = 0.0) -> nn.Module:
    """16 layers, 16-32-64 channels: 0.18 M parameters."""
    return WideResNet(16, 1, classes, dropout)


@register
def wrn_16_2(classes: int, *, dropout: float = 0.0) -> nn.Module:
    """16 layers, 32-64-128 channels: 0.70 M parameters."""
    return WideResNet(16, 2, classes, dropout)


@register
def wrn_16_4(classes: int, *, dropout: float = 0.0) -> nn.Module:
    """16 layers, 64-128-256 channels: 2.77 M parameters."""
    return WideResNet(16, 4, classes, dropout)


@register
def wrn_28_10(classes: int, *, dropout: float = 0.0) -> nn.Module:
    """28 layers, 160-320-640 channels: 36.54 M parameters."""
    return WideResNet(28, 10, classes, dropout)


@register
def wrn_40_1(classes: int, *, dropout: float = 0.0) -> nn.Module:
    """40 layers, 16-32-64 channels: 0.57 M parameters."""
    return WideResNet(40, 1, classes, dropout)


@register
def wrn_40_2(classes: int, *, dropout: float = 0.0) -> nn.Module:
    """40 layers, 32-64-128 channels: 2.26 M parameters."""
    return WideResNet(40, 2, classes, dropout)


@register
def wrn_40_4(classes: int, *, dropout: float = 0.0) -> nn.Module:
    """40 layers, 64-128-256 channels: 8.97 M parameters."""
    return WideResNet(40, 4, classes, dropout)
