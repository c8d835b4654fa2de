"""Layers and initialisations that several families share."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.errors import KdrunError


def he_fan_out(model: nn.Module) -> None:
    """Convolutions drawn from a normal of variance 2 / (kernel area * outputs), their biases zero (He et al., ICCV 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def small_head(head: nn.Linear) -> None:
    """Linear weights from a normal of deviation 0.01, bias zero: how the VGG and MobileNetV2 of the CRD tables start."""
    nn.init.normal_(head.weight, std=0.01)
    nn.init.zeros_(head.bias)


def at_least_one(kind: str, **options: int) -> None:
    """KdrunError for a size of zero or less."""
    for name, value in options.items():
        if value < 1:
            raise KdrunError(f"{name}={value} of {kind} is not a whole number of 1 or more")


class Shuffle(nn.Module):
    """Distribute the channels of each group over all groups: channel i of group g goes to place i * groups + g."""

    def __init__(self, groups: int):
        super().__init__()
        self.groups = groups

    def forward(self, x_BCHW: Tensor) -> Tensor:
        if self.groups == 1:
            return x_BCHW
        return x_BCHW.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
