"""Channel-wise distillation. Shu, Liu, Gao, Yan, Shen: Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021,
https://arxiv.org/abs/2011.13256."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.bounded import tempered_kl
from kdrun.methods.checks import check_temperature, feature_maps
from kdrun.methods.taps import Output


def channel_divergence(s_BCHW: Tensor, t_BCHW: Tensor, temperature: float) -> Tensor:
    """T^2 KL of each channel's softmax over its H*W positions, teacher to student, mean over B and C.

    Works for feature maps and for dense logits. Agrees with mmrazor.
    """
    return tempered_kl(s_BCHW.flatten(2), t_BCHW.flatten(2), temperature, dim=2).mean()


@METHODS.register
class CWD(Method):
    """Channel-wise distillation: match where in the image each channel is active.

    Loss: T^2 KL(softmax over positions of t / T || of s / T), mean over B and C, and over taps. A convolution brings the
    student's map to the teacher's shape where they differ.
    """

    family = "features"
    paper = "Shu et al., 2021"
    needs = ()

    def build(self, pair: Pair, *, temperature: float) -> None:
        self.temperature = check_temperature("cwd", temperature)
        feature_maps("cwd", pair)
        shapes = zip(pair.student.shapes, pair.teacher.shapes, strict=True)  # type: ignore[union-attr]
        self.connectors = nn.ModuleList(connector(s, t, tail="") for s, t in shapes)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        layers = zip(self.connectors, student.taps, teacher.taps, strict=True)
        return {"channels": mean(channel_divergence(connect(s), t, self.temperature) for connect, s, t in layers)}
