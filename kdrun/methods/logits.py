"""Logit matching. Ba, Caruana: Do Deep Nets Really Need to be Deep?, NIPS 2014, https://arxiv.org/abs/1312.6184."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.checks import check_choice
from kdrun.methods.taps import Output


def logit_matching(s_BK: Tensor, t_BK: Tensor, variant: str = "code") -> Tensor:
    """Squared distance of the logits. "code": mean over B and K (KD-Zoo). "paper": half the sum over K, mean over B."""
    if variant == "paper":
        return 0.5 * (s_BK - t_BK).square().sum(1).mean()
    return F.mse_loss(s_BK, t_BK)


@METHODS.register
class Logits(Method):
    """Logit matching: match the teacher's logits by their squared difference.

    Loss: mean over B and K of (s - t)^2; variant "paper": half the sum over K, mean over B.
    """

    family = "logits"
    paper = "Ba & Caruana, 2014"

    def build(self, pair: Pair, *, variant: str) -> None:
        known = {"code": "mean over classes, weight 0.1", "paper": "half the sum"}
        self.variant = check_choice("logits", "variant", variant, known)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"logits": logit_matching(student.logits, teacher.logits, self.variant)}
