"""Sobolev training: match input gradients.

Czarnecki et al., Sobolev Training for Neural Networks, NIPS 2017, https://arxiv.org/abs/1706.04859; Srinivas, Fleuret,
Knowledge Transfer with Jacobian Matching, ICML 2018, https://arxiv.org/abs/1803.00443 (the classification form used here).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import unit
from kdrun.methods.taps import Output

LEAST = 1e-3  # length of an input gradient below which its own gradient fades; in new networks it is 0.06 and more


def input_gradient(logits_BK: Tensor, input_BCHW: Tensor, label_B: Tensor, create_graph: bool) -> Tensor:
    """The gradient of each image's true-class logit with respect to that image, flattened to (B, C*H*W).

    Images of a batch must not influence each other's logits (batch norm in train mode couples them; the gradient of the
    sum is what every published code takes).
    """
    picked = logits_BK.gather(1, label_B[:, None]).sum()
    (gradient,) = torch.autograd.grad(picked, input_BCHW, create_graph=create_graph, retain_graph=True)
    return gradient.float().flatten(1)


def sobolev(s_BD: Tensor, t_BD: Tensor) -> Tensor:
    """Mean squared difference of the two input gradients, each scaled to unit length per image.

    KD-Zoo takes the mean over B and D; its weight of 20 belongs to it. Jacobian matching sums over D.
    """
    return F.mse_loss(unit(s_BD, least=LEAST), unit(t_BD, least=LEAST))


@METHODS.register
class Sobolev(Method):
    """Input gradients: match how the logit of the true class depends on every pixel.

    Loss: mean over B and pixels of (g_s - g_t)^2, g the gradient of the true-class logit with respect to the image, at unit
    length.
    """

    family = "gradients"
    paper = "Czarnecki et al., 2017"
    teacher = "gradients"

    def build(self, pair: Pair) -> None:
        """No hyper-parameters beyond the weight."""

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        label_B = batch["label"]
        s_BD = input_gradient(student.logits, student.input, label_B, create_graph=True)
        t_BD = input_gradient(teacher.logits, teacher.input, label_B, create_graph=False)
        return {"gradient": sobolev(s_BD, t_BD)}
