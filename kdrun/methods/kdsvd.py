"""Singular vectors. Lee, Kim, Song: Self-supervised Knowledge Distillation Using Singular Value Decomposition, ECCV 2018,
https://arxiv.org/abs/1807.06819."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import faded
from kdrun.methods.checks import check_within, feature_maps
from kdrun.methods.taps import Output

EXTRA = (
    3  # the student has so many more vectors than the k of the teacher; each vector of the teacher gets the closest one
)


class Eigenvectors(torch.autograd.Function):
    """Eigenvalues (B, C) and eigenvectors (B, C, C) of symmetric matrices, ascending, with a gradient that stays finite.

    The derivative of a vector divides by the distance g of two eigenvalues; here by g + e^2 / g with e = 1e-4 of the largest, so
    that equal values, for instance of an empty map, contribute 0 instead of NaN.
    """

    @staticmethod
    def forward(ctx: Any, gram_BCC: Tensor) -> tuple[Tensor, Tensor]:
        values_BC, vectors_BCC = torch.linalg.eigh(gram_BCC)
        ctx.save_for_backward(values_BC, vectors_BCC)
        return values_BC, vectors_BCC

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        values_BC, vectors_BCC = ctx.saved_tensors
        d_values_BC, d_vectors_BCC = gradients
        gap_BCC = values_BC[:, None, :] - values_BC[:, :, None]
        least_B11 = (1e-4 * values_BC[:, -1:, None]).square() + 1e-20
        inner_BCC = (vectors_BCC.transpose(1, 2) @ d_vectors_BCC) * gap_BCC / (gap_BCC.square() + least_B11)
        inner_BCC = inner_BCC + torch.diag_embed(d_values_BC)
        d_gram_BCC = vectors_BCC @ inner_BCC @ vectors_BCC.transpose(1, 2)
        return (d_gram_BCC + d_gram_BCC.transpose(1, 2)) / 2


def principal(x_BCHW: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest singular values (B, k) of the (H*W, C) matrix, at unit length, and right singular vectors (B, C, k).

    By the eigenvectors of its C x C Gram matrix. A vector's sign is arbitrary in any decomposition; here the largest
    entry is made positive, so that two machines give the same vector.
    """
    size_B11 = torch.linalg.vector_norm(x_BCHW.detach().flatten(1), dim=1)[:, None, None]
    x_BPC = faded(x_BCHW.flatten(2).transpose(1, 2), size_B11)
    values_BC, vectors_BCC = Eigenvectors.apply(x_BPC.transpose(1, 2) @ x_BPC)  # type: ignore[no-untyped-call]
    vectors_BCk = vectors_BCC.flip(2)[:, :, :count]
    largest_B1k = vectors_BCk.abs().argmax(1, keepdim=True)
    vectors_BCk = vectors_BCk * vectors_BCk.gather(1, largest_B1k).sign()
    values_Bk = values_BC.flip(1)[:, :count].clamp(min=1e-12).sqrt()
    return F.normalize(values_Bk, dim=1), F.normalize(vectors_BCk, dim=1)


def align(s_BCk: Tensor, t_BCk: Tensor) -> Tensor:
    """For each vector of the teacher the closest vector of the student, with its sign changed if that is closer: (B, C, k)."""
    cosine_Bsk = s_BCk.transpose(1, 2) @ t_BCk
    best_B1k = cosine_Bsk.abs().argmax(1, keepdim=True)
    chosen_Bsk = torch.zeros_like(cosine_Bsk).scatter(1, best_B1k, cosine_Bsk.gather(1, best_B1k).sign())
    return s_BCk @ chosen_Bsk.detach()


def relation(first_BCk: Tensor, second_BCk: Tensor) -> Tensor:
    """exp(-(difference)^2 / 8) between the entries of two layers' vectors: (B, C2, C1, k)."""
    return (-(second_BCk[:, :, None] - first_BCk[:, None]).square() / 8).exp()


def singular_flow(s_layers: list[Tensor], t_layers: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """For each pair of consecutive layers the squared difference of the two sides' relations, summed, mean over B.

    s_layers: the student's vectors; t_layers: the teacher's values and vectors, of as many channels. Vectors are aligned with the
    teacher's and weighted by its singular values. As in RepDistiller, the signs of the teacher's vectors matter.
    """
    s_weighed = [align(s, t) * value[:, None] for s, (value, t) in zip(s_layers, t_layers, strict=True)]
    t_weighed = [t * value[:, None] for value, t in t_layers]
    return [
        (relation(*s) - relation(*t)).square().flatten(1).sum(1).mean()
        for s, t in zip(pairwise(s_weighed), pairwise(t_weighed), strict=True)
    ]


@METHODS.register
class KDSVD(Method):
    """Singular vectors: match the relations between the main directions of neighbouring layers.

    Loss: sum over consecutive taps of sum of (R_s - R_t)^2, mean over B; R = exp(-(v - w)^2 / 8) between entries of two layers'
    leading right singular vectors, weighed by the teacher's singular values. A convolution brings the student's maps to the
    teacher's channels where they differ.
    """

    family = "features"
    paper = "Lee et al., 2018"

    def build(self, pair: Pair, *, vectors: int) -> None:
        feature_maps("kdsvd", pair, at_least=2)
        self.vectors = int(
            check_within("kdsvd.vectors", vectors, 1, why="the number of vectors of the teacher, at each tap")
        )
        shapes = zip(pair.student.shapes, pair.teacher.shapes, strict=True)  # type: ignore[union-attr]
        self.connectors = nn.ModuleList(
            connector((*s[:2], 1, 1), (*t[:2], 1, 1), tail="") if s[1] != t[1] else nn.Identity() for s, t in shapes
        )

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        adapted = [connect(tap) for connect, tap in zip(self.connectors, student.taps, strict=True)]
        s_layers = [principal(s_BCHW, self.vectors + EXTRA)[1] for s_BCHW in adapted]
        losses = singular_flow(s_layers, [principal(t_BCHW, self.vectors) for t_BCHW in teacher.taps])
        return {"flow": sum(losses[1:], losses[0])}
