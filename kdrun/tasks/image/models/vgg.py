"""VGG networks with batch norm and one linear layer, for 32 px images.

Simonyan and Zisserman, Very Deep Convolutional Networks for Large-Scale Image Recognition, ICLR 2015,
https://arxiv.org/abs/1409.1556. As in the CRD tables (Tian et al., ICLR 2020): three max-poolings rather than five, average
pooling and one linear layer in the place of three; vgg8 is theirs. Max-pooling rounds odd sizes up, as strided convolutions do.

Taps: stem is the map of the first group of convolutions, stage1 to stage4 those of the other four.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kdrun.models import register
from kdrun.tasks.image.models.parts import he_fan_out, small_head

WIDTHS = (64, 128, 256, 512, 512)


class VGG(nn.Module):
    """Five groups of 3x3 convolutions with max-pooling between the first four; the first group is the stem."""

    layer0: nn.Sequential
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential

    def __init__(self, depths: tuple[int, int, int, int, int], classes: int):
        super().__init__()
        self.taps = {"stem": "layer0", "pooled": "head:in", "logits": "head"}
        inputs = 3
        for group, (outputs, depth) in enumerate(zip(WIDTHS, depths, strict=True)):
            layers: list[nn.Module] = [nn.MaxPool2d(2, ceil_mode=True)] if 1 <= group <= 3 else []
            for _ in range(depth):
                layers += [nn.Conv2d(inputs, outputs, 3, 1, 1), nn.BatchNorm2d(outputs), nn.ReLU()]
                inputs = outputs
            setattr(self, f"layer{group}", nn.Sequential(*layers))
            if group:
                self.taps[f"stage{group}"] = f"layer{group}"
                self.taps[f"stage{group}_pre"] = f"layer{group}.{len(layers) - 1}:in"  # before the last activation
        self.taps |= {"last": self.taps["stage4"], "last_pre": self.taps["stage4_pre"]}
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, classes)
        he_fan_out(self)
        small_head(self.head)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.layer2(self.layer1(self.layer0(x_BCHW)))
        x_BCHW = self.layer4(self.layer3(x_BCHW))
        return self.head(torch.flatten(self.pool(x_BCHW), 1))


@register
def vgg8(classes: int) -> nn.Module:
    """5 convolutions, one a width, batch norm: 3.97 M parameters."""
    return VGG((1, 1, 1, 1, 1), classes)


@register
def vgg11(classes: int) -> nn.Module:
    """8 convolutions, batch norm: 9.28 M parameters."""
    return VGG((1, 1, 2, 2, 2), classes)


@register
def vgg13(classes: int) -> nn.Module:
    """10 convolutions, batch norm: 9.46 M parameters."""
    return VGG((2, 2, 2, 2, 2), classes)


@register
def vgg16(classes: int) -> nn.Module:
    """13 convolutions, batch norm: 14.77 M parameters."""
    return VGG((2, 2, 3, 3, 3), classes)


@register
def vgg19(classes: int) -> nn.Module:
    """16 convolutions, batch norm: 20.09 M parameters."""
    return VGG((2, 2, 4, 4, 4), classes)
