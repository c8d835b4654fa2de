"""Hints. Romero et al.: FitNets: Hints for Thin Deep Nets, ICLR 2015, https://arxiv.org/abs/1412.6550."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Stage, Terms
from kdrun.methods.checks import check_choice, check_temperature
from kdrun.methods.kd import soft_targets
from kdrun.methods.taps import Output


def hint(s_BCHW: Tensor, t_BCHW: Tensor) -> Tensor:
    """Mean squared error of a guided layer (after its regressor) against its hint, over all elements.

    Equation 3 has half the sum. All released code takes the mean, and the published weights belong to the mean.
    """
    return F.mse_loss(s_BCHW, t_BCHW)


@METHODS.register
class FitNet(Method):
    """Hints: first learn the output of the teacher's middle layer, then distil soft targets.

    Loss: mean over elements of (r(s) - t)^2, r a convolution with batch norm and ReLU where shapes differ; then soft targets.
    variant "paper": two stages. `hints` trains the student up to the guided layer, and the regressor, on the hint alone;
    `distil` trains the whole student on soft targets (algorithm 1). variant "joint": one stage, the hint together with the
    supervised loss, as in KD-Zoo's and RepDistiller's tables (conf/method/fitnet_joint.yaml has KD-Zoo's weight). The
    regressor is RepDistiller's convolution, batch norm and ReLU; with `regressor: unlike` there is none if the shapes are equal (KD-Zoo),
    with `always` there is always one (RepDistiller).
    """

    family = "features"
    paper = "Romero et al., 2015"
    needs_classes = True

    def build(self, pair: Pair, *, variant: str, temperature: float, regressor: str) -> None:
        known = {"paper": "hints, then distillation", "joint": "one stage"}
        check_choice("fitnet", "variant", variant, known)
        check_choice(
            "fitnet", "regressor", regressor, {"unlike": "only if shapes differ", "always": "also if shapes are equal"}
        )
        if len(pair.taps[0]) != 1:
            raise KdrunError(f"fitnet takes one guided layer; method.fitnet.taps names {len(pair.taps[0])}")
        self.variant, self.temperature, self.run = variant, check_temperature("fitnet", temperature), pair.run
        shapes = pair.student.shapes[0], pair.teacher.shapes[0]  # type: ignore[union-attr]
        self.regressor = connector(*shapes, always=regressor == "always")

    def stages(self, pair: Pair, distil: Stage) -> list[Stage]:
        if self.variant == "joint":
            return [distil]
        guided: list[nn.Module] = [*pair.student.until(pair.taps[0][0]), self.regressor]
        return [Stage("hints", self.hints, guided), distil]

    def hints(self, batch: Batch) -> tuple[Output, Terms]:
        student, teacher = self.run(batch)
        return student, {"hint": hint(self.regressor(student.taps[0]), teacher.taps[0])}

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        if self.variant == "joint":
            return {"hint": hint(self.regressor(student.taps[0]), teacher.taps[0])}
        return {"soft": soft_targets(student.logits, teacher.logits, self.temperature)}
