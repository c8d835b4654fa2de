"""Attentive features. Wang, Fu, Li, Li, Huan, Xiong, Dou: Pay Attention to Features, Transfer Learn Faster CNNs, ICLR 2020,
https://openreview.net/forum?id=ryxyCeHtPB."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import connector, same_side
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.bounded import unit
from kdrun.methods.checks import check_within, feature_maps
from kdrun.methods.taps import Output


class ChannelAttention(nn.Module):
    """How important each channel of the teacher is, (B, C, 1, 1), from its mean: a squeeze-and-excitation whose outputs sum to 1."""

    def __init__(self, channels: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(channels, width, 1), nn.ReLU(), nn.Conv2d(width, channels, 1), nn.Sigmoid()
        )
        for layer in (self.layers[0], self.layers[2]):  # as KD-Zoo
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, t_BCHW: Tensor) -> Tensor:
        gate_BC11 = self.layers(F.adaptive_avg_pool2d(t_BCHW, 1))
        return gate_BC11 / gate_BC11.sum(1, keepdim=True)


def attentive_distance(s_BCHW: Tensor, t_BCHW: Tensor, attention_BC11: Tensor, epsilon: float = 1e-6) -> Tensor:
    """Mean over positions of the squared difference of channel maps at unit length, weighed over C by attention, mean over B."""
    s_BCHW, t_BCHW = (unit(x_BCHW, dim=(2, 3), epsilon=epsilon) for x_BCHW in (s_BCHW, t_BCHW))
    return (attention_BC11 * (s_BCHW - t_BCHW).square().mean((2, 3), keepdim=True)).sum(1).mean()


@METHODS.register
class AFD(Method):
    """Attentive features: match channel maps, above all those of the important channels of the teacher.

    Loss: sum over channels of rho_c times mean over positions of the squared difference of maps at unit length, mean over B;
    rho from the teacher's channel means by a squeeze-and-excitation network, trained with the student. This network is KD-Zoo's,
    whose author saw that the attention of the paper (flattened maps and a softmax) is unstable.
    """

    family = "features"
    paper = "Wang et al., 2020"

    def build(self, pair: Pair, *, width: float) -> None:
        feature_maps("afd", pair)
        check_within("afd.width", width, 1e-6, 64, "the attention's width as a share of the channels")
        shapes = list(zip(pair.student.shapes, pair.teacher.shapes, strict=True))  # type: ignore[union-attr]
        self.attentions = nn.ModuleList(ChannelAttention(t[1], max(1, int(t[1] * width))) for _, t in shapes)
        self.connectors = nn.ModuleList(
            nn.Identity() if s[1] == t[1] else connector((*s[:2], 1, 1), (*t[:2], 1, 1), tail="bn") for s, t in shapes
        )

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        losses = []
        layers = zip(self.connectors, self.attentions, student.taps, teacher.taps, strict=True)
        for connect, attention, s_BCHW, t_BCHW in layers:
            s_BCHW, t_BCHW = same_side(connect(s_BCHW), t_BCHW)
            losses.append(attentive_distance(s_BCHW, t_BCHW, attention(t_BCHW)))
        return {"distance": mean(losses)}
