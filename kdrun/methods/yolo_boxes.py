"""Boxes of a detector. Zheng, Ye, Wang, Hou, Zuo, Ren, Cheng: Localization Distillation for Dense Object Detection, CVPR 2022,
https://arxiv.org/abs/2102.12252; CIoU: Zheng, Wang, Liu, Li, Ye, Ren: Distance-IoU Loss, AAAI 2020, https://arxiv.org/abs/1911.08287."""

from __future__ import annotations

from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import tempered_kl
from kdrun.methods.boxes import (
    anchor_weights,
    check_alike,
    complete_iou_loss,
    distances,
    distributions,
    weighted_mean,
)
from kdrun.methods.checks import check_temperature
from kdrun.methods.taps import Output
from kdrun.methods.yolo_logits import check_gate


def side_divergence(s_BDA: Tensor, t_BDA: Tensor, temperature: float) -> Tensor:
    """T^2 KL of the distributions of each distance, teacher to student, mean over the four sides, (B, A)."""
    return tempered_kl(distributions(s_BDA), distributions(t_BDA), temperature, dim=2).mean(1)


def box_terms(s_BDA: Tensor, t_BDA: Tensor, weight_BA: Tensor, temperature: float) -> Terms:
    """Both terms of box logits (B, 4R, A), weighted means over the anchors; the teacher's get no gradient."""
    ciou_BA = complete_iou_loss(distances(s_BDA), distances(t_BDA.detach()))
    dfl_BA = side_divergence(s_BDA, t_BDA.detach(), temperature)
    return {"ciou": weighted_mean(ciou_BA, weight_BA), "dfl": weighted_mean(dfl_BA, weight_BA)}


@METHODS.register(name="yolo_boxes")
class YoloBoxes(Method):
    """Boxes of a detector: put each anchor's box where the teacher's is, and be as sure of its sides as the teacher.

    Loss: ciou = 1 - CIoU of the student's box and the teacher's box at the same anchor (alpha without gradient); dfl = T^2
    KL(softmax(t / T) || softmax(s / T)) over the bins of a distance, mean over the four sides. Both are means over the anchors of the
    batch, weighted by w / sum of w: w is the teacher's largest class probability where that is above `gate`, and 0 elsewhere. A box is the
    expected values of its four distributions. `temperature` is that of dfl; in the paper it is 10, and the anchors that count are chosen
    by their overlap with labelled boxes.
    """

    family = "detection"
    paper = "Zheng et al., 2022"
    needs = ()

    def build(self, pair: Pair, *, temperature: float, gate: float) -> None:
        self.temperature, self.gate = check_temperature("yolo_boxes", temperature), check_gate("yolo_boxes", gate)
        check_alike("yolo_boxes", pair)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        weight_BA = anchor_weights(teacher.logits["scores"], self.gate)
        return box_terms(student.logits["boxes"], teacher.logits["boxes"], weight_BA, self.temperature)
