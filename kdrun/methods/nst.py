"""Neuron selectivity. Huang, Wang: Like What You Like: Knowledge Distill via Neuron Selectivity Transfer, 2017,
https://arxiv.org/abs/1707.01219."""

from __future__ import annotations

from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import same_side
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.bounded import unit
from kdrun.methods.checks import feature_maps
from kdrun.methods.taps import Output


def neuron_selectivity(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """Squared maximum mean discrepancy of the channels' activation patterns, kernel (a . b)^2, averaged over B.

    A pattern is a channel's map at unit length; channels of student and teacher may differ in number, the larger map is
    average-pooled. Agrees with KD-Zoo, RepDistiller and mdistiller.
    """
    s_BCHW, t_BCHW = same_side(s_BCHW, t_BCHW)
    s_BCP, t_BCP = unit(s_BCHW.flatten(2), dim=2), unit(t_BCHW.flatten(2), dim=2)

    def kernel(a_BCP: Tensor, b_BCP: Tensor) -> Tensor:
        return (a_BCP @ b_BCP.transpose(1, 2)).square().mean()

    return kernel(t_BCP, t_BCP) + kernel(s_BCP, s_BCP) - 2 * kernel(s_BCP, t_BCP)


@METHODS.register
class NST(Method):
    """Neuron selectivity: match the distribution of the channels' activation patterns.

    Loss: MMD^2 with kernel (a . b)^2 between unit-length channel maps, mean over B.
    """

    family = "features"
    paper = "Huang & Wang, 2017"

    def build(self, pair: Pair) -> None:
        """No hyper-parameters beyond the weight."""
        feature_maps("nst", pair)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        pairs = zip(student.taps, teacher.taps, strict=True)
        return {"selectivity": mean(neuron_selectivity(s, t) for s, t in pairs)}
