"""Flow of solution procedure. Yim, Joo, Bae, Kim: A Gift from Knowledge Distillation, CVPR 2017,
https://openaccess.thecvf.com/content_cvpr_2017/html/Yim_A_Gift_From_CVPR_2017_paper.html."""

from __future__ import annotations

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Stage, Terms, mean
from kdrun.methods.checks import check_choice, feature_maps
from kdrun.methods.taps import Output


def flow(first_BCHW: Tensor, second_BCHW: Tensor, pool: str = "average") -> Tensor:
    """Inner products of the channels of two layers over their H*W positions: (B, C1, C2) (equation 1).

    The larger map is brought to the smaller side by averages (KD-Zoo and RepDistiller) or by maxima (the paper).
    """
    side = min(first_BCHW.shape[2], second_BCHW.shape[2]), min(first_BCHW.shape[3], second_BCHW.shape[3])
    to_side = F.adaptive_avg_pool2d if pool == "average" else F.adaptive_max_pool2d
    first_BCP, second_BCP = (to_side(x, side).flatten(2) for x in (first_BCHW, second_BCHW))
    return first_BCP @ second_BCP.transpose(1, 2) / first_BCP.shape[2]


def flow_distance(s_BCC: Tensor, t_BCC: Tensor, variant: str = "code") -> Tensor:
    """Squared distance of two flows. "code": mean over B, C1 and C2. "paper": equation 2, summed over C1 and C2, mean over B."""
    squared_BCC = (s_BCC - t_BCC).square()
    return squared_BCC.sum((1, 2)).mean() if variant == "paper" else squared_BCC.mean()


@METHODS.register
class FSP(Method):
    """Flow between layers: first match the inner products of the channels of neighbouring layers, then train as usual.

    Loss: mean over consecutive taps of mean over B*C1*C2 of (G_s - G_t)^2, G = inner products of two layers' channels over
    positions / (H*W); variant "paper" sums over C1*C2 and pools by maxima. Stage `flow` trains the student up to the last tap
    on it alone, `distil` trains the whole on the supervised loss. Student and teacher need the same channels at each tap.
    """

    family = "features"
    paper = "Yim et al., 2017"
    distils = False

    def build(self, pair: Pair, *, variant: str) -> None:
        known = {"code": "mean and average pooling, weight 1", "paper": "sum and maximum pooling, equations 1 and 2"}
        self.variant = check_choice("fsp", "variant", variant, known)
        feature_maps("fsp", pair, at_least=2)
        students, teachers = ([shape[1] for shape in side.shapes] for side in (pair.student, pair.teacher) if side)
        if students != teachers:
            raise KdrunError(
                f"fsp needs the same channels on both sides; method.fsp.taps have {students} in the student and {teachers} in"
                " the teacher. Choose a pair of the same width, or another method"
            )
        self.run = pair.run

    def stages(self, pair: Pair, distil: Stage) -> list[Stage]:
        return [Stage("flow", self.initialise, pair.student.until(pair.taps[0][-1])), distil]

    def initialise(self, batch: Batch) -> tuple[Output, Terms]:
        student, teacher = self.run(batch)
        pool = "maximum" if self.variant == "paper" else "average"
        flows = [[flow(*layers, pool) for layers in pairwise(side.taps)] for side in (student, teacher)]
        return student, {"flow": mean(flow_distance(s, t, self.variant) for s, t in zip(*flows, strict=True))}
