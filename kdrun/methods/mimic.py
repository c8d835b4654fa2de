"""Feature mimicking. Li, Jin, Yan: Mimicking Very Efficient Network for Object Detection, CVPR 2017,
https://openaccess.thecvf.com/content_cvpr_2017/html/Li_Mimicking_Very_Efficient_CVPR_2017_paper.html."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.bounded import unit
from kdrun.methods.taps import Output


def feature_distance(s: Tensor, t: Tensor, normalize: bool = True) -> Tensor:
    """Squared L2 distance of two activations (B, ...) of one shape, summed over all but B, mean over B.

    normalize: each image's activations have unit length first, as mmrazor's L2 loss.
    """
    s_BD, t_BD = s.flatten(1), t.flatten(1)
    if normalize:
        s_BD, t_BD = unit(s_BD), unit(t_BD)
    return (s_BD - t_BD).square().sum(1).mean()


@METHODS.register
class Mimic(Method):
    """Mimicking: the squared distance of features; the simplest feature distillation.

    Loss: ||f(s) - t||^2 of activations at unit length, mean over B and over taps; f a linear layer or convolution where shapes
    differ. The paper has half the sum and no normalisation (`normalize: false` and half the weight).
    """

    family = "features"
    paper = "Li et al., 2017"
    needs = ()

    def build(self, pair: Pair, *, normalize: bool) -> None:
        if not pair.taps[0]:
            raise KdrunError("mimic takes one tap or more; method.mimic.taps names 0")
        self.normalize = normalize
        shapes = zip(pair.student.shapes, pair.teacher.shapes, strict=True)  # type: ignore[union-attr]
        self.connectors = nn.ModuleList(connector(s, t, tail="") for s, t in shapes)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        layers = zip(self.connectors, student.taps, teacher.taps, strict=True)
        return {"feature": mean(feature_distance(connect(s), t, self.normalize) for connect, s, t in layers)}
