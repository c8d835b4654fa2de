"""Overhaul of feature distillation. Heo, Kim, Yun, Park, Kwak, Choi: A Comprehensive Overhaul of Feature Distillation, ICCV 2019,
https://arxiv.org/abs/1904.01866."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.adapters import same_side
from kdrun.methods.base import Batch, Method, Pair, Side, Terms
from kdrun.methods.checks import check_choice, feature_maps
from kdrun.methods.taps import Output


def batch_margin(t_BCHW: Tensor) -> Tensor:
    """The mean of each channel's negative values in this batch, (C,); 0 where it has none (KD-Zoo)."""
    negative = t_BCHW < 0
    return (t_BCHW * negative).sum((0, 2, 3)) / negative.sum((0, 2, 3)).clamp(min=1)


def expected_margin(weight_C: Tensor, bias_C: Tensor) -> Tensor:
    """E[x | x < 0] of x ~ N(bias, weight^2), the distribution of a channel after batch norm; (C,).

    -3 deviations if x < 0 has a probability below 0.001, as in the authors' code.
    """
    deviation_C = weight_C.abs().clamp(min=1e-12)  # a weight of 0 makes a channel constant: its bias
    z_C = -bias_C / deviation_C
    share_C = 0.5 * (1 + torch.erf(z_C / math.sqrt(2)))  # of the values that are negative
    density_C = (-0.5 * z_C.square()).exp() / math.sqrt(2 * math.pi)
    conditional_C = bias_C - deviation_C * density_C / share_C.clamp(min=1e-12)
    return torch.where(share_C > 0.001, conditional_C, -3 * deviation_C)


def partial_distance(s_BCHW: Tensor, t_BCHW: Tensor, margin_C: Tensor) -> Tensor:
    """(s - max(t, margin))^2 per element, 0 where the teacher is not active and the student is not above it."""
    t_BCHW = torch.maximum(t_BCHW, margin_C[:, None, None])
    return (s_BCHW - t_BCHW).square() * ((s_BCHW > t_BCHW) | (t_BCHW > 0))


@METHODS.register
class OFD(Method):
    """Overhauled features: match the teacher's maps before their activation, where this changes the map after it.

    Loss: mean of (s - max(t, m_c))^2 where not s <= max(t, m_c) <= 0; s after a 1x1 convolution and batch norm, m_c the mean of
    the channel's negative values in the batch, mean over layers. Variant "paper": m_c from the teacher's batch norm, sum over
    C*H*W / 1000, mean over B, each earlier layer half of the next.
    """

    family = "features"
    paper = "Heo et al., 2019"

    def build(self, pair: Pair, *, variant: str) -> None:
        known = {"code": "means and the batch's margin, weight 0.5", "paper": "sums and batch norm's margin"}
        self.variant = check_choice("ofd", "variant", variant, known)
        feature_maps("ofd", pair)
        shapes = zip(pair.student.shapes, pair.teacher.shapes, strict=True)  # type: ignore[union-attr]
        self.connectors = nn.ModuleList(_connector(s[1], t[1]) for s, t in shapes)
        self.norms: list[nn.BatchNorm2d] = []  # a plain list: they are the teacher's layers, not this method's
        if variant == "paper":
            self.norms = [_norm_before(pair.teacher, i, tap) for i, tap in enumerate(pair.taps[1])]  # type: ignore[arg-type]

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        losses, count = [], len(self.connectors)
        for i, (connect, s_BCHW, t_BCHW) in enumerate(zip(self.connectors, student.taps, teacher.taps, strict=True)):
            s_BCHW, t_BCHW = same_side(connect(s_BCHW), t_BCHW)
            if self.variant == "paper":
                norm = self.norms[i]
                margin_C = expected_margin(norm.weight.detach(), norm.bias.detach())
                distance_BCHW = partial_distance(s_BCHW, t_BCHW, margin_C)
                losses.append(distance_BCHW.flatten(1).sum(1).mean() / 1000 / 2 ** (count - 1 - i))
            else:
                losses.append(partial_distance(s_BCHW, t_BCHW, batch_margin(t_BCHW)).mean() / count)
        return {"distance": sum(losses[1:], losses[0])}


def _connector(inputs: int, outputs: int) -> nn.Sequential:
    """A 1x1 convolution, initialised as KD-Zoo's, and batch norm."""
    convolution = nn.Conv2d(inputs, outputs, 1, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs))


def _norm_before(teacher: Side, i: int, tap: str) -> nn.BatchNorm2d:
    """The last batch norm with the same number of channels that runs before a tap; in a block it may be that of the shortcut."""
    channels = teacher.shapes[i][1]
    fitting = [m for m in teacher.until(tap) if isinstance(m, nn.BatchNorm2d) and m.num_features == channels]
    if not fitting or fitting[-1].weight is None:
        raise KdrunError(
            f"ofd's variant paper needs a batch norm of {channels} channels before a tap, and the teacher has none "
            f"before '{tap}'. Use method.ofd.variant=code"
        )
    return fitting[-1]
