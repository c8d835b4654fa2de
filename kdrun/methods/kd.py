"""Soft targets. Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, https://arxiv.org/abs/1503.02531."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Terms
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


def check_temperature(name: str, temperature: float) -> float:
    """A temperature is above 0, or the error says so."""
    if not temperature > 0:
        raise KdrunError(
            f"method.{name}.temperature is {temperature}; it must be above 0 (1 leaves logits as they are)"
        )
    return temperature


@METHODS.register
class KD(Method):
    """Soft targets: match the teacher's tempered class probabilities (Hinton et al., 2015)."""

    def build(self, pair: Pair, *, temperature: float) -> None:
        self.temperature = check_temperature("kd", temperature)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        return {"soft": soft_targets(student.logits, teacher.logits, self.temperature)}
