"""Relational distillation. Park, Kim, Lu, Cho: Relational Knowledge Distillation, CVPR 2019, https://arxiv.org/abs/1904.05068."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import spread, unit
from kdrun.methods.checks import one_tap
from kdrun.methods.taps import Output


def squared_distances(x_BD: Tensor) -> Tensor:
    """Squared Euclidean distances (B, B) from the Gram matrix, at least 1e-12, so that a repeated image has a finite gradient."""
    square_B = x_BD.square().sum(1)
    return (square_B[:, None] + square_B[None, :] - 2 * x_BD @ x_BD.T).clamp(min=1e-12)


def distances(x_BD: Tensor) -> Tensor:
    """Pairwise Euclidean distances (B, B), divided by the mean of the non-zero ones (equation 7); a zero diagonal."""
    x_BD = spread(x_BD)
    off_diagonal_BB = ~torch.eye(len(x_BD), dtype=torch.bool, device=x_BD.device)
    distance_BB = squared_distances(x_BD).sqrt() * off_diagonal_BB
    mean = distance_BB.sum() / off_diagonal_BB.sum().clamp(min=1)
    return distance_BB / mean.clamp(min=1e-12)  # the last batch may be a single image, without any distance


def rkd_distance(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """Huber distance (delta 1) of the two matrices of normalised pairwise distances, mean over B*B with the diagonal.

    The widths D of student and teacher may differ. Agrees with the authors' code, KD-Zoo, RepDistiller, mdistiller and
    torchdistill; mmrazor normalises the embeddings first.
    """
    return F.smooth_l1_loss(distances(s_BD), distances(t_BD))


def angles(x_BD: Tensor) -> Tensor:
    """Cosine of the angle at j of the triple (i, j, k), for all B^3 triples (equation 9); degenerate ones are 0."""
    direction_jiD = unit(x_BD[None, :, :] - x_BD[:, None, :], dim=2)
    return direction_jiD @ direction_jiD.transpose(1, 2)


def rkd_angle(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """Huber distance (delta 1) of the two tensors of angles, mean over B^3 with degenerate triples (as all sources)."""
    return F.smooth_l1_loss(angles(s_BD), angles(t_BD))


@METHODS.register
class RKD(Method):
    """Relations: match the distances and angles between the embeddings of a batch.

    Loss: Huber distance of pairwise distances divided by their mean (term distance), and of the cosines of the angles of
    triples (term angle), means over B*B and B*B*B.
    """

    family = "relations"
    paper = "Park et al., 2019"

    def build(self, pair: Pair) -> None:
        """No hyper-parameters beyond the weights of the two terms."""
        one_tap("rkd", pair)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        (s_BD,), (t_BD,) = student.taps, teacher.taps
        s_BD, t_BD = s_BD.flatten(1), t_BD.flatten(1)
        return {"distance": rkd_distance(s_BD, t_BD), "angle": rkd_angle(s_BD, t_BD)}
