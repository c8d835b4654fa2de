"""The loss that the library ultralytics has for distillation, as a baseline: the class DistillationModel of its release 8.4,
https://github.com/ultralytics/ultralytics."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.boxes import detections
from kdrun.methods.taps import Output


def score_weighted_distance(s_BCHW: Tensor, t_BCHW: Tensor, score_BP: Tensor) -> Tensor:
    """Squared differences, weighted by a score of each of the P = H*W positions: the weighted mean over B and P, the mean over C."""
    square_BP = (s_BCHW - t_BCHW).square().sum(1).flatten(1)
    return (square_BP * score_BP).sum() / (score_BP.sum() * s_BCHW.shape[1] + 1e-9)


def projector(student: int, teacher: int) -> nn.Sequential:
    """From the student's channels to the teacher's: two 1x1 convolutions with a ReLU between, also where the numbers are equal."""
    return nn.Sequential(nn.Conv2d(student, teacher, 1), nn.ReLU(), nn.Conv2d(teacher, teacher, 1))


@METHODS.register
class Ultralytics(Method):
    """The library's own loss: squared differences of the maps that the head takes, where the teacher sees something.

    Loss: sum over levels of sum over B and positions of c ||P(s) - t||^2 / (C sum over B and positions of c); c is the teacher's largest
    class probability at the position, P two 1x1 convolutions with a ReLU between, one P a level, trained with the student. The weight of 6
    is the library's default `dis`.
    """

    family = "detection"
    paper = "Ultralytics, 2026"
    needs = ()

    def build(self, pair: Pair) -> None:
        student = detections("ultralytics", pair.student.logits, "the student")["feats"]
        teacher = detections("ultralytics", pair.teacher.logits, "the teacher")["feats"]  # type: ignore[union-attr]
        if [shape[2:] for shape in student] != [shape[2:] for shape in teacher]:
            sides = [[tuple(shape[2:]) for shape in shapes] for shapes in (student, teacher)]
            raise KdrunError(
                f"method 'ultralytics' compares the maps that the heads take, and those of the student have the sides {sides[0]}, of the "
                f"teacher {sides[1]}; choose models with the same strides"
            )
        self.projectors = nn.ModuleList(projector(s[1], t[1]) for s, t in zip(student, teacher, strict=True))

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        maps = teacher.logits["feats"]
        confidence_BA = teacher.logits["scores"].sigmoid().amax(1)
        scores = confidence_BA.split([t.shape[2] * t.shape[3] for t in maps], dim=1)
        levels = zip(self.projectors, student.logits["feats"], maps, scores, strict=True)
        losses = [score_weighted_distance(project(s), t, score_BP) for project, s, t, score_BP in levels]
        return {"neck": sum(losses[1:], losses[0])}
