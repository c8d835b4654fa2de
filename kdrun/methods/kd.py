"""Soft targets. Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531."""

from __future__ import annotations

from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import LEAST_DEVIATION, faded, tempered_kl
from kdrun.methods.checks import check_temperature
from kdrun.methods.taps import Output


def soft_targets(s_BK: Tensor, t_BK: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(t/T) || softmax(s/T)), summed over the K classes, averaged over the batch of B.

    The factor T^2 keeps the gradient's size when T changes (section 2 of the paper, which has cross-entropy: the gradient is
    the same). Agrees with KD-Zoo, RepDistiller, mdistiller and mmrazor.
    """
    return tempered_kl(s_BK, t_BK, temperature).sum() / len(s_BK)


def standardize(logits_BK: Tensor) -> Tensor:
    """The logits of each image with mean 0 and deviation 1, so that the student need not match the range of the teacher's logits.

    Sun, Ren, Li, Wang, Cao: Logit Standardization in Knowledge Distillation, CVPR 2024, https://arxiv.org/abs/2403.01427.
    As its released code: the deviation over K - 1, plus 1e-7 (algorithm 1 divides by K). The gradient fades where the
    logits of an image are nearly constant (kdrun.methods.bounded); in the released code it grows to 1e7 there.
    """
    centred_BK, deviation_B1 = logits_BK - logits_BK.mean(1, keepdim=True), logits_BK.std(1, keepdim=True)
    return faded(centred_BK / (1e-7 + deviation_B1), deviation_B1, LEAST_DEVIATION)


@METHODS.register
class KD(Method):
    """Soft targets: match the teacher's tempered class probabilities.

    Loss: T^2 KL(softmax(t / T) || softmax(s / T)), mean over B. With `standardize` (method=ls) both sides' logits are
    brought to mean 0 and deviation 1 first (Sun et al., CVPR 2024).
    """

    family = "logits"
    paper = "Hinton et al., 2015"
    needs_classes = True

    def build(self, pair: Pair, *, temperature: float, standardize: bool) -> None:
        self.temperature, self.standardize = check_temperature("kd", temperature), standardize

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        s_BK, t_BK = student.logits, teacher.logits
        if self.standardize:
            s_BK, t_BK = standardize(s_BK), standardize(t_BK)
        return {"soft": soft_targets(s_BK, t_BK, self.temperature)}
