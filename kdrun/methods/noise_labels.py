"""Noise labels, a control. Xu: Knowledge-Distillation-NLP, 2020, https://github.com/xv44586/Knowledge-Distillation-NLP."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.checks import check_temperature, check_within
from kdrun.methods.counters import normal
from kdrun.methods.kd import soft_targets
from kdrun.methods.taps import Output


def noise_logits(key: int, index_B: Tensor, label_B: Tensor, classes: int, peak: float, scale: float) -> Tensor:
    """Made-up logits (B, K): peak on the label, plus normal noise of deviation `scale`, which depends on key, row and class alone."""
    noise_BK = normal(key, index_B[:, None], torch.arange(classes, device=index_B.device)[None])
    return peak * F.one_hot(label_B, classes).float() + scale * noise_BK.float()


@METHODS.register(name="noise_labels")
class NoiseLabels(Method):
    """Soft targets from noise, without a teacher: a control that shows how much of a gain is only softened labels.

    Loss: T^2 KL(softmax(z / T) || softmax(s / T)), mean over B; z = peak onehot(y) + scale e, e drawn from N(0, 1) once for each
    sample (row of the training set) and class, by the seed of the run. With peak = 1, scale = 0.1 and T = 3 it is what
    knowledge_distillation_bert.py calls `normal_noise`, which draws once per sentence, too. So its targets are softened labels with a
    little noise; with peak = 0 they know nothing of the label.
    """

    family = "labels"
    paper = "Xu, 2020"
    teacher = "none"
    needs_classes = True
    needs = ("label", "index")

    def build(self, pair: Pair, *, temperature: float, peak: float, scale: float) -> None:
        self.temperature = check_temperature("noise_labels", temperature)
        self.peak = check_within("noise_labels.peak", peak, 0, 1e6, why="0: the label is not in the targets")
        self.scale = check_within(
            "noise_labels.scale", scale, 0, 1e6, why="the deviation of the noise; 0: softened labels alone"
        )
        self.classes = pair.data.classes
        self.key = int(torch.randint(2**62, ()))  # drawn from the method's own stream of the run's seed

    def loss(self, student: Output, teacher: Any, batch: Batch) -> Terms:
        z_BK = noise_logits(self.key, batch["index"], batch["label"], self.classes, self.peak, self.scale)
        return {"soft": soft_targets(student.logits, z_BK, self.temperature)}
