"""Densely connected networks with bottlenecks and compression (DenseNet-BC), for 32 px images.

Huang et al., Densely Connected Convolutional Networks, CVPR 2017, https://arxiv.org/abs/1608.06993.

Taps: stageN is what leaves the dense block, before any norm; stageN_pre is the same after the batch norm that follows, before its
activation; last is the map after the final activation. stem is the first convolution's output.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrun.models import register
from kdrun.tasks.image.models.parts import he_fan_out


class DenseLayer(nn.Module):
    """1x1 to four times the growth, 3x3 to the growth, each after batch norm and activation; joined to the input."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU()
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.act2 = nn.ReLU()
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, 1, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.conv1(self.act1(self.bn1(x_BCHW)))
        y_BCHW = self.conv2(self.act2(self.bn2(y_BCHW)))
        return torch.cat([x_BCHW, y_BCHW], 1)


class Transition(nn.Module):
    """Batch norm, activation, 1x1 convolution to half of the channels, average pooling (odd sizes are rounded up)."""

    def __init__(self, inputs: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.act = nn.ReLU()
        self.conv = nn.Conv2d(inputs, inputs // 2, 1, bias=False)
        self.pool = nn.AvgPool2d(2, ceil_mode=True)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        return self.pool(self.conv(self.act(self.bn(x_BCHW))))


class DenseNet(nn.Module):
    """Stem convolution, three dense blocks with transitions between, batch norm and activation, average pooling, linear head."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    transition1: Transition
    transition2: Transition

    def __init__(self, depth: int, growth: int, classes: int):
        super().__init__()
        channels = 2 * growth
        self.conv1 = nn.Conv2d(3, channels, 3, 1, 1, bias=False)
        for stage in (1, 2, 3):
            if stage > 1:
                setattr(self, f"transition{stage - 1}", Transition(channels))
                channels //= 2
            layers = []
            for _ in range((depth - 4) // 6):
                layers.append(DenseLayer(channels, growth))
                channels += growth
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.bn = nn.BatchNorm2d(channels)
        self.act = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(channels, classes)
        self.taps = {"stem": "conv1", "pooled": "head:in", "logits": "head", "last": "act", "last_pre": "act:in"}
        for stage, follows in enumerate(("transition1.act:in", "transition2.act:in", "act:in"), start=1):
            self.taps[f"stage{stage}"] = f"layer{stage}"
            self.taps[f"stage{stage}_pre"] = follows
        he_fan_out(self)
        nn.init.zeros_(self.head.bias)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.transition1(self.layer1(self.conv1(x_BCHW)))
        x_BCHW = self.layer3(self.transition2(self.layer2(x_BCHW)))
        return self.head(torch.flatten(self.pool(self.act(self.bn(x_BCHW))), 1))


@register
def densenet_100_12(classes: int) -> nn.Module:
    """100 layers, growth 12, bottlenecks and compression: 0.80 M parameters."""
    return DenseNet(100, 12, classes)
