"""Correlation congruence. Peng, Jin, Liu, Li, Wu, Liu, Zhou, Zhang: Correlation Congruence for Knowledge Distillation, ICCV 2019,
https://arxiv.org/abs/1904.01802."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import unit
from kdrun.methods.checks import check_choice, check_within, one_tap
from kdrun.methods.taps import Output


def correlation(x_BD: Tensor, gamma: float, order: int) -> Tensor:
    """The Gaussian kernel exp(-gamma ||x_i - x_j||^2) of unit-length rows by its Taylor series to `order`.

    For unit vectors it is exp(-2 gamma) exp(2 gamma x_i . x_j); the second factor is expanded.
    """
    x_BD = unit(x_BD)
    cosine_BB = x_BD @ x_BD.T
    kernel_BB = torch.zeros_like(cosine_BB)
    for p in range(order + 1):
        kernel_BB = kernel_BB + math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * cosine_BB**p
    return kernel_BB


def correlation_congruence(s_BD: Tensor, t_BD: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Mean over B*B of the squared difference of the two kernels. Agrees with KD-Zoo; widths may differ."""
    return F.mse_loss(correlation(s_BD, gamma, order), correlation(t_BD, gamma, order))


def neighbour_products(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """RepDistiller's CC: |s - t| of an image times that of the next one in the batch, summed over D, mean over B - 1.

    This is not the formula of the paper, and it depends on the order of the batch. 0 for a single image.
    """
    difference_BD = (s_BD - t_BD).abs()
    return (difference_BD[1:] * difference_BD[:-1]).sum() / max(len(s_BD) - 1, 1)


@METHODS.register
class CC(Method):
    """Correlation congruence: match the Gaussian kernel of the embeddings of a batch.

    Loss: mean over B*B of (k_s - k_t)^2, k = exp(-gamma ||x_i - x_j||^2) of unit-length embeddings, as a Taylor series.
    Variant "repdistiller": the formula of CC in the CRD tables, |s - t| of an image times that of the next, after linear embeddings of
    both sides to 128.
    """

    family = "relations"
    paper = "Peng et al., 2019"

    def build(self, pair: Pair, *, variant: str, gamma: float, order: int) -> None:
        known = {"code": "the paper's kernel, weight 100", "repdistiller": "the CRD tables' formula, weight 0.02"}
        self.variant = check_choice("cc", "variant", variant, known)
        one_tap("cc", pair)
        self.order = int(check_within("cc.order", order, 1, 100, "terms of the Taylor series; the paper has 2"))
        self.gamma = check_within("cc.gamma", gamma, 1e-6, 40, "outside, the kernel is constant or 0")
        if variant == "repdistiller":
            sizes = [torch.Size(side.shapes[0][1:]).numel() for side in (pair.student, pair.teacher) if side]
            self.embed_student, self.embed_teacher = (nn.Linear(size, 128) for size in sizes)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        s_BD, t_BD = student.taps[0].flatten(1), teacher.taps[0].flatten(1)
        if self.variant == "repdistiller":
            return {"correlation": neighbour_products(self.embed_student(s_BD), self.embed_teacher(t_BD))}
        return {"correlation": correlation_congruence(s_BD, t_BD, self.gamma, self.order)}
