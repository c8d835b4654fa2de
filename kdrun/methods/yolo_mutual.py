"""Mutual learning of detectors: Zhang, Xiang, Hospedales, Lu: Deep Mutual Learning, CVPR 2018, https://arxiv.org/abs/1706.00384, with the
losses of yolo_logits and yolo_boxes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from kdrun.config.registry import METHODS
from kdrun.errors import KdrunError
from kdrun.methods.base import Batch, Method, Pair, Terms, mean
from kdrun.methods.boxes import anchor_weights, check_alike, weighted_mean
from kdrun.methods.checks import check_temperature
from kdrun.methods.taps import Output, dry_run, shapes
from kdrun.methods.yolo_boxes import box_terms
from kdrun.methods.yolo_logits import check_gate, check_kind, score_distance


@METHODS.register(name="yolo_mutual")
class YoloMutual(Method):
    """Mutual learning of detectors: several are trained together from scratch, each also on what the others detect.

    Loss: logits, ciou and dfl = sum over networks of the mean over their peers of the losses of yolo_logits and yolo_boxes, the peer as
    the teacher and detached; peers = the peers' supervised losses. The peers have the teacher's architecture (the student's if
    teacher=none) and their own random streams. All losses come from one forward pass of each network.
    """

    family = "detection"
    paper = "Zhang et al., 2018"
    teacher = "fresh"
    needs = ()

    def build(
        self, pair: Pair, *, networks: int, kind: str, temperature: float, box_temperature: float, gate: float
    ) -> None:
        if networks < 2:
            raise KdrunError(
                f"method.yolo_mutual.networks is {networks}; mutual learning needs at least 2, including the student"
            )
        self.kind, self.temperature = check_kind("yolo_mutual", kind, temperature)
        self.gate = check_gate("yolo_mutual", gate)
        self.box_temperature = check_temperature("yolo_mutual", box_temperature, key="box_temperature")
        self.supervised = pair.supervised
        self.peers = nn.ModuleList(pair.fresh(i) for i in range(1, networks))
        check_alike("yolo_mutual", pair, shapes(dry_run(self.peers[0], pair.data.example).logits))

    def evaluates(self) -> dict[str, nn.Module]:
        return {f"peer{i}": peer.module for i, peer in enumerate(self.peers, start=1)}  # type: ignore[misc]

    def loss(self, student: Output, teacher: Any, batch: Batch) -> Terms:
        outputs = [student.logits, *(peer(batch["input"]).logits for peer in self.peers)]
        ways = [
            [self._learn(mine, other) for j, other in enumerate(outputs) if j != i] for i, mine in enumerate(outputs)
        ]
        terms = {key: _total([mean(way[key] for way in of_one) for of_one in ways]) for key in ways[0][0]}
        return {"peers": _total([self.supervised(output, batch) for output in outputs[1:]]), **terms}

    def _learn(self, mine: dict[str, Tensor], other: dict[str, Tensor]) -> Terms:
        """What one network pays for being unlike another, which is detached."""
        t_BKA = other["scores"].detach()
        weight_BA = anchor_weights(t_BKA, self.gate)
        logits_BA = score_distance(mine["scores"], t_BKA, self.kind, self.temperature)
        return {
            "logits": weighted_mean(logits_BA, weight_BA),
            **box_terms(mine["boxes"], other["boxes"], weight_BA, self.box_temperature),
        }


def _total(losses: list[Tensor]) -> Tensor:
    return sum(losses[1:], losses[0])
