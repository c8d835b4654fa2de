"""Variational information. Ahn, Hu, Damianou, Lawrence, Dai: Variational Information Distillation for Knowledge Transfer, CVPR 2019,
https://arxiv.org/abs/1904.05835."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import same_side
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.checks import check_above, feature_maps
from kdrun.methods.taps import Output

EPSILON = 1e-6  # the least variance


def negative_log_likelihood(mean_BCHW: Tensor, t_BCHW: Tensor, variance_C: Tensor) -> Tensor:
    """Negative log-likelihood of the teacher's map under a Gaussian with the predicted mean and a variance per channel.

    Mean over all elements, without the constant.
    """
    variance_C11 = variance_C[:, None, None]
    return 0.5 * (variance_C11.log() + (mean_BCHW - t_BCHW).square() / variance_C11).mean()


def softplus_inverse(value: float) -> float:
    """The number whose softplus is `value`."""
    return value + math.log(-math.expm1(-value))


class Gaussian(nn.Module):
    """From a student's map a mean for each element of the teacher's map, by three 1x1 convolutions, and a variance per channel.

    Variances start at `variance` and are kept above epsilon by a softplus; they are trained like every weight.
    """

    def __init__(self, inputs: int, outputs: int, variance: float, epsilon: float = EPSILON):
        super().__init__()
        sizes = ((inputs, outputs), (outputs, outputs), (outputs, outputs))
        first, second, third = (nn.Conv2d(i, o, 1, bias=False) for i, o in sizes)
        self.mean = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third)
        self.scale = nn.Parameter(torch.full((outputs,), softplus_inverse(variance - epsilon)))
        self.epsilon = epsilon

    def forward(self, s_BCHW: Tensor) -> tuple[Tensor, Tensor]:
        return self.mean(s_BCHW), F.softplus(self.scale) + self.epsilon


@METHODS.register
class VID(Method):
    """Variational information: the student's maps must predict the teacher's, by a Gaussian with trained variances.

    Loss: mean over elements of (log v_c + (mu(s) - t)^2 / v_c) / 2, mu three 1x1 convolutions and v a variance per channel,
    both trained. The larger map is average-pooled.
    """

    family = "features"
    paper = "Ahn et al., 2019"

    def build(self, pair: Pair, *, variance: float) -> None:
        feature_maps("vid", pair)
        check_above("vid.variance", variance, "the variance at the start", least=EPSILON)
        shapes = zip(pair.student.shapes, pair.teacher.shapes, strict=True)  # type: ignore[union-attr]
        self.gaussians = nn.ModuleList(Gaussian(s[1], t[1], variance) for s, t in shapes)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """The mean over the pairs of layers, as in KD-Zoo (RepDistiller sums)."""
        losses = []
        for gaussian, s_BCHW, t_BCHW in zip(self.gaussians, student.taps, teacher.taps, strict=True):
            s_BCHW, t_BCHW = same_side(s_BCHW, t_BCHW)
            mean_BCHW, variance_C = gaussian(s_BCHW)
            losses.append(negative_log_likelihood(mean_BCHW, t_BCHW, variance_C))
        return {"likelihood": mean(losses)}
