"""ShuffleNet with three groups, for 32 px images.

Zhang et al., ShuffleNet: An Extremely Efficient Convolutional Neural Network for Mobile Devices, CVPR 2018,
https://arxiv.org/abs/1707.01083. As in the CRD tables (Tian et al., ICLR 2020): a 1x1 stem of stride 1 without max-pooling, and an
activation after the depthwise convolution, where the paper has none.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrun.models import register
from kdrun.tasks.image.models.parts import Shuffle

GROUPS = 3
STAGES = ((240, 4), (480, 8), (960, 4))  # channels, units


class Unit(nn.Module):
    """Grouped 1x1, shuffle, 3x3 depthwise, grouped 1x1; a unit of stride 2 joins the pooled input to its own channels."""

    def __init__(self, inputs: int, outputs: int, stride: int, groups: int):
        super().__init__()
        self.joins = stride == 2
        own = outputs - inputs if self.joins else outputs
        inner = own // 4
        self.conv1 = nn.Conv2d(inputs, inner, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = nn.ReLU()
        self.shuffle = Shuffle(groups)
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, own, 1, groups=GROUPS, bias=False)
        self.bn3 = nn.BatchNorm2d(own)
        self.shortcut = nn.AvgPool2d(3, 2, 1) if self.joins else nn.Identity()
        self.act3 = nn.ReLU()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.shuffle(self.act1(self.bn1(self.conv1(x_BCHW))))
        y_BCHW = self.act2(self.bn2(self.conv2(y_BCHW)))
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        x_BCHW = self.shortcut(x_BCHW)
        return self.act3(torch.cat([y_BCHW, x_BCHW], 1) if self.joins else y_BCHW + x_BCHW)


class ShuffleNetV1(nn.Module):
    """Stem, three stages, average pooling, linear head; every stage halves the map."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, classes: int):
        super().__init__()
        self.taps = {"stem": "act1", "pooled": "head:in", "logits": "head"}
        inputs = 24
        self.conv1 = nn.Conv2d(3, inputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU()
        for stage, (outputs, units) in enumerate(STAGES, start=1):
            layers = [Unit(inputs, outputs, 2, 1 if stage == 1 else GROUPS)]  # 24 channels are too few to group
            layers += [Unit(outputs, outputs, 1, GROUPS) for _ in range(units - 1)]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            self.taps[f"stage{stage}"] = f"layer{stage}"
            self.taps[f"stage{stage}_pre"] = f"layer{stage}.{units - 1}.act3:in"  # before the last activation
            inputs = outputs
        self.taps |= {"last": self.taps["stage3"], "last_pre": self.taps["stage3_pre"]}
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.act1(self.bn1(self.conv1(x_BCHW)))
        x_BCHW = self.layer3(self.layer2(self.layer1(x_BCHW)))
        return self.head(torch.flatten(self.pool(x_BCHW), 1))


@register
def shufflenetv1(classes: int) -> nn.Module:
    """Grouped 1x1 convolutions and channel shuffles, 240-480-960 channels: 0.95 M parameters."""
    return ShuffleNetV1(classes)
