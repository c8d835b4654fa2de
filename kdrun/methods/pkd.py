"""Correlation of features. Cao, Zhang, Gao, Cheng, Cheng, Zhang: PKD: General Distillation Framework for Object Detectors via Pearson
Correlation Coefficient, NeurIPS 2022, https://arxiv.org/abs/2207.02039."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.bounded import faded
from kdrun.methods.checks import feature_maps
from kdrun.methods.taps import Output


def standardized(x_BCHW: Tensor) -> Tensor:
    """Each channel with mean 0 and deviation 1 over the positions of the whole batch; 1e-6 in the denominator, as in the released code.

    The gradient fades where a channel is nearly constant (kdrun.methods.bounded).
    """
    x_CN = x_BCHW.transpose(0, 1).flatten(1)
    x_CN = x_CN - x_CN.mean(1, keepdim=True)
    deviation_C1 = x_CN.norm(dim=1, keepdim=True) / max(1, x_CN.shape[1] - 1) ** 0.5
    made_CN = faded(x_CN / (deviation_C1 + 1e-6), deviation_C1)
    return made_CN.unflatten(1, (x_BCHW.shape[0], *x_BCHW.shape[2:])).transpose(0, 1)


def correlation_distance(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """Half the mean squared difference of standardised maps: 1 - Pearson's correlation, mean over channels. Agrees with mmrazor."""
    return (standardized(s_BCHW) - standardized(t_BCHW)).square().mean() / 2


@METHODS.register
class PKD(Method):
    """Correlation of features: each channel rises and falls with the teacher's, whatever its size.

    Loss: mean over elements of (z(s) - z(t))^2 / 2, which is 1 - Pearson's correlation; z has mean 0 and deviation 1 in each channel over
    the positions of the whole batch. Mean over taps (released code: sum). A convolution brings the student's map to the teacher's
    shape where they differ.
    """

    family = "features"
    paper = "Cao et al., 2022"
    needs = ()

    def build(self, pair: Pair) -> None:
        feature_maps("pkd", pair)
        shapes = zip(pair.student.shapes, pair.teacher.shapes, strict=True)  # type: ignore[union-attr]
        self.connectors = nn.ModuleList(connector(s, t, tail="") for s, t in shapes)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        layers = zip(self.connectors, student.taps, teacher.taps, strict=True)
        return {"correlation": mean(correlation_distance(connect(s), t) for connect, s, t in layers)}
