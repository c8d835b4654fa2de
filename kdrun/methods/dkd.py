"""Decoupled distillation. Zhao, Cui, Song, Qiu, Liang: Decoupled Knowledge Distillation, CVPR 2022, https://arxiv.org/abs/2203.08679."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import divergence, exact
from kdrun.methods.checks import check_temperature
from kdrun.methods.kd import standardize
from kdrun.methods.taps import Output


def decoupled(s_BK: Tensor, t_BK: Tensor, label_B: Tensor, temperature: float) -> tuple[Tensor, Tensor]:
    """The two parts of the divergence of soft targets (equation 7): target class against the rest, and within the rest.

    Each is T^2 KL summed over its classes, averaged over B. Agrees with mdistiller (the authors), cls_KD and mmrazor, which
    take the target out of the second softmax by adding -1000 to its logit.
    """
    given = s_BK.dtype
    s_BK, t_BK = exact(temperature, s_BK, t_BK)
    s_target, s_rest_BK = _split(s_BK / temperature, label_B)
    t_target, t_rest_BK = _split(t_BK / temperature, label_B)
    target, rest = divergence(s_target, t_target).mean(), divergence(s_rest_BK, t_rest_BK).mean()
    return (temperature**2 * target).to(given), (temperature**2 * rest).to(given)


def _split(logits_BK: Tensor, label_B: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities of (target, any other) as (B, 2), and of the other classes among themselves, as (B, K - 1)."""
    others = torch.arange(logits_BK.shape[1] - 1, device=logits_BK.device)[None]
    rest_BK = logits_BK.gather(1, others + (others >= label_B[:, None]))  # every class but the target
    target_B = logits_BK.gather(1, label_B[:, None])[:, 0]
    binary_B2 = torch.stack([target_B, rest_BK.logsumexp(1)], dim=1)
    return F.log_softmax(binary_B2, dim=1), F.log_softmax(rest_BK, dim=1)


@METHODS.register
class DKD(Method):
    """Decoupled soft targets: the target class and the other classes have separate weights.

    Loss: target = T^2 KL of the teacher's (p_y, 1 - p_y) to the student's; rest = T^2 KL of the distributions over the other
    classes. Soft targets are target + (1 - p_y) rest; here the second part has its own weight.
    """

    family = "logits"
    paper = "Zhao et al., 2022"
    needs_classes = True

    def build(self, pair: Pair, *, temperature: float, standardize: bool) -> None:
        self.temperature, self.standardize = check_temperature("dkd", temperature), standardize

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        s_BK, t_BK = student.logits, teacher.logits
        if self.standardize:
            s_BK, t_BK = standardize(s_BK), standardize(t_BK)
        target, rest = decoupled(s_BK, t_BK, batch["label"], self.temperature)
        return {"target": target, "rest": rest}
