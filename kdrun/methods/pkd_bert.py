"""Patience. Sun, Cheng, Gan, Liu: Patient Knowledge Distillation for BERT Model Compression, EMNLP 2019, https://arxiv.org/abs/1908.09355."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.bounded import unit
from kdrun.methods.checks import check_temperature
from kdrun.methods.kd import soft_targets
from kdrun.methods.layers import Taps, count_layers, layer_map, no_taps
from kdrun.methods.taps import Output


def patience(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """Mean squared error of the states of the first token at unit length, over all elements (B, D).

    L_PT of the paper is the sum over D, layers and samples. The released code takes the mean, and the published weights belong to the mean.
    """
    return (unit(s_BD) - unit(t_BD)).square().mean()


@METHODS.register(name="pkd_bert")
class PKDBert(Method):
    """Patience: the states of the first token in several layers, and soft targets.

    Loss: patient = mean over mapped layers, B and D of (s / |s| - t / |t|)^2, s and t the states of [CLS]; soft =
    T^2 KL(softmax(t / T) || softmax(s / T)), mean over B. With weights 1 - alpha for the labels, alpha for soft, beta for patient.
    `layers`: skip (PKD-Skip), last (PKD-Last), uniform, or a list. The last layer of the student is left out, as in the paper: soft
    targets teach it. Unlike widths get a linear layer before the unit length, one per layer; the paper has equal widths. The released
    code divides the soft loss by the number of classes, too; here it is the sum over the classes, as in kd.
    """

    family = "transformers"
    paper = "Sun et al., 2019"
    needs_classes = True
    sequences = True

    @classmethod
    def choose_taps(
        cls, taps: Taps, settings: Mapping[str, Any], student: nn.Module, teacher: nn.Module | None
    ) -> Taps:
        no_taps("pkd_bert", taps, "layers")
        counts = count_layers("pkd_bert", student, "student"), count_layers("pkd_bert", teacher, "teacher")
        mapped = layer_map("pkd_bert", settings["layers"], *counts, but_last=True)
        return [f"cls{m}" for m in range(1, len(mapped) + 1)], [f"cls{layer}" for layer in mapped]

    def build(self, pair: Pair, *, layers: str | list[int], temperature: float) -> None:
        self.temperature = check_temperature("pkd_bert", temperature)
        shapes = zip(pair.student.shapes, pair.teacher.shapes, strict=True)  # type: ignore[union-attr]
        self.connectors = nn.ModuleList(connector(s, t) for s, t in shapes)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        layers = zip(self.connectors, student.taps, teacher.taps, strict=True)
        return {
            "soft": soft_targets(student.logits, teacher.logits, self.temperature),
            "patient": mean(patience(connect(s), t) for connect, s, t in layers),
        }
