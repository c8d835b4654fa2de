"""Class scores of a detector. The binary form: Yang, Zhou, Yang, Wang, Yang, Yuan: Bridging Cross-task Protocol Inconsistency for
Distillation in Dense Object Detection, ICCV 2023, https://arxiv.org/abs/2308.14286."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import exact, never_negative
from kdrun.methods.boxes import anchor_weights, check_alike, weighted_mean
from kdrun.methods.checks import check_choice, check_temperature
from kdrun.methods.taps import Output

KINDS = {
    "kl": "divergence of sigmoids",
    "l2": "squared difference of probabilities",
    "l1": "absolute difference of probabilities",
    "bckd": "weighted binary cross-entropy",
}


def binary_divergence(s: Tensor, t: Tensor, temperature: float) -> Tensor:
    """T^2 KL((p, 1 - p) || (q, 1 - q)), p = sigmoid(t / T), q = sigmoid(s / T), of each element; never negative."""
    given = s.dtype
    s, t = (x / temperature for x in exact(temperature, s, t))
    yes = t.sigmoid() * (F.logsigmoid(t) - F.logsigmoid(s))
    no = (-t).sigmoid() * (F.logsigmoid(-t) - F.logsigmoid(-s))
    return (temperature**2 * never_negative(yes + no)).to(given)


def weighted_cross_entropy(s: Tensor, t: Tensor) -> Tensor:
    """|p - q| BCE(q, p) of each element, p = sigmoid(t) and q = sigmoid(s). The weight has a gradient, too, as in the authors' code."""
    p = t.sigmoid()
    return (p - s.sigmoid()).abs() * F.binary_cross_entropy_with_logits(s, p, reduction="none")


def score_distance(s_BKA: Tensor, t_BKA: Tensor, kind: str, temperature: float = 1.0) -> Tensor:
    """Distance of the class scores of each anchor, summed over the classes, (B, A). `temperature` counts for kind kl alone."""
    if kind == "kl":
        return binary_divergence(s_BKA, t_BKA, temperature).sum(1)
    if kind == "bckd":
        return weighted_cross_entropy(s_BKA, t_BKA).sum(1)
    difference_BKA = s_BKA.sigmoid() - t_BKA.sigmoid()
    return (difference_BKA.square() if kind == "l2" else difference_BKA.abs()).sum(1)


def check_kind(name: str, kind: str, temperature: float) -> tuple[str, float]:
    """The kind of distance and its temperature, which only kl has."""
    check_choice(name, "kind", kind, KINDS)
    check_temperature(name, temperature)
    if kind != "kl" and temperature != 1:
        raise KdrunError(
            f"method.{name}.temperature is {temperature:g}, and kind={kind} compares probabilities as they are; leave it at 1, or say "
            f"method.{name}.kind=kl"
        )
    return kind, temperature


def check_gate(name: str, gate: float) -> float:
    """A probability below 1."""
    if not 0 <= gate < 1:
        raise KdrunError(f"method.{name}.gate is {gate}; it must be 0 or more (0 counts every anchor), and below 1")
    return gate


@METHODS.register(name="yolo_logits")
class YoloLogits(Method):
    """Class scores of a detector: make each anchor's probabilities those of the teacher, where the teacher sees something.

    Loss: sum over anchors of w d / sum over anchors of w, over the whole batch. w is the teacher's largest class probability where that is
    above `gate`, and 0 elsewhere; with `gate: 0` all anchors count, each by its w. d is a sum over classes, with p = sigmoid(t) and
    q = sigmoid(s). kl: T^2 KL((p, 1 - p) || (q, 1 - q)) of logits divided by T. l2: (p - q)^2. l1: |p - q|.
    bckd: |p - q| BCE(q, p), the binary classification distillation of Yang et al. (theirs weighs all anchors alike).
    """

    family = "detection"
    paper = "Yang et al., 2023"
    needs = ()

    def build(self, pair: Pair, *, kind: str, temperature: float, gate: float) -> None:
        self.kind, self.temperature = check_kind("yolo_logits", kind, temperature)
        self.gate = check_gate("yolo_logits", gate)
        check_alike("yolo_logits", pair)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        s_BKA, t_BKA = student.logits["scores"], teacher.logits["scores"]
        distance_BA = score_distance(s_BKA, t_BKA, self.kind, self.temperature)
        return {"scores": weighted_mean(distance_BA, anchor_weights(t_BKA, self.gate))}
