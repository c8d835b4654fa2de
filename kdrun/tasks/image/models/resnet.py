"""The four-stage residual networks of ImageNet with a stem for 32 px images.

He et al., Deep Residual Learning for Image Recognition, CVPR 2016, https://arxiv.org/abs/1512.03385.
As in the CRD tables (Tian et al., ICLR 2020): a 3x3 stem of stride 1 without max-pooling; a bottleneck strides in its 3x3 convolution.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrun.models import register
from kdrun.tasks.image.models.parts import he_fan_out
from kdrun.tasks.image.models.resnet_cifar import BasicBlock


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut; the last has four times the channels of the others."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        inner = outputs // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.act3 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.act1(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.act2(self.bn2(self.conv2(y_BCHW)))
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        return self.act3(y_BCHW + self.shortcut(x_BCHW))


class ResNet(nn.Module):
    """Stem, four stages, average pooling, linear head."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, blocks: tuple[int, int, int, int], bottleneck: bool, classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.act1 = nn.ReLU()
        self.taps = {"stem": "act1", "pooled": "head:in", "logits": "head"}
        inputs, final = 64, "act3" if bottleneck else "act2"
        for stage, count in enumerate(blocks, start=1):
            outputs = 64 * 2 ** (stage - 1) * (4 if bottleneck else 1)
            layers: list[nn.Module] = []
            for block in range(count):
                stride = 2 if stage > 1 and block == 0 else 1
                layers.append(
                    Bottleneck(inputs, outputs, stride) if bottleneck else BasicBlock(inputs, outputs, stride, "B")
                )
                inputs = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            self.taps[f"stage{stage}"] = f"layer{stage}"
            self.taps[f"stage{stage}_pre"] = f"layer{stage}.{count - 1}.{final}:in"  # before the last activation
        self.taps |= {"last": self.taps["stage4"], "last_pre": self.taps["stage4_pre"]}
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, classes)
        he_fan_out(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.act1(self.bn1(self.conv1(x_BCHW)))
        x_BCHW = self.layer4(self.layer3(self.layer2(self.layer1(x_BCHW))))
        return self.head(torch.flatten(self.pool(x_BCHW), 1))


@register
def resnet18(classes: int) -> nn.Module:
    """18 layers, 64-128-256-512 channels: 11.22 M parameters."""
    return ResNet((2, 2, 2, 2), False, classes)


@register
def resnet34(classes: int) -> nn.Module:
    """34 layers, 64-128-256-512 channels: 21.33 M parameters."""
    return ResNet((3, 4, 6, 3), False, classes)


@register
def resnet50(classes: int) -> nn.Module:
    """50 layers, bottlenecks, 256-512-1024-2048 channels: 23.71 M parameters."""
    return ResNet((3, 4, 6, 3), True, classes)
