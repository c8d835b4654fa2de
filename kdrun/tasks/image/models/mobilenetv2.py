"""MobileNetV2 at half width, for 32 px images.

Sandler et al., MobileNetV2: Inverted Residuals and Linear Bottlenecks, CVPR 2018, https://arxiv.org/abs/1801.04381.
As in the CRD tables (Tian et al., ICLR 2020): the stem strides, the second group does not, so that 32 px end as 2x2; ReLU and not
ReLU6; the first block expands by 1 with a convolution of its own; no dropout.

Taps: a stage ends in a linear bottleneck, so stageN_pre is stageN; last is the map of the 1x1 convolution behind the stages, after
its activation, and no stage of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrun.errors import KdrunError
from kdrun.models import register
from kdrun.tasks.image.models.parts import he_fan_out, small_head

# expansion, channels at width 1, blocks, stride of the first; one list a stage: the map changes size after each
STAGES = (
    ((1, 16, 1, 1), (6, 24, 2, 1)),
    ((6, 32, 3, 2),),
    ((6, 64, 4, 2), (6, 96, 3, 1)),
    ((6, 160, 3, 2), (6, 320, 1, 1)),
)


class InvertedResidual(nn.Module):
    """1x1 expansion, 3x3 depthwise, 1x1 projection without activation; a shortcut where the shapes agree."""

    def __init__(self, inputs: int, outputs: int, stride: int, expansion: int):
        super().__init__()
        inner = inputs * expansion
        self.conv1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act1 = nn.ReLU()
        self.conv2 = nn.Conv2d(inner, inner, 3, stride, 1, groups=inner, bias=False)
        self.bn2 = nn.BatchNorm2d(inner)
        self.act2 = nn.ReLU()
        self.conv3 = nn.Conv2d(inner, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x_BCHW: Tensor) -> Tensor:
        y_BCHW = self.act1(self.bn1(self.conv1(x_BCHW)))
        y_BCHW = self.act2(self.bn2(self.conv2(y_BCHW)))
        y_BCHW = self.bn3(self.conv3(y_BCHW))
        return x_BCHW + y_BCHW if self.adds else y_BCHW


class MobileNetV2(nn.Module):
    """Stem, four stages of inverted residuals, a 1x1 convolution, average pooling, linear head."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, width: float, classes: int):
        super().__init__()
        if int(16 * width) < 1:
            raise KdrunError(f"width={width} of a MobileNetV2 leaves no channels; at least 0.0625")
        self.taps = {"stem": "act1", "last": "act2", "last_pre": "act2:in", "pooled": "head:in", "logits": "head"}
        inputs = int(32 * width)
        self.conv1 = nn.Conv2d(3, inputs, 3, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.act1 = nn.ReLU()
        for stage, groups in enumerate(STAGES, start=1):
            layers = []
            for expansion, channels, blocks, stride in groups:
                for block in range(blocks):
                    outputs = int(channels * width)
                    layers.append(InvertedResidual(inputs, outputs, stride if block == 0 else 1, expansion))
                    inputs = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            self.taps[f"stage{stage}"] = self.taps[f"stage{stage}_pre"] = f"layer{stage}"
        outputs = max(1280, int(1280 * width))
        self.conv2 = nn.Conv2d(inputs, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.act2 = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(outputs, classes)
        he_fan_out(self)
        small_head(self.head)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.act1(self.bn1(self.conv1(x_BCHW)))
        x_BCHW = self.layer4(self.layer3(self.layer2(self.layer1(x_BCHW))))
        x_BCHW = self.act2(self.bn2(self.conv2(x_BCHW)))
        return self.head(torch.flatten(self.pool(x_BCHW), 1))


@register
def mobilenetv2(classes: int, *, width: float = 0.5) -> nn.Module:
    """Inverted residuals, half width: 0.81 M parameters."""
    return MobileNetV2(width, classes)
