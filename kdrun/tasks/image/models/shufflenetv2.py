"""ShuffleNetV2 at width 1, for 32 px images.

Ma et al., ShuffleNet V2: Practical Guidelines for Efficient CNN Architecture Design, ECCV 2018, https://arxiv.org/abs/1807.11164.
As in the CRD tables (Tian et al., ICLR 2020): a 1x1 stem of stride 1 without max-pooling.

Taps: last is the map of the 1x1 convolution behind the stages, after its activation, and no stage of its own. stageN_pre has the
channel order of stageN, after the shuffle; the code of the CRD tables gives it in the order before.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrun.models import register
from kdrun.tasks.image.models.parts import Shuffle

STAGES = ((116, 4), (232, 8), (464, 4))  # channels, units
LAST = 1024


class Branch(nn.Module):
    """1x1, 3x3 depthwise, 1x1; the activation after the last convolution is left to the unit."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, groups=outputs, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv3 = nn.Conv2d(outputs, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x_BCHW)))))
        return self.bn3(self.conv3(x_BCHW))


class Unit(nn.Module):
    """Half of the channels pass as they are, half through the branch; stride 2 sends all through both sides.

    The activation comes after joining and shuffling rather than before: the half that passes is not negative already, so the
    values are the same, and the map before the last activation has the channel order of the one after it.
    """

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.splits, half = stride == 1, outputs // 2
        self.side: nn.Module = nn.Identity()
        if not self.splits:
            self.side = nn.Sequential(
                nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
                nn.BatchNorm2d(inputs),
                nn.Conv2d(inputs, half, 1, bias=False),
                nn.BatchNorm2d(half),
            )
        self.branch = Branch(half if self.splits else inputs, half, stride)
        self.shuffle = Shuffle(2)
        self.act = nn.ReLU()

    def forward(self, x_BCHW: Tensor) -> Tensor:
        side_BCHW, branch_BCHW = x_BCHW.chunk(2, 1) if self.splits else (x_BCHW, x_BCHW)
        return self.act(self.shuffle(torch.cat([self.side(side_BCHW), self.branch(branch_BCHW)], 1)))


class ShuffleNetV2(nn.Module):
    """Stem, three stages, a 1x1 convolution, average pooling, linear head; every stage halves the map."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, classes: int):
        super().__init__()
        self.taps = {"stem": "act1", "last": "act2", "last_pre": "act2:in", "pooled": "head:in", "logits": "head"}
        inputs = 24
        self.conv1 = nn.Conv2d(3, inputs, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU()
        for stage, (outputs, units) in enumerate(STAGES, start=1):
            layers = [Unit(inputs, outputs, 2), *(Unit(outputs, outputs, 1) for _ in range(units - 1))]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            self.taps[f"stage{stage}"] = f"layer{stage}"
            self.taps[f"stage{stage}_pre"] = f"layer{stage}.{units - 1}.act:in"  # before the last activation
            inputs = outputs
        self.conv2 = nn.Conv2d(inputs, LAST, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(LAST)
        self.act2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(LAST, classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.act1(self.bn1(self.conv1(x_BCHW)))
        x_BCHW = self.layer3(self.layer2(self.layer1(x_BCHW)))
        x_BCHW = self.act2(self.bn2(self.conv2(x_BCHW)))
        return self.head(torch.flatten(self.pool(x_BCHW), 1))


@register
def shufflenetv2(classes: int) -> nn.Module:
    """Channel splits and shuffles, 116-232-464 channels: 1.36 M parameters."""
    return ShuffleNetV2(classes)
