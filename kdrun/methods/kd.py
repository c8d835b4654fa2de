"""Soft targets. Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.checks import check_temperature
from kdrun.registry import METHODS
from kdrun.taps import Output


def soft_targets(s_BK: Tensor, t_BK: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t/T) || softmax(s/T)), summed over the K classes, averaged over the batch of B.

    The factor T^2 keeps the gradient's size when T changes (section 2 of the paper, which writes cross-entropy: the same
    gradient). Agrees with KD-Zoo, RepDistiller, mdistiller and mmrazor.
    """
    log_s_BK = F.log_softmax(s_BK / temperature, dim=1)
    log_t_BK = F.log_softmax(t_BK / temperature, dim=1)
    return temperature**2 * F.kl_div(log_s_BK, log_t_BK, reduction="batchmean", log_target=True)


def standardize(logits_BK: Tensor) -> Tensor:
    """Each image's logits with mean 0 and deviation 1, so that the student need not match the teacher's range.

    Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation, CVPR 2024, https://arxiv.org/abs/2403.01427.
    As its released code: the deviation over K - 1, plus 1e-7 (algorithm 1 divides by K).
    """
    centred_BK = logits_BK - logits_BK.mean(1, keepdim=True)
    return centred_BK / (1e-7 + logits_BK.std(1, keepdim=True))


@METHODS.register
class KD(Method):
    """Soft targets: match the teacher's tempered class probabilities.

    Loss: T^2 KL(softmax(t / T) || softmax(s / T)), mean over B. With `standardize` (method=ls) both sides' logits are
    brought to mean 0 and deviation 1 first (Sun et al., CVPR 2024).
    """

    family = "logits"
    paper = "Hinton et al., 2015"

    def build(self, pair: Pair, *, temperature: float, standardize: bool) -> None:
        self.temperature, self.standardize = check_temperature("kd", temperature), standardize

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        s_BK, t_BK = student.logits, teacher.logits
        if self.standardize:
            s_BK, t_BK = standardize(s_BK), standardize(t_BK)
        return {"soft": soft_targets(s_BK, t_BK, self.temperature)}
