"""Detections: which anchors count, boxes from the distributions of their distances, and the CIoU of two boxes.

A detector gives for each of A anchors the logits of K classes, `scores` (B, K, A), and for the distance from the anchor's centre to each
side of its box (left, top, right, bottom) the logits of R bins, `boxes` (B, 4R, A). Distances are in units of the level's stride.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from kdrun.errors import KdrunError
from kdrun.methods.base import Pair
from kdrun.methods.bounded import LEAST, faded, never_negative

EPSILON = 1e-7  # in denominators, in square strides: boxes without area stay finite


def anchor_weights(t_BKA: Tensor, gate: float) -> Tensor:
    """How much each anchor counts, (B, A), without gradient: the teacher's largest class probability if it is above `gate`, else 0."""
    confidence_BA = t_BKA.detach().sigmoid().amax(1)
    return confidence_BA * (confidence_BA > gate)


def weighted_mean(loss_BA: Tensor, weight_BA: Tensor) -> Tensor:
    """Sum of weight times loss, over the sum of the weights; 0 where no anchor of the batch counts."""
    return (loss_BA * weight_BA).sum() / weight_BA.sum().clamp(min=torch.finfo(weight_BA.dtype).tiny)


def distributions(boxes_BDA: Tensor) -> Tensor:
    """Logits (B, 4R, A) as those of each distance, (B, 4, R, A)."""
    return boxes_BDA.unflatten(1, (4, -1))


def distances(boxes_BDA: Tensor) -> Tensor:
    """Left, top, right, bottom (B, 4, A): the expected values of their distributions over 0 ... R - 1."""
    p_B4RA = distributions(boxes_BDA).softmax(2)
    bins_R1 = torch.arange(p_B4RA.shape[2], device=p_B4RA.device, dtype=p_B4RA.dtype)[:, None]
    return (p_B4RA * bins_R1).sum(2)


def complete_iou_loss(s_B4A: Tensor, t_B4A: Tensor) -> Tensor:
    """1 - CIoU of two boxes at one anchor, (B, A); both as distances left, top, right, bottom from its centre.

    CIoU = IoU - rho^2 / c^2 - alpha v: rho is the distance of the centres, c the diagonal of the smallest box around both,
    v = 4 / pi^2 (arctan(w_t / h_t) - arctan(w_s / h_s))^2 and alpha = v / (1 - IoU + v), which gets no gradient. It does not depend on
    where the anchor lies or on the unit. Two equal boxes have an IoU of 1, also without area. The gradient of the angle fades where a
    box is much smaller than a stride (kdrun.methods.bounded).
    """
    smaller_B4A, larger_B4A = torch.minimum(s_B4A, t_B4A), torch.maximum(s_B4A, t_B4A)
    inter_BA = _area(smaller_B4A)  # both boxes hold the anchor's centre, so they always meet
    iou_BA = (inter_BA + EPSILON) / (_area(s_B4A) + _area(t_B4A) - inter_BA + EPSILON)
    move_B2A = ((s_B4A[:, 2:] - s_B4A[:, :2]) - (t_B4A[:, 2:] - t_B4A[:, :2])) / 2  # of the centre, in x and y
    around_B2A = larger_B4A[:, :2] + larger_B4A[:, 2:]
    apart_BA = move_B2A.square().sum(1) / (around_B2A.square().sum(1) + EPSILON)
    v_BA = 4 / math.pi**2 * (_angle(t_B4A) - _angle(s_B4A)).square()
    alpha_BA = (v_BA / (1 - iou_BA + v_BA + EPSILON)).detach()
    return never_negative(1 - iou_BA + apart_BA + alpha_BA * v_BA)


def _area(x_B4A: Tensor) -> Tensor:
    return (x_B4A[:, 0] + x_B4A[:, 2]) * (x_B4A[:, 1] + x_B4A[:, 3])


def _angle(x_B4A: Tensor) -> Tensor:
    """arctan(width / height)."""
    side_B2A = (x_B4A[:, :2] + x_B4A[:, 2:]).clamp(min=EPSILON)
    return faded(torch.atan2(side_B2A[:, 0], side_B2A[:, 1]), side_B2A.norm(dim=1), LEAST)


def detections(name: str, shapes: Any, who: str) -> Mapping[str, Any]:
    """The shapes of a detector's output. KdrunError where the model is none. `who`: "the student"."""
    if isinstance(shapes, Mapping) and {"boxes", "scores", "feats"} <= set(shapes):
        return shapes
    gives = f"a dict of {', '.join(map(str, shapes))}" if isinstance(shapes, Mapping) else f"a tensor of shape {shapes}"
    raise KdrunError(
        f"method '{name}' compares detections (boxes and scores), and {who} gives {gives}; choose a dataset of boxes: dataset=yolo"
    )


def check_alike(name: str, pair: Pair, peer: Any = None) -> None:
    """KdrunError unless both are detectors of the same classes, anchors and bins. `peer`: the shapes of its output, if it teaches."""
    who = "teacher" if peer is None else "peer"
    student = detections(name, pair.student.logits, "the student")
    teacher = detections(name, pair.teacher.logits if pair.teacher and peer is None else peer, f"the {who}")
    for key, dim, what, way in (
        ("scores", 1, "classes", "choose a teacher that was trained on the same classes"),
        ("scores", 2, "anchors", "choose models with the same strides"),
        ("boxes", 1, "logits for a box", "choose models with the same number of bins for a distance (reg_max)"),
    ):
        theirs, ours = teacher[key][dim], student[key][dim]
        if theirs != ours:
            raise KdrunError(f"method '{name}': the {who} has {theirs} {what}, and the student has {ours}; {way}")
