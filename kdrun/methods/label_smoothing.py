"""Label smoothing. Szegedy, Vanhoucke, Ioffe, Shlens, Wojna: Rethinking the Inception Architecture, CVPR 2016,
https://arxiv.org/abs/1512.00567."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.checks import check_share
from kdrun.methods.taps import Output


def smoothed_cross_entropy(logits_BK: Tensor, label_B: Tensor, smoothing: float) -> Tensor:
    """Cross-entropy with (1 - smoothing) on the label and smoothing / K on every class (section 7), mean over B."""
    log_p_BK = F.log_softmax(logits_BK, dim=1)
    right_B = log_p_BK.gather(1, label_B[:, None])[:, 0]
    return -((1 - smoothing) * right_B + smoothing * log_p_BK.mean(1)).mean()


@METHODS.register(name="label_smoothing")
class LabelSmoothing(Method):
    """Label smoothing, without a teacher: a control that shows how much of a gain is only regularisation.

    Loss: in place of the supervised loss, -(1 - e) log p_y - e mean over classes of log p.
    """

    family = "labels"
    paper = "Szegedy et al., 2016"
    needs_classes = True
    teacher = "none"

    def build(self, pair: Pair, *, smoothing: float) -> None:
        self.smoothing = check_share("label_smoothing.smoothing", smoothing)

    def loss(self, student: Output, teacher: Any, batch: Batch) -> Terms:
        return {}

    def task(self, output: Output, batch: Batch, supervised: Callable[[Any, Batch], Tensor]) -> Tensor:
        return smoothed_cross_entropy(output.logits, batch["label"], self.smoothing)
