"""Attention transfer. Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, https://arxiv.org/abs/1612.03928."""

from __future__ import annotations

from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import same_side
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.bounded import unit
from kdrun.methods.checks import check_choice, check_within, feature_maps
from kdrun.methods.taps import Output


def attention(x_BCHW: Tensor, power: float) -> Tensor:
    """The unit-length attention map (B, H*W): |x|^p summed over channels (section 3.1), divided by its L2 norm."""
    return unit(x_BCHW.abs().pow(power).sum(1).flatten(1), dim=1)


def attention_transfer(s_BCHW: Tensor, t_BCHW: Tensor, power: float = 2.0, variant: str = "code") -> Tensor:
    """Distance of the attention maps of one pair of layers; numbers of channels may differ; the larger map is average-pooled.

    variant "code": the mean over batch and positions of the squared difference, as in the authors' code and all other released
    code; the published weight of 1000 belongs to it. variant "paper": equation 2, the L2 norm of the
    difference, averaged over the batch (without its beta/2).
    """
    s_BCHW, t_BCHW = same_side(s_BCHW, t_BCHW)
    difference_BP = attention(s_BCHW, power) - attention(t_BCHW, power)
    if variant == "paper":
        return difference_BP.norm(dim=1).mean()
    return difference_BP.square().mean()


@METHODS.register
class AT(Method):
    """Attention transfer: match where the channels of a layer are active.

    Loss: mean over B and positions of (a_s - a_t)^2, where a = |x|^p summed over channels, at unit length.
    """

    family = "features"
    paper = "Zagoruyko & Komodakis, 2017"
    needs = ()

    def build(self, pair: Pair, *, power: float, variant: str) -> None:
        known = {"code": "squared mean, weight 1000", "paper": "equation 2"}
        self.variant = check_choice("at", "variant", variant, known)
        feature_maps("at", pair)
        self.power = check_within("at.power", power, 1, 8, "below 1 the slope at 0 is infinite, above 8 sums overflow")

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """The mean over the pairs of layers, as in KD-Zoo (RepDistiller and mdistiller sum)."""
        pairs = zip(student.taps, teacher.taps, strict=True)
        return {"attention": mean(attention_transfer(s, t, self.power, self.variant) for s, t in pairs)}
