"""Two small networks to try things with: three plain convolutional stages, and two hidden layers.

Hinton, Vinyals and Dean, Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531, section 3: the
student of its MNIST experiment has two hidden layers of 800. The convolutional one is ours. The mlp averages the image to
grid x grid pixels first, so that it takes any size: grid=28 on 28 px images changes nothing, the default 8 suits digits.

Taps: the mlp has no maps; hidden1 and hidden2 are after the activation, and hidden2 is pooled.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from kdrun.models import register
from kdrun.tasks.image.models.parts import at_least_one, he_fan_out


class CNN(nn.Module):
    """Four 3x3 convolutions with batch norm: a stem and three stages, max-pooling between the stages (odd sizes rounded up)."""

    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential

    def __init__(self, width: int, classes: int):
        super().__init__()
        at_least_one("a cnn", width=width)
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU()
        self.taps = {"stem": "act1", "pooled": "head:in", "logits": "head"}
        for stage, (inputs, outputs) in enumerate(pairwise((width, width, 2 * width, 4 * width)), start=1):
            layers: list[nn.Module] = [] if stage == 1 else [nn.MaxPool2d(2, ceil_mode=True)]
            layers += [nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
            self.taps[f"stage{stage}"] = f"layer{stage}"
            self.taps[f"stage{stage}_pre"] = f"layer{stage}.{len(layers) - 1}:in"  # before the activation
        self.taps |= {"last": self.taps["stage3"], "last_pre": self.taps["stage3_pre"]}
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(4 * width, classes)
        he_fan_out(self)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BCHW = self.act1(self.bn1(self.conv1(x_BCHW)))
        x_BCHW = self.layer3(self.layer2(self.layer1(x_BCHW)))
        return self.head(torch.flatten(self.pool(x_BCHW), 1))


class MLP(nn.Module):
    """Two hidden layers on pixels averaged to grid x grid, so that images of any size fit; grid=SIDE takes them as they are."""

    def __init__(self, width: int, grid: int, classes: int):
        super().__init__()
        at_least_one("an mlp", width=width, grid=grid)
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.hidden1 = nn.Linear(3 * grid * grid, width)
        self.act1 = nn.ReLU()
        self.hidden2 = nn.Linear(width, width)
        self.act2 = nn.ReLU()
        self.head = nn.Linear(width, classes)
        self.taps = {"hidden1": "act1", "hidden2": "act2", "pooled": "head:in", "logits": "head"}

    def forward(self, x_BCHW: Tensor) -> Tensor:
        x_BD = self.act1(self.hidden1(torch.flatten(self.pool(x_BCHW), 1)))
        return self.head(self.act2(self.hidden2(x_BD)))


@register
def cnn(classes: int, *, width: int = 32) -> nn.Module:
    """4 convolutions with batch norm, 32-64-128 channels: 0.12 M parameters."""
    return CNN(width, classes)


@register
def mlp(classes: int, *, width: int = 800, grid: int = 8) -> nn.Module:
    """Two hidden layers of 800 on the image averaged to grid x grid pixels: 0.88 M parameters."""
    return MLP(width, grid, classes)
