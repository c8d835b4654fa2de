"""Attention transfer. Zagoruyko, Komodakis: Paying More Attention to Attention, ICLR 2017, https://arxiv.org/abs/1612.03928."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.registry import METHODS
from kdrun.taps import Output


def attention(x_BCHW: Tensor, power: float) -> Tensor:
    """The unit-length attention map (B, H*W): |x|^p summed over channels (section 3.1), divided by its L2 norm."""
    return F.normalize(x_BCHW.abs().pow(power).sum(1).flatten(1), dim=1)


def attention_transfer(s_BCHW: Tensor, t_BCHW: Tensor, power: float = 2.0, variant: str = "code") -> Tensor:
    """Distance of the attention maps of one pair of layers; channels may differ, the larger map is average-pooled.

    variant "code": the mean over batch and positions of the squared difference, as the authors' and every other released
    code computes it; the published weight of 1000 belongs to it. variant "paper": equation 2, the L2 norm of the
    difference, averaged over the batch (without its beta/2).
    """
    height = min(s_BCHW.shape[2], t_BCHW.shape[2])
    width = min(s_BCHW.shape[3], t_BCHW.shape[3])
    s_BCHW, t_BCHW = (
        x if x.shape[2:] == (height, width) else F.adaptive_avg_pool2d(x, (height, width)) for x in (s_BCHW, t_BCHW)
    )
    difference_BP = attention(s_BCHW, power) - attention(t_BCHW, power)
    if variant == "paper":
        return difference_BP.norm(dim=1).mean()
    return difference_BP.square().mean()


@METHODS.register
class AT(Method):
    """Attention transfer: match where the channels of a layer are active (Zagoruyko & Komodakis, 2017)."""

    def build(self, pair: Pair, *, power: float, variant: str) -> None:
        if variant not in ("code", "paper"):
            raise KdrunError(
                f"no variant '{variant}' of at. Choices: code (squared mean, weight 1000), paper (equation 2)"
            )
        for taps, side in zip(pair.taps, (pair.student, pair.teacher), strict=True):
            flat = [tap for tap, shape in zip(taps, side.shapes if side else [], strict=True) if len(shape) != 4]
            if flat or not taps:
                raise KdrunError(
                    f"at needs taps of feature maps (B, C, H, W); method.at.taps names {', '.join(flat) or 'none'}"
                )
        self.power, self.variant = power, variant

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """The mean over the pairs of layers, as in KD-Zoo (RepDistiller and mdistiller sum)."""
        pairs = zip(student.taps, teacher.taps, strict=True)
        losses = [attention_transfer(s, t, self.power, self.variant) for s, t in pairs]
        return {"attention": sum(losses[1:], losses[0]) / len(losses)}
