"""Attention by gradients. Dhar, Singh, Peng, Wu, Chellappa: Learning without Memorizing, CVPR 2019,
https://arxiv.org/abs/1811.08051."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.adapters import same_side
from kdrun.methods.base import Batch, Method, Pair, Terms
from kdrun.methods.bounded import unit
from kdrun.methods.checks import check_choice, feature_maps, one_tap
from kdrun.methods.taps import Output

LEAST = {
    "code": 1e-8,
    "paper": 1e-5,
}  # length of a map below which its gradient fades; maps of new networks are far longer


def activation_map(logits_BK: Tensor, x_BCHW: Tensor, label_B: Tensor, variant: str, create_graph: bool) -> Tensor:
    """The class activation map (B, 1, H, W) of the true class: ReLU of the sum over channels of their mean gradient times a map.

    variant "code": the map is the gradient itself, as in KD-Zoo. "paper": the map is the activations; this is Grad-CAM.
    """
    picked = logits_BK.gather(1, label_B[:, None]).sum()
    (gradient,) = torch.autograd.grad(picked, x_BCHW, create_graph=create_graph, retain_graph=True, allow_unused=True)
    if gradient is None:
        raise KdrunError(
            "lwm needs the gradient of a tap; the logits do not depend on method.lwm.taps: tap another layer"
        )
    gradient = gradient.float()
    maps_BCHW = x_BCHW.float() if variant == "paper" else gradient
    return F.relu((gradient.mean((2, 3), keepdim=True) * maps_BCHW).sum(1, keepdim=True))


def map_distance(s_B1HW: Tensor, t_B1HW: Tensor, variant: str = "code") -> Tensor:
    """Absolute difference of two maps at unit length. "code": mean over B and positions. "paper": sum over positions, mean over B.

    The larger map is averaged down.
    """
    s_BP, t_BP = (unit(x.flatten(1), least=LEAST[variant]) for x in same_side(s_B1HW, t_B1HW))
    absolute_BP = (s_BP - t_BP).abs()
    return absolute_BP.sum(1).mean() if variant == "paper" else absolute_BP.mean()


@METHODS.register
class LwM(Method):
    """Attention by gradients: match the class activation map of the true class.

    Loss: mean over B and positions of |q_s - q_t|, q = ReLU(sum over channels of mean gradient times gradient) at unit length;
    variant "paper": Grad-CAM, mean gradient times activation, summed over positions.
    """

    family = "gradients"
    paper = "Dhar et al., 2019"
    needs_classes = True
    teacher = "gradients"

    def build(self, pair: Pair, *, variant: str) -> None:
        known = {"code": "KD-Zoo's map, weight 0.4", "paper": "Grad-CAM, summed"}
        self.variant = check_choice("lwm", "variant", variant, known)
        one_tap("lwm", pair)
        feature_maps("lwm", pair)

    def loss(self, student: Output, teacher: Output, batch: Batch) -> Terms:
        label_B = batch["label"]
        s_B1HW = activation_map(student.logits, student.live[0], label_B, self.variant, create_graph=True)
        t_B1HW = activation_map(teacher.logits, teacher.live[0], label_B, self.variant, create_graph=False)
        return {"map": map_distance(s_B1HW, t_B1HW.detach(), self.variant)}
