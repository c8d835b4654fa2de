"""Similarity-preserving distillation. Tung, Mori: Similarity-Preserving Knowledge Distillation, ICCV 2019,
https://arxiv.org/abs/1907.09682."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.bounded import unit
from kdrun.methods.taps import Output


def similarity(x: Tensor) -> Tensor:
    """The B x B matrix of inner products of flattened activations (B, ...), each row at unit length."""
    x_BD = x.flatten(1)
    return unit(x_BD @ x_BD.T)


def similarity_preserving(s: Tensor, t: Tensor) -> Tensor:
    """Mean over B*B of the squared difference of the two matrices; shapes may differ except in B.

    Agrees with KD-Zoo, RepDistiller and mdistiller; torchdistill's rows have L1 norm 1.
    """
    return F.mse_loss(similarity(s), similarity(t))


@METHODS.register
class SP(Method):
    """Similarities: images that are similar for the teacher must be similar for the student.

    Loss: mean over B*B of (G_s - G_t)^2, where G are inner products of activations, rows at unit length.
    """

    family = "relations"
    paper = "Tung & Mori, 2019"

    def build(self, pair: Pair) -> None:
        """No hyper-parameters beyond the weight."""
        if not pair.taps[0]:
            raise KdrunError("sp takes one tap or more; method.sp.taps names 0")

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        """The mean over the pairs of layers, as in KD-Zoo (RepDistiller uses the last map alone)."""
        pairs = zip(student.taps, teacher.taps, strict=True)
        return {"similarity": mean(similarity_preserving(s, t) for s, t in pairs)}
