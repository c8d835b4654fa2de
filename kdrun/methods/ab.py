"""Activation boundaries. Heo, Lee, Yun, Choi: Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons,
AAAI 2019, https://arxiv.org/abs/1811.03233."""

from __future__ import annotations

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.methods.adapters import connector
from kdrun.methods.base import Batch, Method, Pair, Stage, Terms, mean
from kdrun.methods.checks import check_choice, check_within, feature_maps
from kdrun.methods.taps import Output


def boundary(s: Tensor, t: Tensor, margin: float) -> Tensor:
    """The cost of each student neuron on the wrong side of its boundary, or nearer to it than the margin.

    Both tensors are from before the activation and have the same shape. The cost of an element is (s + m)^2 where t <= 0 and
    s > -m, (s - m)^2 where t > 0 and s <= m, else 0.
    """
    silent = (s + margin).square() * ((s > -margin) & (t <= 0))
    active = (s - margin).square() * ((s <= margin) & (t > 0))
    return silent + active


def boundaries(layers: list[tuple[Tensor, Tensor]], margin: float, variant: str = "code") -> Tensor:
    """`boundary` over several layers, first to last. "code": mean over all elements, then over layers (KD-Zoo).

    "paper": sum over C*H*W, mean over B; the last layer has weight 1, each earlier one half of the next (as in the authors'
    code, which also divides by 1000 / 3).
    """
    costs = [boundary(s, t, margin) for s, t in layers]
    if variant == "paper":
        each = [cost.flatten(1).sum(1).mean() / 2 ** (len(costs) - 1 - i) for i, cost in enumerate(costs)]
        return sum(each[1:], each[0])
    return mean(cost.mean() for cost in costs)


@METHODS.register
class AB(Method):
    """Activation boundaries: first learn which neurons of the teacher are active, then train as usual.

    Loss: mean of (s + m)^2 where the teacher is silent and s > -m, (s - m)^2 where it is active and s <= m, over maps before
    their activation. Stage `boundaries` trains the student up to the last tap, and connectors where shapes differ, on it alone;
    `distil` trains the whole on the supervised loss.
    """

    family = "features"
    paper = "Heo et al., 2019"
    distils = False

    def build(self, pair: Pair, *, margin: float, variant: str) -> None:
        known = {"code": "means, margin 2, weight 10", "paper": "sums, earlier layers halved"}
        self.variant = check_choice("ab", "variant", variant, known)
        feature_maps("ab", pair)
        self.margin, self.run = check_within("ab.margin", margin, 1e-6, 1e6, "on either side of a boundary"), pair.run
        shapes = zip(pair.student.shapes, pair.teacher.shapes, strict=True)  # type: ignore[union-attr]
        self.connectors = nn.ModuleList(connector(s, t, tail="bn") for s, t in shapes)

    def stages(self, pair: Pair, distil: Stage) -> list[Stage]:
        body = [*pair.student.until(pair.taps[0][-1]), self.connectors]
        return [Stage("boundaries", self.initialise, body), distil]

    def initialise(self, batch: Batch) -> tuple[Output, Terms]:
        student, teacher = self.run(batch)
        adapted = [connect(tap) for connect, tap in zip(self.connectors, student.taps, strict=True)]
        layers = list(zip(adapted, teacher.taps, strict=True))
        return student, {"boundary": boundaries(layers, self.margin, self.variant)}
